package engine

import (
	"context"
	"errors"
	"fmt"
)

// Step is one named, re-runnable change to the host.
type Step struct {
	// Name is the journal's key. It is never renamed: a journal of an older
	// release is matched against it.
	Name string
	// Title is what the operator reads.
	Title string
	// Needs names earlier steps whose effect must stand when this step acts
	// (stopped, mapped, mounted). One that no longer holds, after a reboot for
	// example, is done again first, on the way forward and on the way back.
	Needs []string
	// Holds observes, without changing anything, whether the step's effect is
	// there. An error means "unknown" and stops the run; it is never taken for
	// "absent". Nil is for steps that only look (a verification): they are
	// their own observation, and run again until the journal says done.
	Holds func(context.Context) (bool, error)
	// Do makes the change. It is idempotent and tolerates its own half-done work.
	Do func(context.Context) error
	// Undo takes the change back, whole or half-done. Nil: nothing to put back.
	Undo func(context.Context) error
	// Pausable says that an interruption may cut Do short. Any other step runs
	// to its end first, so that a run stops between changes, not inside one.
	Pausable bool
	// Final marks the point past which there is no way back (commit).
	Final bool
}

var (
	// ErrInterrupted reports that the run stopped at a safe point because its
	// context was cancelled. The run can be resumed.
	ErrInterrupted = errors.New("interrupted")
	// ErrPaused reports that a step stopped at a safe point because it is not its
	// time. It is no failure: what a step returns that is ErrPaused stops the run, and
	// the step is done again when the run is resumed.
	ErrPaused = errors.New("stopped at a safe point")
	// ErrPlanChanged reports that the steps of a journal are not those of this
	// program: the run was begun by another release or with another plan.
	ErrPlanChanged = errors.New("the plan changed since the run began")
	// ErrNoWayBack reports a rollback of a run whose final step has begun.
	ErrNoWayBack = errors.New("the run is past its point of no return")
	// ErrRollingBack reports an attempt to go forward with a run that is being,
	// or was, rolled back.
	ErrRollingBack = errors.New("the run is rolled back or on its way back")
	// ErrLocked reports that another process holds the lock.
	ErrLocked = errors.New("held by another run")
	// ErrNoRun reports that no run of that name is there.
	ErrNoRun = errors.New("no such run")
)

// StepError reports which step failed, and in which direction.
type StepError struct {
	Step string
	Undo bool // the step was being undone
	Err  error
}

func (e *StepError) Error() string {
	if e.Undo {
		return fmt.Sprintf("cannot undo step %s: %v", e.Step, e.Err)
	}
	return fmt.Sprintf("step %s: %v", e.Step, e.Err)
}

func (e *StepError) Unwrap() error { return e.Err }

// DamagedError reports a journal that cannot be trusted, and the line at which
// the damage was found (1 is the first).
type DamagedError struct {
	Path string
	Line int
	Why  string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("journal %s is damaged at line %d: %s", e.Path, e.Line, e.Why)
}
