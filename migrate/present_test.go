package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/rbd"
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

// Nor is a migration rolled back under a later one, also where that is damaged.
func TestLaterMigration(t *testing.T) {
	d := engine.Dir{Path: t.TempDir()}
	in := Inputs{Store: Store{GraphRoot: "/srv/store"}}
	first, finish := begun(t, d, in)
	finish()
	other := in
	other.Store.GraphRoot = "/srv/other"
	begun(t, d, other)
	s := &Session{ID: first, Inputs: in, env: Env{Dir: d}}
	if err := s.lastRun(); err != nil {
		t.Fatal(err)
	}
	later, finish := begun(t, d, in)
	finish()
	var r *Refusal
	if err := s.lastRun(); !errors.As(err, &r) || r.ID != "later-run" {
		t.Errorf("under a later one: %v", err)
	}
	path := filepath.Join(d.RunPath(later), "journal")
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, bytes.Replace(text, []byte(`"seq":2`), []byte(`"seq":7`), 1), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	var damaged *engine.DamagedError
	if err := s.lastRun(); !errors.As(err, &damaged) {
		t.Errorf("under a damaged one: %v", err)
	}
}

// An image that a later run has is that one's: an earlier run, which was cut off, neither
// goes on with it nor takes it away.
func TestLaterImage(t *testing.T) {
	d := engine.Dir{Path: t.TempDir()}
	on := func(root, image string) Inputs {
		return Inputs{Request: Request{Relocate: &Relocation{}}, Store: Store{GraphRoot: root},
			Target: &Target{Kind: KindRBD, Image: &TargetImage{Spec: rbd.Spec{Pool: "rbd", Image: image}, Create: true}}}
	}
	run := func(in Inputs) (*Session, *engine.Run) {
		t.Helper()
		id, err := d.New(in.Job())
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		step := []engine.Step{{Name: stepImage, Do: func(context.Context) error { return nil }, Undo: func(context.Context) error { return nil }}}
		j, err := engine.Create(d.RunPath(id), engine.Header{Run: id, Job: in.Job(), Store: in.StoreKey(), Inputs: raw, Steps: []string{stepImage}}, engine.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = j.Close() })
		r, err := engine.NewRun(j, step, nil)
		if err != nil {
			t.Fatal(err)
		}
		return &Session{ID: id, Inputs: in, env: Env{Dir: d}, journal: j, facts: Facts{Mapped: true}}, r
	}
	s, _ := run(on("/srv", "a"))
	if later, err := s.imageOfLater(); later != "" || err != nil {
		t.Errorf("%q, %v", later, err)
	}
	_, other := run(on("/third", "b"))
	if err := other.Forward(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if later, err := s.imageOfLater(); later != "" || err != nil {
		t.Errorf("of another image: %q, %v", later, err)
	}
	has, r := run(on("/fourth", "a"))
	if err := r.Forward(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if later, err := s.imageOfLater(); later != has.ID || err != nil {
		t.Errorf("%q, %v, want %s", later, err, has.ID)
	}
	var said string
	s.env.Note = func(text string) { said = text }
	if err := s.unmapImage(t.Context()); err != nil || !strings.Contains(said, "is left as it is: run "+has.ID) {
		t.Errorf("%v, %q", err, said)
	}
	var refusal *Refusal
	if _, err := s.imageMapped(t.Context()); !errors.As(err, &refusal) || refusal.ID != "image-held" {
		t.Errorf("got %v", err)
	}
	if err := r.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if later, err := s.imageOfLater(); later != "" || err != nil {
		t.Errorf("after its rollback: %q, %v", later, err)
	}
}
