package migrate

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/report"
)

// idle is how long nothing has to be on record between two steps for that to be told
// as a pause. A step looks around before it is begun, which takes a moment.
const idle = 30 * time.Second

// leastPause is the shortest pause that is told: what follows a stop at once is the run's
// own doing.
const leastPause = time.Second

// course is what a journal says of a run in time. Nothing in it depends on the job,
// but for the names of the steps that stop podman and take a node out of service.
type course struct {
	acts   map[string][]report.Act
	pauses []report.Pause
	events []report.Event
	down   []report.Span
	away   []report.Span

	open string    // the step under way
	last time.Time // of the record before
	rest string    // why nothing is under way; "" while something is
	was  string    // the same of the time before
}

// courseOf reads the course of a run. active says that a process is at it now.
func courseOf(st engine.State, active bool, now time.Time, title func(string) string) course {
	c := course{acts: map[string][]report.Act{}, last: st.Started()}
	for _, r := range st.Records {
		c.take(r, title)
		c.last = r.Time
	}
	if c.open != "" {
		end := report.EndCut
		if active {
			end, c.last = report.EndNot, now
		} else {
			c.rest = "cut off"
		}
		c.end(c.last, end)
	} else if c.rest == "" && !active {
		c.rest = "cut off"
	}
	c.close(st, active, now)
	return c
}

// take takes one more record.
func (c *course) take(r engine.Record, title func(string) string) {
	switch r.Kind {
	case engine.KindBegin, engine.KindUndo:
		c.goOn(r.Time, title)
		c.open = r.Step
		c.acts[r.Step] = append(c.acts[r.Step], report.Act{Span: report.Span{From: r.Time, To: r.Time}, Undo: r.Kind == engine.KindUndo, End: report.EndNot})
		c.outage(r)
	case engine.KindDone, engine.KindUndone:
		if c.open == r.Step {
			c.end(r.Time, report.EndDone)
		} else { // it was looked at, and found done
			c.goOn(r.Time, title)
			c.acts[r.Step] = append(c.acts[r.Step], report.Act{Span: report.Span{From: r.Time, To: r.Time}, Undo: r.Kind == engine.KindUndone, End: report.EndDone})
		}
		c.outage(r)
	case engine.KindStop:
		e := report.Event{Time: r.Time, Kind: report.Error, Step: title(cmp.Or(c.open, r.Step)), Text: strings.TrimPrefix(r.Error, "step "+c.open+": ")}
		end := report.EndFailed
		c.rest = "it had failed"
		switch {
		case r.Error == engine.ErrInterrupted.Error():
			e.Kind, e.Text, end = report.Halt, "it was asked to stop, and stopped at a safe point", report.EndStopped
			c.rest = "it was asked to stop"
		case !stepFailed(r):
			e.Kind, end = report.Halt, report.EndStopped
			c.rest = "it had stopped at a safe point"
		}
		c.events = append(c.events, e)
		c.end(r.Time, end)
	case engine.KindPhase:
		switch r.Phase {
		case engine.PhaseRunning, engine.PhaseRollingBack:
			c.goOn(r.Time, title)
		default:
			c.end(r.Time, report.EndDone)
			c.rest = map[engine.Phase]string{engine.PhaseFinished: "done, and not yet committed"}[r.Phase]
			if c.rest == "" {
				c.rest = "over"
			}
		}
	case engine.KindNote:
		if r.Actor != nil || r.Exit != nil || r.Audit != "" {
			c.process(r, title)
			return
		}
		c.events = append(c.events, report.Event{Time: r.Time, Kind: report.Note, Step: title(c.open), Text: r.Text})
	}
}

// process follows the commands that go on with the run: one takes it up, and lets go
// of it with an exit code.
func (c *course) process(r engine.Record, title func(string) string) {
	switch {
	case r.Actor != nil:
		c.goOn(r.Time, title)
	case r.Exit != nil && c.open == "" && c.rest == "": // it did nothing, or was refused
		c.rest = cmp.Or(c.was, "its command had ended")
	}
}

// stepFailed tells whether a stop is a step's failure. Releases that do not note the
// step have it in the words of the error alone.
func stepFailed(r engine.Record) bool {
	return r.Step != "" || strings.HasPrefix(r.Error, "step ") || strings.HasPrefix(r.Error, "cannot undo step ")
}

// goOn is told when something is begun: what was under way until then was cut off.
func (c *course) goOn(now time.Time, title func(string) string) {
	p := report.Pause{Span: report.Span{From: c.last, To: now}, Why: c.rest}
	switch {
	case c.open != "":
		p.Why = "cut off"
		c.events = append(c.events, report.Event{Time: c.last, Kind: report.Cut, Step: title(c.open),
			Text: "the process ended without a word (a crash, a kill, a power cut); the next word is of " + now.UTC().Format("15:04:05")})
		c.end(c.last, report.EndCut)
	case c.rest == "" && now.Sub(c.last) < idle:
		return
	case c.rest == "":
		p.Why = "nothing is on record"
	}
	c.was, c.rest = c.rest, ""
	if p.Length() >= leastPause {
		c.pauses = append(c.pauses, p)
	}
}

// end ends the act under way, if one is.
func (c *course) end(at time.Time, how report.End) {
	if acts := c.acts[c.open]; len(acts) > 0 {
		acts[len(acts)-1].To, acts[len(acts)-1].End = at, how
	}
	c.open = ""
}

// outage follows podman, and the node, down and up again.
func (c *course) outage(r engine.Record) {
	begin := func(spans *[]report.Span) {
		if n := len(*spans); n == 0 || !(*spans)[n-1].Open {
			*spans = append(*spans, report.Span{From: r.Time, To: r.Time, Open: true})
		}
	}
	end := func(spans []report.Span) {
		if n := len(spans); n > 0 && spans[n-1].Open {
			spans[n-1].To, spans[n-1].Open = r.Time, false
		}
	}
	switch {
	case r.Step == stepStop && r.Kind == engine.KindBegin:
		begin(&c.down)
	case r.Step == stepStart && r.Kind == engine.KindDone, r.Step == stepStop && r.Kind == engine.KindUndone:
		end(c.down)
	case r.Step == stepDrain && r.Kind == engine.KindBegin, r.Step == stepUndrain && r.Kind == engine.KindUndo:
		begin(&c.away)
	case r.Step == stepUndrain && r.Kind == engine.KindDone, r.Step == stepDrain && r.Kind == engine.KindUndone:
		end(c.away)
	}
}

// close ends what is open: a run that stopped with podman down keeps it down until now.
func (c *course) close(st engine.State, active bool, now time.Time) {
	still := false
	for _, spans := range [][]report.Span{c.down, c.away} {
		if n := len(spans); n > 0 && spans[n-1].Open {
			// Of a run that is over it is not known, and not claimed.
			if spans[n-1].To = now; st.Phase.Over() {
				spans[n-1].To, spans[n-1].Open = c.last, false
			} else {
				still = true
			}
		}
	}
	if !active && still {
		c.pauses = append(c.pauses, report.Pause{Span: report.Span{From: c.last, To: now, Open: true}, Why: c.rest})
		c.last = now
	}
}

// worked is for how long a step was under way, all together.
func (c course) worked() time.Duration {
	var sum time.Duration
	for _, acts := range c.acts {
		for _, a := range acts {
			sum += a.Length()
		}
	}
	return sum
}

// failedIn tells whether the last time that a step was done it failed.
func (c course) failedIn(step string) bool {
	for _, a := range slices.Backward(c.acts[step]) {
		if !a.Undo {
			return a.End == report.EndFailed
		}
	}
	return false
}
