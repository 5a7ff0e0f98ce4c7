package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
)

// gated is a plan with a gate before its stop, which pauses the run while it is shut.
// A way back needs no gate.
func (h *toy) gated(j *Journal, shut bool) []Step {
	steps := h.steps()
	gate := h.step("gate")
	gate.Undo = nil
	open := gate.Do
	gate.Holds = func(context.Context) (bool, error) {
		return h.has("gate") && (!shut || j.State().Steps["gate"].Mark == MarkUndo), nil
	}
	gate.Do = func(ctx context.Context) error {
		if shut {
			return fmt.Errorf("%w: not now", ErrPaused)
		}
		return open(ctx)
	}
	steps[2].Needs = []string{"stop", "gate"} // swap
	return slices.Insert(steps, 1, gate)
}

// TestPauseAndRetreat: a step that pauses the run is no failure; what was done since
// the gate is taken back, last first, what was staged stays, and the run goes on later.
func TestPauseAndRetreat(t *testing.T) {
	dir, h := t.TempDir(), &toy{dir: t.TempDir()}
	j, err := Create(dir, Header{Run: "1", Steps: Names(h.gated(nil, false))}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	var events []EventKind
	again := func(shut bool, f func(*Run) error) error {
		r, err := NewRun(j, h.gated(j, shut), func(e Event) { events = append(events, e.Kind) })
		if err != nil {
			t.Fatal(err)
		}
		return f(r)
	}
	// The gate is open, and shut again before the swap.
	h.fail = map[string]error{"swap": errors.New("cut off")}
	if err := again(false, forward); err == nil {
		t.Fatal("it went on")
	}
	h.fail, events = nil, nil
	err = again(true, forward)
	var se *StepError
	if !errors.Is(err, ErrPaused) || errors.As(err, &se) || !slices.Contains(events, EventPaused) || slices.Contains(events, EventFailed) {
		t.Fatalf("%v, events %v", err, events)
	}
	if st := j.State(); st.Phase != PhaseRunning || st.Error == "" {
		t.Fatalf("%s %q", st.Phase, st.Error)
	}
	h.calls = nil
	if err := again(true, func(r *Run) error { return r.Retreat(t.Context(), "gate") }); err != nil {
		t.Fatal(err)
	}
	if want := []string{"undo swap", "undo stop"}; !slices.Equal(h.calls, want) {
		t.Errorf("calls %v, want %v", h.calls, want)
	}
	if got := j.State().Steps; got["gate"].Mark != MarkUndone || got["stage"].Mark != MarkDone || j.State().Phase != PhaseRunning {
		t.Errorf("%+v", got)
	}
	if err := again(true, func(r *Run) error { return r.Stopped(errors.New("not now")) }); err != nil || j.State().Error != "not now" {
		t.Errorf("%v, %q", err, j.State().Error)
	}
	if err := again(false, forward); err != nil || j.State().Phase != PhaseFinished {
		t.Errorf("%v, %s", err, j.State().Phase)
	}
	if err := again(false, func(r *Run) error { return r.Retreat(t.Context(), "gate") }); err == nil {
		t.Error("a finished run went back")
	}
}

// TestRetreatSweep kills a retreat at each point of its journal: forward ends it
// before it goes on, and a rollback takes all back.
func TestRetreatSweep(t *testing.T) {
	for name, then := range map[string]func(*Run) error{"forward": forward, "rollback": rollback} {
		for n := 1; ; n++ {
			dir, h := t.TempDir(), &toy{dir: t.TempDir(), fail: map[string]error{"conf": errors.New("cut off")}}
			if _, _, err := run(t, dir, h, 0, forward); err == nil {
				t.Fatal("it went on")
			}
			h.fail, h.calls = nil, nil
			_, crashed, err := run(t, dir, h, n, func(r *Run) error { return r.Retreat(context.Background(), "stop") })
			if err != nil {
				t.Fatalf("point %d: %v", n, err)
			}
			st, err := Read(dir)
			if err != nil {
				t.Fatal(err)
			}
			begun := st.Steps["stop"].Mark == MarkUndo
			h.calls = nil
			if _, _, err := run(t, dir, h, 0, then); err != nil {
				t.Fatalf("%s, point %d: %v", name, n, err)
			}
			if name == "forward" && begun && !slices.Contains(h.calls, "do stop") {
				t.Errorf("point %d: the retreat was forgotten: %v", n, h.calls)
			}
			want := map[string][]string{"forward": finished}[name]
			if got := h.files(t); !slices.Equal(got, want) {
				t.Errorf("%s, point %d: %v, want %v", name, n, got, want)
			}
			if !crashed {
				if n < 8 {
					t.Fatalf("only %d points", n)
				}
				break
			}
		}
	}
}
