package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

func newRunbookRun(a *app, o *runbookOptions) *cobra.Command {
	var dryRun, now, unattended bool
	var policy string
	cmd := &cobra.Command{
		Use:   "run NAME",
		Short: "Run a runbook",
		Long: `run does the tasks of a runbook, one after the other, each as the command of storagectl
that it names. It is a run with a journal of its own: "storagectl resume" goes on with
it, "storagectl rollback" takes back the runs of its tasks, last first, and "storagectl
commit" commits them. One runbook runs at a time.

It shows what it will do and asks, unless you say --yes. With a window it stops where the
host would be taken out of service while that is closed (exit 5); --now goes on all the
same. Ctrl-C goes to the task under way, which stops at its next safe point.

` + exitHelp,
		Example: `  storagectl runbook run vfs-to-overlay --param user=hashi --dry-run   # what it would do
  storagectl runbook run vfs-to-overlay --param user=hashi --yes
  storagectl runbook run ./mine.toml --yes --now`,
		Args: oneRunbook,
		RunE: func(cmd *cobra.Command, args []string) error {
			if policy != "" {
				if err := checkPolicy(policy); err != nil {
					return err
				}
			}
			if o.wait < 0 {
				return usagef("cannot wait %s for a window: give no time below zero", brief.Time(o.wait))
			}
			b, plan, err := o.load(args[0])
			if err != nil {
				return err
			}
			if !unattended { // that goes on with it
				if err := a.olderRun(b.Name); err != nil {
					return err
				}
			}
			if dryRun {
				m := a.show(cmd.Context(), b, plan)
				a.out.result("show", m, showText(m))
				return nil
			}
			if !a.yes {
				if a.json || !term.IsTerminal(int(a.stdin.Fd())) {
					return usagef("cannot go on without a word: say --yes, or --dry-run to see what would be done")
				}
				a.out.say(showText(a.show(cmd.Context(), b, plan)) + "\n")
				if err := a.askWord(cmd.Context()); err != nil {
					return err
				}
			}
			if unattended {
				if err := a.awaitRunbooks(cmd.Context(), b.Origin); err != nil {
					return err
				}
				a.awaitUsers(cmd.Context()) // a timer that was missed elapses early in a boot
				if there, err := a.goOnUnattended(cmd.Context(), b.Origin); there || err != nil {
					return err
				}
			}
			if err := a.configure(); err != nil {
				return err
			}
			in := runbooks.NewInputs(b, plan, now)
			in.Policy = policy
			s, err := runbooks.Begin(a.runbookEnv(now, ""), in)
			if err != nil {
				return fmt.Errorf("cannot begin: %w", err)
			}
			a.out.note("run " + s.ID)
			return a.goOnRunbook(cmd.Context(), s, func() error { return s.Forward(cmd.Context(), false) })
		},
	}
	o.flags(cmd.Flags())
	f := cmd.Flags()
	f.BoolVar(&dryRun, "dry-run", false, "show what would be done and write nothing at all")
	f.DurationVar(&o.wait, "window-wait", 0, "how long to wait for the window where the run would stop else (exit 5)")
	nowFlag(f, &now)
	f.BoolVar(&unattended, "unattended", false, "as a timer does: go on with the run of this runbook that waits for its window, and begin none while one of it has failed")
	f.StringVar(&policy, "policy", "", "what a boot makes of the run where it was cut off: resume, rollback, or wait for a person (default: as resume --boot says)")
	return cmd
}

// runbookEnv is what runs of runbooks take from this program.
func (a *app) runbookEnv(now bool, exec string) runbooks.Env {
	e := a.env()
	return runbooks.Env{Dir: e.Dir, Version: e.Version, Runner: e.Runner, Point: e.Point, Note: e.Note,
		Actor: a.actor(), Event: a.life.event(a.taskEvent), Message: a.life.line(a.out.child), Config: a.configFile, Held: a.heldBy, NowOver: now, Exec: exec}
}

// withRunbook opens a runbook's run and goes on with it.
func (a *app) withRunbook(ctx context.Context, run string, now bool, exec string, f func(*runbooks.Session) error) error {
	a.configureAnyhow()
	s, err := runbooks.Open(a.runbookEnv(now, exec), run)
	if err != nil {
		return &runError{error: fmt.Errorf("cannot take up run %s: %w", run, err)}
	}
	return a.goOnRunbook(ctx, s, func() error { return f(s) })
}

// goOnRunbook runs a session and tells how it ended.
func (a *app) goOnRunbook(ctx context.Context, s *runbooks.Session, run func() error) error {
	outlast()
	a.life.begin(ctx, s.Inputs.Patience)
	began := time.Now()
	a.news = a.hear(s.Journal(), tell.Event{}, s.Notify()...)
	err := run()
	code := exitOK
	var why error
	if err == nil {
		a.tellRunbook(s, began)
	} else {
		why = &runError{error: wordFor(s, err)}
		code = exitCode(why)
		a.tellError(why, code)
		why = told(why)
	}
	a.news.end(ctx, code, err)
	if err := s.Close(); err != nil && why == nil {
		why = &runError{error: err}
	}
	a.news.last(ctx)
	return why
}

// wordFor gives an interruption its hint, where a person has to say what became of the
// command that was cut off.
func wordFor(s *runbooks.Session, err error) error {
	if hint := s.WordHint(); errors.Is(err, engine.ErrInterrupted) && hint != "" {
		return &hintedError{err, hint}
	}
	return err
}

// taskEvent tells of a task, here and to the world.
func (a *app) taskEvent(e engine.Event) {
	a.out.task(e)
	a.news.step(e)
}

type runbookResult struct {
	Run     string            `json:"run"`
	Runbook string            `json:"runbook"`
	Phase   engine.Phase      `json:"phase"`
	Seconds float64           `json:"seconds"` // of this command
	Tasks   []runbooks.Result `json:"tasks,omitempty"`
}

func (a *app) tellRunbook(s *runbooks.Session, began time.Time) {
	st := s.State()
	m := runbookResult{Run: s.ID, Runbook: s.Inputs.Name, Phase: st.Phase, Seconds: time.Since(began).Seconds(), Tasks: s.Facts().Results}
	var b strings.Builder
	switch st.Phase {
	case engine.PhaseRolledBack:
		fmt.Fprintf(&b, "Run %s of runbook %s is rolled back, as far as its tasks have a way back.\n", s.ID, s.Inputs.Name)
	case engine.PhaseFinished:
		fmt.Fprintf(&b, "Runbook %s came to its end after %s. What its tasks keep for a rollback, \"storagectl commit %s\" removes; \"storagectl rollback %s\" takes them back.\n",
			s.Inputs.Name, seconds(time.Since(began)), s.ID, s.ID)
	default:
		fmt.Fprintf(&b, "Runbook %s came to its end after %s.\n", s.Inputs.Name, seconds(time.Since(began)))
	}
	for _, r := range m.Tasks {
		if st.Phase == engine.PhaseRolledBack {
			break
		}
		line := fmt.Sprintf("  %-24s %-14s %10s", r.Task, outcomeWord(r.Outcome), seconds(time.Duration(r.Seconds*float64(time.Second))))
		if r.Run != "" {
			line += "  run " + r.Run
		}
		if r.Text != "" && r.Outcome != runbooks.Done {
			line += "  " + oneLine(r.Text)
		}
		b.WriteString(line + "\n")
	}
	a.out.result("runbook-result", m, b.String())
}

// taskMessage tells of a task of a runbook.
type taskMessage struct {
	Task    string  `json:"task"`
	Line    string  `json:"line"` // as one would type it
	Index   int     `json:"index"`
	Total   int     `json:"total"`
	Status  string  `json:"status"` // as of a step
	Undo    bool    `json:"undo,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
	Error   string  `json:"error,omitempty"`
}

// task tells of a task of a runbook. What its command tells of itself comes between
// its begin and its end.
func (o *output) task(e engine.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	took := time.Since(o.taskBegan)
	if e.Kind == engine.EventBegin {
		o.taskBegan = time.Now()
	}
	o.endStep()
	if o.json {
		m := taskMessage{Task: e.Step.Name, Line: e.Step.Title, Index: e.Index + 1, Total: e.Total, Status: string(e.Kind), Undo: e.Undo}
		if e.Kind == engine.EventDone {
			m.Seconds = took.Seconds()
		}
		if e.Err != nil {
			m.Error = e.Err.Error()
		}
		o.message("task", m)
		return
	}
	if o.quiet {
		return
	}
	o.clearLine()
	name := "task " + e.Step.Name
	if e.Undo {
		name = takeBack + name
	}
	what := string(e.Kind)
	switch e.Kind {
	case engine.EventBegin:
		what = oneLine(e.Step.Title)
	case engine.EventDone, engine.EventFailed:
		what = fmt.Sprintf("%s after %s", e.Kind, seconds(took))
	case engine.EventSkip:
		what = "done before"
		if e.Err != nil {
			what = "failed before, and the run went on"
		}
	case engine.EventPaused:
		what = "stopped at a safe point"
	case runbooks.EventLeftOut:
		what = "left out"
		if e.Undo {
			what = "it was left out, there is nothing to take back"
		}
	case runbooks.EventKept:
		what = "has no way back, and is left as it is"
	}
	fmt.Fprint(o.err, wrap(fmt.Sprintf("[%d/%d] %s: %s\n", e.Index+1, e.Total, name, what), o.errWidth()))
}

// child tells what a task's command tells, as its own output would.
func (o *output) child(task string, line []byte) {
	if o.json {
		o.mu.Lock()
		defer o.mu.Unlock()
		if rest, ok := strings.CutPrefix(string(line), "{"); ok {
			fmt.Fprintf(o.out, "{\"task\":%q,%s\n", task, rest)
		}
		return
	}
	var m struct {
		Type string `json:"message_type"`
		Text string `json:"text"`
	}
	if json.Unmarshal(line, &m) != nil {
		return
	}
	switch m.Type {
	case "step":
		var s stepMessage
		if json.Unmarshal(line, &s) == nil {
			e := engine.Event{Kind: engine.EventKind(s.Status), Step: engine.Step{Name: s.Step, Title: s.Title}, Index: s.Index - 1, Total: s.Total, Undo: s.Undo}
			if s.Error != "" {
				e.Err = errors.New(s.Error)
			}
			o.event(e)
		}
	case "progress":
		var p migrate.Progress
		if json.Unmarshal(line, &p) == nil {
			o.progress(p)
		}
	case "note":
		o.note(m.Text)
	case "check":
		o.childCheck(line)
	}
}

// childCheck tells of a check that is not well.
func (o *output) childCheck(line []byte) {
	var c struct {
		ID      string `json:"id"`
		Outcome string `json:"outcome"`
		Saw     string `json:"saw"`
	}
	if json.Unmarshal(line, &c) == nil && c.Outcome != "ok" && c.Outcome != "absent" {
		o.note(fmt.Sprintf("%s: %s: %s", c.Outcome, c.ID, c.Saw))
	}
}

// checkRunbook refuses to go on with a run whose runbook was changed since.
func (a *app) checkRunbook(run string, in runbooks.Inputs, asBegun bool) error {
	if asBegun {
		return nil
	}
	err := in.Changed()
	var changed *runbooks.ChangedError
	if errors.As(err, &changed) {
		return &hintedError{fmt.Errorf("cannot go on with run %s: %w", run, err),
			"storagectl resume " + run + " --as-begun goes on with the runbook as it was then; storagectl rollback " + run + ", and begin anew with what it is now"}
	}
	if err != nil {
		return runbookError(err)
	}
	return nil
}

// resumeRunbook goes on with the run of a runbook.
func (a *app) resumeRunbook(ctx context.Context, run string, st engine.State, o resumeOptions) error {
	in, err := runbooks.DecodeInputs(st)
	if err != nil {
		return err
	}
	if st.Phase != engine.PhaseRollingBack {
		if err := a.checkRunbook(run, in, o.asBegun); err != nil {
			return err
		}
	}
	return a.withRunbook(ctx, run, o.now, o.exec, func(s *runbooks.Session) error {
		if st.Phase == engine.PhaseRollingBack {
			return s.Rollback(ctx)
		}
		return s.Forward(ctx, in.Committing(st))
	})
}
