package migrate

import (
	"time"

	"github.com/storagectl/storagectl/drain"
)

const (
	// usualPatience is more than the deadline of anything that a step does without a
	// word, some of them in a row.
	usualPatience = 30 * time.Minute
	// walkPatience is for what grows with a store and tells nothing: its removal.
	walkPatience = 24 * time.Hour
)

// Patience is how long a step may give no sign of life before it counts as hung. It
// is longer than all deadlines of the step itself, and than what the operator lets it
// wait for others.
func (in Inputs) Patience(step string, undo bool) time.Duration {
	out := in.Request.Outage
	switch step {
	case stepSlot, stepSlotBack:
		return usualPatience + out.SlotWait
	case stepBusy:
		if out.Busy.Then == drain.BusyWait {
			return 365 * 24 * time.Hour
		}
		return usualPatience + out.Busy.Deadline + out.Busy.Grace
	case stepHookBefore, stepHookAfter: // on the way back those of the other side
		return usualPatience + time.Duration(len(out.HookBefore)+len(out.HookAfter))*out.HookTimeout
	case stepDrain, stepUndrain:
		return usualPatience + out.DrainLimit()
	case stepCommit, stepReset:
		return walkPatience
	case stepStage, stepCopy, stepTarget:
		if undo {
			return walkPatience
		}
	}
	return usualPatience
}
