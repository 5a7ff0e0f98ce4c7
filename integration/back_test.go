package integration

import (
	"os"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// The other directions: from overlay back to vfs, and from fuse-overlayfs to the
// kernel's overlay.

// remade are images that are unpacked anew by the store's own driver, one with what
// makes it write marks of deleted files, and a container that was used.
const remade = `
cd
printf 'FROM localhost/lab/tricky:1\nRUN rm -r /opaque && rm /hard/two && mkdir /opaque && echo anew >/opaque/anew\n' >/tmp/Anew
podman build -q --network=none -t localhost/lab/anew:1 -f /tmp/Anew /tmp >/dev/null
podman create --name stopped --network=none -v vol1:/v localhost/lab/base:1 /bin/busybox sh -c 'echo changed >/changed; rm /etc/os-release; rm -r /home; mkdir /home' >/dev/null
podman start -a stopped </dev/null
`

// TestOtherDirections: images and containers of every kind are what they were on
// another driver, after a rollback, and after the commit of another migration.
func TestOtherDirections(t *testing.T) {
	type cell struct {
		release, user string
		kind          images.Kind
		from, to      string
	}
	cells := []cell{
		{"bookworm", lab.Owner, images.Native, "overlay", "vfs"},
		{"bookworm", lab.Owner, images.Fuse, "fuse-overlayfs", "overlay"},
		{"bookworm", "root", images.Fuse, "fuse-overlayfs", "overlay"},
	}
	if os.Getenv("STORAGECTL_SWEEP") == "full" {
		cells = append(cells, cell{"bookworm", "root", images.Native, "overlay", "vfs"},
			cell{"trixie", lab.Owner, images.Native, "overlay", "vfs"}, cell{"trixie", lab.Owner, images.Fuse, "fuse-overlayfs", "overlay"})
	}
	for _, c := range cells {
		t.Run(c.from+"-"+c.to+"/"+c.release+"-"+c.user, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.release, c.user, c.kind)
			if d := w.driver(); d != c.from {
				t.Fatalf("podman is on %s", d)
			}
			if c.kind == images.Fuse {
				if r, all := w.doctor(c.user, "--check", "driver"); !strings.Contains(strings.Join(all["driver"].Mend, ""), "storagectl migrate --to overlay") {
					t.Errorf("doctor does not tell of the way: %s", r)
				}
			}
			w.script(c.user, remade)
			plain := []string{"running", "exited", "created", "restart=always", "named, anonymous and bind volumes", "a secret",
				"a network of its own", "a health check", "depends on another (`--requires`)", "in another's network (`--network container:`)",
				"in a pod, with infra"}
			if c.user != "root" && c.kind != images.Fuse { // else the driver maps ids when it mounts: refused
				plain = append(plain, "`--userns keep-id`")
			}
			made, without := w.makeKinds(plain...)
			if len(made) != len(plain) {
				t.Fatalf("not to be had: %v", without)
			}
			// What the test itself has mounted twice. Of what a container wrote through
			// fuse-overlayfs the time is settled when that ends.
			look := func() inventory {
				inv := w.containers(made, false)
				w.podman("umount", "--force", "ended", "unstarted", "inpodidle", "stopped")
				for name, text := range inv {
					if c.kind == images.Fuse && (strings.Contains(name, " files ") || strings.Contains(name, " commit ")) {
						inv[name] = withoutTime(text)
					}
				}
				return inv
			}
			before := w.manifestOfImages()
			containers, conf := look(), w.conf()
			running := func() string { return w.podman("ps", "--format", "{{.Names}}", "--sort", "names") }
			up := running()
			check := func(driver string) {
				t.Helper()
				if d := w.driver(); d != driver {
					t.Fatalf("podman is on %s", d)
				}
				w.same("the images", before, w.manifestOfImages())
				w.same("the containers", containers, look())
				if now := running(); now != up {
					t.Errorf("running are %q, were %q", strings.Fields(now), strings.Fields(up))
				}
			}
			w.must(w.migrateTo(c.to)...)
			check(c.to)
			if c.user == "root" {
				w.must("commit")
				check(c.to)
				return
			}

			// What they do now is theirs alone.
			w.script(c.user, `cd; podman exec running /bin/busybox sh -c 'echo later >>/f'`)
			r := w.must("rollback")
			if !strings.Contains(r.stdout+r.stderr, "container running") {
				t.Errorf("the rollback does not say that a container was used: %s", r)
			}
			check(c.from)
			w.same("the configuration", conf, w.conf())

			w.must(w.migrateTo(c.to, "--commit")...)
			check(c.to)
			if left := w.leftovers(map[string]string{"vfs": "overlay*", "overlay": "none"}[c.to]); left != "" && !strings.Contains(left, ".storagectl-0001") {
				t.Errorf("left in the store: %s", left)
			}
			root := w.script(c.user, inside+`
cd
podman exec running /bin/busybox sh -c 'test "$(cat /f)" = written && test ! -e /home && cat /v/file' >/dev/null
podman commit -q running localhost/lab/from-running:1 >/dev/null
inside localhost/lab/from-running:1 /bin/busybox grep ' / ' /proc/mounts
podman rmi localhost/lab/from-running:1 localhost/lab/anew:1 >/dev/null`)
			if native := strings.HasPrefix(root, "overlay / overlay "); native != (c.to == "overlay") {
				t.Errorf("a container's root is %s", root)
			}
			end := &cellRun{world: w, kinds: made, seen: map[string]outcome{}}
			if end.remove(); len(end.seen) > 0 {
				t.Errorf("not to be removed: %v", end.seen)
			}
			if d := w.driver(); d != c.to {
				t.Errorf("after work podman is on %s", d)
			}
		})
	}
}

// manifestOfImages is the manifest without what says how containers are at the moment.
func (w *world) manifestOfImages() inventory {
	w.t.Helper()
	inv := w.manifest()
	for name := range inv {
		if strings.HasPrefix(name, "containers ") || strings.HasPrefix(name, "tree volumes") || strings.HasPrefix(name, "volumes ") || strings.HasPrefix(name, "images ") {
			delete(inv, name)
		}
	}
	return inv
}
