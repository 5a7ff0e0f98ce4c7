package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
