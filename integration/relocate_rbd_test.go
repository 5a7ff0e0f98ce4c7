package integration

import (
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/ceph"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// newCeph starts a cluster that nodes can join, with a user who has what the
// documentation says is enough.
func newCeph(t *testing.T) *ceph.Cluster {
	t.Helper()
	return newCluster(t, map[string][]string{"store": {"mon", "profile rbd", "osd", "profile rbd pool=rbd"}})
}

// newCluster starts a cluster that nodes can join, with users of these caps.
func newCluster(t *testing.T, users map[string][]string) *ceph.Cluster {
	t.Helper()
	c, err := ceph.Start(t.Context(), ceph.Options{Hub: true, Size: 3 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("cannot remove the cluster: %v", err)
		}
	})
	for name, caps := range users {
		if err := c.User(t.Context(), name, caps...); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// joined boots a node in a cluster's network, with the keys for images.
func joined(t *testing.T, c *ceph.Cluster, user string) *world {
	t.Helper()
	return joinedWith(t, c, user, lab.Options{Udev: true}, "store")
}

// joinedWith boots a node in a cluster's network, with the keys of some users.
func joinedWith(t *testing.T, c *ceph.Cluster, user string, opts lab.Options, keys ...string) *world {
	t.Helper()
	netns, _, err := c.Join(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	opts.Release, opts.Netns = "bookworm", netns
	w := newWorldWith(t, user, images.Small, opts)
	if err := c.Install(t.Context(), w.node, keys...); err != nil {
		t.Fatal(err)
	}
	return w
}

// image is the name of the world's image. It is no other's: the nodes of all tests have one
// kernel's loop devices, and udev in each gives those names by the path of what they show.
func (w *world) image() string { return "rbd/" + w.node.Name + "-" + w.user }

// toImage is a relocation to the world's image.
func (w *world) toImage(more ...string) []string {
	args := []string{"relocate", "--rbd", w.image(), "--ceph-user", "store", "--yes"}
	if w.user != "root" {
		args = append(args, "--user", w.user)
	}
	return append(args, more...)
}

// notMine is the arguments for moving the host's other store to this one's image.
func (w *world) notMine() []string {
	args := []string{"relocate", "--rbd", w.image(), "--ceph-user", "store", "--yes"}
	if w.user == "root" {
		args = append(args, "--user", lab.Owner)
	}
	return args
}

// TestRelocateRBD: a store goes to an image of a real Ceph, is there after a power
// cut, and another host cannot have the image meanwhile. The image is mapped by
// librbd and FUSE: this kernel has no client of its own.
func TestRelocateRBD(t *testing.T) {
	for _, user := range []string{lab.Owner, "root"} {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			c := newCeph(t)
			w, other := joined(t, c, user), joined(t, c, user)
			before := w.manifest()
			if r := w.ctl(w.toImage()...); r.code != exitRefused || !strings.Contains(r.stderr, "--size") {
				t.Errorf("without a size: %s", r)
			}
			if user == "root" { // the same as a runbook, which goes back as a whole
				w.must("runbook", "run", "relocate-to-rbd", "--yes", "--param", "image="+w.image(), "--param", "size=1G", "--param", "ceph_user=store")
			} else {
				w.must(w.toImage("--size", "1G")...)
			}
			w.onImage(before)
			w.patient()
			// Nor can another store of this host, and nothing is taken from this one.
			if r := w.ctl(w.notMine()...); r.code != exitRefused || !strings.Contains(r.stderr, "on this host already") {
				t.Errorf("want the other store refused: %s", r)
			}
			if r := other.ctl(other.onto(w.image())...); r.code != exitRefused || !strings.Contains(r.stderr, w.image()+" is in use") {
				t.Errorf("want the other host refused: %s", r)
			}
			w.grows(before)
			if err := w.node.Kill(w.ctx); err != nil {
				t.Fatal(err)
			}
			if err := w.node.Start(w.ctx); err != nil {
				t.Fatal(err)
			}
			w.onImage(before)
			w.must("rollback", "1") // a growth is no run to go back from
			w.same("the store", before, w.manifest())
			if out := w.script("root", "findmnt -nR "+w.graphroot()+" || true; losetup -nlO BACK-FILE | grep "+strings.Replace(w.image(), "/", ":", 1)+"/ || true"); out != "" {
				t.Errorf("left: %s", out)
			}
			// The image holds a store now: it is nobody's to format.
			if r := w.ctl(w.toImage("--format")...); r.code != exitRefused || !strings.Contains(r.stderr, "holds files") {
				t.Errorf("want a refusal: %s", r)
			}
			w.same("the store", before, w.manifest())
		})
	}
}

// onImage asserts that the store is on the image, whole.
func (w *world) onImage(before inventory) {
	w.t.Helper()
	w.same("the store", before, w.manifest())
	if out := w.script("root", "findmnt -nro SOURCE,FSTYPE "+w.graphroot()+" | tail -1"); !strings.Contains(out, "/dev/loop") || !strings.Contains(out, "xfs") {
		w.t.Errorf("the store is on %q", out)
	}
	// As with krbd, though a loop device tells nothing.
	if out := w.script("root", "xfs_info "+w.graphroot()); !strings.Contains(out, "sunit=16     swidth=16 blks") {
		w.t.Errorf("the filesystem is not aligned:\n%s", out)
	}
	// What it frees goes back to the pool: by a line in fstab, or because fstrim.service was told.
	trims := w.script("root", "systemctl show --value -p ExecStart fstrim.service; grep -o '^/dev[^ ]* "+w.graphroot()+" ' /etc/fstab || true")
	if !strings.Contains(trims, " "+w.graphroot()+" ") {
		w.t.Errorf("no trim knows the store: %s", trims)
	}
}

// patient asserts that a cluster that is late at a boot only delays what uses the store.
func (w *world) patient() {
	w.t.Helper()
	if out := w.script("root", `systemctl show --value -p JobRunningTimeoutUSec "$(systemd-escape -p --suffix=device /dev/rbd/`+w.image()+`)"
systemctl show --value -p TimeoutUSec "$(systemd-escape -p --suffix=mount `+w.graphroot()+`)"`); out != "15min\n15min\n" {
		w.t.Errorf("systemd waits for the image %q", out)
	}
	if out := w.script("root", `systemctl show --value -p After remote-fs.target multi-user.target | tr ' ' '\n' | grep -e storage || true`); out != "" {
		w.t.Errorf("the boot waits for %s", out)
	}
}
