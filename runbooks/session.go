package runbooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/internal/window"
)

// Env is what a run takes from the program around it.
type Env struct {
	Dir     engine.Dir
	Version string
	Runner  *host.Runner
	Point   func(string)     // the crash sweep's; nil otherwise
	Actor   *engine.Actor    // who has the run begun or taken up; nil: the journal does not say
	Now     func() time.Time // nil: time.Now
	Event   func(engine.Event)
	Note    func(string)
	// Message gets each message, a line of JSON, of a command that a task runs.
	Message func(task string, line []byte)

	// Config is the configuration that tasks are given, "" for theirs by default.
	Config string
	// Held names the task, as [Parent] does, whose drain holds nodes of this host; "":
	// none does, or it is a person's.
	Held func() (string, error)
	// NowOver says that windows do not count this time.
	NowOver bool
	// Exec is a person's word on the exec task that was cut off: [ExecAgain],
	// [ExecDone], or none.
	Exec string
}

// What a person can say of an exec task that was cut off.
const (
	ExecAgain = "again" // run it once more
	ExecDone  = "done"  // it has done its work
)

// TaskError reports a task that did not come to its end. The step that it is the error
// of names the task.
type TaskError struct {
	Task string
	Code int    // the exit code of its command
	Run  string // the run that it made; "": none
	Text string
	Hint string

	later bool // it could not begin, and nothing is out of service for it
}

func (e *TaskError) Error() string {
	if e.Run != "" {
		return fmt.Sprintf("run %s: %s", e.Run, e.Text)
	}
	return e.Text
}

// Unwrap makes an [engine.ErrPaused] of what stopped for a window, or because somebody
// else has the store: that is no failure.
func (e *TaskError) Unwrap() error {
	if e.Code == ExitWindow || e.later {
		return engine.ErrPaused
	}
	return nil
}

// Exit codes of storagectl that mean something to a runbook.
const (
	exitWarning = 1 // of doctor
	exitRefused = 3
	// ExitWindow is the exit code of what stopped at a safe point because a window is
	// closed.
	ExitWindow      = 5
	exitLocked      = 11 // somebody else has the store
	exitInterrupted = 130
)

// Session is a run of a runbook that this process holds the lock of.
type Session struct {
	ID     string
	Inputs Inputs

	env     Env
	lock    *os.File
	journal *engine.Journal
	run     *engine.Run
	facts   Facts
	ends    time.Time // when the limit is over; zero: there is none
}

// Begin makes a new run. While another run of a runbook is under way it returns
// [engine.ErrLocked].
func Begin(env Env, in Inputs) (*Session, error) {
	s := &Session{Inputs: in, env: env}
	raw, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("cannot begin a run: %w", err)
	}
	if s.lock, err = env.Dir.Lock(Job); err != nil {
		return nil, err
	}
	if s.ID, err = env.Dir.New(Job); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.journal, err = engine.Create(env.Dir.RunPath(s.ID), engine.Header{
		Run: s.ID, Job: Job, Store: Job, Version: env.Version, Inputs: raw, Steps: engine.Names(s.steps()), Actor: env.Actor,
	}, engine.Options{Point: env.Point, Now: env.Now})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s.bind()
}

// Open takes up a run that was begun before.
func Open(env Env, run string) (*Session, error) {
	s := &Session{ID: run, env: env}
	var err error
	if s.lock, err = env.Dir.Lock(Job); err != nil {
		return nil, err
	}
	if s.journal, err = engine.Open(env.Dir.RunPath(run), engine.Options{Point: env.Point, Now: env.Now}); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.Inputs, err = DecodeInputs(s.journal.State()); err == nil {
		err = s.journal.LoadFacts(&s.facts)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s, err = s.bind(); err != nil || env.Actor == nil {
		return s, err
	}
	if err := s.journal.TakenUp(*env.Actor); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Journal is the run's; its owner is the session.
func (s *Session) Journal() *engine.Journal { return s.journal }

// Notify are those whom the runbook, as it was when the run was begun, has hear of it.
func (s *Session) Notify() []tell.Target {
	b, err := Parse([]byte(s.Inputs.Text), s.Inputs.Origin)
	if err != nil { // a later release may read it otherwise; the run goes on all the same
		return nil
	}
	return b.Notify
}

func (s *Session) bind() (*Session, error) {
	run, err := engine.NewRun(s.journal, s.steps(), s.event)
	if err == nil {
		err = engine.Sign(s.lock, s.ID) // the lock is of all runbooks
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.run = run
	return s, nil
}

// The kinds of events that tasks have besides the engine's.
const (
	EventLeftOut engine.EventKind = "left-out" // a condition did not hold, or there is nothing to take back
	EventKept    engine.EventKind = "kept"     // it has no way back, and was left as it is
)

// event tells of a task. To the engine one that was left out, or failed in a run that
// went on, is done; and so is a way back that came past it.
func (s *Session) event(e engine.Event) {
	r := s.facts.result(e.Step.Name)
	switch {
	case e.Kind != engine.EventDone && e.Kind != engine.EventSkip:
	case e.Undo && slices.Contains(s.facts.Kept, e.Step.Name):
		e.Kind = EventKept
	case r == nil:
	case r.Outcome == LeftOut:
		e.Kind = EventLeftOut
	case !e.Undo && r.Outcome == Failed:
		if e.Err = errors.New(r.Text); e.Kind == engine.EventDone {
			e.Kind = engine.EventFailed
		}
	}
	if s.env.Event != nil {
		s.env.Event(e)
	}
}

// Close lets go of the run: journal and lock.
func (s *Session) Close() error {
	var errs []error
	if s.journal != nil {
		errs = append(errs, s.journal.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// State is the run as its journal tells it.
func (s *Session) State() engine.State { return s.journal.State() }

// Facts is what the run has learned.
func (s *Session) Facts() Facts { return s.facts }

// WordHint is how a person says what became of the command that the run was cut off at,
// where nobody can see it; else "".
func (s *Session) WordHint() string {
	if !Unclear(s.Inputs, s.facts, s.journal.State()) {
		return ""
	}
	return "look whether it has done its work, then " + wordHint(s.ID)
}

// steps is the plan: the tasks, and the commit where there is something to commit. It
// depends on the inputs alone.
func (s *Session) steps() []engine.Step {
	var steps []engine.Step
	for _, t := range s.Inputs.Plan.Tasks {
		steps = append(steps, engine.Step{Name: t.ID, Title: t.Line(), Pausable: true,
			Do:   func(ctx context.Context) error { return s.do(ctx, t) },
			Undo: s.undo(t)})
	}
	if s.Inputs.keeps() {
		steps = append(steps, engine.Step{Name: commitStep, Title: "commit the tasks' runs", Final: true, Pausable: true, Do: s.commitAll})
	}
	return steps
}

// Outline lists the steps of a run: their names and what they come to.
func Outline(in Inputs) []engine.Step { return (&Session{Inputs: in}).steps() }

// Forward does what is left of the run. A run whose tasks keep nothing that a commit
// would remove is done to its end. When a task fails, the hooks on-failure run.
//
// With commit it also commits the runs of the tasks.
func (s *Session) Forward(ctx context.Context, commit bool) error {
	if d := s.Inputs.Plan.Longest; d > 0 {
		s.ends = time.Now().Add(d + s.Inputs.Plan.WindowWait)
	}
	if s.env.NowOver && s.Inputs.Plan.Window != "" {
		if err := s.note("windows do not count this time, on the operator's word"); err != nil {
			return err
		}
	}
	err := s.run.Forward(ctx, commit)
	if err == nil && s.journal.State().Phase == engine.PhaseFinished {
		var left bool
		if left, err = s.toCommit(); err == nil && !left {
			err = s.run.Forward(ctx, true)
		}
	}
	var step *engine.StepError
	if err != nil && errors.As(err, &step) { // not what was interrupted, or stopped for a window
		s.onFailure(context.WithoutCancel(ctx), step)
	}
	return err
}

// Rollback takes back, last first, the runs of the tasks, as far as there is a way
// back; it notes where there is none.
func (s *Session) Rollback(ctx context.Context) error { return s.run.Rollback(ctx) }

// onFailure runs the hooks on-failure. They are told what failed; that one of them
// fails is noted.
func (s *Session) onFailure(ctx context.Context, failed *engine.StepError) {
	for _, argv := range s.Inputs.Plan.OnFailure {
		if err := s.hook(ctx, failed.Step, "on-failure", argv, "STORAGECTL_ERROR="+failed.Err.Error()); err != nil {
			_ = s.note("%v", err) // the run has its reason to stop already
		}
	}
}

func (s *Session) note(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if s.env.Note != nil {
		s.env.Note(text)
	}
	return s.journal.Note("", text)
}

// learn changes the facts and makes them durable.
func (s *Session) learn(set func(*Facts)) error {
	set(&s.facts)
	return s.journal.SaveFacts(s.facts)
}

func (s *Session) now() time.Time {
	if s.env.Now != nil {
		return s.env.Now()
	}
	return time.Now()
}

// gate stops the run where a task would take something out of service, or change it,
// and the window is closed; or waits for it, if it opens soon enough. Jobs have a gate of
// their own, and what only looks needs none. While a drain of this run holds a node, going
// on is the way to give it back.
func (s *Session) gate(ctx context.Context, t PlannedTask) error {
	if s.Inputs.Plan.Window == "" || s.Inputs.Now || s.env.NowOver || t.Run != runExec && t.Run != "prune" && t.Run != "drain" {
		return nil
	}
	if held, err := s.holdsNode(); err != nil || held {
		return err
	}
	w, err := window.Parse(s.Inputs.Plan.Window)
	if err != nil {
		return fmt.Errorf("cannot read the window: %w", err)
	}
	for began, told := time.Now(), false; ; told = true {
		now := s.now()
		if _, open := w.At(now); open {
			by := s.clockBack()
			if by == 0 {
				return nil
			}
			return &TaskError{Task: t.ID, Code: ExitWindow, Text: fmt.Sprintf("the clock was put back by %s since the run's last word; see that it is right", by.Round(time.Second)),
				Hint: "storagectl resume " + s.ID + " goes on by the new time, where the window is open then"}
		}
		next := w.Next(now, 1)
		if len(next) == 0 || next[0].Opens.After(now.Add(s.Inputs.Plan.WindowWait-time.Since(began))) {
			text := fmt.Sprintf("the window (%s) is closed", w)
			if len(next) > 0 {
				text += ", and opens " + next[0].Opens.Format("Mon 2006-01-02 15:04 MST")
			}
			return &TaskError{Task: t.ID, Code: ExitWindow, Text: text, Hint: "storagectl resume " + s.ID + " goes on when it is open, or with --now at once"}
		}
		if !told {
			if err := s.note("task %s waits for the window, which opens %s", t.ID, next[0].Opens.Format("Mon 2006-01-02 15:04 MST")); err != nil {
				return err
			}
		}
		select { // the clock can be put to another time meanwhile
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// clockBack is by how much the clock was put back since the run's last word, 0: not
// noticeably. What it says now may be as wrong as what it said then. The stop for it is
// journalled by the new clock, which counts from then on.
func (s *Session) clockBack() time.Duration {
	var last time.Time
	for _, r := range slices.Backward(s.journal.State().Records) {
		if at := r.Time.Round(0); at.After(last) {
			last = at
		}
		if r.Kind == engine.KindStop {
			break
		}
	}
	if by := last.Sub(s.now().Round(0)); by > time.Minute {
		return by
	}
	return 0
}

// holdsNode reports whether a drain task of this run took a node out of service that
// is not given back. It is observed: a drain that failed, or whose record was lost, may
// have been set.
func (s *Session) holdsNode() (bool, error) {
	by, err := s.env.Held()
	of, _, _ := strings.Cut(by, "/")
	return of == s.ID, err
}

// drained reports whether the last drain task before an undrain task was not left out:
// its hooks may have run, and what they did is to be taken back.
func (s *Session) drained(undrain string) bool {
	is := false
	for _, t := range s.Inputs.Plan.Tasks {
		if t.ID == undrain {
			break
		}
		if r := s.facts.result(t.ID); t.Run == "drain" {
			is = r != nil && r.Outcome != LeftOut
		}
	}
	return is
}
