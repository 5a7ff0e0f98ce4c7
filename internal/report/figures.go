package report

import (
	"fmt"
	"time"
)

// figure is a number that is worth a glance.
type figure struct{ Name, Value, Note string }

// figures are the numbers at the head of a report.
func figures(d Data) []figure {
	var fs []figure
	if len(d.Down) > 0 {
		f := figure{Name: "podman stopped for", Value: Length(seconds(d.DownSeconds))}
		if open(d.Down) {
			f.Name, f.Note = "podman stopped since", "and still is"
		} else if n := len(d.Down); n > 1 {
			f.Note = fmt.Sprintf("in %d parts", n)
		}
		fs = append(fs, f)
	}
	if len(d.Away) > 0 {
		f := figure{Name: "node out of service for", Value: Length(seconds(d.AwaySeconds))}
		if open(d.Away) {
			f.Note = "and still is"
		}
		fs = append(fs, f)
	}
	f := figure{Name: "at work for", Value: Length(seconds(d.Worked))}
	if n := len(d.Pauses); n == 1 {
		f.Note = "with a pause"
	} else if n > 1 {
		f.Note = fmt.Sprintf("with %d pauses", n)
	}
	fs = append(fs, f)
	if d.Store == nil {
		return fs
	}
	if s := d.Store; s.Before > 0 && s.After > 0 {
		fs = append(fs, figure{"store", size(s.Before) + " → " + size(s.After), change(s.Before, s.After)})
	} else if s.Before > 0 {
		fs = append(fs, figure{Name: "store", Value: size(s.Before)})
	}
	if n := len(d.Store.Images); n > 0 {
		fs = append(fs, figure{Name: "images", Value: fmt.Sprint(n)})
	}
	return fs
}

func open(spans []Span) bool { return len(spans) > 0 && spans[len(spans)-1].Open }

// when is from when to when the run was, in a line.
func when(d Data) string {
	if d.Began.UTC().Format(time.DateOnly) == d.Ended.UTC().Format(time.DateOnly) {
		return stamp(d.Began) + " to " + clock(d.Ended) + " UTC"
	}
	return stamp(d.Began) + " to " + stamp(d.Ended) + " UTC"
}

// split parts what went wrong from what is only worth knowing.
func split(events []Event) (wrong, notes []Event) {
	for _, e := range events {
		if e.Kind.bad() || e.Kind == Halt || e.Kind == Kept {
			wrong = append(wrong, e)
		} else {
			notes = append(notes, e)
		}
	}
	return wrong, notes
}
