package report

import (
	"fmt"
	"strings"
	"time"
)

// Length writes how long something took: the two largest units, and tenths of a second
// below a minute.
func Length(d time.Duration) string {
	d = max(0, d)
	switch {
	case d < 50*time.Millisecond:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute-50*time.Millisecond:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	d = d.Round(time.Second)
	two := func(big time.Duration, bigName string, small time.Duration, smallName string) string {
		if d = d.Round(small); d%big == 0 {
			return fmt.Sprintf("%d %s", d/big, bigName)
		}
		return fmt.Sprintf("%d %s %d %s", d/big, bigName, d%big/small, smallName)
	}
	switch {
	case d < time.Hour:
		return two(time.Minute, "min", time.Second, "s")
	case d < 24*time.Hour:
		return two(time.Hour, "h", time.Minute, "min")
	}
	return two(24*time.Hour, "d", time.Hour, "h")
}

func seconds(f float64) time.Duration { return time.Duration(f * float64(time.Second)) }

// size writes bytes in units of 1000, as disks are sold.
func size(n int64) string {
	f, units := float64(n), []string{"B", "kB", "MB", "GB", "TB", "PB"}
	for f >= 999.95 && len(units) > 1 {
		f, units = f/1000, units[1:]
	}
	if units[0] == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[0])
}

// change is what became of a size, in words.
func change(before, after int64) string {
	switch {
	case before <= 0 || after <= 0:
		return ""
	case before == after:
		return "as before"
	case max(before, after)-min(before, after) < before/200:
		return "about as before"
	case after < before:
		return fmt.Sprintf("%.0f %% less", 100*float64(before-after)/float64(before))
	case after < 2*before:
		return fmt.Sprintf("%.0f %% more", 100*float64(after-before)/float64(before))
	}
	return fmt.Sprintf("%.1f times as much", float64(after)/float64(before))
}

// stamp is a moment. All times are UTC, as in the journal.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }

// clock is a moment of a day that is named elsewhere.
func clock(t time.Time) string { return t.UTC().Format("15:04:05") }

// short is an id as people know it.
func short(id string) string {
	if len(id) == 64 && strings.Trim(id, "0123456789abcdef") == "" {
		return id[:12]
	}
	return id
}

// word is an outcome in words.
func (o Outcome) word() string {
	switch o {
	case Running:
		return "under way"
	case Finished:
		return "done"
	case Committed:
		return "done for good"
	case RolledBack:
		return "rolled back"
	case RollingBack:
		return "stopped on the way back"
	case CutOff:
		return "cut off"
	}
	return string(o)
}

// tone is how good or bad an outcome is: good, calm, or bad.
func (o Outcome) tone() string {
	switch o {
	case Finished, Committed:
		return "good"
	case Running, RolledBack:
		return "calm"
	}
	return "bad"
}

// state is what became of a step, in words.
func (s Step) state() string {
	last := End("")
	if n := len(s.Acts); n > 0 {
		last = s.Acts[n-1].End
	}
	switch {
	case last == EndFailed:
		return "failed"
	case last == EndCut:
		return "cut off"
	case last == EndStopped:
		return "stopped"
	case last == EndNot:
		return "under way"
	case s.Outcome != "":
		return s.Outcome
	case s.Mark == "done":
		return "done"
	case s.Mark == "undone":
		return "taken back"
	case s.Mark == "":
		return "not begun"
	}
	return s.Mark
}

// word is what became of a task, in words.
func (t Task) word() string {
	if t.Result == "" {
		return "not over"
	}
	return strings.ReplaceAll(t.Result, "-", " ")
}

// tone is how good or bad that is.
func (t Task) tone() string {
	switch t.Result {
	case "done", "taken-as-done":
		return "good"
	case "failed":
		return "bad"
	}
	return "calm"
}

// took is how long a step was under way, all of its acts together.
func (s Step) took() time.Duration {
	var sum time.Duration
	for _, a := range s.Acts {
		sum += a.Length()
	}
	return sum
}

func (r Result) word() string {
	switch r {
	case Passed:
		return "passed"
	case NotPassed:
		return "failed"
	}
	return "not made"
}

func (c Call) result() string {
	switch {
	case c.Left:
		return "does not apply"
	case !c.OK:
		return "failed"
	case c.Odd:
		return "works, not as Docker"
	}
	return "works"
}

func (k Kind) word() string {
	switch k {
	case Halt:
		return "stopped"
	case Cut:
		return "cut off"
	}
	return string(k)
}

// bad reports whether an event is a failure or a loss, and not a mere note.
func (k Kind) bad() bool { return k == Error || k == Cut || k == Harm }

// title is an image's first name, or its id.
func (i Image) title() string {
	if len(i.Names) > 0 {
		return i.Names[0]
	}
	return short(i.ID)
}

// more is what else it is called.
func (i Image) more() string {
	if len(i.Names) > 1 {
		return "also " + strings.Join(i.Names[1:], ", ")
	}
	return ""
}
