package main

import (
	"errors"
	"io/fs"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

// The exit codes. They stand in the help of every command, and never change.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitRefused     = 3
	exitUnverified  = 4
	exitWindow      = 5
	exitNoRun       = 10
	exitLocked      = 11
	exitJournal     = 12
	exitInterrupted = 130
)

const exitHelp = `Exit codes:
  0    done
  1    a step failed; the run can be resumed or rolled back
  2    wrong usage
  3    refused before anything changed, or all that was is taken back (the reason,
       and what would lift it)
  4    verification failed; the run can be rolled back. Podman stays down, if it was
       stopped by then
  5    stopped at a safe point because of the maintenance window; nothing is out of
       service, and resume goes on in the next window
  10   no such run
  11   another run holds this store, or another runbook is at work
  12   the journal or the audit is damaged, or the plan changed since
  130  interrupted; the run can be resumed`

// doctorExitHelp and those below it are the same for the commands that are no runs:
// there is mostly nothing to go on with.
const (
	doctorExitHelp = `Exit codes:
  0    all is well
  1    nothing worse than a warning, or than what could not be found out
  2    wrong usage
  3    refused (the reason, and what would lift it)
  4    a problem
  10   no such run
  11   another doctor --fix is under way
  12   the journal of a run is damaged
  130  interrupted; nothing was changed, or --undo takes it back`

	verifyExitHelp = `Exit codes:
  0    all is proven
  1    something could not be found out, or is a warning of --docker-api
  2    wrong usage
  3    refused (the reason, and what would lift it)
  4    something is wrong; with --with: the two differ
  10   no such run
  12   the journal of the run is damaged
  130  interrupted`

	pruneExitHelp = `Exit codes:
  0    done, or shown; what came into use meanwhile was left
  1    something could not be removed, or not be looked at; the rest was
  2    wrong usage
  3    refused before anything was removed (the reason, and what would lift it)
  11   a run holds this store
  130  interrupted; what was removed until then is told`
)

func exitCode(err error) int {
	var (
		usage   *usageError
		refusal *migrate.Refusal
		step    *engine.StepError
		damaged *engine.DamagedError
		broken  *tell.BrokenError
		outcome *outcomeError
		task    *runbooks.TaskError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &outcome):
		return outcome.code()
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, engine.ErrNoRun):
		return exitNoRun
	case errors.Is(err, engine.ErrLocked):
		return exitLocked
	case errors.As(err, &damaged), errors.As(err, &broken), errors.Is(err, engine.ErrPlanChanged):
		return exitJournal
	case errors.Is(err, engine.ErrInterrupted):
		return exitInterrupted
	case errors.As(err, &task):
		return taskCode(task.Code)
	case errors.Is(err, migrate.ErrVerification):
		return exitUnverified
	case errors.Is(err, engine.ErrPaused) && !errors.As(err, &step): // else what was out of service may still be
		return exitWindow
	case errors.As(err, &step): // a step's refusal was not undone: something is left to do
		return exitFailed
	case errors.As(err, &refusal), errors.Is(err, engine.ErrNoWayBack), errors.Is(err, engine.ErrRollingBack):
		return exitRefused
	}
	return exitFailed
}

// taskCode is the exit code of a runbook that stopped at a task: the task's own where
// it says more than that a step failed. What a task refuses leaves the runbook's run
// where it can be resumed.
func taskCode(code int) int {
	switch code {
	case exitUnverified, exitWindow, exitLocked:
		return code
	}
	return exitFailed
}

// runError is an error of a run that was begun: it can be resumed, and rolled
// back unless it is past its final step.
type runError struct {
	error
	final bool
}

func (e *runError) Unwrap() error { return e.error }

// hintedError is an error that has a hint of its own.
type hintedError struct {
	error
	hint string
}

func (e *hintedError) Unwrap() error { return e.error }

// usageHint stands for the help of the command that was run.
const usageHint = "see --help"

// hint tells what the operator can do about an error.
func hint(err error, code int) string {
	var refusal *migrate.Refusal
	if errors.As(err, &refusal) && refusal.Hint != "" {
		return refusal.Hint
	}
	var broken *tell.BrokenError
	if errors.As(err, &broken) {
		return "compare it with a copy, or with the hash that was told last (STORAGECTL_AUDIT in systemd's journal, audit in a notification); runs go on, and are told to it"
	}
	var task *runbooks.TaskError
	if errors.As(err, &task) && task.Hint != "" {
		return task.Hint
	}
	var hinted *hintedError
	if errors.As(err, &hinted) {
		return hinted.hint
	}
	switch {
	case errors.Is(err, engine.ErrNoWayBack):
		return "the old store is removed, or being removed: storagectl resume goes on forward"
	case errors.Is(err, engine.ErrRollingBack):
		return "storagectl rollback goes on with the way back; begin a new run for another try"
	}
	var step *engine.StepError
	if errors.As(err, &step) && step.Step == migrate.StepCommit {
		return "the store is in use and whole; only the old one is not removed yet. Mend the cause, then storagectl resume"
	}
	if errors.As(err, &step) && step.Step == migrate.StepGrowFS {
		return "the store is in use and whole, on an image that is larger by now; only its filesystem is not. Mend the cause, then storagectl resume"
	}
	if errors.As(err, &step) && step.Step == migrate.StepDockerAPI && code == exitUnverified {
		return dockerHint(err)
	}
	var ofRun *runError
	if !errors.As(err, &ofRun) && (code == exitFailed || code == exitInterrupted) { // there is no run to go on with
		if errors.Is(err, fs.ErrPermission) {
			return "run it as root, or as the user whose file or folder that is"
		}
		return ""
	}
	if ofRun != nil && ofRun.final {
		switch code {
		case exitFailed:
			return "the old store is deleted, so there is no way back: mend the cause, then storagectl resume"
		case exitUnverified:
			return "the old store is deleted, so there is no way back: mend the cause, then storagectl resume, which checks again"
		case exitInterrupted:
			return "storagectl resume goes on; the old store is deleted, so there is no way back"
		}
	}
	switch code {
	case exitWindow:
		return windowHint(err)
	case exitFailed:
		return "storagectl status shows where it stands; then storagectl resume or storagectl rollback"
	case exitUnverified:
		return "storagectl rollback puts the old store back; storagectl resume checks again"
	case exitUsage:
		return usageHint
	case exitNoRun:
		return "storagectl history lists the runs; those that root began are in /var/lib/storagectl, a user's own in ~/.local/state/storagectl, and only that user sees them"
	case exitLocked:
		return "wait for the other run to end; storagectl status shows it"
	case exitJournal:
		return "go on with the release that began the run, or look at the journal's file by hand; nothing was changed now"
	case exitInterrupted:
		return "storagectl resume goes on; storagectl rollback puts everything back"
	}
	return ""
}

// dockerHint tells what to do where podman's socket does not serve a Docker client.
func dockerHint(err error) string {
	var ofRun *runError
	back := "; storagectl rollback puts the old store back"
	if errors.As(err, &ofRun) && ofRun.final {
		back = ""
	}
	return "podman is up, and a Nomad node stays out of service; storagectl verify --docker-api shows each call. Mend the cause, then storagectl resume, which tries again" + back
}
