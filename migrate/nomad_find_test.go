package migrate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/internal/podman"
)

// addProc puts a process into a /proc.
func addProc(t *testing.T, proc string, pid int, cmdline string, open ...string) {
	t.Helper()
	dir := filepath.Join(proc, fmt.Sprint(pid))
	if err := os.MkdirAll(filepath.Join(dir, "fd"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cmdline"), []byte(strings.ReplaceAll(cmdline, " ", "\x00")+"\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, path := range open {
		if err := os.Symlink(path, filepath.Join(dir, "fd", fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	asClient = "/var/lib/nomad/client/state.db"
	asServer = "/var/lib/nomad/server/raft/raft.db"
)

func TestNomadAgents(t *testing.T) {
	proc := t.TempDir()
	addProc(t, proc, 10, "/usr/bin/nomad agent -config /etc/nomad.d", "/dev/null", asServer)
	addProc(t, proc, 11, "nomad agent -dev", asServer, asClient)
	addProc(t, proc, 12, "/opt/nomad/nomad agent", asClient)
	addProc(t, proc, 13, "nomad agent") // another user's
	addProc(t, proc, 14, "/usr/bin/nomad logmon")
	addProc(t, proc, 15, "nomad-autoscaler agent")
	addProc(t, proc, 16, "nomad job status agent")
	addProc(t, proc, 17, "")
	addProc(t, proc, 18, "nomad agent", asClient)
	for dir, net := range map[string]string{"self": "net:[1]", "12": "net:[1]", "18": "net:[2]"} { // the others' cannot be read
		if err := errors.Join(os.MkdirAll(filepath.Join(proc, dir, "ns"), 0o700), os.Symlink(net, filepath.Join(proc, dir, "ns", "net"))); err != nil {
			t.Fatal(err)
		}
	}
	if agents, clients := nomadAgents(proc); len(agents) != 4 || len(clients) != 3 {
		t.Errorf("agents %q, clients %q", agents, clients)
	}
}

// TestNomadUnits: each client that may place containers in the store waits for it after a
// boot, whatever its unit is called, and no server does.
func TestNomadUnits(t *testing.T) {
	proc := t.TempDir()
	for pid, a := range map[int]struct{ open, group, uid string }{
		10: {asServer, "/system.slice/nomad-server.service", "0"},
		11: {asClient, "/system.slice/nomad-root.service", "0"},
		12: {asClient, "/system.slice/nomad-hashi.service", "2000"},
		13: {asClient, "/system.slice/nomad-other.service", "2001"},
		14: {asClient, "/user.slice/user-2000.slice/user@2000.service/app.slice/nomad.service", "2000"},
		15: {asClient, "/user.slice/user-0.slice/session-3.scope", "0"},
		16: {asClient, "/system.slice/nomad-root.service", "0"},
		17: {asClient, "/system.slice/cron.service", "2000"}, // her crontab has begun it
	} {
		addProc(t, proc, pid, "nomad agent", a.open)
		dir := filepath.Join(proc, fmt.Sprint(pid))
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "cgroup"), []byte("0::"+a.group+"\n"), 0o600),
			os.WriteFile(filepath.Join(dir, "status"), []byte("Uid:\t"+strings.Repeat(a.uid+"\t", 4)+"\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	_, clients := nomadAgents(proc)
	main := map[string]int{"nomad-root.service": 11, "nomad-hashi.service": 12, "nomad-other.service": 13, "cron.service": 5}
	units := nomadUnits(clients, 2000, func(unit string) int { return main[unit] })
	if want := []string{"nomad-hashi.service", "nomad-root.service", "user@2000.service"}; !slices.Equal(units, want) {
		t.Errorf("%q, want %q", units, want)
	}
	for _, c := range []struct {
		units []string
		want  []string
	}{{units, []string{"user@2000.service", "nomad-hashi.service", "nomad-root.service"}}, {nil, []string{"user@2000.service", "nomad.service"}}} {
		s := &Session{ID: "r1", Inputs: Inputs{Systemd: true, Owner: podman.Owner{UID: 2000}, Store: Store{GraphRoot: "/srv/store"}, Nomad: &NomadUse{Units: c.units}, Target: &Target{}}}
		var got []string
		for _, d := range s.dropIns() {
			got = append(got, d.Unit)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// TestFindNomad: where a client of Nomad runs here, nothing goes on without a
// drain because its node cannot be seen.
func TestFindNomad(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*outaged, *Outage)
		procs  []string // what each agent has open
		nodes  int
		id     string
	}{
		"one":                         {procs: []string{asClient}, nodes: 1},
		"nobody's node":               {change: away, procs: nil},
		"a server alone":              {change: away, procs: []string{asServer}},
		"a client that is not seen":   {change: away, procs: []string{asServer, asClient}, id: "nomad-node"},
		"one of two is not seen":      {procs: []string{asClient, asClient}, id: "nomad-node"},
		"the node is down":            {change: down, id: "nomad-node"},
		"the node is down, and named": {change: func(o *outaged, r *Outage) { r.Nodes = []string{"a"}; down(o, r) }, procs: []string{asClient}, nodes: 1},
		"named":                       {change: func(_ *outaged, r *Outage) { r.Nodes = []string{"a"} }, procs: []string{asClient, asClient}, nodes: 1},
		"nobody answers":              {change: func(o *outaged, _ *Outage) { o.f.Close() }, procs: []string{asServer}, id: "nomad"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOutaged(t)
			t.Setenv("NOMAD_ADDR", o.f.URL)
			t.Setenv("NOMAD_TOKEN", "")
			r := Outage{Nomad: NomadAuto}
			if c.change != nil {
				c.change(o, &r)
			}
			proc := t.TempDir()
			for i, open := range c.procs {
				addProc(t, proc, 10+i, "nomad agent", open)
			}
			use, refusal, err := findNomad(t.Context(), o.cli, r, proc)
			if err != nil {
				t.Fatal(err)
			}
			if id := idOf(refusal); id != c.id {
				t.Errorf("refused as %q: %+v", id, refusal)
			}
			if n := lenOf(use); n != c.nodes {
				t.Errorf("%d nodes", n)
			}
		})
	}
}

func away(o *outaged, _ *Outage) { o.f.Do(func() { o.f.Nodes["a"].HTTPAddr = "192.0.2.1:4646" }) }

func down(o *outaged, _ *Outage) { o.f.Do(func() { o.f.Nodes["a"].Status = api.NodeStatusDown }) }

func idOf(r *Refusal) string {
	if r == nil {
		return ""
	}
	return r.ID
}

func lenOf(u *NomadUse) int {
	if u == nil {
		return 0
	}
	return len(u.Nodes)
}

// TestLeftovers: a container that only looks as if Nomad would end it is refused;
// one that goes a moment after its allocation is not.
func TestLeftovers(t *testing.T) {
	o := newOutaged(t)
	c, err := o.nomad()
	if err != nil {
		t.Fatal(err)
	}
	o.containers(t, ofNomad)
	const id = "11111111-2222-3333-4444-555555555555"
	alloc := func(status string) {
		o.f.Do(func() { o.f.Allocs["a"] = []*api.Allocation{{ID: id, JobID: "web", ClientStatus: status}} })
	}
	look := func(limit time.Duration) *Refusal {
		t.Helper()
		r, err := leftovers(t.Context(), c, o.cli, o.Inputs.Nomad, limit)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	alloc("running")
	if r := look(0); r != nil {
		t.Errorf("of an allocation that lives: %+v", r)
	}
	alloc("complete")
	if r := look(0); r == nil || r.ID != "nomad-leftover" || !strings.Contains(r.Hint, "podman rm -f web-"+id) {
		t.Errorf("%+v", r)
	}
	time.AfterFunc(time.Second, func() { o.containers(t, "[]") })
	if r := look(time.Minute); r != nil {
		t.Errorf("gone after a second: %+v", r)
	}
}
