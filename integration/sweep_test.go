package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// In a plain test run the sweep takes a stride of the points, another one in
// each way on; STORAGECTL_SWEEP=full takes them all, each way, and =half every
// second one of a migration's, the odd ones in one way on and the even ones in
// the other, so that each state is met once.
const stridePoints = 5

// A way is what is killed, and what the operator does after that.
type way struct {
	name   string
	killed []string // nil: the migration; else what is run, and killed, after one
	then   string
	back   bool // the vfs store must be there again
}

func ways() []way {
	return []way{
		{name: "resume", then: "resume"},
		{name: "rollback", then: "rollback", back: true},
		{name: "rollback killed, resume", killed: []string{"rollback"}, then: "resume", back: true},
		{name: "commit killed, resume", killed: []string{"commit"}, then: "resume"},
	}
}

// TestSweep kills a run at its first point, its second, its third, … until
// there is none left to be killed at. Points lie between any two of its acts:
// journal records, commands on the host, requests to the owner worker. After
// each, `resume` must end as if nothing had happened and `rollback` must give
// the store back as it was; a rollback and a commit that are killed themselves
// are finished by `resume`.
func TestSweep(t *testing.T) {
	mode := os.Getenv("STORAGECTL_SWEEP")
	full := mode == "full" || mode == "half"
	report := newSweepReport(t)
	type cell struct {
		release, user string
		live          bool // containers are in the store, and one runs
		kind          images.Kind
	}
	small := images.Small
	cells := []cell{{"bookworm", lab.Owner, false, small}, {"bookworm", lab.Owner, true, small}, {"bookworm", lab.Owner, false, images.Native}, {"bookworm", lab.Owner, false, images.Fuse}}
	if full {
		cells = append(cells, cell{"bookworm", "root", false, small}, cell{"trixie", lab.Owner, false, small}, cell{"trixie", lab.Owner, true, small},
			cell{"bookworm", lab.Owner, true, images.Native}, cell{"bookworm", lab.Owner, true, images.Fuse}, cell{"bookworm", "root", false, images.Native}, cell{"bookworm", "root", false, images.Fuse})
	}
	for _, c := range cells {
		for i, way := range ways() {
			store := c.user
			switch c.kind {
			case images.Native:
				store += ", to vfs"
			case images.Fuse:
				store += ", from fuse-overlayfs"
			}
			if c.live {
				store += ", containers"
			}
			if way.killed != nil && !full && (c.live || c.kind != small) {
				continue
			}
			if !full && (c.kind == images.Native && way.back || c.kind == images.Fuse && !way.back) {
				continue // where both stores have folders of the same names, the way back is the harder one
			}
			t.Run(c.release+"/"+strings.NewReplacer(", ", "-", " ", "-").Replace(store)+"/"+strings.ReplaceAll(way.name, " ", "-"), func(t *testing.T) {
				t.Parallel()
				s := &sweep{world: newWorld(t, c.release, c.user, c.kind), way: way, live: c.live, kind: c.kind}
				start := time.Now()
				points := s.count()
				tried, failed := 0, 0
				defer func() {
					report.add(c.release, store, way.name, points, tried, tried-failed, start)
				}()
				at := chosen(t, points, i, full)
				if c.kind != small && mode == "" { // in the cutover
					at = []int{at[len(at)/2], at[len(at)*3/4]}
				}
				for _, n := range at {
					tried++
					ok := t.Run(fmt.Sprintf("point-%d-of-%d", n, points), func(t *testing.T) {
						w := *s.world
						w.t = t
						(&sweep{world: &w, way: way, live: s.live, kind: s.kind, before: s.before, tree: s.tree, config: s.config}).at(n)
					})
					if !ok {
						failed++
					}
					if failed == 8 {
						t.Fatal("enough failures to look at")
					}
				}
			})
		}
	}
}

// chosen are the points to be killed at: all, or those of STORAGECTL_SWEEP, or
// a stride that begins elsewhere in each way.
func chosen(t *testing.T, points, way int, full bool) []int {
	t.Helper()
	var at []int
	mode := os.Getenv("STORAGECTL_SWEEP")
	if only := mode; !full && only != "" {
		for field := range strings.SplitSeq(only, ",") {
			n, err := strconv.Atoi(field)
			if err != nil {
				t.Fatalf("cannot read STORAGECTL_SWEEP: %v", err)
			}
			at = append(at, n)
		}
		return at
	}
	step, first := 1, 1
	if mode == "half" && way < 2 {
		step, first = 2, 1+way
	}
	if !full {
		step = max(1, points/stridePoints)
		first = 1 + way*step/4
	}
	for n := first; n <= points; n += step {
		at = append(at, n)
	}
	return at
}

// sweep is one node that is killed again and again in one way. What the store
// is like before is listed once: Reset brings the same back each time.
type sweep struct {
	*world
	way
	live         bool
	kind         images.Kind // of the store before
	before       inventory
	tree, config inventory
	containers   string // of a live store, as they were at the last reset
}

// from is the driver of the store before, to that of the migration.
func (s *sweep) from() string {
	return map[images.Kind]string{images.Small: "vfs", images.Native: "overlay", images.Fuse: "fuse-overlayfs"}[s.kind]
}

func (s *sweep) to() string {
	if s.kind == images.Native {
		return "vfs"
	}
	return "overlay"
}

// other is the driver whose folders a rollback must not leave, if it has any of its own.
func (s *sweep) other() string {
	if s.kind == images.Fuse {
		return "fuse-overlayfs"
	}
	return s.to()
}

// count lists the store as it is before, and counts the points.
func (s *sweep) count() int {
	s.t.Helper()
	s.reset()
	if s.config = s.conf(); !s.live {
		s.before, s.tree = s.manifest(), s.storeOfAnyBoot()
	}
	if s.way.killed == nil {
		return s.points(s.migrateTo(s.to())...)
	}
	s.must(s.migrateTo(s.to())...)
	return s.points(s.way.killed...)
}

func (s *sweep) reset() {
	s.t.Helper()
	if err := s.node.Reset(s.ctx); err != nil {
		s.t.Fatal(err)
	}
	s.begin(s.kind)
	if s.live {
		s.script(s.user, `cd
podman create --name ended --network=none localhost/lab/base:1 /bin/busybox sh -c 'echo x >/made' >/dev/null
podman start -a ended </dev/null
until [ "$(podman inspect --format '{{.State.Status}}' ended)" = exited ]; do sleep 0.1; done # "stopped" until conmon has cleaned up
podman run -d --name live --network=none -v vol1:/v localhost/lab/base:1 /bin/busybox sh -c \
	'test -e /f || echo written >/f; trap "exit 0" TERM; while :; do /bin/busybox sleep 0.1; done' >/dev/null </dev/null`)
		s.containers = s.alive()
	}
}

// alive is what the containers of a live store are.
func (s *sweep) alive() string {
	s.t.Helper()
	return s.script(s.user, `cd; podman inspect --format '{{.Id}} {{.Name}} {{.State.Status}} {{.State.ExitCode}}' ended live
for i in 1 2 3 4 5; do podman exec live /bin/busybox test -e /f && break; sleep 0.2; done
podman exec live /bin/busybox cat /f /v/file; podman diff ended | sort`)
}

// migrated asserts the end state of a migration.
func (s *sweep) migrated() {
	s.t.Helper()
	if !s.live {
		s.isOn(s.to(), s.before)
		return
	}
	s.lives(s.to())
}

// lives asserts that the containers are what they were, on a driver.
func (s *sweep) lives(driver string) {
	s.t.Helper()
	if d := s.driver(); d != driver {
		s.t.Fatalf("podman is on %s", d)
	}
	if now := s.alive(); now != s.containers {
		s.t.Errorf("the containers were\n%s\nand are\n%s", s.containers, now)
	}
}

// at restores the store, kills at the n-th point, takes the way on and judges
// the end.
func (s *sweep) at(n int) {
	s.t.Helper()
	s.reset()
	hit := s.killAndGoOn(n, s.way, s.migrateTo(s.to()), s.asItWas, s.migrated)
	if s.back && hit {
		if left := s.leftovers(map[string]string{"overlay": "overlay*", "vfs": "vfs*", "fuse-overlayfs": "none"}[s.other()]); left != "" {
			s.t.Errorf("after point %d there are still %s", n, left)
		}
	}
}

// killAndGoOn kills a job, or what follows on it, at its n-th point, takes the way on,
// and has the end judged. A point before the journal exists leaves nothing to go on
// with. It reports whether the point was reached: their number may differ by a few
// from run to run (a poll more or less).
func (w *world) killAndGoOn(n int, by way, args []string, asItWas, done func()) (hit bool) {
	w.t.Helper()
	if by.killed != nil {
		w.must(args...)
		args = by.killed
	}
	hit, r := w.killed(n, args...)
	if !hit {
		if r.code != exitDone {
			w.t.Fatalf("point %d: not killed, but: %s", n, r)
		}
		w.t.Logf("point %d was not reached", n)
	}
	on := w.ctl(by.then)
	if on.code == exitDone && by.killed != nil && hit && strings.Contains(w.must("status", "--json").stdout, `"phase":"finished"`) {
		on = w.ctl(by.killed...) // killed before its first record: the run stood as it was
	}
	switch {
	case on.code == exitNoRun && hit:
		asItWas()
	case on.code != exitDone:
		w.t.Fatalf("%s after a kill at point %d: %s", by.then, n, on)
	case by.back:
		asItWas()
	default:
		done()
	}
	if left := strings.TrimSpace(w.script("root", "pgrep -a storagectl | grep -v ' rbd-serve ' || true")); left != "" {
		w.t.Errorf("processes are left after point %d: %s", n, left)
	}
	return hit
}

// asItWas asserts that the store and its configuration are what they were.
func (s *sweep) asItWas() {
	s.t.Helper()
	if s.live {
		s.lives(s.from())
		s.same("the configuration", s.config, s.conf())
		return
	}
	tree := s.storeOfAnyBoot()
	s.same("the configuration", s.config, s.conf())
	s.isOn(s.from(), s.before)
	s.same("the graphroot", s.tree, tree)
}

// storeOfAnyBoot lists the graphroot without the times of its records: each point
// begins with a boot, after which podman's first command as root writes them anew.
func (s *sweep) storeOfAnyBoot() inventory {
	s.t.Helper()
	inv := s.store()
	for path, text := range inv {
		if filepath.Base(path) == "merged" { // a mount point, which goes when a look at the image ends
			delete(inv, path)
			continue
		}
		if name := filepath.Base(path); name == "layers.json" || name == "images.json" || name == ".has-mount-program" {
			inv[path] = withoutTime(text)
		}
	}
	return inv
}
