package migrate

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/nomad/api"
)

// TestNomadNames: where Nomad's jobs cannot be read, there is no answer, but a refusal.
func TestNomadNames(t *testing.T) {
	o := newOutaged(t)
	t.Setenv("NOMAD_ADDR", o.f.URL)
	t.Setenv("NOMAD_TOKEN", "")
	id, running := "web", "running"
	j := &api.Job{ID: &id, Status: &running, TaskGroups: []*api.TaskGroup{{Tasks: []*api.Task{{Driver: "podman", Config: map[string]any{"image": "redis:7"}}}}}}
	o.f.Do(func() { o.f.Jobs = map[string][]*api.Job{id: {j}} })
	before, proc := "", t.TempDir() // in the real one may be the agents of other tests
	look := func(nomad string) (int, string) {
		t.Helper()
		names, r, err := nomadNames(t.Context(), o.cli, Outage{Nomad: nomad}, before, proc)
		if err != nil {
			t.Fatal(err)
		}
		return len(names), idOf(r)
	}
	if n, r := look(NomadAuto); n != 1 || r != "" {
		t.Errorf("%d names, refusal %q", n, r)
	}
	if n, r := look(NomadOff); n != 0 || r != "" {
		t.Errorf("off: %d names, refusal %q", n, r)
	}
	o.f.Do(func() { o.f.Blind = true })
	if _, r := look(NomadAuto); r != "nomad-rights" {
		t.Errorf("a token without rights: refusal %q", r)
	}
	o.f.Do(func() { o.f.Nodes["a"].HTTPAddr = "192.0.2.1:4646" })
	if n, r := look(NomadAuto); n != 0 || r != "" {
		t.Errorf("nobody's node: %d names, refusal %q", n, r)
	}
	before = "a run drained it"
	if n, r := look(NomadAuto); n != 0 || r != "nomad-unseen" {
		t.Errorf("no longer anybody's node: %d names, refusal %q", n, r)
	}
	o.f.Close()
	if _, r := look(NomadAuto); r != "nomad" {
		t.Errorf("nobody answers: refusal %q", r)
	}
	// An agent that is stopped for a while, without any address.
	t.Setenv("NOMAD_ADDR", "")
	if _, r := look(NomadAuto); r != "nomad-unseen" {
		t.Errorf("an agent that is stopped: refusal %q", r)
	}
	if _, r := look(NomadOff); r != "" {
		t.Errorf("off, and it was here: refusal %q", r)
	}
}

// TestNomadInstalled: what a stopped Nomad leaves to be seen.
func TestNomadInstalled(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if why := nomadInstalled(root); why != "" {
		t.Errorf("nothing is there: %q", why)
	}
	if err := os.MkdirAll(filepath.Join(root, "etc", "nomad.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if why := nomadInstalled(root); why != "/etc/nomad.d is there" {
		t.Errorf("%q", why)
	}
}
