package migrate

import (
	"slices"
	"testing"

	"github.com/storagectl/storagectl/internal/engine"
)

// TestHookSteps: the hooks stand around the part with podman stopped, and only in the
// plan of a run that was asked for them: a journal from before is read as it was.
func TestHookSteps(t *testing.T) {
	t.Parallel()
	for _, images := range []string{Keep, Discard} {
		in := Inputs{Request: Request{To: "overlay", Images: images, Containers: Keep}, Store: Store{Driver: DriverVFS}}
		plain := engine.Names((&Session{Inputs: in}).steps())
		in.Request.Outage = Outage{HookAfterStop: [][]string{{"a"}}, HookBeforeStart: [][]string{{"b"}}, HookBefore: [][]string{{"c"}}, HookAfter: [][]string{{"d"}}}
		names := engine.Names((&Session{Inputs: in}).steps())
		stop, start := slices.Index(names, stepStop), slices.Index(names, stepStart)
		if names[stop-1] != stepHookBefore || names[stop+1] != stepHookAfterStop || names[start-1] != stepHookBeforeStart || names[start+1] != stepHookAfter {
			t.Errorf("%s: %v", images, names)
		}
		without := slices.DeleteFunc(names, func(n string) bool {
			return slices.Contains([]string{stepHookBefore, stepHookAfterStop, stepHookBeforeStart, stepHookAfter}, n)
		})
		if !slices.Equal(plain, without) {
			t.Errorf("%s: %v without hooks, %v else", images, plain, without)
		}
	}
}
