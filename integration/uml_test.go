//go:build uml

package integration

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/ceph"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// Whole runs over the kernel's own Ceph clients: the node is a machine of its own
// in User-Mode Linux. make test-uml.

// newMachine boots a machine beside a cluster, with a store and a unit of the
// owner's that runs a container at each boot.
func newMachine(t *testing.T, c *ceph.Cluster, user, keys string) *world {
	t.Helper()
	cable, err := c.Cable(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	w := newWorldWith(t, user, images.Small, lab.Options{Release: "bookworm", UML: cable})
	w.patience = 20 * time.Minute // User-Mode Linux is slow where others have the processors
	t.Logf("up after %.0f s", time.Since(began).Seconds())
	if err := c.Install(t.Context(), w.node, keys); err != nil {
		t.Fatal(err)
	}
	unit := `[Unit]
Description=Something that runs at boot
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/podman run --rm --network=none localhost/lab/base:1 /bin/busybox echo it runs
[Install]
WantedBy=default.target
`
	dir := "/etc/systemd/system"
	if user != "root" {
		dir = lab.Home + "/.config/systemd/user"
	}
	w.script(user, "mkdir -p "+dir+"; cat >"+dir+"/app.service <<'EOF'\n"+unit+"EOF\n"+
		w.systemctl()+" enable -q --now app.service")
	return w
}

func (w *world) systemctl() string {
	if w.user == "root" {
		return "systemctl"
	}
	return "systemctl --user"
}

// TestUMLRelocateRBD: a store goes to an image that the kernel maps, is there
// after an ordered restart and after a power cut, with podman waiting for it, and
// comes back, or stays and grows.
func TestUMLRelocateRBD(t *testing.T) {
	for _, user := range []string{lab.Owner, "root"} {
		t.Run(user, func(t *testing.T) {
			c := newCeph(t)
			w := newMachine(t, c, user, "store")
			before := w.manifest()
			w.script("root", `rbd --id store create --size 1G `+w.image()+`
rbd --id store device map `+w.image())
			if r := w.ctl(w.toImage()...); r.code != exitRefused || !strings.Contains(r.stderr, "without the exclusive lock") {
				t.Errorf("want what is mapped by hand refused: %s", r)
			}
			w.script("root", "rbd device unmap /dev/rbd0; rbd --id store rm --no-progress "+w.image())
			began := time.Now()
			w.must(w.toImage("--size", "1G")...)
			t.Logf("moved after %.0f s", time.Since(began).Seconds())
			w.onKrbd(c, "")
			w.restart((*lab.Node).Poweroff)
			w.onKrbd(c, "")
			w.same("the store", before, w.manifest())
			// Another image that cannot be mapped does not keep the store away.
			w.script("root", "echo rbd/gone id=store,keyring=/etc/ceph/ceph.client.store.keyring >>/etc/ceph/rbdmap; sync")
			if user == "root" {
				w.must("commit")
				w.must(w.toImage("--size", "2G")...) // not while it is mapped: podman is stopped for that
				w.onKrbd(c, "")
			}
			w.restart((*lab.Node).Kill)
			w.onKrbd(c, "rbdmap.service")
			if user == "root" {
				w.same("the store", before, w.manifest())
				return
			}
			w.must("rollback")
			w.same("the store", before, w.manifest())
			out := w.script("root", `findmnt -nR `+w.graphroot()+` || true; ls /sys/bus/rbd/devices; grep `+w.image()+` /etc/ceph/rbdmap || true
ls /etc/systemd/system | grep -F -e .automount -e .mount -e user@ || true; grep storagectl /etc/fstab || true`)
			if strings.TrimSpace(out) != "" {
				t.Errorf("left: %s", out)
			}
		})
	}
}

// TestUMLRelocateNBD: the same by rbd-nbd, whose service maps the image at each boot.
func TestUMLRelocateNBD(t *testing.T) {
	c := newCeph(t)
	w := newMachine(t, c, lab.Owner, "store")
	before := w.manifest()
	libs, err := filepath.Glob("/lib/*/libnl*-3.so.200")
	if err != nil || len(libs) < 2 {
		t.Fatalf("%q %v", libs, err)
	}
	w.refused("ceph-no-mapper", w.toImage("--size", "1G", "--mapper", "nbd")...)
	for _, file := range append(libs, "/usr/bin/rbd-nbd") { // as the package rbd-nbd has them
		if err := w.node.CopyIn(w.ctx, "root", file, file); err != nil {
			t.Fatal(err)
		}
	}
	w.script("root", "chmod 755 /usr/bin/rbd-nbd; ldconfig; sync")
	began := time.Now()
	w.must(w.toImage("--size", "1G", "--mapper", "nbd")...)
	t.Logf("moved after %.0f s", time.Since(began).Seconds())
	w.onNBD(c)
	w.same("the store", before, w.manifest())
	w.must(w.toImage("--size", "2G")...)
	w.onNBD(c)
	w.restart((*lab.Node).Poweroff)
	w.onNBD(c)
	w.same("the store", before, w.manifest())
	w.restart((*lab.Node).Kill)
	w.onNBD(c)
	w.must("rollback", "1")
	w.same("the store", before, w.manifest())
	out := w.script("root", `findmnt -nR `+w.graphroot()+` || true; cat /sys/block/nbd*/pid 2>/dev/null || true
ls /etc/storagectl/rbd /run/storagectl/rbd; ls /etc/systemd/system | grep -F -e .automount -e .mount -e .device -e user@ -e -rbd- || true`)
	if strings.TrimSpace(strings.NewReplacer("/etc/storagectl/rbd:", "", "/run/storagectl/rbd:", "").Replace(out)) != "" {
		t.Errorf("left: %s", out)
	}
}

// onNBD asserts that the store is on the image by rbd-nbd alone, and that what runs at
// boot ran on it.
func (w *world) onNBD(c *ceph.Cluster) {
	w.t.Helper()
	w.ranAtBoot()
	out := w.script("root", `findmnt -nro SOURCE,FSTYPE `+w.graphroot()+`; readlink -f /dev/rbd/`+w.image()+`; systemctl --failed --no-legend --plain`)
	if out != "systemd-1 autofs\n/dev/nbd0 xfs\n/dev/nbd0\n" {
		w.t.Errorf("the store is not where it should be, or something failed: %s", out)
	}
	locks, err := c.RBD(w.ctx, "lock", "ls", w.image())
	if err != nil || strings.Count(locks, "client.") != 1 {
		w.t.Errorf("locks: %s (%v)", locks, err)
	}
}

// restart turns the machine off and on again.
func (w *world) restart(off func(*lab.Node, context.Context) error) {
	w.t.Helper()
	began := time.Now()
	if err := off(w.node, w.ctx); err != nil {
		w.t.Fatal(err)
	}
	down := time.Since(began)
	if err := w.node.Start(w.ctx); err != nil {
		w.t.Fatal(err)
	}
	w.t.Logf("down after %.0f s, up after %.0f s", down.Seconds(), time.Since(began).Seconds())
}

// onKrbd asserts that the store is on the image by the kernel's client alone, that
// what runs at boot ran on it, and that no unit failed but one.
func (w *world) onKrbd(c *ceph.Cluster, failed string) {
	w.t.Helper()
	w.ranAtBoot()
	out := w.script("root", `findmnt -nro SOURCE,FSTYPE `+w.graphroot()+`
systemctl is-enabled rbdmap.service; cat /sys/bus/rbd/devices/*/config_info; systemctl --failed --no-legend --plain | cut -d' ' -f1`)
	lines := append(strings.Split(strings.TrimSpace(out), "\n"), "")
	if len(lines) < 5 || !strings.HasPrefix(lines[0], "systemd-1 ") || lines[1] != "/dev/rbd0 xfs" || lines[2] != "enabled" || !strings.Contains(lines[3], ",exclusive ") || lines[4] != failed {
		w.t.Errorf("the store is not where it should be, or something failed: %s", out)
	}
	locks, err := c.RBD(w.ctx, "lock", "ls", w.image())
	if err != nil || strings.Count(locks, "client.") != 1 {
		w.t.Errorf("locks: %s (%v)", locks, err)
	}
}

// ranAtBoot asserts that podman ran what it is to run at each boot.
func (w *world) ranAtBoot() {
	w.t.Helper()
	if out := w.script(w.user, w.systemctl()+" is-system-running --wait >/dev/null || true; "+w.systemctl()+" is-active app.service || true"); out != "active\n" {
		w.t.Errorf("what podman runs at boot is %s%s", out, w.script("root", "journalctl -b -o short-monotonic | tail -100"))
	}
}
