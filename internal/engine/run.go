package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// EventKind says what an [Event] tells.
type EventKind string

// The kinds of events, in the order in which one step may send them.
const (
	EventBegin  EventKind = "begin"  // Do or Undo starts
	EventDone   EventKind = "done"   // the effect was seen
	EventSkip   EventKind = "skip"   // the journal, or a look, says it is done
	EventRedo   EventKind = "redo"   // an earlier step no longer held; begin follows
	EventFailed EventKind = "failed" // Err says why
	EventPaused EventKind = "paused" // it stopped at a safe point, to be done again; Err says why
)

// Event tells an observer how a run goes on.
type Event struct {
	Kind  EventKind
	Step  Step
	Index int // 0 is the first step of the plan
	Total int
	Undo  bool
	Err   error
}

// Run is one execution of a plan. It is not safe for concurrent use.
type Run struct {
	journal *Journal
	steps   []Step
	observe func(Event)
}

// NewRun binds a journal to the steps of its plan. It fails with
// [ErrPlanChanged] if they are not the ones that the journal was begun with.
func NewRun(j *Journal, steps []Step, observe func(Event)) (*Run, error) {
	if names, was := Names(steps), j.state.Header.Steps; !slices.Equal(names, was) {
		return nil, fmt.Errorf("%w: it had %v, this program has %v", ErrPlanChanged, was, names)
	}
	if observe == nil {
		observe = func(Event) {}
	}
	return &Run{journal: j, steps: steps, observe: observe}, nil
}

// Names lists the names of steps, for a journal's header.
func Names(steps []Step) []string {
	names := make([]string, len(steps))
	for i, s := range steps {
		names[i] = s.Name
	}
	return names
}

// Forward does every step that is not done, up to the first final one; with
// commit it does that one too. Calling it again after an error, an interruption
// or a crash goes on where the run stopped.
//
// It returns [ErrInterrupted] when ctx was cancelled, a [*StepError] when a
// step failed, an error that is [ErrPaused] when a step asked for that, and
// [ErrRollingBack] when the run is on its way back. A retreat that was cut off is
// ended first.
func (r *Run) Forward(ctx context.Context, commit bool) error {
	st := r.journal.state
	switch st.Phase {
	case PhaseRollingBack, PhaseRolledBack:
		return ErrRollingBack
	case PhaseCommitted:
		return nil
	}
	for _, s := range r.steps {
		if st.Steps[s.Name].Mark == MarkUndo { // the first one that a retreat takes back
			if err := r.Retreat(ctx, s.Name); err != nil {
				return err
			}
			break
		}
	}
	end := PhaseCommitted
	for i, s := range r.steps {
		if s.Final && !commit {
			end = PhaseFinished
			break
		}
		if r.journal.state.Steps[s.Name].Mark == MarkDone {
			r.tell(EventSkip, i, false, nil)
			continue
		}
		if ctx.Err() != nil {
			return r.stop(ctx, ErrInterrupted)
		}
		if r.journal.state.Phase == PhaseFinished { // and now it is committed
			if err := r.journal.append(Record{Kind: KindPhase, Phase: PhaseRunning}); err != nil {
				return err
			}
		}
		if err := r.needs(ctx, i); err != nil {
			return r.stop(ctx, err)
		}
		if err := r.do(ctx, i); err != nil {
			return r.stop(ctx, err)
		}
	}
	if r.journal.state.Phase == end {
		return nil
	}
	return r.journal.append(Record{Kind: KindPhase, Phase: end})
}

// Rollback undoes, last first, every step that was begun. It is journalled and
// resumable like the way forward. It returns [ErrNoWayBack] once a final step
// has begun.
func (r *Run) Rollback(ctx context.Context) error {
	for _, s := range r.steps {
		if s.Final && r.journal.state.Steps[s.Name].Mark != MarkNone {
			return ErrNoWayBack
		}
	}
	switch r.journal.state.Phase {
	case PhaseRolledBack:
		return nil
	case PhaseRollingBack:
	default:
		if err := r.journal.append(Record{Kind: KindPhase, Phase: PhaseRollingBack}); err != nil {
			return err
		}
	}
	if err := r.takeBack(ctx, 0); err != nil {
		return r.stop(ctx, err)
	}
	return r.journal.append(Record{Kind: KindPhase, Phase: PhaseRolledBack})
}

// Retreat undoes, last first, every step that was begun from the step name on, and
// leaves the run where it can go forward again, for another time. It is journalled:
// the mark of that step tells that a retreat is under way, and Forward ends one that
// was cut off before it does anything else. So does Rollback, in its own way.
func (r *Run) Retreat(ctx context.Context, name string) error {
	first := slices.IndexFunc(r.steps, func(s Step) bool { return s.Name == name })
	if first < 0 || r.journal.state.Phase != PhaseRunning {
		return fmt.Errorf("cannot go back to step %q of a run that is %s", name, r.journal.state.Phase)
	}
	if r.journal.state.Steps[name].Mark != MarkUndo {
		if err := r.journal.append(Record{Kind: KindUndo, Step: name}); err != nil {
			return err
		}
	}
	if err := r.takeBack(ctx, first); err != nil {
		return r.stop(ctx, err)
	}
	return nil
}

// Stopped journals why the run stops, where what followed the stop has hidden it.
func (r *Run) Stopped(why error) error {
	return r.journal.append(Record{Kind: KindStop, Error: why.Error()})
}

// takeBack undoes, last first, every step that was begun from the first one on.
func (r *Run) takeBack(ctx context.Context, first int) error {
	for i, s := range slices.Backward(r.steps) {
		if i < first {
			break
		}
		switch r.journal.state.Steps[s.Name].Mark {
		case MarkNone, MarkUndone:
			continue
		}
		if ctx.Err() != nil {
			return ErrInterrupted
		}
		if s.Undo != nil {
			if err := r.needs(ctx, i); err != nil {
				return err
			}
		}
		if err := r.undo(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// needs re-establishes the standing conditions of step i.
func (r *Run) needs(ctx context.Context, i int) error {
	for _, name := range r.steps[i].Needs {
		k := slices.IndexFunc(r.steps[:i], func(s Step) bool { return s.Name == name })
		if k < 0 {
			return &StepError{Step: r.steps[i].Name, Err: fmt.Errorf("it needs %q, which is no earlier step", name)}
		}
		holds, err := r.steps[k].Holds(context.WithoutCancel(ctx))
		if err != nil {
			return &StepError{Step: name, Err: fmt.Errorf("cannot see whether it still holds: %w", err)}
		}
		if holds {
			continue
		}
		r.tell(EventRedo, k, false, nil)
		if err := r.needs(ctx, k); err != nil {
			return err
		}
		if err := r.act(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

func (r *Run) do(ctx context.Context, i int) error {
	s := r.steps[i]
	if s.Holds != nil && r.journal.state.Steps[s.Name].Mark == MarkBegun {
		holds, err := s.Holds(context.WithoutCancel(ctx))
		if err != nil {
			return r.failed(i, false, fmt.Errorf("cannot see whether it is done: %w", err))
		}
		if holds {
			r.tell(EventSkip, i, false, nil)
			return r.journal.append(Record{Kind: KindDone, Step: s.Name})
		}
	}
	return r.act(ctx, i)
}

// act journals, does, looks, journals.
func (r *Run) act(ctx context.Context, i int) error {
	s := r.steps[i]
	if err := r.journal.append(Record{Kind: KindBegin, Step: s.Name}); err != nil {
		return err
	}
	r.tell(EventBegin, i, false, nil)
	inner := ctx
	if !s.Pausable {
		inner = context.WithoutCancel(ctx)
	}
	if err := s.Do(inner); err != nil {
		if ctx.Err() != nil && s.Pausable && errors.Is(err, context.Canceled) {
			return ErrInterrupted
		}
		if errors.Is(err, ErrPaused) {
			r.tell(EventPaused, i, false, err)
			return err
		}
		return r.failed(i, false, err)
	}
	if s.Holds != nil {
		holds, err := s.Holds(context.WithoutCancel(ctx))
		if err != nil {
			return r.failed(i, false, fmt.Errorf("cannot see whether it is done: %w", err))
		}
		if !holds {
			return r.failed(i, false, errors.New("it reported success, but its effect is not there"))
		}
	}
	if err := r.journal.append(Record{Kind: KindDone, Step: s.Name}); err != nil {
		return err
	}
	r.tell(EventDone, i, false, nil)
	return nil
}

func (r *Run) undo(ctx context.Context, i int) error {
	s := r.steps[i]
	if err := r.journal.append(Record{Kind: KindUndo, Step: s.Name}); err != nil {
		return err
	}
	if s.Undo != nil {
		r.tell(EventBegin, i, true, nil)
		// Half a way back is the worst place to stop: an interruption waits.
		if err := s.Undo(context.WithoutCancel(ctx)); err != nil {
			return r.failed(i, true, err)
		}
	}
	if err := r.journal.append(Record{Kind: KindUndone, Step: s.Name}); err != nil {
		return err
	}
	if s.Undo != nil {
		r.tell(EventDone, i, true, nil)
	}
	return nil
}

func (r *Run) failed(i int, undo bool, err error) error {
	r.tell(EventFailed, i, undo, err)
	return &StepError{Step: r.steps[i].Name, Undo: undo, Err: err}
}

// stop journals why the run stops, and which step failed: none, where the run was
// asked to stop, since what fails then may do so because all around it stops, too. The
// journal's own failure is told beside the reason, and never hides it.
func (r *Run) stop(ctx context.Context, err error) error {
	if r.journal.bad != nil {
		return err
	}
	rec := Record{Kind: KindStop, Error: err.Error()}
	var failed *StepError
	if errors.As(err, &failed) && ctx.Err() == nil {
		rec.Step = failed.Step
	}
	return errors.Join(err, r.journal.append(rec))
}

func (r *Run) tell(k EventKind, i int, undo bool, err error) {
	r.observe(Event{Kind: k, Step: r.steps[i], Index: i, Total: len(r.steps), Undo: undo, Err: err})
}
