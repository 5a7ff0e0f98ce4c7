package report

import (
	"fmt"
	"slices"
	"time"
)

// A time line is drawn on a scale of 100. A pause that is long beside the work is
// drawn as a break of fixed width, or a day between the run and its commit would
// leave nothing to be seen of either.

// breakWidth is how wide a break is drawn.
const breakWidth = 4.0

// leastPause is the shortest pause that is drawn as a break.
const leastPause = 2 * time.Second

type axis struct {
	parts  []part
	breaks []Pause
}

// part is a stretch of the axis that is drawn to scale, or a break.
type part struct {
	Span
	at, width float64
	isBreak   bool
}

func newAxis(d Data) axis {
	whole := Span{From: d.Began, To: d.Ended}
	var long []Pause
	for _, p := range d.Pauses {
		p.From, p.To = later(p.From, whole.From), earlier(p.To, whole.To)
		if p.Length() >= max(leastPause, seconds(d.Worked/20)) {
			long = append(long, p)
		}
	}
	slices.SortFunc(long, func(a, b Pause) int { return a.From.Compare(b.From) })
	if len(long) > 12 { // a run that was resumed very often: the longest ones
		slices.SortFunc(long, func(a, b Pause) int { return int(b.Length().Seconds() - a.Length().Seconds()) })
		long = long[:12]
		slices.SortFunc(long, func(a, b Pause) int { return a.From.Compare(b.From) })
	}
	drawn := whole.Length()
	for _, p := range long {
		drawn -= p.Length()
	}
	scale := (100 - breakWidth*float64(len(long))) / max(drawn.Seconds(), 1e-9)
	var a axis
	at, from := 0.0, whole.From
	add := func(to time.Time, isBreak bool) {
		s := Span{From: from, To: to}
		width := s.Length().Seconds() * scale
		if isBreak {
			width = breakWidth
		}
		a.parts = append(a.parts, part{s, at, width, isBreak})
		at, from = at+width, to
	}
	for _, p := range long {
		if p.From.Before(from) { // pauses do not overlap, unless a clock was set back
			continue
		}
		add(p.From, false)
		add(p.To, true)
		a.breaks = append(a.breaks, p)
	}
	add(whole.To, false)
	return a
}

// place is where a moment stands on the axis.
func (a axis) place(t time.Time) float64 {
	for i, p := range a.parts {
		if t.Before(p.To) || i == len(a.parts)-1 {
			if p.isBreak || p.Length() == 0 {
				return p.at
			}
			return p.at + p.width*min(1, max(0, t.Sub(p.From).Seconds()/p.Length().Seconds()))
		}
	}
	return 0
}

// bar is a stretch on the axis, as the style of the page has it.
type bar struct {
	Left, Width string
	Class       string
	Title       string
}

func (a axis) bar(s Span, class, title string) bar {
	from, to := a.place(s.From), a.place(s.To)
	from = min(from, 99.6) // one of no length at the very end is still seen
	return bar{fmt.Sprintf("%.2f", from), fmt.Sprintf("%.2f", max(0, to-from)), class, title}
}

// row is a step on the time line.
type row struct {
	Title, State, Tone, Took string
	Bars                     []bar
}

// line is the whole drawing.
type line struct {
	Bands  []bar // behind every row: out of service, stopped, breaks
	Rows   []row
	Ticks  []bar // Title is what stands there
	Breaks []string
	Legend []string // classes
}

func newLine(d Data) line {
	a := newAxis(d)
	var l line
	for _, s := range d.Away {
		l.Bands = append(l.Bands, a.bar(s, "away", "the node was out of service for "+Length(s.Length())))
	}
	for _, s := range d.Down {
		l.Bands = append(l.Bands, a.bar(s, "down", "podman was stopped for "+Length(s.Length())))
	}
	for _, p := range a.parts {
		if p.isBreak {
			l.Bands = append(l.Bands, bar{fmt.Sprintf("%.2f", p.at), fmt.Sprintf("%.2f", p.width), "break", Length(p.Length())})
		}
	}
	for _, p := range a.breaks {
		text := fmt.Sprintf("%s from %s: %s", Length(p.Length()), stamp(p.From), p.Why)
		if p.Open {
			text = fmt.Sprintf("%s since %s: %s", Length(p.Length()), stamp(p.From), p.Why)
		}
		l.Breaks = append(l.Breaks, text)
	}
	undo, bad := false, false
	for _, s := range d.Steps {
		r := row{Title: s.Title, State: s.state(), Tone: "calm"}
		switch r.State {
		case "failed", "cut off", "stopped":
			r.Tone = "bad"
		case "done":
			r.Tone = "good"
		}
		if len(s.Acts) > 0 {
			r.Took = Length(s.took())
		}
		for _, act := range s.Acts {
			class, what := "do", "done"
			if act.Undo {
				class, what, undo = "undo", "taken back", true
			}
			if act.End != EndDone && act.End != EndNot {
				class, what, bad = "bad", string(act.End), true
			}
			r.Bars = append(r.Bars, a.bar(act.Span, class, fmt.Sprintf("%s, %s, from %s", what, Length(act.Length()), clock(act.From))))
		}
		l.Rows = append(l.Rows, r)
	}
	l.Ticks = a.ticks()
	l.Legend = []string{"do"}
	for _, c := range []struct {
		is    bool
		class string
	}{{undo, "undo"}, {bad, "bad"}, {len(d.Down) > 0, "down"}, {len(d.Away) > 0, "away"}, {len(a.breaks) > 0, "break"}} {
		if c.is {
			l.Legend = append(l.Legend, c.class)
		}
	}
	return l
}

// ticks are where a part begins, as far as there is room for the words.
func (a axis) ticks() []bar {
	var ts []bar
	last := -100.0
	for _, p := range a.parts {
		if p.isBreak || p.at-last < 18 || p.at > 86 {
			continue
		}
		last = p.at
		ts = append(ts, bar{Left: fmt.Sprintf("%.2f", p.at), Title: clock(p.From)})
	}
	return ts
}

// legendWord says what a class of bars means.
func legendWord(class string) string {
	switch class {
	case "do":
		return "a step at work"
	case "undo":
		return "taken back"
	case "bad":
		return "failed, stopped or cut off"
	case "down":
		return "podman stopped"
	case "away":
		return "node out of service"
	}
	return "a pause, not to scale"
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
