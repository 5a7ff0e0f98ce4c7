package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/window"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

// runbookStatus is where the run of a runbook stands.
func (a *app) runbookStatus(run string, st engine.State) (statusMessage, error) {
	in, err := runbooks.DecodeInputs(st)
	if err != nil {
		return statusMessage{}, err
	}
	m := statusMessage{Run: run, Job: st.Header.Job, Runbook: in.Name, Phase: st.Phase, Error: st.Error, Started: st.Started(), Last: st.Last()}
	if m.Active, _, err = a.dir().AtWork(st.Header.Store, run); err != nil {
		return m, err
	}
	tasks, err := runbooks.Standings(a.dir(), run, st)
	if err != nil {
		return m, err
	}
	for _, t := range tasks {
		m.Steps = append(m.Steps, statusStep{t.Name, t.Title, t.Mark, t.Outcome, t.Run, t.Text})
	}
	if m.Held, err = a.heldOf(run); err != nil {
		return m, err
	}
	m.Window = runbookWindow(st, in)
	return m, a.whatNext(&m, st, runbooks.Next)
}

// heldOf names the Nomad nodes that a drain task of a runbook's run keeps out of service.
func (a *app) heldOf(run string) (nodes []string, err error) {
	h, err := a.readHeld()
	if err != nil || h == nil {
		return nil, err
	}
	if of, _, _ := strings.Cut(h.Parent, "/"); of == run {
		for _, n := range h.Use.Nodes {
			nodes = append(nodes, n.Name)
		}
	}
	return nodes, nil
}

// runbookWindow is the window that the run of a runbook goes by; nil: none.
func runbookWindow(st engine.State, in runbooks.Inputs) *migrate.WindowPlan {
	if in.Plan.Window == "" || in.Now || st.Phase != engine.PhaseRunning {
		return nil
	}
	w, err := window.Parse(in.Plan.Window)
	if err != nil { // another release may write it otherwise
		return nil
	}
	return migrate.LookAtWindow(&w, time.Now())
}

// committingRunbook reports whether the run of a runbook was cut off inside its commit.
func committingRunbook(st engine.State) bool {
	in, err := runbooks.DecodeInputs(st)
	return err == nil && in.Committing(st)
}

// commitRunbook commits the runs of a runbook's tasks.
func (a *app) commitRunbook(ctx context.Context, run string, st engine.State) error {
	if st.Phase == engine.PhaseCommitted {
		a.tellNothing(run, st.Phase, fmt.Sprintf("Run %s is committed; there is nothing to do.\n", run))
		return nil
	}
	if !a.yes && !a.json && st.Phase == engine.PhaseFinished && term.IsTerminal(int(a.stdin.Fd())) {
		a.out.say(fmt.Sprintf("This removes for good what the tasks of run %s keep for a rollback.\n", run))
		if err := a.askWord(ctx); err != nil {
			return err
		}
	}
	return a.withRunbook(ctx, run, false, "", func(s *runbooks.Session) error {
		if left, err := s.Halfway(); err != nil {
			return err
		} else if len(left) > 0 {
			return &migrate.Refusal{ID: "not-finished", Text: fmt.Sprintf("cannot commit: of the tasks of run %s not finished is %s", run, strings.Join(left, ", ")),
				Hint: fmt.Sprintf("storagectl resume %[1]s, or storagectl rollback %[1]s, first", left[0])}
		}
		return s.Forward(ctx, true)
	})
}

// olderRun tells of a run of the same runbook that is not over, and refuses another one
// while it holds something: going on with it, or rolling it back, is how that is given
// back.
func (a *app) olderRun(name string) error {
	runs, err := a.dir().List()
	if err != nil {
		return err
	}
	for _, run := range runs {
		st, err := engine.Read(a.dir().RunPath(run))
		if err != nil || st.Phase.Over() || st.Header.Job != runbooks.Job { // history tells of those that cannot be read
			continue
		}
		in, err := runbooks.DecodeInputs(st)
		if err != nil || in.Name != name {
			continue
		}
		if active, err := a.dir().Locked(st.Header.Store); err != nil || active { // to begin another one tells of it
			return err
		}
		next, err := runbooks.Next(run, st)
		if err != nil {
			return err
		}
		how := strings.Join(next, ", or ")
		what, err := a.heldBack(run, st)
		if err != nil {
			return err
		}
		if what != "" {
			return &migrate.Refusal{ID: "runbook-unfinished", Text: fmt.Sprintf("cannot begin: run %s of this runbook is not over, and holds %s", run, what), Hint: how}
		}
		a.out.note(fmt.Sprintf("run %s of this runbook is not over%s, and holds nothing: this is another one. Of that one: %s", run, because(st), how))
	}
	return nil
}

// heldBack is what the run of a runbook that is not over keeps from others; "": nothing.
func (a *app) heldBack(run string, st engine.State) (string, error) {
	nodes, err := a.heldOf(run)
	if err != nil {
		return "", err
	}
	if len(nodes) > 0 {
		return "the Nomad node " + strings.Join(nodes, ", "), nil
	}
	tasks, err := runbooks.Standings(a.dir(), run, st)
	if err != nil {
		return "", err
	}
	for _, t := range tasks {
		if t.Run == "" {
			continue
		}
		made, err := engine.Read(a.dir().RunPath(t.Run))
		if err != nil {
			return "", err
		}
		if !made.Phase.Over() {
			return fmt.Sprintf("the store of run %s, which task %s began", t.Run, t.Name), nil
		}
	}
	return "", nil
}

// because is why a run stopped, behind its name.
func because(st engine.State) string {
	line, _, _ := strings.Cut(st.Error, "\n")
	if line == "" {
		return ""
	}
	return " (" + line + ")"
}
