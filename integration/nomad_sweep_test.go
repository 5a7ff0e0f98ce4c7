package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/nomad"
)

// sweepCtl runs the sweep binary as ctl runs storagectl, with more environment.
func (w *nomadWorld) sweepCtl(env string, args ...string) result {
	w.t.Helper()
	argv := append([]string{"env", env}, w.Env(w.at, "")...)
	return w.a.exec("root", append(append(argv, "storagectl-sweep"), args...)...)
}

// kill runs a command until the point of that name, where it kills itself.
func (w *nomadWorld) kill(at string, args ...string) {
	w.t.Helper()
	if r := w.sweepCtl("STORAGECTL_SWEEP_KILL_AT="+at, args...); r.code != -1 {
		w.t.Fatalf("not killed at %q: %s", at, r)
	}
}

// under is the same world in a test of its own.
func (w *nomadWorld) under(t *testing.T) *nomadWorld {
	v, a := *w, *w.a
	v.t, a.t, v.a = t, t, &a
	return &v
}

// passed runs a command to its end and gives the names of the points that it
// passed, in order.
func (w *nomadWorld) passed(args ...string) []string {
	w.t.Helper()
	const file = "/run/points"
	if r := w.sweepCtl("STORAGECTL_SWEEP_LOG="+file, args...); r.code != exitDone {
		w.t.Fatal(r)
	}
	var names []string
	for line := range strings.Lines(w.a.script("root", "cat "+file+"; rm "+file)) {
		if _, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " before "); ok {
			names = append(names, name)
		}
	}
	return names
}

// between are the points from one name to another, each name at its first time:
// a look that is repeated until something is there is one state.
func between(t *testing.T, names []string, from, to string) []string {
	t.Helper()
	i, k := slices.Index(names, from), slices.Index(names, to)
	if i < 0 || k < i {
		t.Fatalf("no points from %q to %q in %q", from, to, names)
	}
	var list []string
	for n, name := range names[i : k+1] {
		if slices.Index(names, name) == i+n {
			list = append(list, name)
		}
	}
	return list
}

// settled asserts what holds once a run is over, whichever way it went.
func (w *nomadWorld) settled(driver string) {
	t := w.t
	t.Helper()
	if d := w.a.driver(); d != driver {
		t.Fatalf("podman is on %s, not %s", d, driver)
	}
	if !w.eligible(w.at) {
		t.Error("the node was not given back")
	}
	if left := strings.TrimSpace(w.a.script("root", "pgrep -a storagectl || true")); left != "" {
		t.Errorf("processes are left: %s", left)
	}
	if up := strings.TrimSpace(w.a.script(lab.Owner, "systemctl --user is-active podman.socket || true")); up != "active" {
		t.Errorf("podman.socket is %s", up)
	}
	// A slot that was taken in the moment of the kill, before its key was written
	// down, is free when its lock has ended: twice 30 s and 10 s.
	held := ""
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(time.Second) {
		if held = w.must("", "status", "--cluster").stdout; !strings.Contains(held, "held by") {
			break
		}
	}
	if strings.Contains(held, "held by") {
		t.Errorf("a slot is held: %s", held)
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if w.count("web") == 2 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the service does not get its second container back")
		}
	}
}

func (w *nomadWorld) count(job string) (n int) {
	allocs, _ := w.Allocs(job) // none: look again
	for _, a := range allocs {
		if a.ClientStatus == api.AllocClientStatusRunning {
			n++
		}
	}
	return n
}

// TestNomadSweep kills storagectl at the points that lie in the steps around the
// migration: journal records, changes in Nomad, hooks, the slot. A stride of
// them; STORAGECTL_SWEEP=full takes all, each way on. Afterwards the node is
// eligible as before, no drain and no slot is left, and the service was never
// down.
func TestNomadSweep(t *testing.T) {
	t.Parallel()
	w := newNomadWorld(t, nomad.Options{})
	web := nomad.ServiceJob("web", "localhost/lab/base:1", 2).Constrain(&api.Constraint{Operand: api.ConstraintDistinctHosts})
	if err := w.RunJob(w.ctx, web, 2); err != nil {
		t.Fatal(err)
	}
	began, low := time.Now(), w.least("web")
	args := w.migrate("--slots", "1", "--hook-before", "true", "--hook-after", "true")
	names := w.passed(args...)
	out := slices.Concat(between(t, names, "journal begin slot", "journal begin stop"),
		between(t, names, "journal begin undrain", "journal phase "))
	w.settled("overlay")
	names = w.passed("rollback")
	back := slices.Concat(between(t, names, "journal undo slot-back", "journal undone undrain"),
		between(t, names, "journal undo drain", "journal undone slot"))
	w.settled("vfs")
	t.Logf("%d points out: %q; %d points back: %q", len(out), out, len(back), back)

	step, resumed, undone := 1, 0, 0
	if os.Getenv("STORAGECTL_SWEEP") != "full" {
		step, resumed, undone = 13, 4, 10
	}
	// Out and back, killed once each time, and both finished by a resume.
	for i := resumed; i < max(len(out), len(back)); i += step {
		p, q := out[i%len(out)], back[i%len(back)]
		ok := t.Run(fmt.Sprintf("%s; %s", p, q), func(t *testing.T) {
			w := w.under(t)
			w.kill(p, args...)
			w.must("", "resume")
			w.settled("overlay")
			w.kill(q, "rollback")
			w.must("", "resume")
			w.settled("vfs")
		})
		if !ok {
			t.FailNow()
		}
	}
	for i := undone; i < len(out); i += step {
		ok := t.Run(out[i]+", rollback", func(t *testing.T) {
			w := w.under(t)
			w.kill(out[i], args...)
			w.must("", "rollback")
			w.settled("vfs")
		})
		if !ok {
			t.FailNow()
		}
	}
	n := low()
	if n < 1 {
		t.Errorf("the service dropped to %d", n)
	}
	if step == 1 && !t.Failed() {
		text := fmt.Sprintf("# The crash sweep of Nomad's steps\n\n"+
			"`make sweep` wrote this on %s. On a real cluster with a service on two nodes, a run that migrates one\n"+
			"of them is killed at each point of the steps around the migration (slot, hooks, drain, return), %d on the\n"+
			"way out and %d on the way back. Each time `resume`, and on the way out `rollback` as well, ended with the\n"+
			"node eligible as before, no drain and no slot left, and podman on the right store. The service never had\n"+
			"less than %d container of 2. It took %.0f minutes.\n\n| way out | way back |\n| --- | --- |\n", time.Now().UTC().Format("2006-01-02"), len(out), len(back), n, time.Since(began).Minutes())
		for i := range max(len(out), len(back)) {
			text += fmt.Sprintf("| %s | %s |\n", strings.Join(out[min(i, len(out)):min(i+1, len(out))], ""), strings.Join(back[min(i, len(back)):min(i+1, len(back))], ""))
		}
		if err := os.WriteFile(filepath.Join(root(t), "docs", "sweep-nomad.md"), []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
}
