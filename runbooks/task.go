package runbooks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/migrate"
)

// do brings a task to its end, from wherever an earlier try was cut off. It is the
// Do of a step without a look: what a task did is for its own command to see, which
// runs again until the journal says done.
func (s *Session) do(ctx context.Context, t PlannedTask) error {
	began := time.Now()
	r := Result{Task: t.ID, Outcome: Done}
	err := s.attempt(ctx, t, &r)
	if errors.Is(err, errKilled) && ctx.Err() == nil { // podman may be down, and nobody else goes on with it
		if err := s.note("the command of task %s was killed; it is gone on with, once", t.ID); err != nil {
			return err
		}
		err = s.attempt(ctx, t, &r)
	}
	r.Seconds = time.Since(began).Seconds()
	var failed *TaskError
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return ctx.Err()
		}
		if !errors.As(err, &failed) {
			failed = &TaskError{Task: t.ID, Code: 1, Text: err.Error()}
			if s.facts.unclear(t) {
				failed.Hint = "mend the cause, then " + wordHint(s.ID)
			}
		}
		if !t.Continue || failed.Code == ExitWindow {
			return s.later(t, failed)
		}
		r.Outcome, r.Code, r.Run, r.Text = Failed, failed.Code, failed.Run, failed.Text
		if err := s.note("task %s: %v; going on, as the runbook says", t.ID, failed); err != nil {
			return err
		}
	}
	return s.learn(func(f *Facts) { f.Results = append(f.Results, r) })
}

// later makes no failure of a task that somebody else has the store of, which a timer, a
// boot or a person goes on with: unless the host is out of service meanwhile, or a command
// of the runbook's own may have stopped something that a hook on failure starts again.
func (s *Session) later(t PlannedTask, e *TaskError) error {
	if e.Code != exitLocked || !s.inService(t) || len(s.facts.Begun) > 0 || len(s.facts.Hooked) > 0 {
		return e
	}
	held, err := s.holdsNode()
	if e.later = err == nil && !held; e.later {
		e.Hint = "storagectl resume " + s.ID + " goes on when that is over"
	}
	return errors.Join(e, err)
}

func (s *Session) attempt(ctx context.Context, t PlannedTask, r *Result) error {
	var run string
	var st engine.State
	var err error
	if job(t.Run) {
		if run, st, err = child(s.env.Dir, Parent(s.ID, t.ID)); err != nil {
			return err
		}
	}
	// What was begun is gone on with, whatever became of its conditions: it may be
	// what changed them.
	begun := run != "" && st.Phase != engine.PhaseRolledBack || slices.Contains(s.facts.Begun, t.ID) || t.Run == "undrain" && s.drained(t.ID)
	if !begun && (t.Run == "drain" || t.Run == "undrain") {
		if begun, err = s.holdsNode(); err != nil {
			return err
		}
	}
	if !begun {
		if err := s.overLimit(t); err != nil {
			return err
		}
		seen, err := t.When.Look(ctx, s.env.Runner, s.env.Dir, s.Inputs.Name, t.ID, s.now())
		if err != nil {
			return err
		}
		for _, c := range seen {
			if !c.Holds {
				r.Outcome, r.Text = LeftOut, c.String()
				return s.note("task %s is left out: %s", t.ID, c)
			}
		}
	}
	switch {
	case t.Run == runExec:
		return s.exec(ctx, t, r)
	case job(t.Run):
		return s.job(ctx, t, r, run, st)
	}
	if err := s.gate(ctx, t); err != nil {
		return err
	}
	if len(t.Before) > 0 && !slices.Contains(s.facts.Hooked, t.ID) {
		if err := s.learn(func(f *Facts) { f.Hooked = append(slices.Clone(f.Hooked), t.ID) }); err != nil {
			return err
		}
	}
	for _, argv := range t.Before {
		if err := s.hook(ctx, t.ID, "before-drain", argv); err != nil {
			return err
		}
	}
	o, err := s.command(ctx, t, t.Argv, nil)
	if err != nil {
		return err
	}
	switch {
	case o.code == 0:
	case t.Run == "doctor" && o.code == exitWarning && !o.told:
		r.Code = o.code
	case t.Run == "undrain" && o.notDrained() && s.drained(t.ID):
		r.Text = "it was given back before"
	case t.Run == "undrain" && o.notDrained():
		r.Outcome, r.Text = LeftOut, "no task of this run has drained the node"
		return s.note("task %s is left out: %s", t.ID, r.Text)
	default:
		return o.failed(t, "")
	}
	for _, argv := range t.After {
		if err := s.hook(ctx, t.ID, "after-return", argv); err != nil {
			return err
		}
	}
	return nil
}

// job begins the run of a migrate or relocate task, or goes on with the one that an
// earlier try began. That its command ended well is not believed: the run is looked at.
func (s *Session) job(ctx context.Context, t PlannedTask, r *Result, run string, st engine.State) error {
	now := false
	if slices.Contains(t.Argv, "--window") {
		held, err := s.holdsNode()
		if err != nil {
			return err
		}
		now = s.Inputs.Now || s.env.NowOver || held // the node is out of service already
	}
	argv := t.Argv
	switch {
	case run == "" || st.Phase == engine.PhaseRolledBack:
		if run = ""; now {
			argv = append(slices.Clone(argv), "--now")
		}
	case st.Phase == engine.PhaseFinished && slices.Contains(t.Argv, "--commit"):
		argv = []string{"commit", run}
	case st.Phase.Over():
		r.Run = run
		return nil
	default:
		if argv = []string{"resume", run}; now {
			argv = append(argv, "--now")
		}
	}
	o, err := s.command(ctx, t, argv, s.inService)
	if err != nil {
		return err
	}
	now2, st, err := child(s.env.Dir, Parent(s.ID, t.ID))
	switch {
	case err != nil:
		return err
	case o.code != 0:
		return o.failed(t, now2)
	case now2 == "" && o.already:
		r.Text = "there was nothing to do"
		return nil
	case now2 == "" || now2 == run && st.Phase == engine.PhaseRolledBack:
		return &TaskError{Task: t.ID, Code: 1, Run: now2, Text: "its run was taken back", Hint: "storagectl resume " + s.ID + " begins another one"}
	case !st.Phase.Over():
		return &TaskError{Task: t.ID, Code: 1, Run: now2, Text: "its command ended well, but its run is not over"}
	}
	r.Run = now2
	return nil
}

// inService reports whether a task can be told to stop: not while its run has the host
// out of service, which would leave it so.
func (s *Session) inService(t PlannedTask) bool {
	_, st, err := child(s.env.Dir, Parent(s.ID, t.ID))
	return err == nil && !migrate.OutOfService(st)
}

// exec runs a command of the operator's. Nobody can see whether one that was cut off
// has done its work, so that it is not run twice without a word: the runbook's, or a
// person's.
func (s *Session) exec(ctx context.Context, t PlannedTask, r *Result) error {
	if s.facts.unclear(t) {
		switch s.env.Exec {
		case ExecAgain:
		case ExecDone:
			r.Outcome = TakenAsDone
			return s.note("task %s is taken as done, on the operator's word", t.ID)
		default:
			return &TaskError{Task: t.ID, Code: 1, Text: "its command was begun before, and nobody can see whether it has done its work: " + Typed(t.Argv),
				Hint: "look, then " + wordHint(s.ID)}
		}
	}
	if err := s.gate(ctx, t); err != nil {
		return err
	}
	s.env.Exec = "" // the word was for this one
	limit := t.Timeout
	if !s.ends.IsZero() {
		held, err := s.holdsNode()
		if err != nil {
			return err
		}
		if !held {
			limit = min(limit, max(time.Until(s.ends), time.Second))
		}
	}
	if err := s.learn(func(f *Facts) { f.Begun = append(f.Begun, t.ID) }); err != nil {
		return err
	}
	vars := []string{"STORAGECTL_RUN=" + s.ID, "STORAGECTL_TASK=" + t.ID}
	var text string
	var err error
	if t.User == "" {
		text, err = drain.Command(ctx, s.env.Runner, "command", t.Argv, limit, vars...)
	} else {
		owner, err2 := ownerOf(ctx, s.env.Runner, t.User)
		if err2 != nil {
			return err2
		}
		cli := podman.CLI{Owner: owner, Runner: s.env.Runner, Extra: vars}
		text, err = drain.Told("command", t.Argv, limit, func(words []string) ([]byte, error) { return cli.Other(ctx, limit, words...) })
	}
	if text != "" {
		r.Text = text
		err = errors.Join(err, s.note("task %s said: %s", t.ID, text))
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// unclear reports whether nobody can see if a task has done its work, so that a person
// must say whether it is run again.
func (f Facts) unclear(t PlannedTask) bool {
	return t.Run == runExec && !t.Again && slices.Contains(f.Begun, t.ID)
}

// wordHint is how a person says it.
func wordHint(run string) string {
	return fmt.Sprintf("storagectl resume %s --exec again (run it once more), or storagectl resume %s --exec done (it has done its work)", run, run)
}

// hook runs a hook of the runbook's; what it says is kept in the journal.
func (s *Session) hook(ctx context.Context, task, when string, argv []string, more ...string) error {
	vars := append([]string{"STORAGECTL_RUN=" + s.ID, "STORAGECTL_TASK=" + task, "STORAGECTL_HOOK=" + when}, more...)
	text, err := drain.Hook(ctx, s.env.Runner, argv, s.Inputs.Plan.HookTimeout, vars...)
	if text != "" {
		err = errors.Join(err, s.note("hook %s said: %s", drain.HookName(argv), text))
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (s *Session) overLimit(t PlannedTask) error {
	if s.ends.IsZero() || time.Now().Before(s.ends) {
		return nil
	}
	if held, err := s.holdsNode(); err != nil || held {
		return err
	}
	return &TaskError{Task: t.ID, Code: 1, Text: fmt.Sprintf("it is not begun: the %s that the runbook may take are over", brief.Time(s.Inputs.Plan.Longest)),
		Hint: "storagectl resume " + s.ID + " goes on"}
}

// toCommit reports whether a run of a task keeps something that a commit removes.
func (s *Session) toCommit() (bool, error) {
	for _, t := range s.Inputs.Plan.Tasks {
		if !job(t.Run) {
			continue
		}
		_, st, err := child(s.env.Dir, Parent(s.ID, t.ID))
		if err != nil || st.Phase == engine.PhaseFinished || st.Header.Run != "" && !st.Phase.Over() {
			return true, err
		}
	}
	return false, nil
}

// Halfway names the runs of tasks that neither are finished nor taken back: a commit
// would say that all is done while podman may be down.
func (s *Session) Halfway() ([]string, error) {
	var left []string
	for _, t := range s.Inputs.Plan.Tasks {
		if !job(t.Run) {
			continue
		}
		run, st, err := child(s.env.Dir, Parent(s.ID, t.ID))
		if err != nil {
			return nil, err
		}
		if st.Phase == engine.PhaseRollingBack || st.Phase == engine.PhaseRunning && !committing(st) {
			left = append(left, run)
		}
	}
	return left, nil
}

// commitAll commits the finished runs of the tasks.
func (s *Session) commitAll(ctx context.Context) error {
	if left, err := s.Halfway(); err != nil {
		return err
	} else if len(left) > 0 { // the caller asks before
		return fmt.Errorf("these runs of its tasks are not finished: %s", strings.Join(left, ", "))
	}
	for _, t := range s.Inputs.Plan.Tasks {
		if !job(t.Run) {
			continue
		}
		run, st, err := child(s.env.Dir, Parent(s.ID, t.ID))
		if err != nil {
			return err
		}
		if run == "" || st.Phase == engine.PhaseCommitted || st.Phase == engine.PhaseRolledBack {
			continue
		}
		o, err := s.command(ctx, t, []string{"commit", run}, nil)
		if err != nil {
			return err
		}
		if o.code != 0 {
			return o.failed(t, run)
		}
	}
	return nil
}

// committing reports whether a run was cut off inside its commit.
func committing(st engine.State) bool {
	last := st.Header.Steps[len(st.Header.Steps)-1]
	return st.Steps[last].Mark == engine.MarkBegun
}
