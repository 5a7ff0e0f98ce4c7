// Package window knows maintenance windows: the hours in which a host may be out of
// service. It knows nothing of hosts and of runs.
//
// A window opens on its days when the wall clock of its zone first shows its start,
// and stays open for its length, in time that really passes. So where the clocks
// change:
//   - a start that the change skips (02:30, where 02:00 becomes 03:00) is the moment
//     of the change;
//   - a start that comes twice (02:30, where 03:00 becomes 02:00) is the first one;
//   - a window that is open during a change closes an hour later or earlier by the
//     wall clock, and is as long as ever.
//
// A window of which any part would lie on a blackout date does not open.
package window

import (
	"cmp"
	"slices"
	"time"
	_ "time/tzdata" // the rules of a zone must not depend on whether a host has them installed
)

// Window is when a host may be out of service. Its zero value never opens; [Parse]
// and [Table.Window] make others.
type Window struct {
	days     [7]bool // by time.Weekday, in its zone
	start    int     // minutes after midnight, by the wall clock
	length   time.Duration
	zone     *time.Location // nil: the host's
	blackout []dates
}

// Span is one time that a window is open: from Opens, up to but not at Closes.
type Span struct {
	Opens  time.Time `json:"opens"`
	Closes time.Time `json:"closes"`
}

// Length is how long the span is, in time that passes.
func (s Span) Length() time.Duration { return s.Closes.Sub(s.Opens) }

// dates are days of a calendar, both ends included.
type dates struct{ first, last date }

type date struct {
	year  int
	month time.Month
	day   int
}

func (d date) compare(o date) int {
	return cmp.Or(cmp.Compare(d.year, o.year), cmp.Compare(d.month, o.month), cmp.Compare(d.day, o.day))
}

// horizon is how many days are looked at for the next span.
const horizon = 10 * 366

// Length is how long the window is open each time.
func (w Window) Length() time.Duration { return w.length }

// Next gives the next n spans that open after t, the first one first. There are
// fewer if the blackout dates leave fewer in the next ten years.
func (w Window) Next(t time.Time, n int) []Span {
	var spans []Span
	day := w.noon(t).AddDate(0, 0, -2) // a zone can skip a day
	for range horizon {
		if len(spans) >= n {
			break
		}
		if s, ok := w.on(day); ok && s.Opens.After(t) {
			spans, t = append(spans, s), s.Opens
		}
		day = day.AddDate(0, 0, 1)
	}
	return spans
}

// At tells the span that is open at t. Where one opens before the last has closed,
// that is the later one.
func (w Window) At(t time.Time) (Span, bool) {
	day := w.noon(t).AddDate(0, 0, 2)
	for range int(w.length/(24*time.Hour)) + 5 {
		if s, ok := w.on(day); ok && !s.Opens.After(t) && t.Before(s.Closes) {
			return s, true
		}
		day = day.AddDate(0, 0, -1)
	}
	return Span{}, false
}

// noon stands for the day of t in the window's zone. It is in UTC, where every day
// has its noon.
func (w Window) noon(t time.Time) time.Time {
	y, m, d := t.In(w.location()).Date()
	return time.Date(y, m, d, 12, 0, 0, 0, time.UTC)
}

// on is the span that opens on a day.
func (w Window) on(day time.Time) (Span, bool) {
	if !w.days[day.Weekday()] {
		return Span{}, false
	}
	wall := day.Add(time.Duration(w.start)*time.Minute - 12*time.Hour)
	opens := first(wall, w.location())
	s := Span{Opens: opens, Closes: opens.Add(w.length)}
	return s, !w.black(s)
}

// black reports whether any part of a span lies on a blackout date.
func (w Window) black(s Span) bool {
	begin, end := dateOf(s.Opens), dateOf(s.Closes.Add(-1))
	return slices.ContainsFunc(w.blackout, func(b dates) bool {
		return b.first.compare(end) <= 0 && begin.compare(b.last) <= 0
	})
}

func dateOf(t time.Time) date {
	y, m, d := t.Date()
	return date{y, m, d}
}

func (w Window) location() *time.Location {
	if w.zone == nil {
		return time.Local
	}
	return w.zone
}

// first is the first moment at which the clocks of a zone show wall, or have been
// put past it. wall is given as if it was UTC.
func first(wall time.Time, zone *time.Location) time.Time {
	// The offsets that may be in force around that time: no zone is farther from
	// UTC than 15 hours.
	early, late := wall.Add(-30*time.Hour), wall.Add(30*time.Hour)
	_, before := early.In(zone).Zone()
	_, after := late.In(zone).Zone()
	if before == after {
		return wall.Add(-time.Duration(before) * time.Second).In(zone)
	}
	// A change is near. Before it the clock shows wall at one moment, after it at
	// another; the earlier one counts if it is on its own side of the change.
	change := early
	for {
		_, end := change.In(zone).ZoneBounds()
		if end.IsZero() || end.After(late) {
			break
		}
		change = end
		if _, is := end.In(zone).Zone(); is == after {
			break
		}
	}
	if t := wall.Add(-time.Duration(before) * time.Second); t.Before(change) {
		return t.In(zone)
	}
	if t := wall.Add(-time.Duration(after) * time.Second); t.After(change) {
		return t.In(zone)
	}
	return change.In(zone)
}
