package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// toy is a host of files: each step makes one, its undo removes it, and "stop"
// is a standing condition that a reboot takes away.
type toy struct {
	dir   string
	calls []string
	fail  map[string]error
}

func (h *toy) path(name string) string { return filepath.Join(h.dir, name) }

func (h *toy) has(name string) bool {
	_, err := os.Stat(h.path(name))
	return err == nil
}

func (h *toy) step(name string, needs ...string) Step {
	return Step{
		Name: name, Needs: needs,
		Holds: func(context.Context) (bool, error) { return h.has(name), nil },
		Do: func(context.Context) error {
			h.calls = append(h.calls, "do "+name)
			if err := h.fail[name]; err != nil {
				return err
			}
			for _, n := range needs {
				if !h.has(n) {
					return fmt.Errorf("%s acts without %s", name, n)
				}
			}
			return os.WriteFile(h.path(name), nil, 0o600)
		},
		Undo: func(context.Context) error {
			h.calls = append(h.calls, "undo "+name)
			for _, n := range needs {
				if !h.has(n) {
					return fmt.Errorf("%s is undone without %s", name, n)
				}
			}
			if err := os.Remove(h.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		},
	}
}

func (h *toy) steps() []Step {
	look := Step{Name: "look", Needs: []string{"stop"}, Do: func(context.Context) error { return nil }}
	final := h.step("purge")
	final.Final, final.Undo = true, nil
	return []Step{h.step("stage"), h.step("stop"), h.step("swap", "stop"), h.step("conf", "stop"), look, h.step("start"), final}
}

func (h *toy) files(t *testing.T) []string {
	t.Helper()
	es, err := os.ReadDir(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

var (
	finished  = []string{"conf", "stage", "start", "stop", "swap"}
	committed = []string{"conf", "purge", "stage", "start", "stop", "swap"}
)

type crash struct{}

// run opens or creates the run in dir, does f with it, and reports whether the
// n-th point (counted from 1; 0: none) "crashed" it. passed counts points.
func run(t *testing.T, dir string, h *toy, n int, f func(*Run) error) (passed int, crashed bool, err error) {
	t.Helper()
	o := Options{Point: func(string) {
		passed++
		if passed == n {
			panic(crash{})
		}
	}}
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(crash); !ok {
				panic(p)
			}
			crashed = true
		}
	}()
	var j *Journal
	if _, statErr := os.Stat(filepath.Join(dir, journalName)); statErr == nil {
		j, err = Open(dir, o)
	} else {
		j, err = Create(dir, Header{Run: "1", Job: "toy", Steps: Names(h.steps())}, o)
	}
	if err != nil {
		return passed, false, err
	}
	defer j.Close()
	r, err := NewRun(j, h.steps(), nil)
	if err != nil {
		return passed, false, err
	}
	return passed, false, f(r)
}

func forward(r *Run) error  { return r.Forward(context.Background(), false) }
func commit(r *Run) error   { return r.Forward(context.Background(), true) }
func rollback(r *Run) error { return r.Rollback(context.Background()) }

// TestSweep kills a run at each point of its journal, on the way forward and on
// the way back, with and without a reboot after it, and shows that resume and
// rollback end as if nothing had happened.
func TestSweep(t *testing.T) {
	for _, tc := range []struct {
		name      string
		first     func(*Run) error
		then      func(*Run) error
		prepare   func(*Run) error
		want      []string
		wantPhase Phase
	}{
		{"forward resumed", forward, forward, nil, finished, PhaseFinished},
		{"forward rolled back", forward, rollback, nil, nil, PhaseRolledBack},
		{"rollback resumed", rollback, rollback, forward, nil, PhaseRolledBack},
		{"commit resumed", commit, commit, forward, committed, PhaseCommitted},
	} {
		for _, reboot := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s reboot=%v", tc.name, reboot), func(t *testing.T) {
				for n := 1; ; n++ {
					dir, h := t.TempDir(), &toy{dir: t.TempDir()}
					if tc.prepare != nil {
						if _, _, err := run(t, dir, h, 0, tc.prepare); err != nil {
							t.Fatal(err)
						}
					}
					_, crashed, err := run(t, dir, h, n, tc.first)
					if err != nil {
						t.Fatalf("point %d: %v", n, err)
					}
					if crashed && reboot {
						_ = os.Remove(h.path("stop"))
					}
					if crashed {
						if _, _, err := run(t, dir, h, 0, tc.then); err != nil {
							t.Fatalf("point %d: second try: %v", n, err)
						}
					}
					st, err := Read(dir)
					if err != nil {
						t.Fatal(err)
					}
					if crashed || tc.name != "forward rolled back" {
						got := h.files(t)
						if reboot { // what only a reboot took away is not put back for its own sake
							got = slices.DeleteFunc(got, func(s string) bool { return s == "stop" })
						}
						want := slices.Clone(tc.want)
						if reboot {
							want = slices.DeleteFunc(want, func(s string) bool { return s == "stop" })
						}
						if !slices.Equal(got, want) {
							t.Fatalf("point %d: host has %v, want %v", n, got, want)
						}
						if st.Phase != tc.wantPhase {
							t.Fatalf("point %d: phase %s, want %s", n, st.Phase, tc.wantPhase)
						}
					}
					if !crashed {
						if n < 4 {
							t.Fatalf("only %d points", n)
						}
						return
					}
				}
			})
		}
	}
}

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

// TestCutAtEveryByte shows that a journal cut anywhere reads as its whole
// records, and that the run goes on from there.
func TestCutAtEveryByte(t *testing.T) {
	dir, h := t.TempDir(), &toy{dir: t.TempDir()}
	if _, _, err := run(t, dir, h, 0, forward); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	first := strings.IndexByte(string(whole), '\n') + 1
	for cut := range len(whole) {
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, journalName), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := Read(d)
		if cut < first {
			var de *DamagedError
			if !errors.As(err, &de) {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if want := strings.Count(string(whole[:cut]), "\n"); len(st.Records) != want {
			t.Fatalf("cut at %d: %d records, want %d", cut, len(st.Records), want)
		}
		if cut%37 == 0 {
			if _, _, err := run(t, d, h, 0, forward); err != nil {
				t.Fatalf("cut at %d: %v", cut, err)
			}
		}
	}
}

func TestDamage(t *testing.T) {
	dir, h := t.TempDir(), &toy{dir: t.TempDir()}
	if _, _, err := run(t, dir, h, 0, forward); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, journalName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(whole), "\n")
	for name, tc := range map[string]struct {
		text string
		line int
	}{
		"flipped bit":  {strings.Join(lines[:2], "") + strings.Replace(lines[2], "done", "dono", 1) + strings.Join(lines[3:], ""), 3},
		"lost line":    {strings.Join(lines[:3], "") + strings.Join(lines[4:], ""), 4},
		"empty line":   {strings.Join(lines[:3], "") + "\n" + strings.Join(lines[3:], ""), 4},
		"no first":     {strings.Join(lines[1:], ""), 1},
		"doubled line": {strings.Join(lines[:4], "") + strings.Join(lines[3:], ""), 5},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(dir, Options{})
			var de *DamagedError
			if !errors.As(err, &de) || de.Line != tc.line {
				t.Fatalf("got %v, want damage at line %d", err, tc.line)
			}
			if b, _ := os.ReadFile(path); string(b) != tc.text {
				t.Fatal("a damaged journal was changed")
			}
		})
	}
}

func TestFacts(t *testing.T) {
	type facts struct {
		Units  []string `json:"units,omitempty"`
		Device string   `json:"device,omitempty"`
	}
	dir := t.TempDir()
	j, err := Create(dir, Header{Run: "1", Steps: []string{"a"}, Inputs: json.RawMessage(`{}`)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.SaveFacts(facts{Units: []string{"podman.socket"}}); err != nil {
		t.Fatal(err)
	}
	if err := j.SaveFacts(facts{Units: []string{"podman.socket"}, Device: "/dev/rbd0"}); err != nil {
		t.Fatal(err)
	}
	if err := j.SaveFacts(facts{Units: []string{}}); err != nil {
		t.Fatal(err)
	}
	if err := j.SaveFacts(facts{Device: "/dev/rbd1"}); err == nil {
		t.Fatal("a fact was overwritten")
	}
	j.Close()
	j, err = Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got facts
	if err := j.LoadFacts(&got); err != nil || got.Device != "/dev/rbd0" || len(got.Units) != 1 {
		t.Fatalf("%+v %v", got, err)
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

func TestDir(t *testing.T) {
	d := Dir{Path: filepath.Join(t.TempDir(), "a", "b")}
	if _, err := d.Find(""); !errors.Is(err, ErrNoRun) {
		t.Fatalf("got %v", err)
	}
	var ids []string
	for range 11 {
		id, err := d.New("migrate")
		if err != nil {
			t.Fatal(err)
		}
		j, err := Create(d.RunPath(id), Header{Run: id}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		j.Close()
		ids = append(ids, id)
	}
	if got, _ := d.List(); !slices.Equal(got, ids) {
		t.Fatalf("list %v, want %v", got, ids)
	}
	for name, want := range map[string]string{"": ids[10], "1": ids[0], "11": ids[10], ids[4]: ids[4]} {
		if got, err := d.Find(name); got != want {
			t.Errorf("find %q: %q %v, want %q", name, got, err, want)
		}
	}
	if _, err := d.Find("99"); !errors.Is(err, ErrNoRun) {
		t.Fatalf("got %v", err)
	}
	l, err := d.Lock("s")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lock("s"); !errors.Is(err, ErrLocked) {
		t.Fatalf("second lock: %v", err)
	}
	if held, _ := d.Locked("s"); !held {
		t.Fatal("the lock is not seen")
	}
	l.Close()
	if held, _ := d.Locked("s"); held {
		t.Fatal("the lock stays")
	}
}
