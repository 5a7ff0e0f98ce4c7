package integration

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/ceph"
)

// newCephFS starts a cluster with a user who may use one folder of its CephFS and
// nothing else, as the documentation says is enough.
func newCephFS(t *testing.T) *ceph.Cluster {
	t.Helper()
	c := newCluster(t, map[string][]string{
		"files": {"mon", "allow r fsname=" + ceph.FS, "mds", "allow rw fsname=" + ceph.FS, "osd", "allow rw tag cephfs data=" + ceph.FS,
			"mgr", "allow rw"}, // for the path of a subvolume
		"reader": {"mon", "allow r"},
	})
	// After a power cut what the dead client held is waited for.
	if _, err := c.Ceph(t.Context(), "fs", "set", ceph.FS, "session_timeout", "30"); err != nil {
		t.Fatal(err)
	}
	return c
}

// onFiles boots a node in a cluster's network, with its keys.
func onFiles(t *testing.T, c *ceph.Cluster, user string) *world {
	t.Helper()
	return joinedWith(t, c, user, lab.Options{}, "files", "reader")
}

// toFiles is a relocation into a folder of CephFS.
func (w *world) toFiles(more ...string) []string {
	args := []string{"relocate", "--cephfs", "cephfs:/stores", "--ceph-user", "files", "--yes"}
	if w.user != "root" {
		args = append(args, "--user", w.user)
	}
	return append(args, more...)
}

// TestRelocateCephFS: a store on vfs goes into a folder of a real CephFS, is there
// after a power cut, and comes back. Overlay is refused, with what can be done
// instead, and goes there as vfs and with fuse-overlayfs. It is mounted by ceph-fuse: this
// kernel has no client of its own.
func TestRelocateCephFS(t *testing.T) {
	t.Parallel()
	c := newCephFS(t)
	w := onFiles(t, c, lab.Owner)
	begin := time.Now()
	lap := func(what string) { t.Logf("%5.1f s: %s", time.Since(begin).Seconds(), what); begin = time.Now() }
	w.judgedFiles(c)
	lap("judged")
	before := w.manifest()
	w.must("runbook", "run", "relocate-to-cephfs", "--yes", "--param", "user="+w.user, "--param", "place=cephfs:/stores", "--param", "ceph_user=files")
	w.onCephFS(before)
	lap("moved")
	if err := w.node.Kill(w.ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.node.Start(w.ctx); err != nil {
		t.Fatal(err)
	}
	w.onCephFS(before)
	lap("power cut")
	w.must("rollback") // of the runbook
	w.offCephFS(before)
	lap("rolled back")
	// The copy was in use: it is kept, and nobody writes over it.
	if r := w.ctl(w.toFiles()...); r.code != exitRefused || !strings.Contains(r.stderr, "cephfs:/stores/storage-"+w.user+" is not empty") {
		t.Errorf("want a refusal: %s", r)
	}
	w.must(w.migrate("--commit")...)
	lap("migrated")
	before = w.manifest()
	store := w.store()
	for _, args := range [][]string{{"subvolumegroup", "create", ceph.FS, "stores"}, {"subvolume", "create", ceph.FS, "overlay", "--group_name", "stores"}} {
		if _, err := c.Ceph(w.ctx, append([]string{"fs"}, args...)...); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere := func(more ...string) []string {
		args := w.toFiles(more...)
		args[2] = "cephfs:@stores/overlay"
		return args
	}
	r := w.ctl(elsewhere()...)
	for _, want := range []string{"cannot hold a store on overlay: ", "RENAME_WHITEOUT", "--rbd", "--driver vfs", "--driver fuse-overlayfs"} {
		if r.code != exitRefused || !strings.Contains(r.stderr, want) {
			t.Errorf("want a refusal that says %q: %s", want, r)
		}
	}
	w.same("the folders of the store", store, w.store())
	w.offCephFS(before)
	lap("refused")
	conf := w.conf()
	w.wholeOnCephFS(c, before)
	w.same("the configuration", conf, w.conf())
	lap("made into vfs on its way, killed, resumed, used and rolled back")
	w.must(elsewhere("--driver", "fuse-overlayfs")...)
	w.onCephFS(before)
	if out := w.script(w.user, inside+"inside --pull=never localhost/lab/base:1 /bin/busybox grep ' / ' /proc/mounts"); !strings.Contains(out, "fuse.fuse-overlayfs") {
		t.Errorf("a container's root is %s", out)
	}
	lap("fuse-overlayfs")
	w.must("rollback")
	w.offCephFS(before)
	w.same("the configuration", conf, w.conf())
	lap("rolled back")
	third := elsewhere("--driver", "fuse-overlayfs", "--commit", "--make-subvolume")
	third[2] = "cephfs:@third"
	known, forget := w.byMonitors(c, "files")
	w.must(append(third, known...)...)
	w.onCephFS(before)
	w.killedAt("after-old-parked", w.homeward()...)
	w.powerCut()
	w.must("resume")
	w.isHome(before)
	w.must("rollback")
	w.onCephFS(before)
	w.powerCut()
	w.onCephFS(before)
	forget()
	lap("home and back, with no ceph.conf")
	w.script("root", "rm -r "+w.graphroot()+".storagectl-*-new") // it was in use, and is kept
	w.must(w.homeward("--commit")...)
	w.isHome(before)
	w.offCephFS(before)
	w.tidy()
	lap("home for good")
	for i, arg := range third {
		if arg == "fuse-overlayfs" {
			third[i] = "vfs"
		}
	}
	w.must(third...) // the folder is empty again
	w.onCephFS(before)
	if d := w.driver(); d != "vfs" {
		t.Errorf("podman is on %s", d)
	}
	w.tidy()
	lap("from fuse-overlayfs to vfs for good")
}

// wholeOnCephFS: a store on overlay becomes one on vfs on its way into a subvolume that
// is made for it, killed where that is renamed to its place, and comes back after it
// was used. What was made for a run that came to nothing goes with it.
func (w *world) wholeOnCephFS(c *ceph.Cluster, before inventory) {
	w.t.Helper()
	args := w.toFiles("--driver", "vfs", "--make-subvolume", "--make-group", "--size", "1G")
	args[2] = "cephfs:@whole/vfs"
	plan := jsonLines(w.t, w.must(append(slices.Clone(args), "--dry-run", "--json")...).stdout)[0]
	if need, room := plan["need"].(float64), plan["room"].(float64); room < 2*need {
		w.t.Errorf("%.0f bytes on overlay are estimated to need %.0f on vfs", need, room)
	}
	groups := func() string {
		w.t.Helper()
		out, err := c.Ceph(w.ctx, "fs", "subvolumegroup", "ls", ceph.FS)
		if err != nil {
			w.t.Fatal(err)
		}
		return out
	}
	if out := groups(); strings.Contains(out, "whole") {
		w.t.Errorf("a plan made a group: %s", out)
	}
	w.killedAt("after-subvolume", args...)
	if out := groups(); !strings.Contains(out, "whole") {
		w.t.Errorf("no group was made: %s", out)
	}
	w.must("rollback")
	if out := groups(); strings.Contains(out, "whole") {
		w.t.Errorf("left: %s", out)
	}
	w.killedAt("worker place", args...)
	w.must("resume")
	w.onCephFS(before)
	if d := w.driver(); d != "vfs" {
		w.t.Errorf("podman is on %s", d)
	}
	w.podman("run", "--name", "later", "--pull=never", "--network=none", "localhost/lab/base:1", "/bin/busybox", "touch", "/f")
	if r := w.must("rollback"); !strings.Contains(r.stdout+r.stderr, "the copy in cephfs:@whole/vfs/storage-"+w.user+" is kept") {
		w.t.Errorf("it is not told where the copy is: %s", r)
	}
	w.offCephFS(before)
	if d := w.driver(); d != "overlay" {
		w.t.Errorf("podman is on %s", d)
	}
}

// judgedFiles asserts that a cluster or user that cannot serve is refused before
// anything is touched.
func (w *world) judgedFiles(c *ceph.Cluster) {
	w.t.Helper()
	ceph := func(args ...string) {
		w.t.Helper()
		if _, err := c.Ceph(w.ctx, args...); err != nil {
			w.t.Fatal(err)
		}
	}
	before := w.untouched()
	refused := func(want string, args ...string) {
		w.t.Helper()
		r := w.ctl(append(args, "--json")...)
		if r.code != exitRefused || !strings.Contains(r.stdout, `"id":"`+want+`"`) {
			w.t.Errorf("want the refusal %s: %s", want, r)
		}
	}
	refused("ceph-no-right", w.toFiles("--ceph-user", "reader")...)
	refused("ceph-no-fs", append(w.toFiles(), "--cephfs", "gone:/stores")...)
	refused("no-target", append(w.toFiles(), "--cephfs", "stores")...)
	refused("no-target", append(w.toFiles(), "--cephfs", "cephfs:@a/b/c")...)
	refused("ceph-no-subvolume", append(w.toFiles(), "--cephfs", "cephfs:@stores/gone")...)
	refused("ceph-no-group", append(w.toFiles("--make-subvolume"), "--cephfs", "cephfs:@stores/gone")...)
	refused("ceph-no-right", append(w.toFiles("--ceph-user", "reader"), "--cephfs", "cephfs:@stores/gone")...)
	refused("ceph-no-mounter", w.toFiles("--mounter", "kernel")...)
	ceph("fs", "fail", "cephfs")
	refused("ceph-fs-offline", w.toFiles()...)
	if err := c.Stop(w.ctx, "mds"); err != nil {
		w.t.Fatal(err)
	}
	ceph("fs", "set", "cephfs", "joinable", "true")
	refused("ceph-fs-no-mds", w.toFiles()...)
	if err := errors.Join(c.Start("mds"), c.WaitHealthy(w.ctx)); err != nil {
		w.t.Fatal(err)
	}
	w.same("the node", before, w.untouched())
}

// onCephFS asserts that the store is in CephFS, whole, and mounted as it must be.
func (w *world) onCephFS(before inventory) {
	w.t.Helper()
	w.same("the store", before, w.manifest())
	out := w.script("root", "findmnt -nro FSTYPE,OPTIONS "+w.graphroot()+" | tail -1")
	if !strings.Contains(out, "fuse.ceph-fuse ") || strings.Contains(out, "nosuid") || strings.Contains(out, "nodev") {
		w.t.Errorf("the store is on %q", out)
	}
}

// offCephFS asserts that the store is where it was, and nothing of CephFS is left.
func (w *world) offCephFS(before inventory) {
	w.t.Helper()
	w.same("the store", before, w.manifest())
	if out := w.script("root", "findmnt -nR "+w.graphroot()+" || true; pgrep -a ceph-fuse || true; ls /run/storagectl/mounts 2>/dev/null || true; ls -d "+w.graphroot()+".storagectl-* /etc/systemd/system/*storage.*mount /etc/systemd/system/*.d/50-storagectl-* 2>/dev/null || true"); out != "" {
		w.t.Errorf("left: %s", out)
	}
}
