// Package nomadtest has a stand-in for Nomad's servers, for tests of what real
// ones do only in bad moments. It keeps nodes, allocations and drains, and treats
// a drain's metadata as Nomad's state store does (updateNodeDrainImpl).
package nomadtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
)

// Accessor is the token of whoever asks over HTTP.
const Accessor = "accessor-ours"

// Fake is a server. Its fields may be changed inside Do alone.
type Fake struct {
	*httptest.Server
	Nodes  map[string]*api.Node
	Allocs map[string][]*api.Allocation
	// Jobs are those of the namespace default, each with its versions, the latest first.
	Jobs map[string][]*api.Job
	// Blind answers that the token may not read jobs.
	Blind bool
	// Lock answers a lock operation (acquire, renew, release); 0: it succeeds.
	Lock   func(op string) (code int, text string)
	Drains []*api.DrainSpec // each that was set over HTTP; nil: ended

	mu    sync.Mutex
	clock time.Time // LastDrain has whole seconds
}

// New starts a server with nodes of these ids, ready, eligible, with podman: all
// are this host's.
func New(t testing.TB, ids ...string) *Fake {
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	f := &Fake{Nodes: map[string]*api.Node{}, Allocs: map[string][]*api.Allocation{}, clock: time.Now().Truncate(time.Second)}
	for i, id := range ids {
		f.Nodes[id] = &api.Node{ID: id, HTTPAddr: fmt.Sprintf("127.0.0.1:%d", 4646+i), Name: "node-" + id, Status: api.NodeStatusReady, SchedulingEligibility: api.NodeSchedulingEligible,
			Drivers:    map[string]*api.DriverInfo{"podman": {Detected: true, Healthy: true}},
			Attributes: map[string]string{"driver.podman.health": "healthy", "unique.hostname": hostname}}
	}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

// Do changes the state, or looks at it.
func (f *Fake) Do(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// Eligible says whether a node takes work.
func (f *Fake) Eligible(id string) (is bool) {
	f.Do(func() { is = f.Nodes[id].SchedulingEligibility == api.NodeSchedulingEligible })
	return is
}

// SetEligible is an operator's nomad node eligibility.
func (f *Fake) SetEligible(id string, eligible bool) {
	word := map[bool]string{true: api.NodeSchedulingEligible, false: api.NodeSchedulingIneligible}[eligible]
	f.Do(func() { f.Nodes[id].SchedulingEligibility = word })
}

// Drain is an operator's nomad node drain; without a spec it ends one.
func (f *Fake) Drain(id string, spec *api.DrainSpec, markEligible bool, meta map[string]string, accessor string) {
	f.Do(func() { f.drain(id, spec, markEligible, meta, accessor) })
}

func (f *Fake) drain(id string, spec *api.DrainSpec, markEligible bool, meta map[string]string, accessor string) {
	n := f.Nodes[id]
	before := n.DrainStrategy
	n.DrainStrategy = nil
	switch {
	case spec != nil:
		n.DrainStrategy, n.SchedulingEligibility = &api.DrainStrategy{DrainSpec: *spec}, api.NodeSchedulingIneligible
	case markEligible:
		n.SchedulingEligibility = api.NodeSchedulingEligible
	}
	if before == nil && spec == nil {
		return
	}
	f.clock = f.clock.Add(time.Second)
	if before == nil {
		n.LastDrain = &api.DrainMetadata{StartedAt: f.clock, Meta: meta}
	}
	if len(meta) > 0 {
		n.LastDrain.Meta = meta
	}
	n.LastDrain.AccessorID, n.LastDrain.UpdatedAt, n.LastDrain.Status = accessor, f.clock, api.DrainStatusDraining
	if spec == nil {
		n.LastDrain.Status = api.DrainStatusCanceled
	}
}

// Complete ends a node's drain as Nomad does when all has moved away.
func (f *Fake) Complete(id string) {
	f.Do(func() {
		f.clock = f.clock.Add(time.Second)
		f.Nodes[id].DrainStrategy = nil
		f.Nodes[id].LastDrain.Status, f.Nodes[id].LastDrain.UpdatedAt = api.DrainStatusComplete, f.clock
	})
}

func (f *Fake) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("index") != "" { // a blocking query
		time.Sleep(100 * time.Millisecond)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("X-Nomad-Index", "10")
	part := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/"), "/")
	switch {
	case part[0] == "status":
		answer(w, "127.0.0.1:4647")
	case part[0] == "nodes":
		var list []*api.NodeListStub
		for _, n := range f.Nodes {
			host, _, _ := strings.Cut(n.HTTPAddr, ":")
			list = append(list, &api.NodeListStub{ID: n.ID, Name: n.Name, Status: n.Status, Address: host})
		}
		answer(w, list)
	case part[0] == "namespaces":
		answer(w, []api.Namespace{{Name: "default"}})
	case part[0] == "node" && f.Nodes[part[1]] == nil:
		http.Error(w, "node not found", http.StatusNotFound)
	case part[0] == "node":
		f.node(w, r, part[1], strings.Join(part[2:], "/"))
	case part[0] == "jobs" || part[0] == "job":
		f.jobs(w, part[1:])
	case part[0] == "var":
		f.variable(w, r, strings.Join(part[1:], "/"))
	default:
		http.NotFound(w, r)
	}
}

func (f *Fake) node(w http.ResponseWriter, r *http.Request, id, what string) {
	var body struct {
		DrainSpec    *api.DrainSpec
		MarkEligible bool
		Meta         map[string]string
		Eligibility  string
	}
	if r.Method != http.MethodGet {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	switch what {
	case "":
		answer(w, f.Nodes[id])
	case "allocations":
		answer(w, f.Allocs[id])
	case "drain":
		f.Drains = append(f.Drains, body.DrainSpec)
		f.drain(id, body.DrainSpec, body.MarkEligible, body.Meta, Accessor)
		answer(w, struct{}{})
	case "eligibility":
		f.Nodes[id].SchedulingEligibility = body.Eligibility
		answer(w, struct{}{})
	}
}

// jobs answers for /v1/jobs, /v1/job/ID and /v1/job/ID/versions.
func (f *Fake) jobs(w http.ResponseWriter, part []string) {
	switch {
	case f.Blind:
		http.Error(w, "Permission denied", http.StatusForbidden)
	case len(part) == 0:
		list := []*api.JobListStub{}
		for id, versions := range f.Jobs {
			s := &api.JobListStub{ID: id}
			if v := versions[0]; v.Stop != nil {
				s.Stop = *v.Stop
			}
			if v := versions[0]; v.Status != nil {
				s.Status = *v.Status
			}
			if v := versions[0]; v.Type != nil {
				s.Type = *v.Type
			}
			s.Periodic = versions[0].Periodic != nil
			list = append(list, s)
		}
		answer(w, list)
	case f.Jobs[part[0]] == nil:
		http.Error(w, "job not found", http.StatusNotFound)
	case len(part) == 1:
		answer(w, f.Jobs[part[0]][0])
	default:
		answer(w, map[string]any{"Versions": f.Jobs[part[0]]})
	}
}

func (f *Fake) variable(w http.ResponseWriter, r *http.Request, path string) {
	for _, op := range []string{"acquire", "renew", "release"} {
		if _, is := r.URL.Query()["lock-"+op]; !is || f.Lock == nil {
			continue
		}
		if code, text := f.Lock(op); code != 0 {
			http.Error(w, text, code)
			return
		}
	}
	answer(w, &api.Variable{Path: path, ModifyIndex: 10, Lock: &api.VariableLock{ID: "lock-1"}})
}

func answer(w http.ResponseWriter, v any) {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(fmt.Sprintf("cannot answer: %v", err))
	}
}
