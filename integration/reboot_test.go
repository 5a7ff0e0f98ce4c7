package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// eachStep are the points before steps are begun, and after they have acted.
func eachStep(steps ...string) []string {
	var at []string
	for _, step := range steps {
		at = append(at, "journal begin "+step, "journal done "+step)
	}
	return at
}

// reboots is one node that loses its power at one point after the other, and whose boots
// end what was begun.
type reboots struct {
	*world
	name   string                      // in the report
	reset  func(round int)             // makes the node what it was
	args   func() []string             // what is cut off
	proved func(w *world, b inventory) // asserts that it is done
}

// reboot cuts the power at points.
func (r *reboots) reboot(t *testing.T, at []string) {
	report, start, well := newSweepReport(t), time.Now(), 0
	for i, point := range at {
		if i > 0 {
			if err := r.node.Reset(r.ctx); err != nil {
				t.Fatal(err)
			}
		}
		r.reset(i)
		if t.Run(strings.ReplaceAll(point, " ", "-"), func(t *testing.T) {
			v := *r.world
			v.t = t
			began := time.Now()
			r.proved(&v, v.rebootAt(point, r.args()...))
			t.Logf("%.0f s", time.Since(began).Seconds())
		}) {
			well++
		}
	}
	if os.Getenv("STORAGECTL_SWEEP") != "full" {
		return
	}
	report.add("bookworm", r.name, "power cut, a boot's service", len(at), len(at), well, start)
}

// rebootAt kills a run at a point, and the whole node with it, and boots that: the service
// ends what was begun. It gives what the store held.
func (w *world) rebootAt(at string, args ...string) (before inventory) {
	w.t.Helper()
	before = w.manifest()
	w.must("runbook", "install", "--resume-only")
	w.killedAt(at, args...)
	w.powerCut()
	if end := w.service("storagectl-resume.service"); end != "inactive success 0" {
		w.t.Fatalf("storagectl-resume.service ended %s: %s\n%s", end, fmt.Sprint(w.must("status")),
			w.script("root", "journalctl --no-pager -b -o short-monotonic -t storagectl | tail -60"))
	}
	return before
}

// TestRebootInEachStep kills the whole node in a job, before a step is begun and when it
// has acted, and boots it: the service ends what was begun. STORAGECTL_SWEEP=full takes
// all steps, and a relocation to a disk, too: TestRelocateReboot and others cut the power
// in that in any test run.
func TestRebootInEachStep(t *testing.T) {
	at := []string{"journal done swap"}
	if os.Getenv("STORAGECTL_SWEEP") == "full" {
		at = eachStep("stage", "prove", "stop", "stage-rest", "swap", "repoint", "storage-conf", "clear-run-state", "verify", "start")
		t.Run("to-disk", rebootsToDisk)
	}
	t.Run("migrate", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, "bookworm", lab.Owner, images.Small)
		r := &reboots{world: w, name: lab.Owner, args: func() []string { return w.migrate() }, proved: (*world).migrated}
		r.reset = func(int) { w.podman("ps") }
		r.reboot(t, at)
	})
}

// relocateSteps are the steps of a relocation that every one has.
func relocateSteps() []string {
	return []string{"target", "copy", "read-back", "stop", "manifest", "swap", "copy-rest", "mount", "verify", "start"}
}

// rebootsToDisk is the same for a relocation to a disk that is mounted.
func rebootsToDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	r := &reboots{world: w, name: lab.Owner + ", relocated to a disk", args: func() []string { return w.relocate() }}
	r.reset = func(int) {
		w.disk("xfs", "2G")
		w.podman("ps")
	}
	r.proved = func(w *world, before inventory) {
		w.moved(before)
		w.usable()
	}
	r.reboot(t, eachStep(relocateSteps()...))
}

// TestRebootInEachStepToImage is the same for a relocation onto an image of Ceph: the
// next boot maps it by its service, beside the run that goes on.
func TestRebootInEachStepToImage(t *testing.T) {
	t.Parallel()
	c := newCeph(t)
	s := &cephSweep{world: joined(t, c, lab.Owner), cluster: c, keys: []string{"store"}}
	at := []string{"journal done image", "journal done swap"}
	if os.Getenv("STORAGECTL_SWEEP") == "full" {
		at = eachStep(append([]string{"image"}, relocateSteps()...)...)
	}
	r := &reboots{world: s.world, name: lab.Owner + ", onto RBD", args: s.toRound}
	r.reset = func(round int) {
		s.removeImages()
		s.round = round
		if err := c.Install(s.ctx, s.node, s.keys...); err != nil {
			t.Fatal(err)
		}
		s.podman("ps")
	}
	r.proved = func(w *world, before inventory) {
		w.onImage(before)
		w.usable()
		if n := len(s.watchers(s.image())); n != 1 {
			w.t.Errorf("%d have image %s open", n, s.image())
		}
	}
	r.reboot(t, at)
}

// usable asserts that podman works where it is, and nothing of what uses the store has
// failed in this boot.
func (w *world) usable() {
	w.t.Helper()
	w.script(w.user, "podman run --rm --network=none -v vol1:/v localhost/lab/base:1 /bin/busybox cat /v/file >/dev/null </dev/null")
	if out := w.script("root", "systemctl --failed --no-legend --plain | grep -e storagectl -e storage -e user@ || true"); out != "" {
		w.t.Errorf("failed: %s", out)
	}
}
