package migrate

import (
	"context"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/window"
	"github.com/storagectl/storagectl/migrate/convert"
)

// TestNeed: what a need is made of, and how it is told.
func TestNeed(t *testing.T) {
	t.Parallel()
	nomad := &NomadUse{Nodes: []drain.Node{{Name: "a"}}}
	for name, c := range map[string]struct {
		in    Inputs
		facts Facts
		all   time.Duration
		text  string
	}{
		"nothing staged": {Inputs{}, Facts{}, 90 * time.Second, "1 min 0 s to stop podman, verify and start it, 30 s of margin"},
		"with Nomad":     {Inputs{Nomad: nomad, Request: Request{Outage: Outage{Deadline: 15 * time.Minute}}}, Facts{}, 990 * time.Second, "15 min for the drain, 1 min 0 s"},
		"no deadline":    {Inputs{Nomad: nomad}, Facts{}, 90 * time.Second, "1 min 0 s to stop"},
		"no Nomad":       {Inputs{Request: Request{Outage: Outage{Deadline: 15 * time.Minute}}}, Facts{}, 90 * time.Second, "1 min 0 s to stop"},
		"busy": {Inputs{Request: Request{Outage: Outage{Busy: drain.BusyOptions{Labels: []string{"x"}, Deadline: 30 * time.Minute}}}}, Facts{},
			1890 * time.Second, "30 min for containers at work"},
		"containers": {Inputs{Left: 5e9}, Facts{}, 240 * time.Second, "1 min 40 s to copy 5.0 GB"},
		"layers": {Inputs{}, Facts{Stage: &StageFact{Counts: convert.Counts{Dirs: 100_000, Linked: 500_000}}}, 180 * time.Second,
			"1 min 0 s to look at 600000 files once more"},
		"a copy": {Inputs{Request: Request{Relocate: &Relocation{}}}, Facts{Copied: &CopyFact{Files: 300_000, Bytes: 100e9, Seconds: 10_000}}, 285 * time.Second,
			"30 s to look at 300000 files once more, 1 min 40 s to copy 1.0 GB"},
		"a copy that was slow on purpose": {Inputs{Request: Request{Relocate: &Relocation{Rate: 1e6}}}, Facts{Copied: &CopyFact{Bytes: 100e9, Seconds: 100_000}}, 120 * time.Second,
			"20 s to copy 1.0 GB"},
	} {
		s := &Session{Inputs: c.in, facts: c.facts, env: Env{Dir: engine.Dir{Path: t.TempDir()}}}
		s.journal = ranBefore(t, s.env.Dir, "0001-migrate-aaaa", c.in, 0, false)
		n, err := s.need()
		if err != nil || math.Abs((n.all()-c.all).Seconds()) > 0.01 || !strings.Contains(n.String(), c.text) {
			t.Errorf("%s: %s (%s), %v", name, n.all(), n, err)
		}
	}
}

// ranBefore makes the journal of a run in which podman was down for some seconds; of
// one that was cut off meanwhile, and taken up a day later, if cut is true.
func ranBefore(t *testing.T, dir engine.Dir, run string, in Inputs, seconds int, cut bool) *engine.Journal {
	t.Helper()
	if err := os.MkdirAll(dir.RunPath(run), 0o700); err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 20, 2, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	step := func(name string) engine.Step {
		return engine.Step{Name: name, Do: func(context.Context) error { return nil }}
	}
	steps := []engine.Step{step(stepStop), step(stepStageRest), step(stepVerify), step(stepStart)}
	steps[1].Do = func(context.Context) error {
		if cut {
			cut = false
			return errors.New("cut off")
		}
		now = now.Add(time.Duration(seconds) * time.Second)
		return nil
	}
	j, err := engine.Create(dir.RunPath(run), engine.Header{Run: run, Job: in.Job(), Store: in.StoreKey(), Steps: engine.Names(steps)}, engine.Options{Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	if seconds == 0 { // it has only begun
		return j
	}
	r, err := engine.NewRun(j, steps, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Forward(t.Context(), false); err != nil {
		now = now.AddDate(0, 0, 1)
		err = r.Forward(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
	}
	return j
}

// TestEarlier: how long podman was down in earlier runs of the same job on the same
// store counts, but for those that stood still meanwhile.
func TestEarlier(t *testing.T) {
	t.Parallel()
	dir := engine.Dir{Path: t.TempDir()}
	in := Inputs{Store: Store{GraphRoot: "/a"}}
	other := Inputs{Store: Store{GraphRoot: "/b"}}
	moved := Inputs{Store: Store{GraphRoot: "/a"}, Request: Request{Relocate: &Relocation{}}}
	ranBefore(t, dir, "0001-migrate-aaaa", in, 200, false)
	ranBefore(t, dir, "0002-migrate-aaaa", in, 100, false)
	ranBefore(t, dir, "0003-migrate-aaaa", in, 300, true)
	ranBefore(t, dir, "0004-migrate-aaaa", other, 400, false)
	ranBefore(t, dir, "0005-relocate-aaaa", moved, 500, false)
	s := &Session{ID: "0006-migrate-aaaa", Inputs: in, env: Env{Dir: dir}, journal: ranBefore(t, dir, "0006-migrate-aaaa", in, 0, false)}
	n, err := s.need()
	if err != nil || n.Earlier != 200 || n.all() != 5*time.Minute || n.String() != "3 min 20 s with podman down, as in an earlier run, 1 min 40 s of margin" {
		t.Errorf("%+v (%s), %v", n, n, err)
	}
	s.Inputs.Request.Relocate = &Relocation{}
	if n, err := s.need(); err != nil || n.Earlier != 500 {
		t.Errorf("%+v, %v", n, err)
	}
}

// TestWindowPlan: what a plan says of a window, and what it refuses.
func TestWindowPlan(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC) // a Saturday
	judge := func(spec string, change func(*Request)) *Assessment {
		w, err := window.Parse(spec)
		if err != nil {
			t.Fatal(err)
		}
		a := &Assessment{Inputs: Inputs{Request: Request{Window: &w, Outage: Outage{Deadline: 15 * time.Minute}}, Nomad: &NomadUse{}},
			Plan: []PlannedStep{{Name: stepWindow}}}
		if change != nil {
			change(&a.Inputs.Request)
		}
		a.window(now)
		return a
	}
	a := judge(onSaturday, nil)
	want := `  window     sat 02:00 3h UTC
    open now Sat 2026-11-28 02:00 … 05:00 UTC
    next     Sat 2026-12-05 02:00 … 05:00 UTC
    next     Sat 2026-12-12 02:00 … 05:00 UTC
    next     Sat 2026-12-19 02:00 … 05:00 UTC
    needs    17 min, as far as is known before anything is staged (15 min for the drain, 1 min 0 s to stop podman, verify and start it, 30 s of margin)
`
	if got := a.Window.Text(); got != want || len(a.Refusals) > 0 {
		t.Errorf("%s\n%v", got, a.Refusals)
	}
	if a := judge("sat 02:00 16m UTC", nil); len(a.Refusals) != 1 || a.Refusals[0].ID != "window-short" {
		t.Errorf("%v", a.Refusals)
	}
	if a := judge("daily 02:00 3h UTC except 2026-01-01..2099-01-01", nil); len(a.Refusals) != 1 || a.Refusals[0].ID != "window-never" {
		t.Errorf("%v", a.Refusals)
	}
	a = judge("daily 02:00 16m UTC except 2026-01-01..2099-01-01", func(r *Request) { r.Now = true })
	if len(a.Refusals) > 0 || !strings.Contains(a.Window.Text(), "(overridden by --now)") {
		t.Errorf("%v, %s", a.Refusals, a.Window.Text())
	}
}
