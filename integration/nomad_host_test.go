package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/nomad"
)

// documented is a block of docs/nomad.md: what people are told is what is tested.
func documented(t testing.TB, lang, has string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(t), "docs", "nomad.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(b), "```"+lang+"\n")[1:] {
		if block, _, ok := strings.Cut(part, "```"); ok && strings.Contains(block, has) {
			return block
		}
	}
	t.Fatalf("docs/nomad.md has no %s block with %q", lang, has)
	return ""
}

// asJob runs storagectl as the job of docs/nomad.md on a client's node, as the
// user that the client runs as, and wants it to succeed.
func (w *nomadWorld) asJob(cl *nomad.Client, change func(*api.Task), args ...string) string {
	w.t.Helper()
	admin, err := w.API(w.Token)
	if err != nil {
		w.t.Fatal(err)
	}
	job, err := admin.Jobs().ParseHCLOpts(&api.JobsParseRequest{
		JobHCL: documented(w.t, "hcl", `job "storagectl"`), Variables: fmt.Sprintf("node = %q", cl.Name), Canonicalize: true})
	if err != nil {
		w.t.Fatal(err)
	}
	task := job.TaskGroups[0].Tasks[0]
	if args != nil {
		task.Config["args"] = args
	}
	if change != nil {
		change(task)
	}
	alloc, err := w.FinishJob(w.ctx, job, 10*time.Minute)
	if err != nil {
		w.t.Fatal(err)
	}
	log, err := cl.Log(w.ctx, alloc.ID, task.Name)
	if err != nil || alloc.ClientStatus != api.AllocClientStatusComplete {
		why, _ := json.Marshal(alloc.TaskStates)
		w.t.Fatalf("the job is %s: %v\n%s\n%s", alloc.ClientStatus, err, log, why)
	}
	return log
}

// TestNomadOneHost: a host with three Nomad clients, two that serve the owner's
// podman and one that serves root's, beside a second host. storagectl runs as a
// job on the very node that it drains.
func TestNomadOneHost(t *testing.T) {
	t.Parallel()
	w := newNomadWorld(t, nomad.Options{ACL: true})
	first := w.Clients[0]
	second, err := w.AddAgent(w.ctx, first, "second", lab.Owner)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := w.AddAgent(w.ctx, first, "roots", "root")
	if err != nil {
		t.Fatal(err)
	}
	admin, err := w.API(w.Token)
	if err != nil {
		t.Fatal(err)
	}
	_, err = admin.ACLPolicies().Upsert(&api.ACLPolicy{Name: "storagectl", Rules: documented(t, "hcl", "node {"),
		JobACL: &api.JobACL{Namespace: "default", JobID: "storagectl"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	web := nomad.ServiceJob("web", "localhost/lab/base:1", 3).
		Constrain(api.NewConstraint("${attr.driver.podman.rootless}", "=", "true"))
	if err := w.RunJob(w.ctx, web, 3); err != nil {
		t.Fatal(err)
	}
	// Work of the client that cannot place containers in the owner's store.
	if err := w.RunJob(w.ctx, nomad.On(nomad.ExecJob("other", api.JobTypeService, "/bin/sleep", "100000"), roots), 1); err != nil {
		t.Fatal(err)
	}
	untouched := func() {
		t.Helper()
		n, err := w.Node(roots)
		if err != nil || n.LastDrain != nil || n.SchedulingEligibility != api.NodeSchedulingEligible {
			t.Errorf("root's client: %v, %+v", err, n.LastDrain)
		}
		allocs, err := w.Allocs("other")
		if err != nil || len(allocs) != 1 || allocs[0].ClientStatus != api.AllocClientStatusRunning {
			t.Errorf("the work of root's client: %v, %+v", err, allocs)
		}
	}
	serving := func() {
		t.Helper()
		for _, cl := range []*nomad.Client{first, second} {
			if n, err := w.Node(cl); err != nil || n.LastDrain == nil || n.LastDrain.Meta["storagectl.run"] == "" {
				t.Errorf("%s was not drained: %v", cl.Name, err)
			}
			if !w.eligible(cl) {
				t.Errorf("%s was not given back", cl.Name)
			}
		}
	}

	t.Run("by its workload identity", func(t *testing.T) {
		w := w.under(t)
		low := w.least("web")
		log := w.asJob(first, nil)
		if n := low(); n < 1 {
			t.Errorf("the job dropped to %d", n)
		}
		t.Log(log)
		if d := w.a.driver(); d != "overlay" {
			t.Errorf("podman is on %s", d)
		}
		serving()
		untouched()
		if left := w.a.podman("ps", "-aq"); left != "" {
			t.Errorf("containers are left: %s", left)
		}
	})

	t.Run("the way back, as another allocation", func(t *testing.T) {
		w := w.under(t)
		w.asJob(first, nil, "rollback")
		if d := w.a.driver(); d != "vfs" {
			t.Errorf("podman is on %s", d)
		}
		serving()
		untouched()
	})

	t.Run("root's store, with a token", func(t *testing.T) {
		w := w.under(t)
		w.a.script("root", "sudo -u hashi -i podman save localhost/lab/base:1 | podman load -q")
		token, err := w.TokenFor("by-hand", documented(t, "hcl", "node {"))
		if err != nil {
			t.Fatal(err)
		}
		was, err := w.Node(first)
		if err != nil {
			t.Fatal(err)
		}
		w.asJob(roots, func(task *api.Task) {
			task.Identity = nil
			task.Env = map[string]string{"NOMAD_ADDR": roots.Addr, "NOMAD_TOKEN": token.SecretID}
		})
		if d := strings.TrimSpace(w.a.script("root", "podman info --format '{{.Store.GraphDriverName}}'")); d != "overlay" {
			t.Errorf("root's podman is on %s", d)
		}
		if !w.eligible(roots) {
			t.Error("root's client was not given back")
		}
		if now, err := w.Node(first); err != nil || now.LastDrain.Meta["storagectl.run"] != was.LastDrain.Meta["storagectl.run"] {
			t.Errorf("the owner's client was drained for root's store: %v", err)
		}
		w.noToken(token.SecretID)
	})
}
