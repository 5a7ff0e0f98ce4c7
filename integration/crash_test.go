package integration

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

const stateDir = "/var/lib/storagectl"

// start runs storagectl in the background and returns when its run has a
// journal. wait gives its result.
func (w *world) start(args ...string) (wait func() result) {
	w.t.Helper()
	// The shell between keeps nsenter from stopping itself when its child is stopped.
	cmd := w.node.Cmd(w.ctx, "root", append([]string{"sh", "-c", `"$@"; exit $?`, "sh", "storagectl"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the exit code is read from its state
		close(done)
	}()
	wait = func() result {
		select {
		case <-done:
		case <-time.After(10 * time.Minute):
			w.t.Fatalf("storagectl does not end: %s", errs.String())
		}
		return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
	}
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if found, _ := filepath.Glob(w.node.HostPath(stateDir) + "/runs/*/journal*"); len(found) > 0 {
			return wait
		}
		select {
		case <-done:
			w.t.Fatalf("storagectl ended before it had a journal: %s", wait())
		default:
		}
	}
	w.t.Fatal("no journal after five minutes")
	return nil
}

// signal sends a signal to the storagectl that was started first, not to its
// workers, which have it as their parent.
func (w *world) signal(sig string) {
	w.t.Helper()
	w.script("root", "kill -"+sig+" $(pgrep -o -x storagectl)")
}

// TestInterrupt: SIGINT and SIGTERM stop at a safe point and say how to go on.
func TestInterrupt(t *testing.T) {
	for _, sig := range []string{"INT", "TERM"} {
		t.Run(sig, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "bookworm", lab.Owner, images.Plain)
			before := w.manifest()
			wait := w.start(w.migrate()...)
			w.signal(sig)
			r := wait()
			if r.code != exitInterupt || !strings.Contains(r.stderr, "resume") {
				t.Errorf("want exit %d and the way on: %s", exitInterupt, r)
			}
			w.must("resume")
			w.migrated(before)
		})
	}
}

// TestOneRunAtATime: a second run on a store is turned away while the first lives.
func TestOneRunAtATime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	before := w.manifest()
	wait := w.start(w.migrate()...)
	w.signal("STOP")
	for _, args := range [][]string{w.migrate(), {"resume"}, {"rollback"}} {
		if r := w.ctl(args...); r.code != exitHeld {
			t.Errorf("%v: want exit %d: %s", args, exitHeld, r)
		}
	}
	w.must("status")
	w.signal("CONT")
	if r := wait(); r.code != exitDone {
		t.Fatal(r)
	}
	w.migrated(before)
}

// killed runs the sweep binary until its n-th point, where it kills itself, and
// says whether it got there.
func (w *world) killed(n int, args ...string) (bool, result) {
	w.t.Helper()
	r := w.exec("root", append([]string{"env", fmt.Sprintf("STORAGECTL_SWEEP_KILL_AT=%d", n), "storagectl-sweep"}, args...)...)
	return r.code == -1, r
}

// points runs the job to its end and returns how many points it passed.
func (w *world) points(args ...string) int {
	w.t.Helper()
	const file = "/run/points"
	r := w.exec("root", append([]string{"env", "STORAGECTL_SWEEP_COUNT=" + file, "storagectl-sweep"}, args...)...)
	if r.code != exitDone {
		w.t.Fatal(r)
	}
	var n int
	if _, err := fmt.Sscan(w.script("root", "cat "+file), &n); err != nil || n < 5 {
		w.t.Fatalf("the run says it passed %d points: %v", n, err)
	}
	return n
}

// TestPowerCut: the node loses power in the middle, boots, and goes on.
func TestPowerCut(t *testing.T) {
	for _, release := range []string{"bookworm", "trixie"} {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, release, lab.Owner, images.Small)
			points := w.points(w.migrate()...)
			for i, at := range []int{points / 3, points / 2, points * 2 / 3, points * 5 / 6} {
				if err := w.node.Reset(w.ctx); err != nil {
					t.Fatal(err)
				}
				w.podman("ps")
				before, tree, conf := w.manifest(), w.store(), w.conf()
				if hit, r := w.killed(at, w.migrate()...); !hit {
					t.Fatalf("not killed at point %d: %s", at, r)
				}
				if err := w.node.Kill(w.ctx); err != nil {
					t.Fatal(err)
				}
				if err := w.node.Start(w.ctx); err != nil {
					t.Fatal(err)
				}
				if i%2 == 0 {
					w.must("resume")
					w.migrated(before)
				} else {
					w.must("rollback")
					w.asItWas(before, tree, conf)
				}
			}
		})
	}
}

// TestDamagedJournal: a run whose journal is damaged in the middle is refused;
// a torn last line is not damage.
func TestDamagedJournal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	before := w.manifest()
	points := w.points(w.migrate()...)
	if err := w.node.Reset(w.ctx); err != nil {
		t.Fatal(err)
	}
	w.podman("ps")
	if hit, r := w.killed(points*2/3, w.migrate()...); !hit {
		t.Fatal(r)
	}
	w.script("root", `cd `+stateDir+`/runs/*/; cp journal* /run/kept; sed -i '3s/^.\{9\}/#########/' journal*`)
	for _, args := range [][]string{{"resume"}, {"rollback"}} {
		if r := w.ctl(args...); r.code != exitDamaged || !strings.Contains(r.stderr, "line 3") {
			t.Errorf("%v: want exit %d and the line: %s", args, exitDamaged, r)
		}
	}
	w.script("root", `cd `+stateDir+`/runs/*/; cat /run/kept >"$(echo journal*)"; printf '{"torn' >>"$(echo journal*)"`)
	w.must("resume")
	w.migrated(before)
}
