package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/verify/doctor"
)

// doctorInputs is what a run of --fix needs to be taken back.
type doctorInputs struct {
	User    string          `json:"user"`
	Changes []doctor.Change `json:"changes"`
}

const doctorJob = "doctor"

// doctorDir keeps the runs of doctor apart from those on stores, so that "the
// latest run" of resume, rollback and commit is never one of these.
func (a *app) doctorDir() engine.Dir { return engine.Dir{Path: filepath.Join(a.stateDir, "doctor")} }

// fix makes the changes that the results allow, as a run with a journal. It
// reports whether there were any.
func (a *app) fix(ctx context.Context, h *doctor.Host, results []doctor.Result) (bool, error) {
	in := doctorInputs{User: h.Owner.Name}
	var text strings.Builder
	for _, r := range results {
		if r.Change == nil || r.Change.Root() && os.Getuid() != 0 {
			continue
		}
		in.Changes = append(in.Changes, *r.Change)
		fmt.Fprintf(&text, "  %s: %s\n", r.Check, oneLine(r.Change.Text))
	}
	if len(in.Changes) == 0 {
		a.out.note("there is nothing that can be fixed safely; what is to be done by hand stands with each check")
		return false, nil
	}
	if h.Cutover != "" {
		return false, &migrate.Refusal{ID: "unfinished", Text: fmt.Sprintf("cannot fix: run %s has podman stopped", h.Cutover),
			Hint: fmt.Sprintf("storagectl resume %[1]s finishes it, storagectl rollback %[1]s undoes it", h.Cutover)}
	}
	if !a.yes {
		if a.json || !term.IsTerminal(int(a.stdin.Fd())) {
			return false, usagef("cannot fix without a word: say --yes, or leave --fix out to see what it would do")
		}
		a.out.say("These changes would be made:\n" + text.String())
		if err := a.askWord(ctx); err != nil {
			return false, err
		}
	}
	outlast()
	d := a.doctorDir()
	lock, err := d.Lock(doctorJob)
	if err != nil {
		return false, err
	}
	defer lock.Close()
	raw, err := json.Marshal(in)
	if err != nil {
		return false, fmt.Errorf("cannot begin: %w", err)
	}
	id, err := d.New(doctorJob)
	if err != nil {
		return false, err
	}
	steps := fixSteps(h, in)
	j, err := engine.Create(d.RunPath(id), engine.Header{
		Run: id, Job: doctorJob, Store: doctorJob, Version: version, Inputs: raw, Steps: engine.Names(steps),
	}, engine.Options{Point: a.point})
	if err != nil {
		return false, err
	}
	defer func() { _ = j.Close() }() // each record is on the disk already
	run, err := engine.NewRun(j, steps, a.out.event)
	if err != nil {
		return false, err
	}
	told := "run " + id + "; storagectl doctor --undo " + id + " takes it back"
	if a.quiet && !a.json { // nothing else would name it
		a.out.say(told + "\n")
	} else {
		a.out.note(told)
	}
	if err := run.Forward(ctx, false); err != nil {
		return false, fmt.Errorf("cannot fix all: %w; storagectl doctor --undo %s takes back what was done", err, id)
	}
	return true, nil
}

// fixMessage is a run of --fix, as history --doctor tells it.
type fixMessage struct {
	Run     string          `json:"run"`
	User    string          `json:"user"`
	Phase   engine.Phase    `json:"phase"`
	Started time.Time       `json:"started"`
	Changes []doctor.Change `json:"changes"`
}

// fixHistory lists the runs of --fix, the oldest first.
func (a *app) fixHistory() error {
	d := a.doctorDir()
	runs, err := d.List()
	if err != nil {
		return err
	}
	if len(runs) == 0 && !a.json { // as messages, no runs are no messages
		a.out.say(fmt.Sprintf("No run of doctor --fix was begun yet (in %s).\n", d.Path))
	}
	for _, run := range runs {
		st, err := engine.Read(d.RunPath(run))
		var in doctorInputs
		if err == nil {
			err = json.Unmarshal(st.Header.Inputs, &in)
		}
		if err != nil {
			a.out.note(fmt.Sprintf("%s: %v", run, err))
			continue
		}
		var texts []string
		for _, c := range in.Changes {
			texts = append(texts, c.Text)
		}
		m := fixMessage{run, in.User, st.Phase, st.Started(), in.Changes}
		a.out.result("fix", m, fmt.Sprintf("%-24s %s  %-12s %s %s\n", run, m.Started.Format(time.RFC3339), m.Phase, m.User, oneLine(strings.Join(texts, "; "))))
	}
	return nil
}

func fixSteps(h *doctor.Host, in doctorInputs) []engine.Step {
	var steps []engine.Step
	for _, c := range in.Changes {
		steps = append(steps, engine.Step{
			Name: c.Name(), Title: c.Text,
			Holds: func(ctx context.Context) (bool, error) { return c.Holds(ctx, h) },
			Do:    func(ctx context.Context) error { return c.Do(ctx, h) },
			Undo:  func(ctx context.Context) error { return c.Undo(ctx, h) },
		})
	}
	return steps
}

// undoText tells what taking back a run of --fix would do.
func undoText(run string, in doctorInputs) string {
	var b strings.Builder
	fmt.Fprintf(&b, "These changes of run %s, for %s, would be taken back, as far as they stand:\n", run, in.User)
	for _, c := range in.Changes {
		fmt.Fprintf(&b, "  %s\n", oneLine(c.Text))
	}
	return b.String()
}

// undoFixes takes back a run of --fix, also one that was cut off.
func (a *app) undoFixes(ctx context.Context, name string) error {
	d := a.doctorDir()
	if name == "latest" {
		name = ""
	}
	id, err := d.Find(name)
	if errors.Is(err, engine.ErrNoRun) {
		return &hintedError{fmt.Errorf("cannot undo: %w", err), "storagectl history --doctor lists the runs of doctor --fix; storagectl rollback takes back those of migrate and relocate"}
	}
	if err != nil {
		return err
	}
	lock, err := d.Lock(doctorJob)
	if err != nil {
		return err
	}
	defer lock.Close()
	j, err := engine.Open(d.RunPath(id), engine.Options{Point: a.point})
	if err != nil {
		return err
	}
	defer func() { _ = j.Close() }() // each record is on the disk already
	st := j.State()
	if st.Phase == engine.PhaseRolledBack {
		a.tellNothing(id, st.Phase, fmt.Sprintf("Run %s was taken back before; there is nothing to do.\n", id))
		return nil
	}
	var in doctorInputs
	if err := json.Unmarshal(st.Header.Inputs, &in); err != nil || st.Header.Job != doctorJob {
		return errors.Join(&migrate.Refusal{ID: "no-doctor", Text: fmt.Sprintf("cannot undo: %s is no run of doctor --fix", id)}, err)
	}
	h, err := a.doctorHost(ctx, in.User)
	if err != nil {
		return err
	}
	if !a.yes && !a.json && term.IsTerminal(int(a.stdin.Fd())) {
		a.out.say(undoText(id, in))
		if err := a.askWord(ctx); err != nil {
			return err
		}
	}
	outlast()
	run, err := engine.NewRun(j, fixSteps(h, in), a.out.event)
	if err != nil {
		return err
	}
	if err := run.Rollback(ctx); err != nil {
		return fmt.Errorf("cannot take it all back: %w; storagectl doctor --undo %s goes on", err, id)
	}
	a.out.result("undone", struct {
		Run string `json:"run"`
	}{id}, fmt.Sprintf("Run %s is taken back.\n", id))
	return nil
}
