package migrate

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/renameio/v2"
	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/nomadtest"
	"github.com/storagectl/storagectl/internal/podman"
)

// outaged is a session of a run on a node of Nomad, with podman as a script that
// lists the containers of list. It begins no worker.
type outaged struct {
	*Session
	f    *nomadtest.Fake
	list string
	did  []engine.Step
}

func newOutaged(t *testing.T, names ...string) *outaged {
	t.Helper()
	o := &outaged{f: nomadtest.New(t, "a")}
	dir := t.TempDir()
	o.list = filepath.Join(dir, "list")
	o.containers(t, "[]")
	if err := os.WriteFile(filepath.Join(dir, "podman"), []byte("#!/bin/sh\nexec /bin/cat "+o.list+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("NOMAD_ALLOC_ID", "")
	o.Session = &Session{ID: "r1", cli: podman.CLI{Owner: podman.Owner{UID: uint32(os.Getuid())}, Runner: &host.Runner{}}}
	o.Inputs.Nomad = &NomadUse{Config: drain.Config{Address: o.f.URL}, Nodes: []drain.Node{{ID: "a", Name: "node-a", Eligible: true}}, Operator: "me@here"}
	o.Inputs.Request.Outage = Outage{Deadline: time.Second, Grace: time.Second}
	steps := make([]engine.Step, len(names))
	for i, n := range names {
		steps[i] = engine.Step{Name: n, Do: func(context.Context) error { return nil }, Undo: func(context.Context) error { return nil }}
	}
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	if o.journal, err = engine.Create(run, engine.Header{Run: "r1", Job: JobMigrate, Steps: names}, engine.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.journal.Close() })
	o.did = steps
	return o
}

func (o *outaged) containers(t *testing.T, list string) {
	t.Helper()
	if err := renameio.WriteFile(o.list, []byte(list), 0o600); err != nil { // podman may be reading it
		t.Fatal(err)
	}
}

// again is the session of a process that takes the run up again.
func (o *outaged) again(t *testing.T) {
	t.Helper()
	o.drainer, o.facts = nil, Facts{}
	if err := o.journal.LoadFacts(&o.facts); err != nil {
		t.Fatal(err)
	}
}

// set drains the node; it is empty at once.
func (o *outaged) set(t *testing.T) {
	t.Helper()
	c, err := o.nomad()
	if err != nil {
		t.Fatal(err)
	}
	n := o.Inputs.Nomad.Nodes[0]
	if err := errors.Join(c.Drain(t.Context(), n, o.drainOptions(stepDrain)), o.keepMark(c.Marks["a"])); err != nil {
		t.Fatal(err)
	}
	o.f.Complete("a")
}

// completeSoon completes the drain once it is set.
func (o *outaged) completeSoon() {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		set := false
		if o.f.Do(func() { set = o.f.Nodes["a"].DrainStrategy != nil }); set {
			o.f.Complete("a")
			return
		}
	}
}

const ofNomad = `[{"Id":"c1","Names":["web-11111111-2222-3333-4444-555555555555"],"State":"running"}]`

// TestStopLooksAgain: work that came after the drain is not cut off by the stop.
func TestStopLooksAgain(t *testing.T) {
	t.Run("allocations", func(t *testing.T) {
		o := newOutaged(t, stepStop)
		o.set(t)
		o.f.Do(func() {
			o.f.Allocs["a"] = []*api.Allocation{{ID: "11111111-2222-3333-4444-555555555555", JobID: "web", ClientStatus: "pending"}}
		})
		var alive *drain.AliveError
		if err := o.stop(t.Context()); !errors.As(err, &alive) {
			t.Errorf("%v", err)
		}
	})
	t.Run("eligible", func(t *testing.T) {
		o := newOutaged(t, stepStop)
		o.set(t)
		o.f.SetEligible("a", true)
		var eligible *drain.EligibleError
		if err := o.stop(t.Context()); !errors.As(err, &eligible) {
			t.Errorf("%v", err)
		}
	})
	t.Run("busy", func(t *testing.T) {
		o := newOutaged(t, stepStop)
		o.Inputs.Nomad = nil
		o.Inputs.Request.Outage.Busy.Labels = []string{"io.prefect.*"}
		o.containers(t, `[{"Id":"c1","Names":["flow"],"State":"running","Labels":{"io.prefect.flow":"etl"}}]`)
		var r *Refusal
		if err := o.stop(t.Context()); !errors.As(err, &r) || r.ID != "busy-containers" {
			t.Errorf("%v", err)
		}
		o.containers(t, "[]")
		if err := o.mayStop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestOtherHandStops: what another hand did to a node that is out stops the run
// before the cutover, before a reset, and before the return.
func TestOtherHandStops(t *testing.T) {
	for name, do := range map[string]func(*Session, context.Context) error{
		stepSwap: (*Session).swapIn, stepReset: (*Session).reset, stepUndrain: (*Session).undrain,
	} {
		o := newOutaged(t, name)
		o.set(t)
		o.f.SetEligible("a", true)
		var eligible *drain.EligibleError
		if err := do(o.Session, t.Context()); !errors.As(err, &eligible) {
			t.Errorf("%s, eligible again: %v", name, err)
		}
		o = newOutaged(t, name)
		o.set(t)
		o.f.Drain("a", &api.DrainSpec{Deadline: time.Hour}, false, map[string]string{"why": "kernel"}, "bob")
		var foreign *drain.ForeignDrainError
		if err := do(o.Session, t.Context()); !errors.As(err, &foreign) || o.f.Eligible("a") {
			t.Errorf("%s, drained by another: %v", name, err)
		}
	}
}

// TestDrainedLooksAtPodman: a resume does not take a node for empty that has
// containers of Nomad.
func TestDrainedLooksAtPodman(t *testing.T) {
	o := newOutaged(t, stepDrain)
	o.set(t)
	o.containers(t, ofNomad)
	if done, err := o.drained(t.Context()); done || err != nil {
		t.Errorf("%v, %v", done, err)
	}
	o.containers(t, "[]")
	if done, err := o.drained(t.Context()); !done || err != nil {
		t.Errorf("empty: %v, %v", done, err)
	}
}

// TestMarkIsKept: a run that is resumed knows its own drain.
func TestMarkIsKept(t *testing.T) {
	o := newOutaged(t, stepDrain)
	c, err := o.nomad()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Drain(t.Context(), o.nodes()[0], o.drainOptions(stepDrain)), o.keepMark(c.Marks["a"]), o.keepMark(c.Marks["a"])); err != nil {
		t.Fatal(err)
	}
	o.f.Drain("a", &api.DrainSpec{Deadline: time.Hour}, false, nil, "bob")
	o.again(t)
	if len(o.facts.Drains) != 1 {
		t.Errorf("%+v", o.facts.Drains)
	}
	var r *Refusal
	if err := o.drain(t.Context()); !errors.As(err, &r) || r.ID != "nomad-draining" {
		t.Errorf("%v", err)
	}
	if err := o.giveBackAnyhow(t.Context()); err != nil {
		t.Error(err)
	}
	o.f.Do(func() {
		if o.f.Nodes["a"].DrainStrategy == nil {
			t.Error("a drain of another hand was ended")
		}
	})
}

// TestDrainLimit: the operator's deadline counts, whoever drains.
func TestDrainLimit(t *testing.T) {
	if got := (Outage{Deadline: time.Minute, Grace: time.Second}).DrainLimit(); got != 61*time.Second {
		t.Error(got)
	}
}

// TestMovedIsRefused: a node whose eligibility changed since the plan is left so.
func TestMovedIsRefused(t *testing.T) {
	o := newOutaged(t, stepDrain)
	o.f.SetEligible("a", false)
	var r *Refusal
	if err := o.drain(t.Context()); !errors.As(err, &r) || r.ID != "nomad-moved" {
		t.Errorf("%v", err)
	}
	if err := o.giveBackAnyhow(t.Context()); err != nil || o.f.Eligible("a") {
		t.Errorf("given back: %v", err)
	}
}

// TestBackAsFound: a node that another hand made ineligible after the run is so
// after its rollback, too.
func TestBackAsFound(t *testing.T) {
	for _, changed := range []bool{false, true} {
		o := newOutaged(t, stepDrain, stepUndrain)
		run, err := engine.NewRun(o.journal, o.did, nil)
		if err != nil {
			t.Fatal(err)
		}
		o.set(t)
		o.f.SetEligible("a", true)
		if err := run.Forward(t.Context(), false); err != nil { // marks undrain as done
			t.Fatal(err)
		}
		o.f.SetEligible("a", !changed)
		o.did[1].Undo = func(ctx context.Context) error {
			c, err := o.nomad()
			if err != nil {
				return err
			}
			c.Point = func(string) { go o.completeSoon() }
			o.Inputs.Request.Outage.Deadline = 20 * time.Second
			return o.takeOutAgain(ctx)
		}
		o.did[0].Undo = func(ctx context.Context) error {
			o.again(t)
			return o.giveBackAnyhow(ctx)
		}
		if run, err = engine.NewRun(o.journal, o.did, nil); err == nil {
			err = run.Rollback(t.Context())
		}
		if err != nil || o.f.Eligible("a") == changed || len(o.f.Drains) != 2 {
			t.Errorf("changed %v: %v; eligible %v, drains %v", changed, err, o.f.Eligible("a"), o.f.Drains)
		}
	}
}

// TestBackNeedsNoSlot: a slot that is lost does not hold up a way back of a node
// that is out of service.
func TestBackNeedsNoSlot(t *testing.T) {
	o := newOutaged(t, stepSlot, stepStop)
	o.did[1].Do = func(context.Context) error { return errors.New("no") }
	o.did[1].Undo = func(ctx context.Context) error {
		if ok, err := o.holdsSlot(ctx); !ok || err != nil {
			t.Errorf("%v, %v", ok, err)
		}
		return nil
	}
	run, err := engine.NewRun(o.journal, o.did, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Forward(t.Context(), false); err == nil {
		t.Fatal("it went on")
	}
	if ok, err := o.holdsSlot(t.Context()); ok || err != nil {
		t.Errorf("on the way there: %v, %v", ok, err)
	}
	if err := run.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestBackWaitsForDriver: a drain that is given up is ended when the driver is
// healthy, and one that another hand cancelled stays as it is.
func TestBackWaitsForDriver(t *testing.T) {
	o := newOutaged(t, stepDrain)
	c, err := o.nomad()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Drain(t.Context(), o.nodes()[0], o.drainOptions(stepDrain)), o.keepMark(c.Marks["a"])); err != nil {
		t.Fatal(err)
	}
	o.f.Do(func() { o.f.Nodes["a"].Drivers["podman"].Healthy = false })
	const ill = 700 * time.Millisecond
	began := time.Now()
	time.AfterFunc(ill, func() { o.f.Do(func() { o.f.Nodes["a"].Drivers["podman"].Healthy = true }) })
	if err := o.giveBackAnyhow(t.Context()); err != nil || !o.f.Eligible("a") || time.Since(began) < ill {
		t.Errorf("%v after %s, eligible %v", err, time.Since(began), o.f.Eligible("a"))
	}
	if err := c.Drain(t.Context(), o.nodes()[0], o.drainOptions(stepDrain)); err != nil {
		t.Fatal(err)
	}
	o.f.Drain("a", nil, false, nil, "bob")
	if err := o.giveBackAnyhow(t.Context()); err != nil || o.f.Eligible("a") {
		t.Errorf("cancelled by another hand: %v, eligible %v", err, o.f.Eligible("a"))
	}
}
