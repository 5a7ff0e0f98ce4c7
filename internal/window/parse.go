package window

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
)

// Table is a window as a TOML file tells it.
type Table struct {
	Days     []string `toml:"days"`               // "daily", "sat", "mon..fri"
	Start    string   `toml:"start"`              // "02:00"
	Length   string   `toml:"length"`             // "3h", "90m"
	Zone     string   `toml:"zone,omitempty"`     // "Europe/Berlin"; "": the host's
	Blackout []string `toml:"blackout,omitempty"` // "2026-12-24", "2026-12-24..2027-01-02", both ends included
}

// longest is how long a window can be: it comes once a week at least.
const longest = 7 * 24 * time.Hour

const dayHint = "it is daily, mon, tue, wed, thu, fri, sat, sun, or a range such as mon..fri"

// except stands before the blackout dates of the one-line form.
const except = "except"

// Parse reads the one-line form: days, start, length, and then, if need be, a zone and
// blackout dates:
//
//	sat,sun 02:00 3h
//	mon..fri 22:30 90m Europe/Berlin
//	daily 02:00 3h Europe/Berlin except 2026-12-24..2027-01-02,2027-05-01
func Parse(text string) (Window, error) {
	f := strings.Fields(text)
	var t Table
	if i := slices.Index(f, except); i >= 0 {
		if len(f) != i+2 {
			return Window{}, fmt.Errorf("window %q has no list of dates after %q: such as %s 2026-12-24..2027-01-02,2027-05-01", text, except, except)
		}
		t.Blackout, f = strings.Split(f[i+1], ","), f[:i]
	}
	if len(f) < 3 || len(f) > 4 {
		return Window{}, fmt.Errorf("window %q is not made of days, start, length and perhaps a zone: such as sat,sun 02:00 3h Europe/Berlin", text)
	}
	t.Days, t.Start, t.Length = strings.Split(f[0], ","), f[1], f[2]
	if len(f) == 4 {
		t.Zone = f[3]
	}
	return t.Window()
}

// KeyError says which key of a [Table] is wrong, and what it can be.
type KeyError struct{ Key, Text, Hint string }

func (e *KeyError) Error() string { return e.Text + ": " + e.Hint }

// wrong is an error about a key: it is missing, or cannot be what it is.
func wrong(key, text, hint string) error {
	e := &KeyError{Key: key, Text: fmt.Sprintf("the %s of a window cannot be %q", key, text), Hint: hint}
	if text == "" {
		e.Text = fmt.Sprintf("a window has no %s", key)
	}
	return e
}

// Window reads what a file tells. An error is a [*KeyError].
func (t Table) Window() (Window, error) {
	var w Window
	var err error
	if len(t.Days) == 0 {
		return w, wrong("days", "", dayHint)
	}
	for _, d := range t.Days {
		if err := w.addDays(d); err != nil {
			return Window{}, err
		}
	}
	if w.start, err = startOf(t.Start); err != nil {
		return Window{}, err
	}
	w.length, err = time.ParseDuration(t.Length)
	if err != nil || w.length < time.Minute || w.length > longest || w.length%time.Second != 0 {
		return Window{}, wrong("length", t.Length, "it is a length of time such as 3h or 90m, from a minute to seven days (168h)")
	}
	if t.Zone != "" {
		w.zone, err = time.LoadLocation(t.Zone)
		if err != nil || t.Zone == "Local" {
			return Window{}, wrong("zone", t.Zone, "it is a name of IANA's such as Europe/Berlin, or UTC")
		}
	}
	for _, b := range t.Blackout {
		d, err := datesOf(b)
		if err != nil {
			return Window{}, err
		}
		w.blackout = append(w.blackout, d)
	}
	return w, nil
}

// names are the days by time.Weekday.
func names() []string { return []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} }

func (w *Window) addDays(text string) error {
	if text == "daily" {
		w.days = [7]bool{true, true, true, true, true, true, true}
		return nil
	}
	from, to, ranged := strings.Cut(text, "..")
	if !ranged {
		to = from
	}
	first, last := slices.Index(names(), from), slices.Index(names(), to)
	if first < 0 || last < 0 {
		return &KeyError{Key: "days", Text: fmt.Sprintf("%q is no day of a window", text), Hint: dayHint}
	}
	for d := first; ; d = (d + 1) % 7 {
		w.days[d] = true
		if d == last {
			return nil
		}
	}
}

func startOf(text string) (int, error) {
	t, err := time.Parse("15:04", text)
	if err != nil || len(text) != len("15:04") {
		return 0, wrong("start", text, "it is a time of the day, HH:MM, such as 02:00")
	}
	return t.Hour()*60 + t.Minute(), nil
}

func datesOf(text string) (dates, error) {
	from, to, ranged := strings.Cut(text, "..")
	if !ranged {
		to = from
	}
	first, err := time.Parse(time.DateOnly, from)
	last, err2 := time.Parse(time.DateOnly, to)
	if err != nil || err2 != nil || last.Before(first) {
		return dates{}, &KeyError{Key: "blackout", Text: fmt.Sprintf("%q is no blackout date", text), Hint: "it is a day such as 2026-12-24, or days such as 2026-12-24..2027-01-02, the first one first"}
	}
	return dates{dateOf(first), dateOf(last)}, nil
}

// String is the window in its one-line form, which [Parse] reads.
func (w Window) String() string {
	words := []string{w.dayList("daily", ",", strings.ToLower), fmt.Sprintf("%02d:%02d", w.start/60, w.start%60), brief.Time(w.length)}
	if w.zone != nil {
		words = append(words, w.zone.String())
	}
	if len(w.blackout) > 0 {
		list := make([]string, len(w.blackout))
		for i, b := range w.blackout {
			list[i] = b.String()
		}
		words = append(words, except, strings.Join(list, ","))
	}
	return strings.Join(words, " ")
}

// OnCalendar gives the lines of a systemd timer (OnCalendar=) that elapses so long ahead
// of each opening of the window, whole minutes of it, and on the blackout dates, too:
// systemd has no word for these. Days on which clocks change in between, or skip the start
// (such a day systemd leaves out: seen with 252), have a line of their own each, in the
// next ten years; on these it may also elapse at the usual hour.
func (w Window) OnCalendar(from time.Time, ahead time.Duration) []string {
	title := func(day string) string { return strings.ToUpper(day[:1]) + day[1:] }
	zone := ""
	if w.zone != nil {
		zone = " " + w.zone.String()
	}
	early := w
	for early.start -= int(ahead / time.Minute); early.start < 0; early.start += 24 * 60 { // the day before
		early.days = [7]bool(append(early.days[1:7:7], early.days[0]))
	}
	line := fmt.Sprintf("*-*-* %02d:%02d:00%s", early.start/60, early.start%60, zone)
	if days := early.dayList("", ",", title); days != "" {
		line = days + " " + line
	}
	lines := []string{line}
	day := w.noon(from)
	for range horizon {
		if s, ok := w.on(day); ok {
			at := s.Opens.Add(-ahead)
			if at.After(from) && at.Hour()*60+at.Minute() != early.start {
				lines = append(lines, at.Format(time.DateTime)+zone)
			}
		}
		day = day.AddDate(0, 0, 1)
	}
	return lines
}

// dayList tells the days from Monday on; every is the word for all of them.
func (w Window) dayList(every, sep string, spell func(string) string) string {
	var list []string
	for i := range 7 {
		if d := (i + 1) % 7; w.days[d] {
			list = append(list, spell(names()[d]))
		}
	}
	if len(list) == 7 {
		return every
	}
	return strings.Join(list, sep)
}

func (d dates) String() string {
	if d.first == d.last {
		return d.first.String()
	}
	return d.first.String() + ".." + d.last.String()
}

func (d date) String() string { return fmt.Sprintf("%04d-%02d-%02d", d.year, d.month, d.day) }

// MarshalText gives the one-line form.
func (w Window) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText reads the one-line form.
func (w *Window) UnmarshalText(text []byte) (err error) {
	*w, err = Parse(string(text))
	return err
}
