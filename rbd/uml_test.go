//go:build uml

package rbd

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/cephlink/cephtest"
	"github.com/storagectl/storagectl/internal/host"
)

// These run in a User-Mode Linux, whose kernel has rbd and nbd. make test-uml.

// guest is a script that runs in it, beside the cluster.
type guest struct {
	t   *testing.T
	dir string // its /mnt
	ran chan error
	out *strings.Builder
}

// common is what the scripts share: child MAPPER maps, and says where in
// $device; give gives it back.
const common = `
child() {
	rm -f /tmp/in /tmp/out; mkfifo /tmp/in
	sed "s/MAPPER/$1/" /mnt/order >/tmp/order
	` + childEnv + `="$(cat /tmp/order)" /mnt/child </tmp/in >/tmp/out & exec 3>/tmp/in
	echo go >&3
	until grep -q Mapping /tmp/out; do sleep 0.1; done
	device=$(sed -n 's/.*"device":"\([^"]*\)".*/\1/p' /tmp/out)
	if [ -z "$device" ]; then cat /tmp/out; return 1; fi
}
give() { exec 3>&-; wait %%; }
# tells the test where we are, and waits until it has done its part
meet() { touch "/mnt/at-$1"; until [ -e "/mnt/go-$1" ]; do sleep 0.1; done; }
`

func newGuest(t *testing.T, c *cephtest.Cluster, spec Spec, script string) *guest {
	t.Helper()
	dir, err := os.MkdirTemp("", "guest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	as := cephlink.Cluster{Conf: "/mnt/ceph.conf", Keyring: "/mnt/keyring"}
	order, err := json.Marshal(childOrder{Helper: "/mnt/storagectl-ceph", Cluster: as, Spec: spec, Mapper: "MAPPER"})
	if err != nil {
		t.Fatal(err)
	}
	sh(t, `cp "$1" "$6/storagectl-ceph"; cp "$2" "$6/ceph.conf"; cp "$3" "$6/keyring"; cp "$4" "$6/child"; printf '%s' "$5" >"$6/order"; cp /usr/bin/rbd-nbd /lib/*/libnl-3.so* /lib/*/libnl-genl-3.so* "$6"`,
		c.Helper, c.Conf, c.Keyring, os.Args[0], string(order), dir)
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte(common+script), 0o600); err != nil {
		t.Fatal(err)
	}
	g := &guest{t, dir, make(chan error, 1), &strings.Builder{}}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	cmd := exec.CommandContext(ctx, c.LabPath(), "ceph", "uml", c.Name, dir, "script")
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = g.out, g.out, time.Second
	go func() {
		g.ran <- cmd.Run()
		cancel()
	}()
	return g
}

// meet waits until the script is at a place; the result lets it go on.
func (g *guest) meet(place string) (goOn func()) {
	g.t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(g.dir, "at-"+place)); err == nil {
			return func() { _ = os.WriteFile(filepath.Join(g.dir, "go-"+place), nil, 0o600) }
		}
		select {
		case err := <-g.ran:
			g.t.Fatalf("before %s: %v: %s", place, err, g.out)
		default:
		}
		if time.Now().After(end) {
			g.t.Fatalf("the guest does not get to %s", place)
		}
	}
}

func (g *guest) end() {
	g.t.Helper()
	if err := <-g.ran; err != nil {
		g.t.Fatalf("%v: %s", err, g.out)
	}
}

// TestUMLKernel: the kernel's client. Mapped exclusively, refused to others with
// its address, not grown under it, unmapped, grown, mapped by the line in rbdmap.
func TestUMLKernel(t *testing.T) {
	c := hubCluster(t)
	spec := Spec{Pool: "rbd", Image: "by-kernel"}
	c.Tool(t, "rbd", "create", "--size", "400M", spec.String())
	line, err := SetEntry(nil, MapEntry{Spec: spec, User: "admin", KeyFile: "/mnt/key", Conf: "/dev/null", Mons: []string{c.Mon}, Options: []string{"exclusive"}})
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, c, spec, `
modprobe rbd
mkdir -p /etc/ceph /srv/store
sed -n 's/.*key = //p' /mnt/keyring >/mnt/key
child krbd
test "$device" = "$(readlink -f `+spec.Link()+`)"
# What [Image.Stripe] gives the other mappers.
for f in minimum optimal; do test "$(cat /sys/block/${device#/dev/}/queue/${f}_io_size)" = `+strconv.Itoa(allocUnit)+`; done
mkfs.xfs -q $device
mount $device /srv/store
head -c 50000000 /dev/urandom >/srv/store/file; sync -f /srv/store
sum=$(sha256sum </srv/store/file)
meet mapped
fstrim /srv/store
umount /srv/store
give
test -z "$(ls /sys/bus/rbd/devices)"
meet given
cp /mnt/rbdmap /etc/ceph/rbdmap
rbdmap map
udevadm settle
grep -q exclusive /sys/bus/rbd/devices/0/config_info
mount `+spec.Link()+` /srv/store
test "$sum" = "$(sha256sum </srv/store/file)"
umount /srv/store
test "$(blockdev --getsize64 `+spec.Link()+`)" = 943718400
rbdmap unmap-all
`)
	if err := os.WriteFile(filepath.Join(g.dir, "rbdmap"), line, 0o600); err != nil {
		t.Fatal(err)
	}
	goOn := g.meet("mapped")
	netns, _ := joined(t, c)
	o := newOther(t, c, netns, spec)
	o.start()
	if r := o.report(); !r.Held || !strings.Contains(r.Error, "10.78.0.11") {
		t.Errorf("mapped by the kernel, and by us: %+v", r)
	}
	o.end()
	// The kernel's client does not resize for others, and exclusively mapped it
	// does not let them do it either.
	h := &Host{Link: hubLink(t, c), Run: &host.Runner{}, RunDir: t.TempDir()}
	if now, err := h.Resize(t.Context(), spec, 900<<20); cephlink.IDOf(err) != cephlink.Held || !strings.Contains(cephlink.HintOf(err), "map it again") {
		t.Errorf("made larger under the kernel: %d, %v", now, err)
	}
	goOn()
	goOn = g.meet("given")
	if now, err := h.Resize(t.Context(), spec, 900<<20); err != nil || now != 900<<20 {
		t.Errorf("%d, %v", now, err)
	}
	// The other way round: what the helper serves, the kernel does not get.
	o = newOther(t, c, netns, spec)
	o.start()
	r := o.report()
	if r.Error != "" {
		t.Errorf("given back, and not free: %s", r.Error)
	}
	dir := mountFS(t, r.Mapping.Device)
	sh(t, `test -s "$1/file"; umount "$1"`, dir)
	o.end()
	goOn()
	g.end()
}

// TestUMLFull: what a run has mapped by the kernel fails a write that finds the pool full,
// and is let go of all the same; what was written before is there.
func TestUMLFull(t *testing.T) {
	c := hubCluster(t)
	spec := Spec{Pool: "rbd", Image: "fills"}
	c.Tool(t, "rbd", "create", "--size", "400M", spec.String())
	g := newGuest(t, c, spec, `
modprobe rbd
mkdir -p /srv/store
child krbd
grep -q abort_on_full /sys/bus/rbd/devices/0/config_info
mkfs.xfs -q $device; mount $device /srv/store; echo kept >/srv/store/file; sync -f /srv/store
meet mapped
rc=0; timeout 60 dd if=/dev/zero of=/srv/store/more bs=1M count=50 conv=fsync || rc=$?
test $rc = 1
umount /srv/store
give
test -z "$(ls /sys/bus/rbd/devices)"
meet given
child krbd
mount $device /srv/store; grep -q kept /srv/store/file; umount /srv/store
give
`)
	quota := func(bytes string, full bool) {
		t.Helper()
		c.Ceph(t, "osd", "pool", "set-quota", "rbd", "max_bytes", bytes)
		for end := time.Now().Add(time.Minute); strings.Contains(c.Ceph(t, "osd", "pool", "ls", "detail"), "full_quota") != full; time.Sleep(time.Second) {
			if time.Now().After(end) {
				t.Fatalf("the pool with a quota of %s: full is not %v", bytes, full)
			}
		}
	}
	goOn := g.meet("mapped")
	quota("1", true)
	goOn()
	goOn = g.meet("given")
	quota("0", false)
	// It could not say in a full pool that it goes: its watch ends by itself.
	for end := time.Now().Add(time.Minute); !strings.Contains(c.Tool(t, "rbd", "status", spec.String()), "Watchers: none"); time.Sleep(time.Second) {
		if time.Now().After(end) {
			t.Fatal("the image stays watched")
		}
	}
	goOn()
	g.end()
}

// TestUMLRefused: the kernel does not get an image that the helper serves.
func TestUMLRefused(t *testing.T) {
	c := hubCluster(t)
	spec := Spec{Pool: "rbd", Image: "served"}
	c.Tool(t, "rbd", "create", "--size", "100M", spec.String())
	netns, addr := joined(t, c)
	o := newOther(t, c, netns, spec)
	o.start()
	if r := o.report(); r.Error != "" {
		t.Fatal(r.Error)
	}
	g := newGuest(t, c, spec, `
modprobe rbd
if child krbd; then exit 1; fi
cp /tmp/out /mnt/said
if rbd --conf /mnt/ceph.conf --keyring /mnt/keyring device map --exclusive `+spec.String()+`; then exit 1; fi
test -z "$(ls /sys/bus/rbd/devices)"
`)
	g.end()
	said, err := os.ReadFile(filepath.Join(g.dir, "said"))
	if err != nil || !strings.Contains(string(said), addr) || !strings.Contains(string(said), `"Held":true`) {
		t.Errorf("the guest says %s (%v), and not %s", said, err, addr)
	}
	o.end()
}

// TestUMLNBD: the mapper nbd.
func TestUMLNBD(t *testing.T) {
	c := hubCluster(t)
	spec := Spec{Pool: "rbd", Image: "by-nbd"}
	c.Tool(t, "rbd", "create", "--size", "100M", spec.String())
	g := newGuest(t, c, spec, `
modprobe nbd
cp /mnt/rbd-nbd /usr/bin/; cp /mnt/libnl* /usr/lib/$(uname -m)-linux-gnu/
mkdir -p /srv/store
child nbd
mkfs.ext4 -q $device; mount $device /srv/store; echo kept >/srv/store/file; umount /srv/store
give
child nbd
mount $device /srv/store; grep -q kept /srv/store/file; umount /srv/store
give
`)
	g.end()
	if out := c.Tool(t, "rbd", "status", spec.String()); !strings.Contains(out, "Watchers: none") {
		t.Errorf("left behind: %s", out)
	}
}
