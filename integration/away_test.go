package integration

import (
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// onDisk puts the world's store on a mount of its own.
func (w *world) onDisk() {
	w.t.Helper()
	w.script("root", `
systemctl --user -M hashi@ stop podman.socket podman.service 2>/dev/null || runuser -u hashi -- env XDG_RUNTIME_DIR=/run/user/2000 systemctl --user stop podman.socket podman.service
pkill -u hashi -f 'podman pause' || true
d=$(dirname `+lab.GraphRoot+`); mv `+lab.GraphRoot+` $d/.disk
mkdir `+lab.GraphRoot+`; chown hashi: `+lab.GraphRoot+`
mount --bind $d/.disk `+lab.GraphRoot)
	w.podman("info")
	w.script(w.user, "systemctl --user start podman.socket")
}

// away takes the mount away, as a reboot does where a disk is not mounted.
func (w *world) away() {
	w.t.Helper()
	w.script("root", `
runuser -u hashi -- env XDG_RUNTIME_DIR=/run/user/2000 systemctl --user stop podman.socket podman.service
pkill -u hashi -f 'podman pause' || true; sleep 0.3
umount -l `+lab.GraphRoot)
}

func (w *world) backAgain() {
	w.t.Helper()
	w.script("root", `rm -rf `+lab.GraphRoot+`/*; mount --bind $(dirname `+lab.GraphRoot+`)/.disk `+lab.GraphRoot)
}

// TestStoreAway: with the store's disk not mounted nothing is rolled back,
// committed or resumed, nothing is made in its place, and all works once it is back.
func TestStoreAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.onDisk()
	before, tree, conf := w.manifest(), w.store(), w.conf()
	w.must(w.migrate()...)
	w.migrated(before)
	w.away()
	empty := w.store()
	for _, args := range [][]string{{"rollback"}, {"commit"}, {"resume"}} {
		r := w.ctl(args...)
		if r.code != exitRefused && args[0] != "resume" || !strings.Contains(r.stderr, "mount") && args[0] != "resume" {
			t.Errorf("%s with the disk away: %s", args[0], r)
		}
		w.same("what lies where the store was", empty, w.store())
	}
	w.backAgain()
	w.must("rollback")
	w.asItWas(before, tree, conf)
	w.must(w.migrate()...)
	w.migrated(before)
	w.must("commit")
	w.migrated(before)
}

// TestCommitLooks: the old store is not removed while the new one is not seen,
// nor while something is mounted in it, and then the way back stays open.
func TestCommitLooks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	before, tree, conf := w.manifest(), w.store(), w.conf()
	w.must(w.migrate()...)
	w.script("root", "cd "+lab.GraphRoot+"; mkdir ../aside; mv overlay-layers overlay-images ../aside")
	if r := w.ctl("commit"); r.code != exitRefused || !strings.Contains(r.stderr, "overlay-images") {
		t.Errorf("commit without the new store: %s", r)
	}
	w.script("root", "cd "+lab.GraphRoot+"; mv ../aside/* .; rmdir ../aside; cd .storagectl-*/old; mkdir m; mount -t tmpfs tmpfs m")
	if r := w.ctl("commit"); r.code != exitRefused || !strings.Contains(r.stderr, "umount") {
		t.Errorf("commit with a mount in the old store: %s", r)
	}
	w.script("root", "cd "+lab.GraphRoot+"; cd .storagectl-*/old; umount m; rmdir m")
	w.migrated(before)
	w.must("rollback")
	w.asItWas(before, tree, conf)
}

// TestRollbackFindsDatabase: podman's database is put back also when podman's own
// has gone elsewhere since.
func TestRollbackFindsDatabase(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	before, tree, conf := w.manifest(), w.store(), w.conf()
	w.must(w.migrate()...)
	db := lab.GraphRoot + "/libpod/bolt_state.db"
	w.script("root", "mv "+db+" "+db+"-old")
	w.must("rollback")
	w.script("root", "rm "+db+"-old")
	w.asItWas(before, tree, conf)
}
