package integration

import (
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestNobodyWatches: a run goes on to its end when the terminal that it was begun
// at is gone, and so does a rollback whose reader has read enough. Meanwhile no
// timer starts a task of podman's.
func TestNobodyWatches(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Plain)
	const timer = "podman-auto-update.timer"
	w.script(lab.Owner, "systemctl --user start "+timer)
	before := w.manifest()
	plan := w.must(append(w.migrate(), "--dry-run")...)
	if !strings.Contains(plan.stdout, timer) {
		t.Errorf("the plan does not stop the timer:\n%s", plan.stdout)
	}
	wait := w.start(w.migrate()...)
	w.signal("HUP")
	if r := wait(); r.code != exitDone {
		t.Fatalf("the run ended with its terminal: %s", r)
	}
	w.migrated(before)
	if got := w.script("root", "storagectl rollback --json | head -n 1; storagectl status"); !strings.Contains(got, "phase    rolled-back") {
		t.Errorf("the rollback ended with its reader:\n%s", got)
	}
	if d := w.driver(); d != "vfs" {
		t.Errorf("podman is on %s", d)
	}
	if got := w.script(lab.Owner, "systemctl --user is-active "+timer); got != "active\n" {
		t.Errorf("the timer is %q", got)
	}
}
