package integration

import (
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/ceph"
)

// TestDoctorCeph: a store on an image of a real Ceph. Doctor sees the cluster's
// health, who else has the image, an image that nothing maps at a boot, a mount that
// hangs, and a cluster that does not answer, in time; and offers to grow the image
// where the store is full.
func TestDoctorCeph(t *testing.T) {
	t.Parallel()
	c := newCeph(t)
	if err := c.User(t.Context(), "files", "mon", "allow r", "mds", "allow rw", "osd", "allow rw tag cephfs data="+ceph.FS); err != nil {
		t.Fatal(err)
	}
	w := joined(t, c, lab.Owner)
	if err := c.Install(t.Context(), w.node, "files"); err != nil {
		t.Fatal(err)
	}
	w.must(w.toImage("--size", "600M")...)
	want := func(check, outcome, saw, mend string) {
		t.Helper()
		began := time.Now()
		r, all := w.doctor(lab.Owner, "--check", check)
		if took := time.Since(began); took > 40*time.Second {
			t.Errorf("%s took %s", check, took)
		}
		d := all[check]
		if d.Outcome != outcome || !strings.Contains(d.Saw, saw) || !strings.Contains(strings.Join(d.Mend, "\n"), mend) {
			t.Errorf("%s: want %s, %q and %q: %s", check, outcome, saw, mend, r)
		}
	}
	run := func(args ...string) {
		t.Helper()
		if _, err := c.Ceph(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	want("rbdmap", "ok", "1 images, all mapped", "")
	want("rbd-watchers", "ok", "none of which anybody else has", "")
	want("network-mounts", "absent", "", "")

	run("osd", "set", "noout")
	want("ceph-health", "warning", "OSDMAP_FLAGS", "health")
	run("osd", "unset", "noout")

	w.script("root", "cp /etc/fstab /root/; echo '/dev/rbd/rbd/forgotten /mnt/forgotten xfs noauto,nofail,_netdev 0 0' >>/etc/fstab")
	want("rbdmap", "warning", "mounts rbd/forgotten, and nothing maps it", "/etc/ceph/rbdmap")
	w.script("root", "cp /root/fstab /etc/fstab")

	// Another client has the image: here one that only watches it.
	watchers := func(n string) string {
		return `for i in $(seq 150); do test "$(rbd --id store status --format json ` + w.image() + ` | jq ".watchers | length")" != ` + n + ` || exit 0; sleep 0.2; done; exit 1`
	}
	w.script("root", "mkfifo /run/enter; sleep 1000 >/run/enter 2>/dev/null </dev/null & setsid rbd --id store watch "+w.image()+" </run/enter >/dev/null 2>&1 & "+watchers("2"))
	want("rbd-watchers", "problem", "is mapped here, and client.", "on all hosts but one")
	w.script("root", "pkill -f 'rbd --id store watch'; "+watchers("1"))
	want("rbd-watchers", "ok", "", "")

	w.script("root", "cd "+w.graphroot()+"; fallocate -l $(( $(stat -f -c '%a*%S' .) - 1000000 )) filler")
	want("space", "problem", "free", "storagectl relocate --user hashi --rbd "+w.image()+" --size 1G --ceph-user store --dry-run")
	w.script("root", "rm "+w.graphroot()+"/filler")

	// A filesystem whose client does not answer.
	w.script("root", "mkdir -p /mnt/files; ceph-fuse --id files /mnt/files >/dev/null 2>&1; mountpoint -q /mnt/files")
	want("network-mounts", "ok", "/mnt/files", "")
	w.script("root", "pkill -STOP -x ceph-fuse")
	want("network-mounts", "problem", "/mnt/files (fuse.ceph-fuse) does not answer", "umount -f")
	w.script("root", "pkill -CONT -x ceph-fuse; umount /mnt/files")

	if err := c.Freeze("mon"); err != nil {
		t.Fatal(err)
	}
	want("ceph-health", "unknown", "", "")
	want("rbd-watchers", "unknown", "", "")
	want("rbdmap", "ok", "", "")
	if err := c.Thaw("mon"); err != nil {
		t.Fatal(err)
	}
}
