package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/window"
)

// A maintenance window says when the host may be out of service. What is done beside
// the live store does not mind it. The gate is the step before the first one that
// takes something out of service; it lets the run through if the window is open, and
// what is left of it is enough. Until podman is stopped, the run can still be sent
// back: the node is given back then, what was staged stays, and the run goes on in
// the next window. From the stop on the quickest way to be up is to go on.

// stepWindow is the gate's name in journals.
const stepWindow = "window"

// ClosedError says that a run stopped at a safe point because of its maintenance
// window: nothing is out of service, and the run can be resumed. It is
// [engine.ErrPaused].
type ClosedError struct {
	Why  string
	Next window.Span // zero: there is none
}

func (e *ClosedError) Error() string { return "stopped at a safe point: " + e.Why }
func (e *ClosedError) Unwrap() error { return engine.ErrPaused }

// pass is what the gate has let this process through with.
type pass struct {
	anytime bool // the operator's word
	span    window.Span
	// latest is when podman must be stopped at the latest, to be up again before
	// the window closes. until is the same by the monotonic clock: a clock that is
	// put back does not make a window longer.
	latest, until time.Time
	seen          time.Time // the wall clock, when it was last looked at
	shut          *ClosedError
}

const (
	// lookEvery is how often the wall clock is looked at. It can be put to another
	// time, of which timers know nothing.
	lookEvery = time.Second
	// staleAfter is for how long nothing is staged again before the outage.
	staleAfter = 15 * time.Minute
	// setBack is how far a clock must have been put back to be noticed.
	setBack = time.Minute
)

// gated puts the gate before steps of an outage, the last of which stops podman. They
// depend on it, and those before the stop end when the window has to be left. live are
// the steps before the outage.
func (s *Session) gated(live, outage []engine.Step) []engine.Step {
	if s.Inputs.Request.Window == nil {
		return outage
	}
	gate := engine.Step{Name: stepWindow, Title: "see that the maintenance window is open", Pausable: true,
		Holds: s.inWindow, Do: s.passGate}
	for _, st := range staging(live) { // it may do them again
		for _, name := range st.Needs {
			if !slices.Contains(gate.Needs, name) {
				gate.Needs = append(gate.Needs, name)
			}
		}
	}
	for i := range outage {
		st := &outage[i]
		st.Needs = append([]string{stepWindow}, st.Needs...)
		if st.Name != stepStop { // units are stopped as a whole
			st.Do = s.leaving(st.Do)
		}
	}
	return append([]engine.Step{gate}, outage...)
}

// staging are the steps that work beside the live store. Each can be done again.
func staging(live []engine.Step) []engine.Step {
	return slices.DeleteFunc(slices.Clone(live), func(st engine.Step) bool { return !st.Pausable })
}

// now is what the wall clock says, and nothing but that: times that also have a reading
// of the monotonic clock compare by it, and do not see that the clock was put elsewhere.
func (s *Session) now() time.Time {
	now := time.Now
	if s.env.Now != nil {
		now = s.env.Now
	}
	return now().Round(0)
}

// anytime reports whether the operator's word is that the window does not matter.
func (s *Session) anytime() bool { return s.env.Anytime || s.Inputs.Request.Now }

// inWindow observes that the gate has let this process through, and that there is
// still time to stop podman. A process that takes up a run asks anew. Whoever goes
// back, or has begun to stop podman, is on the shortest way to be in service.
func (s *Session) inWindow(context.Context) (bool, error) {
	st := s.journal.State()
	if st.Phase == engine.PhaseRollingBack || s.retreating() || !BeforeStop(st) {
		return true, nil
	}
	return s.pass != nil && s.over() == nil, nil
}

// retreating reports whether what the gate let through is being taken back.
func (s *Session) retreating() bool {
	return s.journal.State().Steps[stepWindow].Mark == engine.MarkUndo
}

// over says why podman is not to be stopped any more in this window. Once it is over,
// it stays so for this process.
func (s *Session) over() *ClosedError {
	p := s.pass
	if p.shut == nil {
		now := s.now()
		p.shut = s.overAt(*p, now)
		p.seen = now
	}
	return p.shut
}

// overAt says why a pass is not good any more; nil: it is.
func (s *Session) overAt(p pass, now time.Time) *ClosedError {
	switch {
	case p.anytime:
		return nil
	case now.Before(p.seen.Add(-setBack)):
		return s.clockBack(p.seen, now)
	case now.Before(p.latest) && time.Now().Before(p.until):
		return nil
	}
	return s.closed(fmt.Sprintf("the window closes at %s, and what is left of it is too short to stop podman and have it back by then", clock(p.span.Closes)))
}

// leaving has a step end early when the window has to be left.
func (s *Session) leaving(do func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		if s.pass == nil || s.pass.anytime { // a way back
			return do(ctx)
		}
		ctx, cancel := context.WithCancelCause(ctx)
		watched := make(chan *ClosedError, 1)
		go func(p pass) { watched <- s.watch(ctx, p, cancel) }(*s.pass)
		err := do(ctx)
		cancel(nil)
		if shut := <-watched; shut != nil {
			s.pass.shut = shut
			if err != nil {
				return shut
			}
		}
		return err
	}
}

// watch looks at the clock until ctx ends, and cancels it when a pass is not good any
// more. It shares nothing with the step that works meanwhile.
func (s *Session) watch(ctx context.Context, p pass, cancel context.CancelCauseFunc) *ClosedError {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		now := s.now()
		if shut := s.overAt(p, now); shut != nil {
			cancel(shut)
			return shut
		}
		p.seen = now
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// passGate is the gate: it waits for the window as long as the operator wants to,
// stages again what has become old meanwhile, and looks whether the outage will fit.
func (s *Session) passGate(ctx context.Context) error {
	s.pass = nil
	w := *s.Inputs.Request.Window
	if s.anytime() {
		word := "is closed"
		if span, open := w.At(s.now()); open {
			word = "closes at " + clock(span.Closes)
		}
		if err := s.note("the maintenance window %s %s; it does not matter, on the operator's word (--now)", w, word); err != nil {
			return err
		}
		_, err := s.stageAgain(ctx)
		s.pass = &pass{anytime: true}
		return err
	}
	if err := s.clockWasBack(); err != nil {
		return err
	}
	span, err := s.awaitWindow(ctx, w)
	if err != nil {
		return err
	}
	if again, err := s.stageAgain(ctx); err != nil {
		return err
	} else if again { // that took its time
		if span, err = s.awaitWindow(ctx, w); err != nil {
			return err
		}
	}
	n, err := s.need()
	if err != nil {
		return err
	}
	now := s.now()
	n.At, n.Closes = now.UTC(), span.Closes.UTC()
	n.Fits = !now.Add(n.all()).After(span.Closes)
	if err := s.learn(func(f *Facts) { f.Needs = append(slices.Clone(f.Needs), n) }); err != nil {
		return err
	}
	if err := s.note("the window closes at %s, in %s; the run needs %s of it, as far as can be told (%s)",
		clock(span.Closes), about(span.Closes.Sub(now)), about(n.all()), n); err != nil {
		return err
	}
	if n.all() > w.Length() {
		return tooShort(w, n)
	}
	if !n.Fits {
		return s.closed(fmt.Sprintf("the window closes at %s, in %s, and the run needs %s", clock(span.Closes), about(span.Closes.Sub(now)), about(n.all())))
	}
	left := span.Closes.Sub(now) - n.down()
	s.pass = &pass{span: span, latest: now.Add(left), until: time.Now().Add(left), seen: now}
	return nil
}

// clockWasBack stops a run once whose clock was put back since its last word: what the
// clock says now may be as wrong as what it said then. The stop is journalled by the new
// clock, and whoever resumes goes by that. The last word is the latest one since the gate
// looked before: this process, and others that came not as far, have told by the new
// clock that they take up the run.
func (s *Session) clockWasBack() error {
	var last time.Time
	records := s.journal.State().Records
	for i, r := range slices.Backward(records) {
		if at := r.Time.Round(0); at.After(last) {
			last = at
		}
		if r.Kind == engine.KindBegin && r.Step == stepWindow && i < len(records)-1 { // the last one is of now
			break
		}
	}
	if now := s.now(); now.Before(last.Add(-setBack)) {
		return s.clockBack(last, now)
	}
	return nil
}

func (s *Session) clockBack(last, now time.Time) *ClosedError {
	return s.closed(fmt.Sprintf("the clock was put back by %s since the run's last word; see that it is right", about(last.Sub(now))))
}

// awaitWindow gives the span that is open now, or waits for the next one if that is
// soon enough for the operator.
func (s *Session) awaitWindow(ctx context.Context, w window.Window) (window.Span, error) {
	began, told := time.Now(), false
	for {
		now := s.now()
		if span, open := w.At(now); open {
			return span, nil
		}
		next := w.Next(now, 1)
		left := s.Inputs.Request.WindowWait - time.Since(began)
		if len(next) == 0 || next[0].Opens.After(now.Add(left)) {
			return window.Span{}, s.closed("the maintenance window is closed")
		}
		if !told {
			told = true
			if err := s.note("waiting for the maintenance window, which opens at %s", clock(next[0].Opens)); err != nil {
				return window.Span{}, err
			}
		}
		if s.env.Progress != nil {
			waited := time.Since(began)
			s.env.Progress(Progress{Step: stepWindow, Phase: "wait for the window", Done: int64(waited.Seconds()),
				Total: int64((waited + next[0].Opens.Sub(now)).Seconds()), Unit: "seconds", Note: "opens at " + clock(next[0].Opens)})
		}
		select {
		case <-ctx.Done():
			return window.Span{}, ctx.Err()
		case <-time.After(min(lookEvery, max(next[0].Opens.Sub(now), time.Millisecond))):
		}
	}
}

// closed is why the run stops, with when it may go on.
func (s *Session) closed(why string) *ClosedError {
	e := &ClosedError{Why: why}
	if next := s.Inputs.Request.Window.Next(s.now(), 1); len(next) > 0 {
		e.Next = next[0]
	}
	return e
}

// stageAgain does the steps beside the live store once more if they were done a while
// ago: what changed since then would have to be caught up with while podman is down.
func (s *Session) stageAgain(ctx context.Context) (bool, error) {
	plan := staging(s.plan[:slices.IndexFunc(s.plan, func(st engine.Step) bool { return st.Name == stepWindow })])
	if len(plan) == 0 {
		return false, nil
	}
	done := s.journal.State().Steps[plan[len(plan)-1].Name].Done
	age := s.now().Sub(done)
	fresh := age >= 0 && age < staleAfter
	if fresh && s.relocating() { // after a boot the copy is made anew, and podman is better not down for that
		var err error
		if fresh, err = s.thisBoot(); err != nil {
			return false, err
		}
	}
	if fresh {
		return false, nil
	}
	if err := s.note("what is staged is of %s: what changed since then is staged first", clock(done.Local())); err != nil {
		return false, err
	}
	for _, st := range plan {
		if err := st.Do(ctx); err != nil {
			return false, err
		}
	}
	return true, nil
}

// stepBack takes back what a run has taken out of service, after a step has
// stopped at a safe point, and returns why it stopped.
func (s *Session) stepBack(ctx context.Context, why error) error {
	steps := s.journal.State().Steps
	gate := slices.IndexFunc(s.plan, func(st engine.Step) bool { return st.Name == stepWindow })
	out := slices.ContainsFunc(s.plan[gate+1:], func(st engine.Step) bool {
		return steps[st.Name].Mark == engine.MarkBegun || steps[st.Name].Mark == engine.MarkDone
	})
	if !out {
		return why
	}
	if err := s.run.Retreat(context.WithoutCancel(ctx), stepWindow); err != nil {
		return errors.Join(err, why)
	}
	return errors.Join(why, s.run.Stopped(why))
}

// pastWindow notes that a run was longer out of service than its window was open.
func (s *Session) pastWindow() error {
	n := len(s.facts.Needs)
	if n == 0 || !s.facts.Needs[n-1].Fits || s.anytime() {
		return nil
	}
	closed, up := s.facts.Needs[n-1].Closes, s.journal.State().Steps[stepStart].Done
	if up.After(closed) {
		return s.note("podman was up again %s after the window had closed", about(up.Sub(closed)))
	}
	return nil
}

// clock is a moment for people.
func clock(t time.Time) string { return t.Format("Mon 2006-01-02 15:04 MST") }

// about is a time for people, who do not mind the seconds of an hour.
func about(d time.Duration) string {
	switch {
	case d >= 10*time.Minute:
		d = d.Round(time.Minute)
		if d < time.Hour {
			return fmt.Sprintf("%d min", int(d.Minutes()))
		}
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	case d >= time.Minute:
		d = d.Round(time.Second)
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%.0f s", d.Seconds())
}
