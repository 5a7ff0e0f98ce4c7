package integration

import (
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// disk gives the node a second disk, mounted on /srv/disk at every boot.
func (w *world) disk(fs, size string) {
	w.t.Helper()
	image := w.diskImage()
	w.script("root", `
truncate -s `+size+` `+image+`
mkfs.`+fs+` -q `+image+`
mkdir -p /srv/disk
printf '# the second disk\n`+image+`\t/srv/disk  `+fs+`  loop,noatime 0 0\n' >>/etc/fstab
systemctl daemon-reload
mount /srv/disk`)
}

// diskImage is a name that no other node's image has: mount(8) takes an image that
// is not there for another node's loop device of that name.
func (w *world) diskImage() string { return "/opt/disk-" + w.node.Name + ".img" }

// relocate is the arguments of a relocation of the world's store.
func (w *world) relocate(more ...string) []string {
	args := []string{"relocate", "--path", "/srv/disk", "--yes"}
	if w.user != "root" {
		args = append(args, "--user", w.user)
	}
	return append(args, more...)
}

// moved asserts that the store is on the second disk, whole, and in use.
func (w *world) moved(before inventory) {
	w.t.Helper()
	w.same("the store", before, w.manifest())
	f := strings.Fields(w.script("root", "stat -c %d:%i "+w.graphroot()+" /srv/disk/storage-"+w.user))
	if len(f) != 2 || f[0] != f[1] {
		w.t.Errorf("the store is not on the second disk: %v", f)
	}
	w.script("root", "findmnt --verify >&2")
	if w.user != "root" {
		if s := strings.TrimSpace(w.script(w.user, "systemctl --user is-active podman.socket || true")); s != "active" {
			w.t.Errorf("podman.socket is %s", s)
		}
	}
}

// TestRelocate is a move to another filesystem, to the end: relocate, use, live
// through a power cut, commit.
func TestRelocate(t *testing.T) {
	for _, c := range []struct{ release, user, fs string }{
		{"bookworm", lab.Owner, "xfs"}, {"bookworm", "root", "ext4"}, {"trixie", lab.Owner, "ext4"}, {"trixie", "root", "xfs"},
	} {
		t.Run(c.release+"/"+c.user+"/"+c.fs, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.release, c.user, images.Plain)
			w.disk(c.fs, "6G")
			if c.fs == "ext4" { // an overlay store once, vfs once, of both owners
				w.must(w.migrate("--commit")...)
			}
			before := w.manifest()
			r := w.must(w.relocate()...)
			w.moved(before)
			if !strings.Contains(r.stdout, "/srv/disk/storage-"+c.user) {
				t.Errorf("the result does not name the target: %s", r)
			}
			if c.fs == "ext4" {
				w.works()
				before = w.manifest()
			}
			if err := w.node.Kill(w.ctx); err != nil {
				t.Fatal(err)
			}
			if err := w.node.Start(w.ctx); err != nil {
				t.Fatal(err)
			}
			w.moved(before)
			w.must("commit")
			w.moved(before)
			if left := w.script("root", "ls -d "+w.graphroot()+".storagectl-* 2>/dev/null || true"); left != "" {
				t.Errorf("left after the commit: %s", left)
			}
		})
	}
}

// TestRelocateBack: a rollback returns to the store as it was, and leaves fstab
// byte for byte as it was.
func TestRelocateBack(t *testing.T) {
	for _, user := range []string{lab.Owner, "root"} {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "bookworm", user, images.Plain)
			w.disk("xfs", "4G")
			fstab := w.script("root", "cat /etc/fstab")
			before, store := w.manifest(), w.store()
			w.must(w.relocate()...)
			w.moved(before)
			w.must("rollback")
			w.same("the store", before, w.manifest())
			w.same("the folders of the store", store, w.store())
			if now := w.script("root", "cat /etc/fstab"); now != fstab {
				t.Errorf("fstab is not what it was: %q, %q before", now, fstab)
			}
			if out := w.script("root", "findmnt -nR "+w.graphroot()+" || true; ls -d "+w.graphroot()+".storagectl-* 2>/dev/null || true; systemctl list-units --all --no-legend '*storage.automount'"); out != "" {
				t.Errorf("left after the rollback: %s", out)
			}
			// The copy was in use: it is kept, and a new run says so.
			if r := w.ctl(w.relocate()...); r.code != exitRefused || !strings.Contains(r.stderr, "storage-"+user+" is there already") {
				t.Errorf("want a refusal: %s", r)
			}
			w.script("root", "rm -rf /srv/disk/storage-"+user)
			w.must(w.relocate("--commit", "--mount", "boot")...)
			w.moved(before)
		})
	}
}

// TestRelocateLostDisk: after a boot without the disk podman fails instead of
// beginning a new store, and a rollback returns to the old one.
func TestRelocateLostDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.disk("xfs", "2G")
	before := w.manifest()
	w.must(w.relocate()...)
	w.script("root", "sed -i s/loop,noatime/loop,nofail/ /etc/fstab; mv "+w.diskImage()+" /opt/lost.img; sync")
	if err := w.node.Kill(w.ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.node.Start(w.ctx); err != nil {
		t.Fatal(err)
	}
	if r := w.exec(w.user, "podman", "images"); r.code == 0 {
		t.Errorf("podman made itself a new store: %s", r)
	}
	w.must("rollback")
	w.same("the store", before, w.manifest())
}

// TestRelocateLostMidway: the disk is lost while the store is aside, on its way. A
// rollback needs no disk.
func TestRelocateLostMidway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.disk("xfs", "2G")
	before := w.manifest()
	r := w.exec("root", append([]string{"env", "STORAGECTL_SWEEP_KILL_AT=after-aside", "storagectl-sweep"}, w.relocate()...)...)
	if r.code != -1 {
		t.Fatalf("not killed: %s", r)
	}
	w.script("root", "sed -i s/loop,noatime/loop,nofail/ /etc/fstab; mv "+w.diskImage()+" /opt/lost.img; sync")
	if err := w.node.Kill(w.ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.node.Start(w.ctx); err != nil {
		t.Fatal(err)
	}
	if r := w.ctl("resume"); r.code == exitDone {
		t.Errorf("resumed without the disk: %s", r)
	}
	if r := w.ctl("rollback"); r.code != exitDone && !strings.Contains(r.stderr, "rolled back before") {
		t.Errorf("no way back: %s", r)
	}
	w.same("the store", before, w.manifest())
}

// TestRelocateReboot: a run that a power cut took in the middle of the copying is
// resumed, and begins to copy anew: times tell nothing after a power cut.
func TestRelocateReboot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.disk("xfs", "2G")
	before := w.manifest()
	r := w.exec("root", append([]string{"env", "STORAGECTL_SWEEP_KILL_AT=worker read-back", "storagectl-sweep"}, w.relocate()...)...)
	if r.code != -1 {
		t.Fatalf("not killed: %s", r)
	}
	if err := w.node.Kill(w.ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.node.Start(w.ctx); err != nil {
		t.Fatal(err)
	}
	// What the copy holds by now is not believed, nor what its index says.
	w.script("root", "echo wrong >/srv/disk/storage-"+w.user+"/volumes/vol1/_data/file")
	w.must("resume")
	w.moved(before)
}

// TestRelocateInUse: who has a file of the store open, and is not podman, would
// write on into the old store.
func TestRelocateInUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.disk("xfs", "2G")
	before := w.manifest()
	w.script("root", "systemd-run -q --unit=writer sh -c 'cd "+w.graphroot()+"/volumes && exec sleep 1000'; until ls -l /proc/$(systemctl show --value -p MainPID writer)/cwd | grep -q volumes; do sleep 0.1; done")
	r := w.ctl(w.relocate()...)
	if r.code != exitRefused || !strings.Contains(r.stderr, "in use by sleep") {
		t.Errorf("want a refusal that names it: %s", r)
	}
	w.same("the store", before, w.manifest())
	w.script("root", "systemctl stop writer")
	w.must(w.relocate()...)
	w.same("the store", before, w.manifest())
}

// TestRelocateDevice: a disk for the store alone. A filesystem is made where
// nothing is, and none with files is touched.
func TestRelocateDevice(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, lab.Owner, images.Small, lab.Options{Release: "bookworm", Udev: true})
	dev := strings.TrimSpace(w.script("root", "truncate -s 2G "+w.diskImage()+"; losetup -f --show "+w.diskImage()))
	t.Cleanup(func() { _, _ = w.node.Run(w.ctx, "root", "losetup", "-d", dev) })
	args := []string{"relocate", "--device", dev, "--user", w.user, "--yes"}
	before := w.manifest()
	// Killed when the filesystem is the owner's and has no mark yet.
	if r := w.exec("root", append([]string{"env", "STORAGECTL_SWEEP_KILL_AT=device-mark", "storagectl-sweep"}, args...)...); r.code != -1 {
		t.Fatalf("not killed: %s", r)
	}
	w.must("resume")
	w.same("the store", before, w.manifest())
	if out := w.script("root", "findmnt -nro SOURCE "+w.graphroot()+" | tail -1; ls /run/storagectl/mounts"); strings.TrimSpace(out) != dev {
		t.Errorf("the store is on %q, not on %s alone", out, dev)
	}
	w.must("rollback")
	w.same("the store", before, w.manifest())
	for _, format := range [][]string{nil, {"--format"}} {
		r := w.ctl(append(args, format...)...)
		if r.code != exitRefused || !strings.Contains(r.stderr, "holds files") {
			t.Errorf("%v: want a refusal: %s", format, r)
		}
	}
	w.script("root", "wipefs -qa "+dev)
	w.must(append(args, "--fs", "ext4", "--format", "--commit")...) // what it held is not blank
	w.same("the store", before, w.manifest())
}

// TestRelocateRefused: what cannot be moved is refused, and nothing is changed.
func TestRelocateRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.disk("ext4", "20M") // too small
	w.script("root", `
mkdir -p /srv/link-to; ln -s /srv/link-to /srv/link
install -d -o hashi /srv/theirs; install -d -m 777 /srv/open
mkdir /srv/tmp; mount -t tmpfs -o nodev,mode=755 tmpfs /srv/tmp
mkdir -p /opt/there/storage-hashi
install -d /srv/inside `+lab.GraphRoot+`/volumes/of-root; mount --bind `+lab.GraphRoot+`/volumes/of-root /srv/inside`)
	before := w.untouched()
	for _, c := range []struct{ path, id string }{
		{"/srv/nowhere", "no-target"}, {"/srv/link", "no-target"}, {"/etc/passwd", "no-target"},
		{"/srv/theirs", "target-owner"}, {"/srv/open", "target-owner"},
		{"/srv/tmp", "target-mount"}, {"/opt/there", "target-taken"}, {"/srv/disk", "no-room"},
		{lab.GraphRoot, "target-owner"}, {"/srv/inside", "target-inside"},
	} {
		r := w.ctl("relocate", "--path", c.path, "--user", lab.Owner, "--yes", "--json")
		if r.code != exitRefused || !strings.Contains(r.stdout, `"`+c.id+`"`) {
			t.Errorf("%s: want refusal %s: %s", c.path, c.id, r)
		}
	}
	if r := w.exec(lab.Owner, "storagectl", "relocate", "--path", "/srv/disk", "--yes"); r.code != exitRefused {
		t.Errorf("as the user: %s", r)
	}
	w.same("the node", before, w.untouched())
}
