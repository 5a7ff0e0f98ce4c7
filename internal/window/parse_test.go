package window

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestParse: what is read is told again in its shortest form.
func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"sat,sun 02:00 3h Europe/Berlin":   "sat,sun 02:00 3h Europe/Berlin",
		"  mon..fri   22:30 90m ":          "mon,tue,wed,thu,fri 22:30 1h30m",
		"sun,sat 00:00 1h0m30s UTC":        "sat,sun 00:00 1h30s UTC",
		"fri..mon 23:59 168h":              "mon,fri,sat,sun 23:59 168h",
		"mon..sun 02:00 60s":               "daily 02:00 1m",
		"daily,sat 02:00 20m":              "daily 02:00 20m",
		"daily 02:00 3h except 2026-12-24": "daily 02:00 3h except 2026-12-24",
		"daily 02:00 3h except 2028-02-29..2028-02-29,2026-12-24..2027-01-02": "daily 02:00 3h except 2028-02-29,2026-12-24..2027-01-02",
	} {
		w, err := Parse(text)
		if err != nil || w.String() != want {
			t.Errorf("%q: %q, %v", text, w, err)
		}
	}
}

// TestParseRefuses: what is wrong is named.
func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                   "is not made of days",
		"sat 02:00":                          "is not made of days",
		"sat 02:00 3h UTC UTC":               "is not made of days",
		"saturday 02:00 3h":                  `"saturday" is no day`,
		"Sat 02:00 3h":                       `"Sat" is no day`,
		"sat, 02:00 3h":                      `"" is no day`,
		"sat..daily 02:00 3h":                `"sat..daily" is no day`,
		"sat..sun..mon 02:00 3h":             `"sat..sun..mon" is no day`,
		"sat 2:00 3h":                        `start of a window cannot be "2:00"`,
		"sat 24:00 3h":                       `start of a window cannot be "24:00"`,
		"sat 02:60 3h":                       `start of a window cannot be "02:60"`,
		"sat 02:00:00 3h":                    `start of a window cannot be "02:00:00"`,
		"sat 02:00 3":                        `cannot be "3"`,
		"sat 02:00 -3h":                      `cannot be "-3h"`,
		"sat 02:00 0":                        `cannot be "0"`,
		"sat 02:00 59s":                      `cannot be "59s"`,
		"sat 02:00 90.5s":                    `cannot be "90.5s"`,
		"sat 02:00 168h1s":                   `cannot be "168h1s"`,
		"sat 02:00 3h Berlin":                `zone of a window cannot be "Berlin"`,
		"sat 02:00 3h Local":                 `zone of a window cannot be "Local"`,
		"sat 02:00 3h ../../etc/passwd":      "name of IANA",
		"sat 02:00 3h except":                "no list of dates",
		"sat 02:00 3h except 2026-12-24 UTC": "no list of dates",
		"sat 02:00 3h except 2026-02-29":     "no blackout date",
		"sat 02:00 3h except 2026-12-24..":   "no blackout date",
		"sat 02:00 3h except 2026-12-24..2026-12-23": "no blackout date",
		"except 2026-12-24":                          "is not made of days",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := (Table{Start: "02:00", Length: "3h"}).Window(); err == nil || !strings.Contains(err.Error(), "no days") {
		t.Errorf("no days: %v", err)
	}
	var bad *KeyError
	if _, err := (Table{Days: []string{"sat"}, Length: "3h"}).Window(); !errors.As(err, &bad) || bad.Key != "start" || bad.Text != "a window has no start" || !strings.Contains(bad.Hint, "02:00") {
		t.Errorf("no start: %v", err)
	}
}

// TestTable: a file's keys and the line are two ways to say the same.
func TestTable(t *testing.T) {
	t.Parallel()
	got, err := Table{Days: []string{"sat", "sun"}, Start: "02:00", Length: "3h", Zone: "Europe/Berlin", Blackout: []string{"2026-12-24..2027-01-02"}}.Window()
	want := parse(t, "sat,sun 02:00 3h Europe/Berlin except 2026-12-24..2027-01-02")
	if err != nil || got.String() != want.String() {
		t.Errorf("%s, %v", got, err)
	}
}

// TestJSON: a window stands in a journal as its line.
func TestJSON(t *testing.T) {
	t.Parallel()
	type request struct {
		Window *Window `json:"window,omitempty"`
	}
	w := parse(t, "sat 02:00 3h UTC")
	b, err := json.Marshal(request{&w})
	if err != nil || string(b) != `{"window":"sat 02:00 3h UTC"}` {
		t.Errorf("%s, %v", b, err)
	}
	var back request
	if err := json.Unmarshal(b, &back); err != nil || back.Window.String() != w.String() {
		t.Errorf("%v, %v", back.Window, err)
	}
	if b, err := json.Marshal(request{}); err != nil || string(b) != "{}" {
		t.Errorf("%s, %v", b, err)
	}
}

// TestOnCalendar: what a timer of systemd's is told.
func TestOnCalendar(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"daily 02:00 3h": "*-*-* 02:00:00",
		"sat,sun 04:05 3h Europe/Berlin except 2026-12-24": "Sat,Sun *-*-* 04:05:00 Europe/Berlin",
		"mon..fri 22:30 1h UTC":                            "Mon,Tue,Wed,Thu,Fri *-*-* 22:30:00 UTC",
	} {
		if got := parse(t, text).OnCalendar(at(t, "2026-11-23T00:00:00Z"), 0); !reflect.DeepEqual(got, []string{want}) {
			t.Errorf("%s: %q", text, got)
		}
	}
}

// TestOnCalendarSkipped: a day on which the clocks skip the start has its own line.
func TestOnCalendarSkipped(t *testing.T) {
	t.Parallel()
	got := parse(t, "daily 02:30 1h Europe/Berlin except 2028-03-26").OnCalendar(at(t, "2027-03-28T01:00:00Z"), 0)
	want := []string{"*-*-* 02:30:00 Europe/Berlin", "2029-03-25 03:00:00 Europe/Berlin"} // not 2027, which is over
	if len(got) != 10 || !reflect.DeepEqual(got[:2], want) {
		t.Errorf("%q", got)
	}
	if got := parse(t, "mon..fri 02:30 1h Europe/Berlin").OnCalendar(at(t, "2027-03-28T01:00:00Z"), 0); len(got) != 1 {
		t.Errorf("the clocks change on Sundays: %q", got)
	}
}

// TestOnCalendarAhead: a timer that elapses before the window opens, perhaps on the day
// before; where clocks change in between, by the time that passes.
func TestOnCalendarAhead(t *testing.T) {
	t.Parallel()
	from := at(t, "2026-11-23T00:00:00Z")
	for text, want := range map[string][]string{
		"daily 02:00 3h":        {"*-*-* 00:00:00"},
		"sun,mon 01:30 3h UTC":  {"Sat,Sun *-*-* 23:30:00 UTC"},
		"mon..fri 22:30 1h UTC": {"Mon,Tue,Wed,Thu,Fri *-*-* 20:30:00 UTC"},
		// In spring two hours before 03:30 is 00:30, and in autumn it is 02:30 once more.
		"sun 03:30 1h Europe/Berlin except 2028-01-01..2036-12-31": {"Sun *-*-* 01:30:00 Europe/Berlin",
			"2027-03-28 00:30:00 Europe/Berlin", "2027-10-31 02:30:00 Europe/Berlin"},
	} {
		if got := parse(t, text).OnCalendar(from, 2*time.Hour); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q", text, got)
		}
	}
	if got := parse(t, "mon 00:00 1h UTC").OnCalendar(from, 24*time.Hour); !reflect.DeepEqual(got, []string{"Sun *-*-* 00:00:00 UTC"}) {
		t.Errorf("a day ahead: %q", got)
	}
}

// FuzzParse: no text makes it panic, and what it takes it tells again, to the same
// spans.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"sat,sun 02:00 3h Europe/Berlin", "mon..fri 22:30 90m", "daily 02:30 168h UTC except 2026-12-24..2027-01-02,2027-05-01",
		"sat 02:00", "daily 00:00 1m America/Santiago", "daily 02:00 3h except 0000-01-01..9999-12-31"} {
		f.Add(seed)
	}
	now := time.Date(2026, 10, 24, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		w, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(w.String())
		if err != nil || again.String() != w.String() || told(again.Next(now, 3)) != told(w.Next(now, 3)) {
			t.Fatalf("%q is told as %q: %v", text, w, err)
		}
		for _, s := range w.Next(now, 3) {
			if in, open := w.At(s.Opens); !open || !in.Opens.Equal(s.Opens) || s.Length() != w.Length() {
				t.Fatalf("%q: %v opens, and is not open: %v", text, s, in)
			}
		}
	})
}
