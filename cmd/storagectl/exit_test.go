package main

import (
	"context"
	"errors"
	"fmt"
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
		{"a step", &runError{step}, exitFailed, "storagectl resume"},
		{"a run that cannot be taken up", &runError{plain}, exitFailed, "storagectl status"},
		{"the commit", &runError{&engine.StepError{Step: migrate.StepCommit, Err: plain}}, exitFailed, "the store is in use and whole"},
		{"usage", usagef("no"), exitUsage, "--help"},
		{"a refusal", fmt.Errorf("cannot migrate: %w", refusal), exitRefused, "stop it"},
		{"a refusal that was not undone", &runError{&engine.StepError{Step: "stop", Err: refusal}}, exitFailed, "stop it"},
		{"verification", &runError{&engine.StepError{Step: "verify", Err: fmt.Errorf("%w: no", migrate.ErrVerification)}}, exitUnverified, "storagectl rollback"},
		{"no way back", &runError{engine.ErrNoWayBack}, exitRefused, "goes on forward"},
		{"rolling back", &runError{engine.ErrRollingBack}, exitRefused, "storagectl rollback"},
		{"no run", fmt.Errorf("%w: 7", engine.ErrNoRun), exitNoRun, "storagectl history"},
		{"locked", &runError{engine.ErrLocked}, exitLocked, "wait for the other run"},
		{"journal", &engine.DamagedError{Path: "j", Line: 3}, exitJournal, "look at the journal"},
		{"another plan", &runError{engine.ErrPlanChanged}, exitJournal, "release"},
		{"Ctrl-C", &runError{errors.Join(engine.ErrInterrupted, context.Canceled)}, exitInterrupted, "storagectl resume goes on"},
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
			}
		})
	}
}
