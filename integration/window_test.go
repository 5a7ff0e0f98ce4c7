package integration

import (
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestWindow: outside its maintenance window a run stages, and podman is left alone;
// in it a resume goes on to the end. --now does not mind the window. A migration and a
// move.
//
// The window is in the host's time zone, which is twelve hours ahead of UTC for the
// resume: so nothing has to be waited for, and a slow machine changes nothing.
func TestWindow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.disk("xfs", "2G")
	before := w.manifest()
	starts := time.Now().UTC().Add(11*time.Hour + 30*time.Minute)
	spec := "daily " + starts.Format("15:04") + " 6h"
	ctl := func(zone string, args ...string) result {
		return w.exec("root", append([]string{"env", "TZ=" + zone, "storagectl"}, args...)...)
	}
	up := func() string {
		return w.script(w.user, "systemctl --user show --property=InvocationID,ActiveState podman.socket")
	}
	was := up()
	untouched := func(r result) {
		t.Helper()
		if r.code != exitWindow || !strings.Contains(r.stderr, "the maintenance window is closed") || !strings.Contains(r.stderr, "resume --now") {
			t.Fatal(r)
		}
		if now := up(); now != was || !strings.Contains(now, "ActiveState=active") {
			t.Errorf("podman.socket: %q, before %q", now, was)
		}
		if d := w.driver(); d != "vfs" {
			t.Errorf("podman is on %s", d)
		}
		w.same("the store", before, w.manifest())
	}
	if r := ctl("UTC", w.migrate("--window", spec, "--dry-run")...); r.code != exitDone || strings.Count(r.stdout, "    next ") != 3 {
		t.Fatal(r)
	}
	untouched(ctl("UTC", w.migrate("--window", spec)...))
	if w.leftovers(".storagectl-*") == "" {
		t.Error("nothing is staged")
	}
	untouched(ctl("UTC", "resume"))
	if r := ctl("UTC", "status"); r.code != exitDone || !strings.Contains(r.stdout, "window   "+spec) {
		t.Error(r)
	}
	// Twelve hours ahead it has been open for half an hour.
	if r := ctl("Etc/GMT-12", "resume"); r.code != exitDone || !strings.Contains(r.stderr, "the run needs") {
		t.Fatal(r)
	}
	w.migrated(before)
	w.must("rollback")
	w.isOn("vfs", before)

	// What waits for its window outlives a power cut. A copy is made anew after it, and
	// beside the live store.
	was = up()
	untouched(ctl("UTC", w.relocate("--window", spec)...))
	w.script("root", "sync")
	w.powerCut()
	w.podman("ps")
	if r := ctl("UTC", "resume", "--now"); r.code != exitDone || !strings.Contains(r.stderr, "on the operator's word (--now)") ||
		!strings.Contains(r.stderr, "is staged first") {
		t.Fatal(r)
	}
	w.moved(before)
}
