package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// In a plain test run the sweep takes a stride of the points, another one in
// each way on; STORAGECTL_SWEEP=full takes them all, both ways, and
// STORAGECTL_SWEEP=183,189 these.
const stridePoints = 16

// A way is what the operator does after the crash.
type way struct {
	name string
	args []string
}

func ways() []way {
	return []way{{"resume", []string{"resume"}}, {"rollback", []string{"rollback"}}}
}

// TestSweep kills a run at its first point, its second, its third, … until
// there is none left to be killed at. A point is before and after each journal
// record, each command on the host and each request to the owner worker. After
// each, `resume` must end as if nothing had happened and `rollback` must give
// the store back as it was.
func TestSweep(t *testing.T) {
	full := os.Getenv("STORAGECTL_SWEEP") == "full"
	report := &sweepReport{}
	t.Cleanup(func() {
		if full && !t.Failed() {
			if err := report.write(filepath.Join(root(t), "docs", "sweep.md")); err != nil {
				t.Error(err)
			}
		}
	})
	type cell struct{ release, user string }
	cells := []cell{{"bookworm", lab.Owner}}
	if full {
		cells = append(cells, cell{"trixie", lab.Owner})
	}
	for _, c := range cells {
		for i, way := range ways() {
			t.Run(c.release+"/"+way.name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, c.release, c.user, images.Small)
				start := time.Now()
				points := w.points(w.migrate()...)
				step, first := 1, 1
				if !full {
					step = max(1, points/stridePoints)
					first = 1 + i*step/2
				}
				done, failed := 0, 0
				var at []int
				for n := first; n <= points; n += step {
					at = append(at, n)
				}
				if only := os.Getenv("STORAGECTL_SWEEP"); !full && only != "" {
					at = nil
					for field := range strings.SplitSeq(only, ",") {
						n, err := strconv.Atoi(field)
						if err != nil {
							t.Fatalf("cannot read STORAGECTL_SWEEP: %v", err)
						}
						at = append(at, n)
					}
				}
				for _, n := range at {
					ok := t.Run(fmt.Sprintf("point-%d-of-%d", n, points), func(t *testing.T) {
						here := *w
						here.t = t
						here.crashAt(n, way)
					})
					done++
					if !ok {
						failed++
					}
					if failed == 8 {
						t.Fatal("enough failures to look at")
					}
				}
				report.add(fmt.Sprintf("| %s | %s | %s | %d | %d | %.0f |", c.release, c.user, way.name, points, done, time.Since(start).Seconds()))
			})
		}
	}
}

// crashAt restores the store, kills a run at its n-th point, takes the way on
// and judges the end. Points after the last fsync may lie behind the run's end;
// points before the journal exists leave nothing to go on with.
func (w *world) crashAt(n int, way way) {
	w.t.Helper()
	if err := w.node.Reset(w.ctx); err != nil {
		w.t.Fatal(err)
	}
	w.podman("ps")
	before, tree, conf := w.manifest(), w.store(), w.conf()
	hit, r := w.killed(n, w.migrate()...)
	if !hit {
		// The number of points may differ by a few from run to run (a poll more or less).
		if r.code != exitDone {
			w.t.Fatalf("point %d: not killed, but: %s", n, r)
		}
		w.t.Logf("point %d was not reached", n)
	}
	on := w.ctl(way.args...)
	switch {
	case on.code == exitNoRun && hit:
		w.asItWas(before, tree, conf)
	case on.code != exitDone:
		w.t.Fatalf("%s after a kill at point %d: %s", way.name, n, on)
	case way.name == "resume":
		w.migrated(before)
	default:
		w.asItWas(before, tree, conf)
	}
	if left := strings.TrimSpace(w.script("root", "pgrep -a storagectl || true")); left != "" {
		w.t.Errorf("processes are left after point %d: %s", n, left)
	}
	if way.name == "rollback" && hit {
		if left := w.leftovers("overlay*"); left != "" {
			w.t.Errorf("rollback after point %d left %s", n, left)
		}
	}
}

// sweepReport collects the table of docs/sweep.md.
type sweepReport struct {
	mu   sync.Mutex
	rows []string
}

func (r *sweepReport) add(row string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, row)
}

func (r *sweepReport) write(path string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := `# The crash sweep

` + "`make sweep`" + ` wrote this on ` + time.Now().UTC().Format("2006-01-02") + `. A run of ` + "`migrate --to overlay`" + ` on a
real node is killed (SIGKILL) at its first point, at its second, and so on to its last; a point is before
and after each journal record, each command on the host and each request to the owner worker. After each,
` + "`resume`" + ` must end with all images, volumes, secrets and networks on native overlay, as if nothing had
happened; ` + "`rollback`" + ` must give back every file of the vfs store and the configuration. All did.

| release | store of | way on | points in a run | killed at | seconds |
| --- | --- | --- | --- | --- | --- |
` + strings.Join(r.rows, "\n") + "\n"
	return os.WriteFile(path, []byte(text), 0o644)
}
