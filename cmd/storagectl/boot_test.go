package main

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

// TestWorstEnd: of several runs the end that most needs somebody is told.
func TestWorstEnd(t *testing.T) {
	codes := []int{exitRefused, exitLocked, exitJournal, exitFailed, exitUnverified}
	for i, a := range codes {
		for k, b := range codes {
			if graver(a, b) != (i > k) {
				t.Errorf("%d against %d", a, b)
			}
		}
	}
}

func TestPolicies(t *testing.T) {
	for _, p := range []string{policyResume, policyRollback, policyWait} {
		if err := checkPolicy(p); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	if code := exitCode(checkPolicy("retry")); code != exitUsage {
		t.Errorf("exit %d", code)
	}
}

// TestTakenUpOnce: what is taken up by itself is remembered before it is, and the
// reason why not is told in the journal, once.
func TestTakenUpOnce(t *testing.T) {
	a := &app{stateDir: t.TempDir()}
	run, err := a.dir().New(migrate.JobMigrate)
	if err != nil {
		t.Fatal(err)
	}
	j, err := engine.Create(a.dir().RunPath(run), engine.Header{Run: run, Job: migrate.JobMigrate, Store: "0-x", Inputs: []byte(`{}`), Steps: []string{"stage", "stop"}}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.try(run, false); err != nil {
		t.Fatal(err)
	}
	var again *engine.AgainError
	for range 3 {
		if err := a.try(run, false); !errors.As(err, &again) || again.Step != "stage" {
			t.Fatalf("got %v", err)
		}
	}
	st, err := engine.Read(a.dir().RunPath(run))
	if err != nil || len(st.Records) != 3 || st.Records[2].Kind != engine.KindNote {
		t.Errorf("%+v %v", st.Records, err)
	}
	// It is held by somebody: left alone.
	lock, err := a.dir().Lock("0-x")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := a.try(run, false); !errors.Is(err, engine.ErrLocked) {
		t.Errorf("got %v", err)
	}
}

// beginRun makes the journal of a run that was cut off at its first step.
func (a *app) beginRun(t *testing.T, job, store string, inputs any) string {
	t.Helper()
	run, err := a.dir().New(job)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(inputs)
	if err != nil {
		t.Fatal(err)
	}
	j, err := engine.Create(a.dir().RunPath(run), engine.Header{Run: run, Job: job, Store: store, Inputs: raw, Steps: []string{"a", "commit"}}, engine.Options{})
	if err == nil {
		err = j.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// TestBootOpensNothing: a try at which the run could not be opened, because its user is
// not known yet, is none: the next boot tries again.
func TestBootOpensNothing(t *testing.T) {
	a := teller(t, "resume")
	run := a.beginRun(t, migrate.JobMigrate, "0-x", migrate.Inputs{Owner: podman.Owner{Name: "nobody-of-that-name"}})
	for range 3 {
		err := a.takeUp(t.Context(), run, policyResume)
		var r *migrate.Refusal
		if err == nil || errors.As(err, &r) && r.ID == "again" {
			t.Fatalf("got %v", err)
		}
	}
	if st, err := engine.Read(a.dir().RunPath(run)); err != nil || !strings.Contains(st.Error, "nobody-of-that-name") {
		t.Errorf("%q, %v", st.Error, err)
	}
}

// TestBootOfRunbook: the run of a task is its runbook's to take up, by whose policy it
// waits; and what counts is where the task was cut off.
func TestBootOfRunbook(t *testing.T) {
	a := teller(t, "resume")
	above := a.beginRun(t, runbooks.Job, runbooks.Job, runbooks.Inputs{Policy: policyWait})
	task := a.beginRun(t, migrate.JobMigrate, "0-x", migrate.Inputs{Request: migrate.Request{Parent: runbooks.Parent(above, "a")}})
	for _, run := range []string{above, task} {
		if err := a.takeUp(t.Context(), run, policyResume); err != nil {
			t.Fatal(err)
		}
		if st, err := engine.Read(a.dir().RunPath(run)); err != nil || len(st.Records) != 1 {
			t.Errorf("%s was touched: %+v, %v", run, st.Records, err)
		}
	}
	st, err := engine.Read(a.dir().RunPath(above))
	if err != nil {
		t.Fatal(err)
	}
	if at, err := a.mayGoOn(above, st, false); err != nil || at != task {
		t.Errorf("%s, %v", at, err)
	}
	var r *migrate.Refusal
	if _, err := a.mayGoOn(above, st, false); !errors.As(err, &r) || r.ID != "again" {
		t.Errorf("got %v", err)
	}
}

// TestHalfwayIsFound: the latest run is the runbook's; but not while that is over and the
// run of a task stands half-way. Nor is the runbook committed then.
func TestHalfwayIsFound(t *testing.T) {
	a := teller(t, "commit")
	above := a.beginRun(t, runbooks.Job, runbooks.Job, runbooks.Inputs{Plan: runbooks.Plan{Tasks: []runbooks.PlannedTask{{ID: "a", Run: "migrate"}}}})
	task := a.beginRun(t, migrate.JobMigrate, "0-x", migrate.Inputs{Request: migrate.Request{Parent: runbooks.Parent(above, "a")}})
	find := func(want string) {
		t.Helper()
		if run, _, err := a.find(""); run != want || err != nil {
			t.Errorf("%s, %v, want %s", run, err, want)
		}
	}
	find(above)
	a.goThrough(t, above, "a", "commit")
	find(task)
	st, err := engine.Read(a.dir().RunPath(above))
	if err != nil {
		t.Fatal(err)
	}
	a.yes = true
	if err := a.commitRunbook(t.Context(), above, st); exitCode(err) != exitRefused || !strings.Contains(err.Error(), "not finished is "+task) {
		t.Errorf("got %v", err)
	}
	find(task)
	a.goThrough(t, task, "a", "commit")
	find(above)
}

// goThrough does the steps of a run but the last one.
func (a *app) goThrough(t *testing.T, run string, names ...string) {
	t.Helper()
	j, err := engine.Open(a.dir().RunPath(run), engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	var steps []engine.Step
	for i, n := range names {
		steps = append(steps, engine.Step{Name: n, Final: i == len(names)-1, Do: func(context.Context) error { return nil }})
	}
	r, err := engine.NewRun(j, steps, nil)
	if err == nil {
		err = r.Forward(t.Context(), false)
	}
	if err != nil {
		t.Fatal(err)
	}
}
