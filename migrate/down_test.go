package migrate

import (
	"testing"

	"github.com/storagectl/storagectl/internal/engine"
)

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
