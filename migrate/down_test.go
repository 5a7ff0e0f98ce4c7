package migrate

import (
	"testing"

	"github.com/storagectl/storagectl/internal/engine"
)

// A host is out of service from the first step that takes something of it until the last
// that gives it back.
func TestOutOfService(t *testing.T) {
	all := []string{stepStage, stepHookBefore, stepDrain, stepStop, stepStart, stepUndrain, stepHookAfter, stepCommit}
	for _, plan := range [][]string{all, all[2:6], {stepStop, stepStart}, {stepHookBefore, stepStop, stepStart}} {
		st := engine.State{Header: engine.Header{Steps: plan}, Steps: map[string]engine.StepState{}}
		out := false
		for i, name := range plan {
			if name == stepCommit {
				break
			}
			st.Steps[name] = engine.StepState{Mark: engine.MarkBegun}
			out = out || name != stepStage
			if OutOfService(st) != out {
				t.Errorf("%v: in step %s: %v", plan, name, !out)
			}
			st.Steps[name] = engine.StepState{Mark: engine.MarkDone}
			if i == len(plan)-1 || plan[i+1] == stepCommit {
				out = false
			}
			if OutOfService(st) != out {
				t.Errorf("%v: after step %s: %v", plan, name, !out)
			}
		}
		for i := range plan { // the way back, last first
			st.Steps[plan[len(plan)-1-i]] = engine.StepState{Mark: engine.MarkUndone}
		}
		if OutOfService(st) {
			t.Errorf("%v: taken back", plan)
		}
	}
}

// Podman is down from the moment in which its stop was begun until what ran runs again.
func TestPodmanDown(t *testing.T) {
	for _, c := range []struct {
		stop, start engine.Mark
		down        bool
	}{
		{engine.MarkNone, engine.MarkNone, false},
		{engine.MarkBegun, engine.MarkNone, true},
		{engine.MarkDone, engine.MarkBegun, true},
		{engine.MarkDone, engine.MarkDone, false},
		{engine.MarkDone, engine.MarkUndone, true}, // on the way back
		{engine.MarkUndone, engine.MarkUndone, false},
	} {
		st := engine.State{Steps: map[string]engine.StepState{stepStop: {Mark: c.stop}, stepStart: {Mark: c.start}}}
		if PodmanDown(st) != c.down {
			t.Errorf("%q, %q: %v", c.stop, c.start, !c.down)
		}
	}
}
