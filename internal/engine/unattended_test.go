package engine

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

// unattended is what a boot does: it looks, remembers, and goes on. It reports
// whether it went on.
func unattended(t *testing.T, dir string, h *toy, n int, back bool) (crashed bool, err error) {
	t.Helper()
	st, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Unattended(back); err != nil {
		return false, err
	}
	j, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.Try(back), j.TakenUp(Actor{Command: "resume"}), j.Close()); err != nil {
		t.Fatal(err)
	}
	how := forward
	if back || st.Phase == PhaseRollingBack {
		how = rollback
	}
	_, crashed, err = run(t, dir, h, n, how)
	return crashed, err
}

// TestLoopBreaker: what was cut off is gone on with once by itself at each step; a
// person begins the count anew.
func TestLoopBreaker(t *testing.T) {
	for n := 1; ; n++ {
		dir, h := t.TempDir(), &toy{dir: t.TempDir()}
		_, crashed, err := run(t, dir, h, n, forward)
		if err != nil {
			t.Fatal(err)
		}
		if !crashed {
			if n < 10 {
				t.Fatalf("only %d points", n)
			}
			return
		}
		if _, err := os.Stat(dir + "/" + journalName); err != nil {
			continue // nothing was begun
		}
		// The machine dies of the same step again.
		st, _ := Read(dir)
		if st.Phase.Over() {
			continue
		}
		at := st.next(false)
		if crashed, err := unattended(t, dir, h, 2, false); !crashed || err != nil {
			t.Fatalf("point %d: %v %v", n, crashed, err)
		}
		if st, _ = Read(dir); st.next(false) == at && !st.Phase.Over() {
			var again *AgainError
			if _, err := unattended(t, dir, h, 0, false); !errors.As(err, &again) || again.Step != at {
				t.Fatalf("point %d: a step that was cut off twice is done a third time: %v", n, err)
			}
			// A person tries, the machine dies of it once more, and boots.
			j, err := Open(dir, Options{})
			if err == nil {
				err = errors.Join(j.TakenUp(Actor{Command: "resume"}), j.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, crashed, err := run(t, dir, h, 3, forward); err != nil || !crashed {
				t.Fatalf("point %d: %v %v", n, crashed, err)
			}
		}
		if st, _ = Read(dir); st.Phase.Over() {
			continue
		}
		if _, err := unattended(t, dir, h, 0, false); err != nil {
			t.Fatalf("point %d: %v", n, err)
		}
		if st, _ := Read(dir); st.Phase != PhaseFinished {
			t.Fatalf("point %d: %s", n, st.Phase)
		}
	}
}

// TestTriedOnce: a try at which a step was begun twice, as what it needs did not hold any
// more, is one try; and one that could not even open the run is none.
func TestTriedOnce(t *testing.T) {
	j, err := Create(t.TempDir(), Header{Run: "1", Steps: []string{"stage", "stop"}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	begin := Record{Kind: KindBegin, Step: "stage"}
	who := Actor{Command: "resume"}
	must(j.append(begin), j.Try(false), j.TakenUp(who), j.append(begin), j.append(begin))
	var again *AgainError
	if err := j.State().Unattended(false); !errors.As(err, &again) || again.Step != "stage" {
		t.Errorf("got %v", err)
	}
	must(j.Untried(errors.New("of no try any more")))
	if st := j.State(); st.Error != "" {
		t.Errorf("it was tried: %q", st.Error)
	}
	must(j.Note("", "a person is to look at it"), j.TakenUp(who), j.append(begin))
	must(j.State().Unattended(false))
	must(j.Try(false), j.Untried(errors.New("there is no such user")))
	must(j.State().Unattended(false))
	if st := j.State(); st.Error != "there is no such user" || st.Failed != "" {
		t.Errorf("%q, %q", st.Error, st.Failed)
	}
	must(j.Try(false)) // and the machine dies before the run is opened
	if err := j.State().Unattended(false); !errors.As(err, &again) {
		t.Errorf("got %v", err)
	}
}

// TestFailureWaits: a step that failed is not done again without a person, but may be
// taken back; one that failed because all stopped around it did not fail.
func TestFailureWaits(t *testing.T) {
	dir, h := t.TempDir(), &toy{dir: t.TempDir(), fail: map[string]error{"conf": errors.New("no space")}}
	if _, _, err := run(t, dir, h, 0, forward); err == nil {
		t.Fatal("no failure")
	}
	var again *AgainError
	if _, err := unattended(t, dir, h, 0, false); !errors.As(err, &again) || again.Step != "conf" || !strings.Contains(again.Why, "no space") {
		t.Fatalf("got %v", err)
	}
	if _, err := unattended(t, dir, h, 0, true); err != nil {
		t.Fatalf("rollback: %v", err)
	}

	dir, h = t.TempDir(), &toy{dir: t.TempDir(), fail: map[string]error{"conf": errors.New("the bus is gone")}}
	ctx, cancel := context.WithCancel(context.Background())
	steps := h.steps()
	do := steps[3].Do
	steps[3].Do = func(ctx context.Context) error { // the machine shuts down
		cancel()
		return do(ctx)
	}
	j, err := Create(dir, Header{Run: "1", Steps: Names(steps)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, _ := NewRun(j, steps, nil)
	if err := r.Forward(ctx, false); err == nil {
		t.Fatal("no failure")
	}
	_ = j.Close()
	for range 3 { // and each time a reboot comes in between
		j, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := j.State().Unattended(false); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		r, _ := NewRun(j, h.steps(), nil)
		if err := errors.Join(j.Try(false), r.Forward(ctx, false), j.Close()); !errors.Is(err, ErrInterrupted) {
			t.Fatal(err)
		}
	}
	h.fail = nil
	if _, err := unattended(t, dir, h, 0, false); err != nil {
		t.Fatal(err)
	}
}
