package migrate

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/window"
)

// wall is a clock on the wall that tests put to any time.
type wall struct {
	mu sync.Mutex
	at time.Time
}

func (c *wall) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *wall) set(t testing.TB, clock string) {
	t.Helper()
	at, err := time.Parse("2006-01-02 15:04:05", clock)
	if err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = at
}

// windowed is a session of a run with the window of every Saturday from 02:00 to
// 05:00, with steps that only count how often they are done, around them those of
// Nomad, for real.
type windowed struct {
	*outaged
	clock  *wall
	times  map[string]int // by step, how often it was done
	notes  []string
	events []engine.Event
	inStop func()
}

// It is Friday, and the window opens at 02:00 on Saturday.
const (
	onFriday   = "2026-11-27 23:00:00"
	atOpening  = "2026-11-28 02:00:00"
	onSaturday = "sat 02:00 3h UTC"
)

func newWindowed(t *testing.T, nomad bool) *windowed {
	t.Helper()
	o := newOutaged(t)
	w := &windowed{outaged: o, clock: &wall{}, times: map[string]int{}}
	w.clock.set(t, onFriday)
	spec, err := window.Parse(onSaturday)
	if err != nil {
		t.Fatal(err)
	}
	w.Inputs.Request.Images, w.Inputs.Request.Window = Keep, &spec
	w.Inputs.Request.Outage.Deadline = 10 * time.Minute
	if !nomad {
		w.Inputs.Nomad = nil
	}
	w.env.Dir = engine.Dir{Path: t.TempDir()}
	w.env.Now, w.env.Runner = w.clock.now, &host.Runner{}
	w.env.Note = func(text string) { w.notes = append(w.notes, text) }
	w.env.Event = func(e engine.Event) { w.events = append(w.events, e) }
	w.begin(t)
	return w
}

// begin makes the run's journal, for the inputs as they are now.
func (w *windowed) begin(t *testing.T) {
	t.Helper()
	path := w.env.Dir.RunPath(w.ID)
	err := errors.Join(w.journal.Close(), os.RemoveAll(path), os.MkdirAll(path, 0o700))
	if err == nil {
		w.journal, err = engine.Create(path, engine.Header{Run: w.ID, Job: JobMigrate, Store: w.Inputs.StoreKey(), Steps: engine.Names(w.around(w.toy()))},
			engine.Options{Now: w.clock.now})
	}
	if err != nil {
		t.Fatal(err)
	}
	w.resume(t)
}

// toy are the steps that only count. The one that stages has a name of which nothing is
// asked of the store.
func (w *windowed) toy() []engine.Step {
	step := func(name string) engine.Step {
		return engine.Step{Name: name, Do: func(context.Context) error { w.times[name]++; return nil }}
	}
	stage, stop := step(stepProve), step(stepStop)
	stage.Pausable, stop.Pausable = true, true
	do := stop.Do
	stop.Do = func(ctx context.Context) error {
		if w.inStop != nil {
			w.inStop()
		}
		return do(ctx)
	}
	commit := step(stepCommit)
	commit.Final = true
	return []engine.Step{stage, stop, step(stepStart), commit}
}

// resume is a new process that takes the run up.
func (w *windowed) resume(t *testing.T) {
	t.Helper()
	w.again(t)
	err := errors.Join(w.journal.Try(false), w.journal.TakenUp(engine.Actor{Command: "resume"}), w.journal.Audited("hash", ""))
	if err != nil {
		t.Fatal(err)
	}
	w.pass, w.lease, w.env.Anytime = nil, nil, false
	w.plan = w.around(w.toy())
	run, err := engine.NewRun(w.journal, w.plan, w.tell)
	if err != nil {
		t.Fatal(err)
	}
	w.run = run
}

// isClosed fails the test unless the run stopped at a safe point, with nothing out of
// service and podman never touched.
func (w *windowed) isClosed(t *testing.T, err error, why string) {
	t.Helper()
	var closed *ClosedError
	var step *engine.StepError
	if !errors.As(err, &closed) || errors.As(err, &step) || !strings.Contains(closed.Why, why) {
		t.Fatalf("%v, want %q", err, why)
	}
	st := w.journal.State()
	if st.Phase != engine.PhaseRunning || !strings.Contains(st.Error, why) || w.times[stepStop] > 0 || !BeforeStop(st) {
		t.Fatalf("phase %s, error %q, did %v", st.Phase, st.Error, w.times)
	}
	for _, e := range w.events {
		if e.Kind == engine.EventFailed {
			t.Errorf("%s failed: %v", e.Step.Name, e.Err)
		}
	}
	if !w.f.Eligible("a") || len(HeldNodes(st, w.Inputs)) > 0 {
		t.Error("the node is out of service")
	}
	w.f.Do(func() {
		if w.f.Nodes["a"].DrainStrategy != nil {
			t.Error("the node is drained")
		}
	})
	if ref, err := w.keptSlot(); ref != nil || err != nil {
		t.Errorf("slot %v, %v", ref, err)
	}
}

// finishes fails the test unless the run goes on to its end.
func (w *windowed) finishes(t *testing.T) {
	t.Helper()
	if err := w.Forward(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if st := w.journal.State(); st.Phase != engine.PhaseFinished || w.times[stepStop] != 1 || w.times[stepStart] != 1 || !w.f.Eligible("a") {
		t.Errorf("phase %s, did %v, eligible %v", st.Phase, w.times, w.f.Eligible("a"))
	}
}

func (w *windowed) noted(text string) bool {
	return slices.ContainsFunc(w.notes, func(n string) bool { return strings.Contains(n, text) })
}

// TestWindowClosed: all is staged, podman is left alone, and a resume in the window
// goes on, with what changed since staged first.
func TestWindowClosed(t *testing.T) {
	w := newWindowed(t, false)
	err := w.Forward(t.Context(), false)
	w.isClosed(t, err, "window is closed")
	var closed *ClosedError
	if errors.As(err, &closed); closed.Next.Opens.Format(time.RFC3339) != "2026-11-28T02:00:00Z" || w.times[stepProve] != 1 {
		t.Errorf("%+v, did %v", closed, w.times)
	}
	w.resume(t)
	w.isClosed(t, w.Forward(t.Context(), false), "window is closed")
	if w.times[stepProve] != 1 {
		t.Errorf("staged again for nothing: %v", w.times)
	}
	w.resume(t)
	w.clock.set(t, atOpening)
	w.finishes(t)
	if w.times[stepProve] != 2 || !w.noted("closes at Sat 2026-11-28 05:00 UTC, in 3 h 0 min") {
		t.Errorf("did %v, notes %q", w.times, w.notes)
	}
	if n := w.facts.Needs; len(n) != 1 || !n[0].Fits || n[0].Stop != 60 || n[0].Margin != 30 || n[0].Drain != 0 {
		t.Errorf("%+v", n)
	}
}

// TestWindowOpen: a run in its window stages once.
func TestWindowOpen(t *testing.T) {
	w := newWindowed(t, false)
	w.clock.set(t, atOpening)
	w.finishes(t)
	if w.times[stepProve] != 1 {
		t.Errorf("did %v", w.times)
	}
}

// TestWindowNow: the operator's word, on resume and from the beginning, is noted.
func TestWindowNow(t *testing.T) {
	w := newWindowed(t, false)
	w.isClosed(t, w.Forward(t.Context(), false), "window is closed")
	w.resume(t)
	w.env.Anytime = true
	w.clock.set(t, "2026-11-28 12:00:00") // what was staged is old
	w.finishes(t)
	if !w.noted("is closed; it does not matter") || w.times[stepProve] != 2 {
		t.Errorf("%q, did %v", w.notes, w.times)
	}
	w = newWindowed(t, false)
	w.Inputs.Request.Now = true
	w.clock.set(t, "2026-11-28 04:59:30")
	w.finishes(t)
	if !w.noted("closes at Sat 2026-11-28 05:00 UTC; it does not matter") {
		t.Errorf("%q", w.notes)
	}
}

// TestWindowWait: a window that opens soon enough is waited for, and the clock on the
// wall decides, wherever it is put.
func TestWindowWait(t *testing.T) {
	w := newWindowed(t, false)
	w.Inputs.Request.WindowWait = 2 * time.Hour
	w.isClosed(t, w.Forward(t.Context(), false), "window is closed")

	w.resume(t)
	w.Inputs.Request.WindowWait = 4 * time.Hour
	var p Progress
	w.env.Progress = func(q Progress) { p = q }
	w.env.Note = func(text string) {
		if w.notes = append(w.notes, text); strings.HasPrefix(text, "waiting for") {
			w.clock.set(t, atOpening)
		}
	}
	w.finishes(t)
	if !w.noted("which opens at Sat 2026-11-28 02:00 UTC") || p.Step != stepWindow || p.Unit != "seconds" || p.Total < 1 {
		t.Errorf("%q, %+v", w.notes, p)
	}

	w = newWindowed(t, false)
	w.Inputs.Request.WindowWait = 4 * time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	w.env.Note = func(string) { cancel() }
	if err := w.Forward(ctx, false); !errors.Is(err, engine.ErrInterrupted) || w.times[stepStop] > 0 {
		t.Errorf("interrupted: %v, did %v", err, w.times)
	}
}

// TestWindowTooShort: what does not fit is not begun; what never fits is refused, and
// taken back.
func TestWindowTooShort(t *testing.T) {
	w := newWindowed(t, true)
	w.clock.set(t, "2026-11-28 04:48:31") // 10 min for the drain, 90 s for podman
	w.isClosed(t, w.Forward(t.Context(), false), "in 11 min, and the run needs 12 min")
	if n := w.facts.Needs; len(n) != 1 || n[0].Fits || n[0].Drain != 600 || len(w.f.Drains) > 0 {
		t.Errorf("%+v, drains %v", n, w.f.Drains)
	}
	w.Inputs.Request.Outage.Deadline = 3 * time.Hour
	w.resume(t)
	w.clock.set(t, "2026-12-05 02:00:00")
	var r *Refusal
	if err := w.Forward(t.Context(), false); !errors.As(err, &r) || r.ID != "window-short" || w.journal.State().Phase != engine.PhaseRolledBack || len(w.f.Drains) > 0 {
		t.Errorf("%v, %s", err, w.journal.State().Phase)
	}
}

// drains has something happen once the node is being drained, which never ends by
// itself: an allocation stays.
func (w *windowed) drains(t *testing.T, then func()) {
	t.Helper()
	w.f.Do(func() {
		w.f.Allocs["a"] = []*api.Allocation{{ID: "11111111-2222-3333-4444-555555555555", JobID: "web", ClientStatus: "running"}}
	})
	begun := len(w.f.Drains)
	w.env.Progress = func(Progress) {
		set := 0
		if w.f.Do(func() { set = len(w.f.Drains) }); set > begun {
			w.env.Progress = nil
			then()
		}
	}
}

// TestWindowEndsInDrain: a drain that does not end in time is given up, and what was
// taken out of service is given back; the next window does it.
func TestWindowEndsInDrain(t *testing.T) {
	for name, then := range map[string]struct{ clock, why string }{
		"the window's last part":         {"2026-11-28 04:58:30", "what is left of it is too short"},
		"a jump over its end":            {"2026-11-29 12:00:00", "what is left of it is too short"},
		"a jump back, out of the window": {"2026-11-27 12:00:00", "put back by 14 h"},
		"a jump back, inside the window": {"2026-11-28 02:01:00", "put back by 29 min"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWindowed(t, true)
			w.Inputs.Request.Outage.Slots, w.Inputs.Request.Outage.SlotWait = 1, time.Minute
			w.Inputs.Request.Outage.HookBefore, w.Inputs.Request.Outage.HookTimeout = [][]string{{"true"}}, time.Minute
			w.begin(t)
			w.clock.set(t, "2026-11-28 02:30:00")
			w.drains(t, func() { w.clock.set(t, then.clock) })
			w.isClosed(t, w.Forward(t.Context(), false), then.why)
			if len(w.f.Drains) != 2 || w.f.Drains[0] == nil || w.f.Drains[1] != nil {
				t.Errorf("drains %v", w.f.Drains)
			}
			if m := w.journal.State().Steps; m[stepProve].Mark != engine.MarkDone || m[stepWindow].Mark != engine.MarkUndone || m[stepSlot].Mark != engine.MarkUndone {
				t.Errorf("%+v", m)
			}
			w.resume(t)
			w.f.Do(func() { w.f.Allocs["a"] = nil })
			w.clock.set(t, "2026-12-05 02:00:00")
			go w.completeSoon()
			w.finishes(t)
		})
	}
}

// TestWindowClockStands: a clock that is held back does not make a window longer.
func TestWindowClockStands(t *testing.T) {
	w := newWindowed(t, true)
	w.Inputs.Request.Outage.Deadline = 0  // as long as jobs need
	w.clock.set(t, "2026-11-28 04:58:29") // 1 s before podman has to be stopped
	w.drains(t, func() {})
	w.isClosed(t, w.Forward(t.Context(), false), "what is left of it is too short")
	if len(w.f.Drains) != 2 {
		t.Errorf("drains %v", w.f.Drains)
	}
}

// TestWindowCutOff: a process that takes up a run asks the gate anew, unless podman
// is being stopped: then the way on is the way to be up.
func TestWindowCutOff(t *testing.T) {
	w := newWindowed(t, true)
	w.clock.set(t, atOpening)
	ctx, cancel := context.WithCancel(t.Context())
	w.drains(t, cancel)
	if err := w.Forward(ctx, false); !errors.Is(err, engine.ErrInterrupted) || w.f.Eligible("a") {
		t.Fatalf("%v, eligible %v", err, w.f.Eligible("a"))
	}
	w.resume(t)
	w.clock.set(t, "2026-11-28 12:00:00")
	w.isClosed(t, w.Forward(t.Context(), false), "window is closed")

	// Podman's stop was begun when the process died, and the window is over.
	w.resume(t)
	w.f.Do(func() { w.f.Allocs["a"] = nil })
	w.clock.set(t, "2026-12-05 02:00:00")
	go w.completeSoon()
	w.inStop = func() { panic("cut off") }
	func() {
		defer func() { _ = recover() }()
		_ = w.Forward(t.Context(), false)
	}()
	if st := w.journal.State(); st.Steps[stepStop].Mark != engine.MarkBegun {
		t.Fatalf("%+v", st.Steps)
	}
	w.resume(t)
	w.inStop = nil
	w.clock.set(t, "2026-12-05 06:00:00")
	w.finishes(t)
	if !w.noted("up again 1 h 0 min after the window had closed") {
		t.Errorf("%q", w.notes)
	}
}

// TestWindowRetreatCutOff: a way back that was cut off is ended by the next process,
// whatever the clock says, before it asks the gate.
func TestWindowRetreatCutOff(t *testing.T) {
	for _, point := range []string{"after journal undo window", "before journal undo drain", "before journal undone drain", "before journal undone window"} {
		w := newWindowed(t, true)
		w.clock.set(t, atOpening)
		path := w.env.Dir.RunPath(w.ID)
		if err := w.journal.Close(); err != nil {
			t.Fatal(err)
		}
		var err error
		if w.journal, err = engine.Open(path, engine.Options{Now: w.clock.now, Point: func(p string) {
			if p == point {
				panic(p)
			}
		}}); err != nil {
			t.Fatal(err)
		}
		w.resume(t)
		w.drains(t, func() { w.clock.set(t, "2026-11-28 06:00:00") })
		cut := false
		func() {
			defer func() { cut = recover() == point }()
			_ = w.Forward(t.Context(), false)
		}()
		if !cut {
			t.Fatalf("%s was not passed", point)
		}
		if err := w.journal.Close(); err != nil {
			t.Fatal(err)
		}
		if w.journal, err = engine.Open(path, engine.Options{Now: w.clock.now}); err != nil {
			t.Fatal(err)
		}
		w.resume(t)
		w.isClosed(t, w.Forward(t.Context(), false), "window is closed")
	}
}

// TestWindowClockWasBack: after a clock was put back, a run stops once; then it goes by
// the new time.
func TestWindowClockWasBack(t *testing.T) {
	w := newWindowed(t, false)
	w.clock.set(t, "2030-01-01 12:00:00")
	w.isClosed(t, w.Forward(t.Context(), false), "window is closed")
	w.clock.set(t, atOpening)
	w.resume(t) // what the process tells of itself is of the new time already
	w.resume(t) // one that did not come as far as to the gate does not hide it
	w.isClosed(t, w.Forward(t.Context(), false), "the clock was put back")
	w.resume(t)
	w.finishes(t)
}

// TestWindowClockOfTheWall: what a run goes by is the clock that people set; times with
// a reading of the other one compare by that.
func TestWindowClockOfTheWall(t *testing.T) {
	w := newWindowed(t, false)
	w.env.Now = time.Now
	if now := w.now(); now != now.Round(0) {
		t.Errorf("%s has another clock's reading", now)
	}
	w.env.Now = nil
	if now := w.now(); now != now.Round(0) {
		t.Errorf("%s has another clock's reading", now)
	}
}

// TestWindowRollback: a way back needs no window.
func TestWindowRollback(t *testing.T) {
	w := newWindowed(t, false)
	w.clock.set(t, atOpening)
	w.finishes(t)
	w.resume(t)
	w.clock.set(t, onFriday)
	if err := w.run.Rollback(t.Context()); err != nil || w.journal.State().Phase != engine.PhaseRolledBack {
		t.Errorf("%v, %s", err, w.journal.State().Phase)
	}
}
