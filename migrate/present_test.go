package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/storagectl/storagectl/internal/engine"
)

// begun makes a run of these inputs, with one step before its commit that is not done
// yet.
func begun(t *testing.T, d engine.Dir, in Inputs) (id string, finish func()) {
	t.Helper()
	id, err := d.New(in.Job())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	steps := []engine.Step{{Name: "one", Do: func(context.Context) error { return nil }}, {Name: "commit", Final: true}}
	j, err := engine.Create(d.RunPath(id), engine.Header{Run: id, Job: in.Job(), Store: in.StoreKey(), Inputs: raw, Steps: engine.Names(steps)}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return id, func() {
		t.Helper()
		r, err := engine.NewRun(j, steps, nil)
		if err == nil {
			err = r.Forward(t.Context(), false)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A relocation is not rolled back under a growth that was cut off: that may have the
// image unmapped, and would never come to its end. One that is over is no hindrance.
func TestLaterGrowth(t *testing.T) {
	d := engine.Dir{Path: t.TempDir()}
	in := Inputs{Request: Request{Relocate: &Relocation{}}, Store: Store{GraphRoot: "/srv/store"}, Target: &Target{}}
	first, finish := begun(t, d, in)
	finish()
	s := &Session{ID: first, Inputs: in, env: Env{Dir: d}}
	if err := s.lastRun(); err != nil {
		t.Fatal(err)
	}
	in.Target = &Target{Image: &TargetImage{Had: 1}}
	_, finish = begun(t, d, in)
	var r *Refusal
	if err := s.lastRun(); !errors.As(err, &r) || r.ID != "later-run" {
		t.Errorf("under a growth that is not over: %v", err)
	}
	finish()
	if err := s.lastRun(); err != nil {
		t.Errorf("after a growth: %v", err)
	}
}
