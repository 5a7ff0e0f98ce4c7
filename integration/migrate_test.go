package integration

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// migrated asserts the end state of a migration: native overlay, all that was
// there before, podman's units as before, and a store that can be worked with.
func (w *world) migrated(before inventory) {
	w.t.Helper()
	w.isOn("overlay", before)
}

// isOn asserts that a store is on a driver, with all that it held, and can be used.
func (w *world) isOn(driver string, before inventory) {
	w.t.Helper()
	if d := w.driver(); d != driver {
		w.t.Fatalf("podman is on %s", d)
	}
	w.same("the store", before, w.manifest())
	if w.user != "root" {
		if s := strings.TrimSpace(w.script(w.user, "systemctl --user is-active podman.socket || true")); s != "active" {
			w.t.Errorf("podman.socket is %s", s)
		}
	}
}

// inside is a function of the shell that runs a container and prints what it wrote, from its
// log: podman 4.3.1 on a loaded machine loses what one writes before it is attached to.
const inside = `inside() {
	podman run --log-driver k8s-file --name inside --network=none "$@" </dev/null >/dev/null
	podman logs inside
	podman rm -f -t 0 inside >/dev/null
}
`

// works runs, builds, commits and removes on the migrated store.
func (w *world) works() {
	w.t.Helper()
	out := w.script(w.user, inside+`
# Native overlay: the kernel's, not fuse-overlayfs.
inside localhost/lab/base:1 /bin/busybox grep ' / ' /proc/mounts
podman create -q --log-driver k8s-file --name fresh --network=none -v vol1:/v localhost/lab/tricky:1 \
	/bin/busybox sh -c 'cat /v/file; echo new >/data/new; rm /data/keep; ls /data' >/dev/null
podman start -a fresh </dev/null >/dev/null
podman logs fresh
podman commit -q fresh localhost/lab/committed:1 >/dev/null
podman rm fresh >/dev/null
inside localhost/lab/committed:1 /bin/busybox sh -c 'cat /data/new; test ! -e /data/keep'
printf 'FROM localhost/lab/tricky:1\nRUN rm -r /opaque && ln /hard/one /hard/five\n' >/tmp/Dockerfile
podman build -q --network=none -t localhost/lab/rebuilt:1 -f /tmp/Dockerfile /tmp >/dev/null
podman rmi localhost/lab/rebuilt:1 localhost/lab/committed:1 >/dev/null
inside localhost/lab/tricky:1 /bin/busybox sh -c 'cat /opaque/new /hard/four'
`)
	if !strings.HasPrefix(out, "overlay / overlay ") {
		w.t.Errorf("a container's root is not native overlay: %s", out)
	}
	for _, want := range []string{"kept\n", "new\n", "one inode, many names"} {
		if !strings.Contains(out, want) {
			w.t.Errorf("no %q in the output of the containers: %s", want, out)
		}
	}
}

// TestMigrate is the main job, to the end: migrate, live through a power cut,
// commit.
func TestMigrate(t *testing.T) {
	for _, c := range []struct{ release, user string }{
		{"bookworm", lab.Owner}, {"bookworm", "root"}, {"trixie", lab.Owner}, {"trixie", "root"},
	} {
		t.Run(c.release+"/"+c.user, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.release, c.user, images.Plain)
			before := w.manifest()
			r := w.must(w.migrate()...)
			w.migrated(before)
			w.works()
			// A volume that a container has used is another one to podman 5.
			before = w.manifest()

			if err := w.node.Kill(w.ctx); err != nil {
				t.Fatal(err)
			}
			if err := w.node.Start(w.ctx); err != nil {
				t.Fatal(err)
			}
			w.migrated(before)

			w.must("commit")
			w.migrated(before)
			if left := w.leftovers("vfs*"); left != "" {
				t.Errorf("commit left %s; migrate said: %s", left, r)
			}
			if r := w.ctl("rollback"); r.code == exitDone {
				t.Errorf("rollback after commit: %s", r)
			}
			if d := w.driver(); d != "overlay" {
				t.Errorf("podman is on %s after a rollback that was refused", d)
			}
		})
	}
}

// leftovers lists what is in the graphroot of the old driver and of runs.
func (w *world) leftovers(pattern string) string {
	w.t.Helper()
	return strings.TrimSpace(w.script("root", "cd "+w.graphroot()+
		"; find . -maxdepth 1 \\( -name '"+pattern+"' -o -name '.storagectl*' \\)"))
}

// TestCommitAtOnce has no way back and leaves nothing behind, and the world hears of it.
func TestCommitAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	before := w.manifest()
	w.asksToBeTold()
	// As a unit of systemd's: what it writes goes to the journal.
	if r := w.exec("root", append([]string{"systemd-run", "--quiet", "--wait", "--unit=job", "storagectl"}, w.migrate("--commit")...)...); r.code != exitDone {
		t.Fatalf("%s\n%s", r, w.script("root", "journalctl --no-pager -u job"))
	}
	w.migrated(before)
	w.wasTold()
	if left := w.leftovers("vfs*"); left != "" {
		t.Errorf("migrate --commit left %s", left)
	}
	w.reported("localhost/lab/base:1")
}

// TestRollback gives the store back byte for byte.
func TestRollback(t *testing.T) {
	for _, c := range []struct{ release, user string }{
		{"bookworm", lab.Owner}, {"bookworm", "root"}, {"trixie", lab.Owner},
	} {
		t.Run(c.release+"/"+c.user, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.release, c.user, images.Plain)
			before, tree, conf := w.manifest(), w.store(), w.conf()
			w.must(w.migrate()...)
			w.migrated(before)
			w.must("rollback")
			w.asItWas(before, tree, conf)
			// And once more, to the end.
			w.must(w.migrate()...)
			w.migrated(before)
		})
	}
}

// conf lists podman's configuration. A file that was written and put back may
// have another time.
func (w *world) conf() inventory {
	w.t.Helper()
	inv := w.tree("/etc/containers", lab.Home+"/.config")
	for path, text := range inv {
		inv[path] = withoutTime(text)
	}
	return inv
}

// withoutTime drops the time from what tree says of a file.
func withoutTime(text string) string {
	return regexp.MustCompile(` mtime=[0-9.]+`).ReplaceAllString(text, "")
}

// asItWas asserts that the store and its configuration are what they were.
func (w *world) asItWas(before, tree, conf inventory) {
	w.t.Helper()
	w.same("the graphroot", tree, w.store())
	w.same("the configuration", conf, w.conf())
	w.isOn("vfs", before)
}

// TestOwnStore is a user who migrates without root.
func TestOwnStore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	before := w.manifest()
	if r := w.exec(lab.Owner, "storagectl", "migrate", "--to", "overlay", "--yes"); r.code != exitDone {
		t.Fatal(r)
	}
	w.migrated(before)
	if r := w.exec(lab.Owner, "storagectl", "rollback"); r.code != exitDone {
		t.Fatal(r)
	}
	if d := w.driver(); d != "vfs" {
		t.Fatalf("podman is on %s", d)
	}
	w.same("the store", before, w.manifest())
}

// TestNoSystemd is a machine where systemd does not run, as a container is: a
// pid namespace with another first process, and systemd's folders, the journal
// and the buses hidden.
func TestNoSystemd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	before := w.manifest()
	w.script(lab.Owner, "systemctl --user stop podman.socket podman.service; podman system migrate")
	r := w.exec("root", "unshare", "-m", "-p", "-f", "--mount-proc", "sh", "-euc", `
for d in /run/systemd /run/dbus /run/log /run/user/2000/systemd; do mount -t tmpfs tmpfs $d; done
mount --bind /dev/null /run/user/2000/bus
storagectl "$@"; exit $?`, "sh", "migrate", "--to", "overlay", "--yes", "--user", lab.Owner)
	if r.code != exitDone {
		t.Fatal(r)
	}
	if d := w.driver(); d != "overlay" {
		t.Fatalf("podman is on %s", d)
	}
	w.same("the store", before, w.manifest())
}

// TestDryRun shows the plan and writes nothing at all.
func TestDryRun(t *testing.T) {
	for _, user := range []string{lab.Owner, "root"} {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "bookworm", user, images.Small)
			before := w.untouched()
			r := w.must(w.migrate("--dry-run")...)
			w.same("the machine after a dry run", before, w.untouched())
			for _, want := range []string{"overlay", "vfs", w.graphroot()} {
				if !strings.Contains(r.stdout, want) {
					t.Errorf("the plan does not speak of %s: %s", want, r)
				}
			}
			r = w.must(w.migrate("--dry-run", "--json")...)
			w.same("the machine after a dry run with --json", before, w.untouched())
			jsonLines(t, r.stdout)
		})
	}
}

// jsonLines asserts that each line is a JSON object with a message_type, and
// returns them.
func jsonLines(t testing.TB, out string) []map[string]any {
	t.Helper()
	var all []map[string]any
	for line := range strings.Lines(out) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("not a line of JSON: %q: %v", line, err)
		}
		if m["message_type"] == nil {
			t.Errorf("no message_type in %q", line)
		}
		all = append(all, m)
	}
	if len(all) == 0 {
		t.Error("no line of JSON at all")
	}
	return all
}

// TestAgain: a store on overlay is left alone, with exit 0.
func TestAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.must(w.migrate()...)
	before := w.untouched()
	r := w.must(w.migrate()...)
	w.same("the machine", before, w.untouched())
	if !strings.Contains(r.stdout+r.stderr, "already") {
		t.Errorf("it does not say that the store is on overlay already: %s", r)
	}
	jsonLines(t, w.must("status", "--json").stdout)
	jsonLines(t, w.must("history", "--json").stdout)
	w.same("the machine after status and history", before, w.untouched())
}

// TestContainers: containers are refused with their names, or given up on the
// operator's word; those of buildah are carried over.
func TestContainers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Containers)
	before := w.untouched()
	r := w.ctl(w.migrate("--containers", "refuse")...)
	if r.code != exitRefused || !strings.Contains(r.stderr, "stopped") || !strings.Contains(r.stderr, "hint: ") {
		t.Errorf("not a refusal that names the container: %s", r)
	}
	w.same("the machine after a refusal", before, w.untouched())

	w.must(w.migrate("--containers", "discard")...)
	if d := w.driver(); d != "overlay" {
		t.Fatalf("podman is on %s", d)
	}
	if left := w.podman("ps", "-a", "-q"); left != "" {
		t.Errorf("containers are left: %s", left)
	}
	// buildah's working containers belong to it and are kept, with their changes.
	out := w.script(w.user, inside+`
b=$(buildah containers -q)
buildah inspect "$b" | jq -r .OCIv1.config.Labels.working
buildah unshare sh -euc 'cat "$(buildah mount "$1")/data/added"' sh "$b"
buildah commit -q "$b" localhost/lab/continued:1 >/dev/null
inside localhost/lab/continued:1 /bin/busybox cat /data/added`)
	if out != "yes\nadded\nadded\n" {
		t.Errorf("buildah's container is not what it was: %q", out)
	}
	w.works()
}

// TestDiscard is the classic way: an empty store on overlay. A reset deletes
// whole folders; what in them is not podman's to delete stays.
func TestDiscard(t *testing.T) {
	for _, release := range []string{"bookworm", "trixie"} {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, release, lab.Owner, images.Small)
			// With a network of its own a container leaves its traces in the runroot, too.
			w.script("root", "touch /etc/resolv.conf")
			w.script(w.user, `podman network create lost >/dev/null
podman run -d --name lost --network lost localhost/lab/base:1 /bin/busybox sleep 1000 >/dev/null
echo '{"auths":{"registry.example":{"auth":"eDp5"}}}' >$XDG_RUNTIME_DIR/containers/auth.json
echo years >$XDG_RUNTIME_DIR/containers/thesis.txt`)
			discard := w.migrate("--images", "discard", "--containers", "discard")
			if r := w.ctl(discard...); r.code != exitRefused || !strings.Contains(r.stderr, "thesis.txt") {
				t.Errorf("work in the runroot: %s", r)
			}
			w.script(w.user, `test "$(cat $XDG_RUNTIME_DIR/containers/thesis.txt)" = years; rm $XDG_RUNTIME_DIR/containers/thesis.txt`)
			if release == "bookworm" {
				discard = []string{"runbook", "run", "reset-and-start-clean", "--param", "user=" + w.user, "--yes"}
			}
			w.must(discard...)
			if d := w.driver(); d != "overlay" {
				t.Fatalf("podman is on %s", d)
			}
			if left := w.podman("images", "-a", "-q"); left != "" {
				t.Errorf("images are left: %s", left)
			}
			if left := w.leftovers("vfs*"); left != "" {
				t.Errorf("left in the store: %s", left)
			}
			if s := strings.TrimSpace(w.script(w.user, "systemctl --user is-active podman.socket || true")); s != "active" {
				t.Errorf("podman.socket is %s", s)
			}
			if got := w.script(w.user, "cat $XDG_RUNTIME_DIR/containers/auth.json; ls -A $XDG_RUNTIME_DIR | grep storagectl || true"); got != `{"auths":{"registry.example":{"auth":"eDp5"}}}`+"\n" {
				t.Errorf("the registry logins are not what they were: %q", got)
			}
		})
	}
}
