package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/ceph"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// These are the bad days of a relocation, as whole runs on real nodes.

// onto is the arguments of a relocation to an image.
func (w *world) onto(image string, more ...string) []string {
	args := w.toImage(more...)
	args[2] = image
	return args
}

// heavy puts a volume of that many MB into the store, and returns its file's path
// below a graphroot.
func (w *world) heavy(mb int) string {
	w.t.Helper()
	w.podman("volume", "create", "heavy")
	w.script(w.user, fmt.Sprintf(`head -c %d /dev/urandom >"$(podman volume inspect --format '{{.Mountpoint}}' heavy)/file"`, mb*1000*1000))
	return "volumes/heavy/_data/file"
}

// midway waits until the copy of a file, below folders that the pattern names, has
// some bytes.
func (w *world) midway(pattern string) {
	w.t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		found, _ := filepath.Glob(w.node.HostPath(pattern) + "*")
		for _, f := range found {
			if fi, err := os.Stat(f); err == nil && fi.Size() > 0 {
				return
			}
		}
		if time.Now().After(end) {
			w.t.Fatalf("no copy of %s is begun", pattern)
		}
	}
}

// upAndSame asserts that the store is as it was, and podman works on it.
func (w *world) upAndSame(before inventory) {
	w.t.Helper()
	w.same("the store", before, w.manifest())
	if w.user == lab.Owner {
		if s := w.script(w.user, "systemctl --user is-active podman.socket || true"); s != "active\n" {
			w.t.Errorf("podman.socket is %s", s)
		}
	}
}

// TestRelocateBadCluster: what the cluster says no to is refused with its name and
// nothing is changed; a copy waits for an OSD that is gone; a cluster that gets
// full stops a copy, and not the store.
func TestRelocateBadCluster(t *testing.T) {
	t.Parallel()
	c := newCeph(t)
	for user, caps := range map[string][]string{"nothing": {"mon", "allow r"}, "wrong": {"mon", "profile rbd", "osd", "profile rbd pool=rbd"}} {
		if err := c.User(t.Context(), user, caps...); err != nil {
			t.Fatal(err)
		}
	}
	w := joined(t, c, lab.Owner)
	if err := c.Install(t.Context(), w.node, "nothing", "wrong"); err != nil {
		t.Fatal(err)
	}
	w.script("root", "sed -i 's|key = .*|key = AQAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAA==|' /etc/ceph/ceph.client.wrong.keyring")
	if _, err := c.RBD(t.Context(), "create", "--size", "1G", "rbd/locked"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RBD(t.Context(), "lock", "add", "rbd/locked", "by-hand"); err != nil {
		t.Fatal(err)
	}
	w.script("root", "echo rbd/listed id=other >>/etc/ceph/rbdmap")
	file := w.heavy(40)
	before := w.manifest()
	untouched := w.untouched()
	for _, r := range []struct {
		id   string
		args []string
	}{
		{"ceph-wrong-key", w.onto("rbd/new", "--size", "1G", "--ceph-user", "wrong")},
		{"ceph-no-right", w.onto("rbd/new", "--size", "1G", "--ceph-user", "nothing")},
		{"ceph-no-key", w.onto("rbd/new", "--size", "1G", "--ceph-user", "nobody")},
		{"ceph-no-pool", w.onto("nopool/new", "--size", "1G")},
		{"ceph-no-namespace", w.onto("rbd/nowhere/new", "--size", "1G")},
		{"image-size", w.onto("rbd/new")},
		{"image-size", w.onto("rbd/locked", "--size", "2G")},
		{"image-held", w.onto("rbd/locked", "--take-over")},
		{"image-mapped", w.onto("rbd/listed", "--size", "1G")},
		{"no-room", w.onto("rbd/new", "--size", "30M")},
		{"ceph-no-mapper", w.onto("rbd/new", "--size", "1G", "--mapper", "krbd")},
		{"ceph-no-mapper", w.onto("rbd/new", "--size", "1G", "--mapper", "nbd")}, // this kernel has neither
	} {
		got := w.ctl(append(r.args, "--json")...)
		if got.code != exitRefused || !strings.Contains(got.stdout, `"`+r.id+`"`) {
			t.Errorf("%v: want refusal %s: %s", r.args, r.id, got)
		}
	}
	w.script("root", "mv /usr/bin/rbd /usr/bin/rbd.away")
	if got := w.ctl(w.onto("rbd/new", "--size", "1G", "--json")...); got.code != exitRefused || !strings.Contains(got.stdout, `"ceph-no-mapper"`) || !strings.Contains(got.stdout, "ceph-common") {
		t.Errorf("without rbd: want a refusal: %s", got)
	}
	w.script("root", "mv /usr/bin/rbd.away /usr/bin/rbd")
	w.same("the node", untouched, w.untouched())

	w.inNamespace(c)
	w.stalled(c, file, before)
	w.upAndSame(before)
	w.must("rollback")
	w.full(c, file, before)
}

// inNamespace has a namespace made, and an image in it with features of its own: both
// are gone with a run that comes to nothing.
func (w *world) inNamespace(c *ceph.Cluster) {
	w.t.Helper()
	r := w.exec("root", append([]string{"env", "STORAGECTL_SWEEP_KILL_AT=after-map", "storagectl-sweep"},
		w.onto("rbd/nowhere/new", "--size", "1G", "--make-namespace", "--features", "layering,journaling")...)...)
	if r.code != -1 {
		w.t.Fatalf("not killed: %s", r)
	}
	if out, err := c.RBD(w.ctx, "info", "rbd/nowhere/new"); err != nil || !strings.Contains(out, "features: layering, exclusive-lock, journaling") {
		w.t.Errorf("made: %s, %v", out, err)
	}
	w.must("rollback")
	if out, err := c.RBD(w.ctx, "namespace", "ls", "rbd"); err != nil || strings.Contains(out, "nowhere") {
		w.t.Errorf("left: %s, %v", out, err)
	}
}

// stalled moves the store while the OSD is stopped for a time: the copy waits. The host
// knows the cluster by its monitors and a key alone, then and at the next boot.
func (w *world) stalled(c *ceph.Cluster, file string, before inventory) {
	w.t.Helper()
	known, forget := w.byMonitors(c, "store")
	defer forget()
	wait := w.start(w.onto("rbd/stalled", append(known, "--size", "1G", "--rate", "8M")...)...)
	w.midway("/run/storagectl/mounts/*/" + file)
	if err := c.Stop(w.ctx, "osd"); err != nil {
		w.t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	if out := w.script("root", "storagectl status"); !strings.Contains(out, "at work now") {
		w.t.Errorf("the run does not wait for the OSD: %s", out)
	}
	if err := c.Start("osd"); err != nil {
		w.t.Fatal(err)
	}
	if r := wait(); r.code != exitDone {
		w.t.Fatalf("after the OSD came back: %s", r)
	}
	w.powerCut()
	w.onImage(before)
}

// byMonitors takes ceph.conf and the keyring of a user from the node, and returns the
// arguments by which its cluster is reached without, and what puts both back.
func (w *world) byMonitors(c *ceph.Cluster, user string) (args []string, back func()) {
	w.t.Helper()
	w.script("root", `mkdir -m 700 /root/ceph; cd /etc/ceph; mv ceph.conf ceph.client.`+user+`.keyring /root/ceph
sed -n 's/.*key = //p' /root/ceph/*.keyring >/root/ceph.key; chmod 600 /root/ceph.key`)
	args = []string{"--ceph-mon", c.MonAddr(), "--ceph-keyfile", "/root/ceph.key"}
	return args, func() { w.script("root", "mv /root/ceph/* /etc/ceph; rmdir /root/ceph") }
}

// full moves the store while the pool gets full: the run stops, the store is as it
// was and at work, and when there is room again the run goes on.
func (w *world) full(c *ceph.Cluster, file string, before inventory) {
	w.t.Helper()
	quota := func(bytes string) {
		if _, err := c.Ceph(w.ctx, "osd", "pool", "set-quota", "rbd", "max_bytes", bytes); err != nil {
			w.t.Fatal(err)
		}
	}
	wait := w.start(w.onto("rbd/full", "--size", "1G", "--rate", "3M")...)
	w.midway("/run/storagectl/mounts/*/" + file)
	quota("1")
	r := wait()
	w.t.Logf("in a full pool: %s", r)
	if r.code != exitFailed || !strings.Contains(r.stderr, "pool rbd is full") {
		w.t.Fatalf("in a full pool: %s", r)
	}
	w.upAndSame(before)
	quota("0")
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		out, err := c.Ceph(w.ctx, "osd", "pool", "ls", "detail")
		if err == nil && !strings.Contains(out, "full_quota") {
			break
		}
		if time.Now().After(end) {
			w.t.Fatalf("the pool stays full: %s, %v", out, err)
		}
	}
	w.must("resume")
	w.upAndSame(before)
	w.onImage(before)
}

// TestRelocateFull: somebody else fills the target in the middle of the copy. The
// run takes itself back, and when there is room it can be begun anew. A line in
// fstab for the graphroot is a refusal.
func TestRelocateFull(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.disk("ext4", "300M")
	file := w.heavy(40)
	before := w.manifest()
	w.script("root", "cp /etc/fstab /etc/fstab.was; echo 'tmpfs "+lab.GraphRoot+" tmpfs noauto 0 0' >>/etc/fstab")
	untouched := w.untouched()
	if r := w.ctl(append(w.relocate(), "--json")...); r.code != exitRefused || !strings.Contains(r.stdout, `"fstab"`) {
		t.Errorf("want a refusal: %s", r)
	}
	w.same("the node", untouched, w.untouched())
	w.script("root", "mv /etc/fstab.was /etc/fstab")

	wait := w.start(w.relocate("--rate", "4M")...)
	w.midway("/srv/disk/*/" + file)
	w.script("root", `cd /srv/disk; fallocate -l $(( ($(stat -f -c %a .) - 16) * $(stat -f -c %S .) )) others || true
dd if=/dev/zero bs=64k >>others 2>/dev/null || true`)
	if r := wait(); r.code != exitRefused || !strings.Contains(r.stderr, "no room") || !strings.Contains(r.stderr, "as it was before") {
		t.Errorf("want it taken back: %s", r)
	}
	w.upAndSame(before)
	if left := w.script("root", "ls -A /srv/disk"); strings.Contains(left, "storage") {
		t.Errorf("left on the target: %s", left)
	}
	w.script("root", "rm /srv/disk/others")
	w.must(w.relocate()...)
	w.moved(before)
}

// TestRelocateSwapped: the owner swaps a folder on the way to the store for a link,
// again and again, while root works. Whatever becomes of the run, nothing happens
// where the link leads, and the store is whole in the end.
func TestRelocateSwapped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.disk("xfs", "2G")
	before := w.manifest()
	w.script("root", `mkdir -p /srv/victim/storage /srv/victim/containers/storage; echo precious >/srv/victim/storage/file; chmod -R 755 /srv/victim
cp -a /srv/victim/storage/file /srv/victim/containers/storage`)
	victim := w.tree("/srv/victim")
	// The two change places at once, and back some moments later (renameat2).
	w.script(lab.Owner, `cat >~/swap <<'X'
chdir "$ENV{HOME}/.local/share"; symlink "/srv/victim", "trap";
my $nr = qx(uname -m) =~ /aarch64/ ? 276 : 316;
my ($store, $trap, $times) = ("containers", "trap", 0);
sub swap { until (syscall($nr, -100, $store, -100, $trap, 2) == 0) { select(undef, undef, undef, 0.001) } }
while (-e "$ENV{HOME}/swapping") {
	swap(); select(undef, undef, undef, 0.002);
	swap(); select(undef, undef, undef, 0.05 + rand(0.4));
	$times++;
}
open(my $f, ">", "$ENV{HOME}/swapped"); print $f $times; close $f;
X
touch ~/swapping; setsid perl ~/swap </dev/null >/dev/null 2>&1 &`)
	for i := range 4 {
		r := w.ctl(w.relocate()...)
		t.Logf("try %d: %s", i, r)
		if strings.Contains(w.script("root", "storagectl history || true"), "running") {
			if r := w.ctl("rollback"); r.code != exitDone {
				t.Logf("rolled back under way: %s", r)
			}
		}
		if r.code == exitDone {
			break
		}
	}
	w.script(lab.Owner, "rm ~/swapping; for i in $(seq 50); do [ -s ~/swapped ] && break; sleep 0.1; done; [ $(cat ~/swapped) -gt 10 ]")
	w.same("what the link leads to", victim, w.tree("/srv/victim"))
	if out := w.script("root", "findmnt -nR /srv/victim || true; lsattr -dR /srv/victim | grep -- '-i-' || true"); out != "" {
		t.Errorf("mounted or changed where the link leads: %s", out)
	}
	if out := w.script("root", "storagectl status || true"); strings.Contains(out, "storagectl resume") {
		w.must("rollback")
	}
	w.same("the store", before, w.manifest())
}

// TestRelocateTwoHosts: of two hosts that move to one image at once one wins. A
// holder that does not answer any more is shut out on the operator's word alone,
// and cannot write then, whatever it believes.
func TestRelocateTwoHosts(t *testing.T) {
	t.Parallel()
	c := newCeph(t)
	if err := c.User(t.Context(), "weak", "mon", "allow r", "osd", "profile rbd pool=rbd"); err != nil {
		t.Fatal(err)
	}
	a, b := joined(t, c, lab.Owner), joined(t, c, lab.Owner)
	if err := c.Install(t.Context(), b.node, "weak"); err != nil {
		t.Fatal(err)
	}
	before := map[*world]inventory{a: a.manifest(), b: b.manifest()}
	results := make(chan result, 1)
	go func() {
		defer close(results)
		results <- a.ctl(a.onto("rbd/race", "--size", "1G")...)
	}()
	rb := b.ctl(b.onto("rbd/race", "--size", "1G")...)
	ra := <-results
	if ra.code+rb.code != exitDone+exitRefused || ra.code != exitDone && rb.code != exitDone {
		t.Fatalf("of two at once: %s\nand %s", ra, rb)
	}
	a.upAndSame(before[a])
	b.upAndSame(before[b])
	won := a
	if rb.code == exitDone {
		won = b
	}
	won.onImage(before[won])

	// A maps an image, and its host is cut off from the cluster. All nodes have one
	// kernel: whoever looks at all its devices waits as long, so be quick.
	if _, err := c.Ceph(t.Context(), "config", "set", "osd", "osd_client_watch_timeout", "20"); err != nil {
		t.Fatal(err)
	}
	const image = "rbd/taken"
	cable := func(w *world, verb string) { w.t.Helper(); w.script("root", "ip link set eth0 "+verb) }
	if a == won {
		a.must("rollback")
	}
	if r := a.exec("root", append([]string{"env", "STORAGECTL_SWEEP_KILL_AT=after-map", "storagectl-sweep"}, a.onto(image, "--size", "1G")...)...); r.code != -1 {
		t.Fatalf("not killed: %s", r)
	}
	device := strings.TrimSpace(a.script("root", "readlink -f /dev/rbd/"+image))
	if b == won {
		b.must("rollback")
	}
	cable(a, "down")
	if r := b.ctl(b.onto(image, "--take-over")...); r.code != exitRefused || !strings.Contains(r.stderr, "10.78.0.1") || strings.Contains(r.stderr, "say --take-over") {
		t.Errorf("a holder that still has its watch: %s", r)
	}
	unwatched(t, c, image)
	if r := b.ctl(b.onto(image)...); r.code != exitRefused || !strings.Contains(r.stderr, "say --take-over") {
		t.Errorf("a dead holder: %s", r)
	}
	if r := b.ctl(b.onto(image, "--take-over", "--ceph-user", "weak")...); r.code != exitRefused || !strings.Contains(r.stderr, "blocklist") {
		t.Errorf("without the right to: %s", r)
	}
	if r := b.exec("root", append([]string{"env", "STORAGECTL_SWEEP_KILL_AT=after-take-over", "storagectl-sweep"}, b.onto(image, "--take-over")...)...); r.code != -1 {
		t.Fatalf("taken over: %s", r)
	}
	cable(a, "up")
	b.must("resume")
	b.onImage(before[b])
	if r := a.exec("root", "dd", "if=/dev/zero", "of="+device, "bs=4096", "count=16", "oflag=direct"); r.code == 0 {
		t.Errorf("the old holder has written: %s", r)
	}
	a.must("rollback")
	a.upAndSame(before[a])
	b.onImage(before[b])

	// The other way round: what holds a store is not taken, but its host is shut out.
	cable(b, "down")
	unwatched(t, c, image)
	if r := a.ctl(a.onto(image, "--take-over")...); r.code != exitRefused || !strings.Contains(r.stderr, "holds files") {
		t.Errorf("an image with a store: %s", r)
	}
	a.upAndSame(before[a])
	cable(b, "up")
	if r := b.exec(b.user, "sh", "-c", "podman volume create late && sync -f "+b.graphroot()); r.code == 0 {
		t.Errorf("the store of who was shut out can be written to: %s", r)
	}
	if err := b.node.Kill(b.ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.node.Start(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.onImage(before[b])
}

// unwatched waits until nobody watches an image.
func unwatched(t *testing.T, c *ceph.Cluster, image string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		out, err := c.RBD(ctx, "status", image)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out, "Watchers: none") {
			return
		}
		time.Sleep(time.Second)
	}
}
