package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestRelocateToOverlay: a vfs store with containers of every kind goes to a disk
// of its own as an overlay store, comes back by a rollback, and goes for good.
func TestRelocateToOverlay(t *testing.T) {
	for _, c := range []struct{ release, user, fs string }{
		{"bookworm", lab.Owner, "xfs"}, {"trixie", "root", "ext4"},
	} {
		t.Run(c.release+"/"+c.user, func(t *testing.T) {
			t.Parallel()
			w := newWorldWith(t, c.user, images.Containers, lab.Options{Release: c.release, Udev: true})
			kinds, without := w.makeKinds("running", "exited", "created", "restart=always", "named, anonymous and bind volumes",
				"a network of its own", "a health check", "in another's network (`--network container:`)", "in a pod, with infra")
			if len(without) > 0 {
				t.Fatal(without)
			}
			dev := strings.TrimSpace(w.script("root", "truncate -s 2G /opt/overlay-"+c.user+".img; losetup -f --show /opt/overlay-"+c.user+".img"))
			t.Cleanup(func() { _, _ = w.node.Run(w.ctx, "root", "losetup", "-d", dev) })
			args := []string{"relocate", "--device", dev, "--fs", c.fs, "--to", "overlay", "--yes"}
			if c.user != "root" {
				args = append(args, "--user", c.user)
			}
			before, conf := w.containers(kinds, false), w.conf()
			running := func() string { return w.podman("ps", "--format", "{{.Names}}", "--sort", "names") }
			up := running()
			check := func(driver string) {
				t.Helper()
				if d := w.driver(); d != driver {
					t.Fatalf("podman is on %s", d)
				}
				w.same("the containers", before, w.containers(kinds, false))
				if now := running(); now != up {
					t.Errorf("running are %q, were %q", strings.Fields(now), strings.Fields(up))
				}
				on := strings.TrimSpace(w.script("root", "findmnt -nro SOURCE "+w.graphroot()+" | tail -1 || true"))
				if (driver == "overlay") != (on == dev) {
					t.Errorf("on %s the store is mounted from %q", driver, on)
				}
				if left := w.leftovers(map[string]string{"overlay": "vfs*", "vfs": "overlay*"}[driver]); left != "" {
					t.Errorf("left in the store: %s", left)
				}
			}
			w.must(args...)
			check("overlay")

			w.script(c.user, `cd; podman exec running /bin/busybox sh -c 'echo later >>/f'`)
			r := w.must("rollback")
			if !strings.Contains(r.stdout+r.stderr, "the copy in "+dev+" is kept") {
				t.Errorf("the rollback does not say where what was written since is: %s", r)
			}
			check("vfs")
			w.same("the configuration", conf, w.conf())

			w.script("root", "wipefs -qa "+dev)
			w.must(append(args, "--format", "--commit")...)
			check("overlay")
			if left := w.script("root", "ls -d "+w.graphroot()+".storagectl-* 2>/dev/null || true"); left != "" {
				t.Errorf("left after the commit: %s", left)
			}
			w.script(c.user, `
cd
podman exec running /bin/busybox sh -c 'test "$(cat /f)" = written && test ! -e /home && cat /v/file'
podman run --rm --network=none localhost/lab/base:1 /bin/busybox grep -q '^overlay / overlay ' /proc/mounts </dev/null
podman commit -q running localhost/lab/from-running:1 >/dev/null`)
		})
	}
}

// toOverlay is a relocation of the world's store that converts it.
func (w *world) toOverlay(more ...string) []string {
	return w.relocate(append([]string{"--to", "overlay"}, more...)...)
}

// TestRelocateToOverlayWhole: every file of every image is what it was, the store
// takes the room of an overlay store, and a power cut changes nothing of it.
func TestRelocateToOverlayWhole(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Plain)
	w.disk("xfs", "1G")
	before, untouched := w.manifest(), w.untouched()
	r := w.must(append(slices.DeleteFunc(w.toOverlay(), func(a string) bool { return a == "--yes" }), "--dry-run", "--json")...)
	w.same("the node after a dry run", untouched, w.untouched())
	plan := jsonLines(t, r.stdout)[0]
	need, room := plan["need"].(float64), plan["room"].(float64)
	if room < 1e6 || room > need/2 {
		t.Errorf("%.0f bytes on vfs are estimated to need %.0f on overlay", need, room)
	}
	w.must(w.toOverlay()...)
	w.moved(before)
	used := w.script("root", "du -s --block-size=1 /srv/disk/storage-"+w.user+" | cut -f1")
	var n float64
	if _, err := fmt.Sscan(used, &n); err != nil || n > room {
		t.Errorf("%.0f bytes are used, %.0f were estimated (%v)", n, room, err)
	}
	if err := w.node.Kill(w.ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.node.Start(w.ctx); err != nil {
		t.Fatal(err)
	}
	w.moved(before)
	w.migrated(before)
	w.must("commit")
	w.migrated(before)
	w.works()
}

// TestRelocateToOverlayKilled: killed at its main points, and cut from power at one
// of them, the run ends by resume as if nothing had happened, and by rollback gives
// back what was.
func TestRelocateToOverlayKilled(t *testing.T) {
	t.Parallel()
	s := &moveSweep{world: newWorld(t, "bookworm", lab.Owner, images.Small), to: "overlay"}
	s.reset()
	s.before = s.manifest()
	for i, point := range []string{"worker compare", "after-convert-rest", "worker place", "worker db-set", "worker conf-write", "worker run-clear"} {
		s.reset()
		r := s.exec("root", append([]string{"env", "STORAGECTL_SWEEP_KILL_AT=" + point, "storagectl-sweep"}, s.args()...)...)
		if r.code != -1 {
			t.Errorf("%s: not killed: %s", point, r)
			continue
		}
		if i == 2 { // and the machine with it
			if err := s.node.Kill(s.ctx); err != nil {
				t.Fatal(err)
			}
			if err := s.node.Start(s.ctx); err != nil {
				t.Fatal(err)
			}
		}
		if i%2 == 0 {
			s.must("resume")
			s.moved()
			continue
		}
		s.must("rollback")
		s.asItWas()
	}
}

// TestRelocateToOverlayRefused: what cannot be converted is refused before anything
// is changed.
func TestRelocateToOverlayRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.disk("ext4", "4M")
	w.script("root", "mkdir -p /opt/there; chmod 755 /opt/there")
	refused := func(id string, args ...string) {
		t.Helper()
		before := w.untouched()
		r := w.ctl(append(args, "--json")...)
		if r.code != exitRefused || !strings.Contains(r.stdout, `"`+id+`"`) {
			t.Errorf("want a refusal %s: %s", id, r)
		}
		w.same("the node after a refusal", before, w.untouched())
	}
	refused("no-room", w.toOverlay()...)
	image := strings.TrimSpace(w.script("root", "ls -d "+w.graphroot()+"/vfs-images/*/ | head -1"))
	w.script("root", "mv "+image+"manifest /tmp/manifest")
	there := []string{"relocate", "--path", "/opt/there", "--user", w.user, "--yes", "--to", "overlay"}
	refused("damaged", there...)
	w.script("root", "mv /tmp/manifest "+image+"manifest")
	if r := w.ctl("relocate", "--path", "/opt/there", "--to", "vfs"); r.code != exitUsage {
		t.Errorf("to another driver: %s", r)
	}
	// A store that is on overlay is moved as it is.
	w.must(w.migrate("--commit")...)
	before := w.manifest()
	w.must(there...)
	w.migrated(before)
}
