package engine

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestNeedsAreRedone(t *testing.T) {
	dir, h := t.TempDir(), &toy{dir: t.TempDir(), fail: map[string]error{"conf": errors.New("no space")}}
	_, _, err := run(t, dir, h, 0, forward)
	var se *StepError
	if !errors.As(err, &se) || se.Step != "conf" {
		t.Fatalf("got %v", err)
	}
	if st, _ := Read(dir); !strings.Contains(st.Error, "no space") || st.Phase != PhaseRunning {
		t.Fatalf("state %q %s", st.Error, st.Phase)
	}
	if err := os.Remove(h.path("stop")); err != nil { // the reboot
		t.Fatal(err)
	}
	h.fail, h.calls = nil, nil
	if _, _, err := run(t, dir, h, 0, forward); err != nil {
		t.Fatal(err)
	}
	want := []string{"do stop", "do conf", "do start"}
	if !slices.Equal(h.calls, want) {
		t.Fatalf("calls %v, want %v", h.calls, want)
	}
}

func TestUnknownIsNotAbsent(t *testing.T) {
	dir, h := t.TempDir(), &toy{dir: t.TempDir()}
	steps := h.steps()
	steps[1].Holds = func(context.Context) (bool, error) { return false, errors.New("bus does not answer") }
	j, err := Create(dir, Header{Run: "1", Steps: Names(steps)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewRun(j, steps, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := forward(r); err == nil || !strings.Contains(err.Error(), "bus does not answer") {
		t.Fatalf("got %v", err)
	}
	if h.has("swap") {
		t.Fatal("went on past an unknown")
	}
}

func TestSuccessWithoutEffect(t *testing.T) {
	dir, h := t.TempDir(), &toy{dir: t.TempDir()}
	steps := h.steps()
	steps[2].Do = func(context.Context) error { return nil } // exit status 0, nothing done
	j, err := Create(dir, Header{Run: "1", Steps: Names(steps)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, _ := NewRun(j, steps, nil)
	if err := forward(r); err == nil || h.has("conf") {
		t.Fatalf("believed a message: %v", err)
	}
}

func TestInterruption(t *testing.T) {
	dir, h := t.TempDir(), &toy{dir: t.TempDir()}
	ctx, cancel := context.WithCancel(context.Background())
	steps := h.steps()
	do := steps[2].Do
	steps[2].Do = func(ctx context.Context) error { // the signal comes inside a change
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return do(ctx)
	}
	j, err := Create(dir, Header{Run: "1", Steps: Names(steps)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, _ := NewRun(j, steps, nil)
	if err := r.Forward(ctx, false); !errors.Is(err, ErrInterrupted) {
		t.Fatalf("got %v", err)
	}
	if !h.has("swap") || h.has("conf") {
		t.Fatalf("not a safe point: %v", h.files(t))
	}
	j.Close()
	if _, _, err := run(t, dir, h, 0, forward); err != nil || !slices.Equal(h.files(t), finished) {
		t.Fatalf("%v %v", err, h.files(t))
	}
}

func TestPhases(t *testing.T) {
	dir, h := t.TempDir(), &toy{dir: t.TempDir()}
	if _, _, err := run(t, dir, h, 0, commit); err != nil {
		t.Fatal(err)
	}
	if _, _, err := run(t, dir, h, 0, rollback); !errors.Is(err, ErrNoWayBack) {
		t.Fatalf("rollback after commit: %v", err)
	}
	dir, h = t.TempDir(), &toy{dir: t.TempDir()}
	if _, _, err := run(t, dir, h, 0, forward); err != nil {
		t.Fatal(err)
	}
	if _, _, err := run(t, dir, h, 0, rollback); err != nil {
		t.Fatal(err)
	}
	if _, _, err := run(t, dir, h, 0, forward); !errors.Is(err, ErrRollingBack) {
		t.Fatalf("forward after rollback: %v", err)
	}
}

func TestPlanChanged(t *testing.T) {
	dir := t.TempDir()
	j, err := Create(dir, Header{Run: "1", Steps: []string{"a", "b"}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewRun(j, []Step{{Name: "a"}}, nil); !errors.Is(err, ErrPlanChanged) {
		t.Fatalf("got %v", err)
	}
}
