package integration

import (
	"maps"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestRelocateTwoStores: both stores of a host go to one disk, each into its folder,
// and come up there after a power cut. The way back of the first leaves the second, and
// what boots are told of it, alone.
func TestRelocateTwoStores(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.disk("xfs", "2G")
	other := *w
	other.user = "root"
	w.script("root", "podman volume create vol2 >/dev/null; runuser -u "+w.user+" -- env -C / HOME="+lab.Home+" XDG_RUNTIME_DIR=/run/user/2000 podman save -q localhost/lab/base:1 | podman load -q >/dev/null")
	before, beforeOther := w.manifest(), other.manifest()
	fstab := func() string { return w.script("root", "cat /etc/fstab") }
	untold, units := fstab(), w.units()

	w.must(w.relocate()...)
	first := w.units()
	other.must(other.relocate()...)
	both, told := w.units(), fstab()
	w.powerCut()
	w.moved(before)
	other.moved(beforeOther)

	w.must("rollback", "1")
	w.same("the first store", before, w.manifest())
	other.moved(beforeOther)
	maps.DeleteFunc(both, func(path, _ string) bool {
		_, was := units[path]
		_, is := first[path]
		return is && !was
	})
	w.same("what systemd is told, the first store's left out,", both, w.units())
	if now := fstab(); now != told || !strings.Contains(now, "storage-root") {
		t.Errorf("fstab is %q, %q before", now, told)
	}
	w.powerCut()
	other.moved(beforeOther)

	w.must("rollback")
	other.same("the second store", beforeOther, other.manifest())
	w.same("the first store", before, w.manifest())
	w.same("what systemd is told", units, w.units())
	if now := fstab(); now != untold {
		t.Errorf("fstab is %q, %q before", now, untold)
	}
	if out := w.script("root", "findmnt -nR "+w.graphroot()+" || true; findmnt -nR "+other.graphroot()+" | grep -v '/storage/overlay ' || true; ls -d "+
		w.graphroot()+".storagectl-* "+other.graphroot()+".storagectl-* 2>/dev/null || true"); out != "" {
		t.Errorf("left: %s", out)
	}
}
