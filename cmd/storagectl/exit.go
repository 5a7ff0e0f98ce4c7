package main

import (
	"errors"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/migrate"
)

// The exit codes. They stand in the help of every command, and never change.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitRefused     = 3
	exitUnverified  = 4
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
  10   no such run
  11   another run holds this store
  12   the journal is damaged, or the plan changed since
  130  interrupted; the run can be resumed`

// doctorExitHelp and verifyExitHelp are the same for the commands that judge: there
// is mostly no run to go on with.
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
)

func exitCode(err error) int {
	var (
		usage   *usageError
		refusal *migrate.Refusal
		step    *engine.StepError
		damaged *engine.DamagedError
		outcome *outcomeError
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
	case errors.As(err, &damaged), errors.Is(err, engine.ErrPlanChanged):
		return exitJournal
	case errors.Is(err, engine.ErrInterrupted):
		return exitInterrupted
	case errors.Is(err, migrate.ErrVerification):
		return exitUnverified
	case errors.As(err, &step): // a step's refusal was not undone: something is left to do
		return exitFailed
	case errors.As(err, &refusal), errors.Is(err, engine.ErrNoWayBack), errors.Is(err, engine.ErrRollingBack):
		return exitRefused
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

// hint tells what the operator can do about an error.
func hint(err error, code int) string {
	var refusal *migrate.Refusal
	if errors.As(err, &refusal) && refusal.Hint != "" {
		return refusal.Hint
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
	if !errors.As(err, &ofRun) && (code == exitFailed || code == exitInterrupted) {
		return "" // there is no run to go on with
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
	case exitFailed:
		return "storagectl status shows where it stands; then storagectl resume or storagectl rollback"
	case exitUnverified:
		return "storagectl rollback puts the old store back; storagectl resume checks again"
	case exitUsage:
		return "see --help"
	case exitNoRun:
		return "storagectl history lists the runs; those that root began are in /var/lib/storagectl, a user's own in ~/.local/state/storagectl (--state-dir)"
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
