package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/migrate"
)

// TestExit: each kind of error has its exit code, and a hint that fits it.
func TestExit(t *testing.T) {
	plain := errors.New("cannot ask Nomad")
	step := &engine.StepError{Step: "swap", Err: plain}
	refusal := &migrate.Refusal{ID: "busy", Text: "podman is in use", Hint: "stop it"}
	for _, c := range []struct {
		name string
		err  error
		code int
		hint string // part of it; "": none
	}{
		{"nothing", nil, exitOK, ""},
		{"no run is begun", plain, exitFailed, ""},
		{"no rights", fmt.Errorf("cannot list runs: %w", fs.ErrPermission), exitFailed, "run it as root"},
		{"a step", &runError{error: step}, exitFailed, "storagectl resume"},
		{"a run that cannot be taken up", &runError{error: plain}, exitFailed, "storagectl status"},
		{"the commit", &runError{error: &engine.StepError{Step: migrate.StepCommit, Err: plain}}, exitFailed, "the store is in use and whole"},
		{"usage", usagef("no"), exitUsage, "--help"},
		{"a refusal", fmt.Errorf("cannot migrate: %w", refusal), exitRefused, "stop it"},
		{"a refusal that was not undone", &runError{error: &engine.StepError{Step: "stop", Err: refusal}}, exitFailed, "stop it"},
		{"verification", &runError{error: &engine.StepError{Step: "verify", Err: fmt.Errorf("%w: no", migrate.ErrVerification)}}, exitUnverified, "storagectl rollback"},
		{"no way back", &runError{error: engine.ErrNoWayBack}, exitRefused, "goes on forward"},
		{"rolling back", &runError{error: engine.ErrRollingBack}, exitRefused, "storagectl rollback"},
		{"no run", fmt.Errorf("%w: 7", engine.ErrNoRun), exitNoRun, "storagectl history"},
		{"locked", &runError{error: engine.ErrLocked}, exitLocked, "wait for the other run"},
		{"journal", &engine.DamagedError{Path: "j", Line: 3}, exitJournal, "look at the journal"},
		{"another plan", &runError{error: engine.ErrPlanChanged}, exitJournal, "release"},
		{"Ctrl-C", &runError{error: errors.Join(engine.ErrInterrupted, context.Canceled)}, exitInterrupted, "storagectl resume goes on"},
		{"a step after the reset", &runError{error: step, final: true}, exitFailed, "no way back: mend the cause, then storagectl resume"},
		{"verification after the reset", &runError{error: fmt.Errorf("%w: no", migrate.ErrVerification), final: true}, exitUnverified, "no way back"},
		{"Ctrl-C where there is no run", fmt.Errorf("%w; nothing was changed", engine.ErrInterrupted), exitInterrupted, ""},
		{"a window that is closed", &runError{error: &migrate.ClosedError{Why: "the maintenance window is closed"}}, exitWindow, "resume --now goes on at once"},
		{"a window that is closed, and a way back that failed", &runError{error: errors.Join(step, &migrate.ClosedError{Why: "closed"})}, exitFailed, "storagectl resume"},
		{"Ctrl-C after the reset", &runError{error: engine.ErrInterrupted, final: true}, exitInterrupted, "no way back"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if code := exitCode(c.err); code != c.code {
				t.Errorf("exit %d, want %d", code, c.code)
			}
			if c.err == nil {
				return
			}
			if h := hint(c.err, c.code); (h == "") != (c.hint == "") || !strings.Contains(h, c.hint) {
				t.Errorf("hint %q, want %q", h, c.hint)
			} else if strings.Contains(h, "no way back") && strings.Contains(h, "rollback") {
				t.Errorf("hint %q offers what is refused", h)
			}
		})
	}
}
