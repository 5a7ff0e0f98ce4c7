package integration

import (
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestUnitNamesAreNotOrders: the owner has a unit whose name looks like a word
// of ours. Root must not do to the system's unit of that name what the owner
// cannot.
func TestUnitNamesAreNotOrders(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.script("root", `printf '[Service]\nExecStart=/bin/touch /root/started\n' >/etc/systemd/system/asleep.service
printf '[Service]\nExecStart=/bin/sleep 1000\nExecStopPost=/bin/touch /root/stopped\n' >/etc/systemd/system/awake.service
systemctl daemon-reload; systemctl start awake.service`)
	w.script(lab.Owner, `mkdir -p ~/.config/systemd/user; cd ~/.config/systemd/user
for u in system:asleep system:awake; do printf '[Service]\nExecStart=/bin/sh -c "sleep 1000" podman\n' >$u.service; done
systemctl --user daemon-reload; systemctl --user start system:asleep.service system:awake.service`)
	w.must(w.migrate()...)
	w.must("rollback")
	if got := w.script("root", "ls /root; systemctl is-active awake.service"); got != "active\n" {
		t.Errorf("the owner had root start or stop units of the system: %q", got)
	}
	if got := w.script(lab.Owner, "systemctl --user is-active system:asleep.service system:awake.service"); got != "active\nactive\n" {
		t.Errorf("the owner's own units: %q", got)
	}
}

// TestSystemUnitOfTheOwner: a unit of the system that runs podman as the owner
// is stopped, and started again.
func TestSystemUnitOfTheOwner(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.script("root", `printf '[Service]\nUser=hashi\nExecStart=/bin/sh -c "sleep 1000" podman\nExecStopPost=/bin/touch /tmp/stopped\n' >/etc/systemd/system/theirs.service
systemctl daemon-reload; systemctl start theirs.service`)
	w.must(w.migrate()...)
	if got := w.script("root", "systemctl is-active theirs.service; ls /tmp/stopped"); got != "active\n/tmp/stopped\n" {
		t.Errorf("theirs.service: %q", got)
	}
}

// TestRollbackKeepsWhatWasMade: whatever lies in the way, a rollback deletes
// nothing that was made or changed after the cutover, and names it.
func TestRollbackKeepsWhatWasMade(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.must(w.migrate()...)
	w.script(lab.Owner, `echo x >/tmp/f; tar -C /tmp -c f | podman import -q - localhost/precious:1
podman tag localhost/lab/base:1 localhost/another:1
podman volume create later >/dev/null
STORAGE_DRIVER=vfs buildah images`) // which makes empty vfs folders
	r := w.must("rollback")
	for _, want := range []string{"localhost/precious:1", "(names)", "volume later"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("the rollback does not name %q:\n%s", want, r.stdout)
		}
	}
	if d := w.driver(); d != "vfs" {
		t.Errorf("podman is on %s", d)
	}
	got := w.script(lab.Owner, `cd ~/.local/share/containers/storage/.storagectl-*/new; podman unshare cat overlay/*/diff/f; ls ../db`)
	if !strings.HasPrefix(got, "x\n") || !strings.Contains(got, "replaced") {
		t.Errorf("what was made is not kept: %q", got)
	}
	// And the store can be migrated again beside it.
	w.must(w.migrate()...)
	if d := w.driver(); d != "overlay" {
		t.Errorf("podman is on %s", d)
	}
}

// TestCommitCutOff: a commit that fails half-way is past the way back, says so,
// and is finished by resume.
func TestCommitCutOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	before := w.manifest()
	w.must(w.migrate()...)
	const file = `$(find ` + lab.GraphRoot + `/.storagectl-*/old -type f -links 1 | head -1)`
	w.script("root", "chattr +i "+file)
	t.Cleanup(func() { _, _ = w.node.Script(w.ctx, "root", "chattr -R -i "+lab.GraphRoot+" || true") })
	if r := w.ctl("commit"); r.code != exitFailed || !strings.Contains(r.stderr, "resume") || strings.Contains(r.stderr, "or storagectl rollback") {
		t.Errorf("commit: %s", r)
	}
	if r := w.ctl("rollback"); r.code != exitRefused {
		t.Errorf("rollback: %s", r)
	}
	w.script("root", "chattr -R -i "+lab.GraphRoot+" 2>/dev/null || true") // it complains of symlinks
	w.must("resume")
	w.migrated(before)
	if left := w.leftovers("vfs*"); left != "" {
		t.Errorf("left: %s", left)
	}
}

// TestDiscardKeepsVolumes: containers that are given up take no volume along.
func TestDiscardKeepsVolumes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.script(lab.Owner, `podman create --name anon -v /data localhost/lab/base:1 /bin/busybox true
v=$(podman inspect --format '{{(index .Mounts 0).Name}}' anon)
echo gold >"$(podman volume inspect --format '{{.Mountpoint}}' $v)/gold"
podman run -d --rm --name gone --network none localhost/lab/base:1 /bin/busybox sleep 1000`)
	if r := w.ctl(w.migrate("--containers", "discard")...); r.code != exitRefused || !strings.Contains(r.stderr, "gone") {
		t.Errorf("a --rm container: %s", r)
	}
	w.script(lab.Owner, "podman stop -t 0 gone; while podman container exists gone; do sleep 0.1; done")
	w.must(w.migrate("--containers", "discard")...)
	const look = `podman ps -aq | wc -l; find ~/.local/share/containers/storage/volumes -name gold | wc -l; podman volume ls -q | wc -l`
	after := strings.Fields(w.script(lab.Owner, look))
	if after[0] != "0" || after[1] != "1" {
		t.Errorf("containers, files, volumes: %v", after)
	}
	w.must("rollback")
	back := strings.Fields(w.script(lab.Owner, look))
	if back[0] != "1" || back[1] != "1" || back[2] != after[2] {
		t.Errorf("after rollback: containers, files, volumes: %v", back)
	}
	// And it starts, though podman has not been through a boot since.
	w.script(lab.Owner, `podman start anon; test "$(podman wait anon)" = 0; podman create --name other -v /x localhost/lab/base:1 /bin/busybox true; podman start other; podman rm -f anon other`)
}

// TestRollbackUnderRunningContainers is refused before podman is stopped.
func TestRollbackUnderRunningContainers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.must(w.migrate()...)
	w.script(lab.Owner, "podman run -d --name day --network none localhost/lab/base:1 /bin/busybox sleep 1000")
	if r := w.ctl("rollback"); r.code != exitRefused || !strings.Contains(r.stderr, "podman stop day") {
		t.Errorf("rollback: %s", r)
	}
	if got := w.script(lab.Owner, "systemctl --user is-active podman.socket; podman inspect --format '{{.State.Status}}' day"); got != "active\nrunning\n" {
		t.Errorf("socket, container: %q", got)
	}
	w.script(lab.Owner, "podman stop -t 0 day")
	w.must("rollback")
	if d := w.driver(); d != "vfs" {
		t.Errorf("podman is on %s", d)
	}
}

// TestMountInTheStore: a reset must not reach what is mounted in the store.
func TestMountInTheStore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.script("root", `mkdir -p /srv/data `+lab.GraphRoot+`/volumes/nas; echo keep >/srv/data/x; mount --bind /srv/data `+lab.GraphRoot+`/volumes/nas`)
	if r := w.ctl(w.migrate("--images", "discard")...); r.code != exitRefused {
		t.Errorf("discard: %s", r)
	}
	w.must(w.migrate("--commit")...)
	if got := w.script("root", "cat /srv/data/x"); got != "keep\n" {
		t.Errorf("the mounted file: %q", got)
	}
}
