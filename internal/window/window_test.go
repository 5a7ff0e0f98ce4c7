package window

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func parse(t testing.TB, text string) Window {
	t.Helper()
	w, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func at(t testing.TB, text string) time.Time {
	t.Helper()
	when, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return when
}

// told is spans for a comparison.
func told(spans []Span) string {
	var words []string
	for _, s := range spans {
		words = append(words, s.Opens.Format(time.RFC3339)+" "+s.Closes.Format(time.RFC3339))
	}
	return strings.Join(words, "\n")
}

// TestNext: the occurrences of windows, on the days on which clocks change, too.
func TestNext(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		window, after string
		want          []string
	}{
		"weekend": {"sat,sun 02:00 3h Europe/Berlin", "2026-11-23T00:00:00Z", []string{
			"2026-11-28T02:00:00+01:00 2026-11-28T05:00:00+01:00", "2026-11-29T02:00:00+01:00 2026-11-29T05:00:00+01:00", "2026-12-05T02:00:00+01:00 2026-12-05T05:00:00+01:00"}},
		"one that is open is not next": {"daily 02:00 3h UTC", "2026-11-23T02:00:00Z", []string{
			"2026-11-24T02:00:00Z 2026-11-24T05:00:00Z"}},
		"over midnight": {"fri 23:30 90m UTC", "2026-11-23T00:00:00Z", []string{
			"2026-11-27T23:30:00Z 2026-11-28T01:00:00Z"}},
		"the range goes over the week's end": {"sat..mon 12:00 1h UTC", "2026-11-23T13:00:00Z", []string{
			"2026-11-28T12:00:00Z 2026-11-28T13:00:00Z", "2026-11-29T12:00:00Z 2026-11-29T13:00:00Z", "2026-11-30T12:00:00Z 2026-11-30T13:00:00Z"}},
		"a start that is skipped": {"daily 02:30 1h Europe/Berlin", "2026-03-28T12:00:00Z", []string{
			"2026-03-29T03:00:00+02:00 2026-03-29T04:00:00+02:00", "2026-03-30T02:30:00+02:00 2026-03-30T03:30:00+02:00"}},
		"a start that comes twice": {"daily 02:30 1h Europe/Berlin", "2026-10-24T12:00:00Z", []string{
			"2026-10-25T02:30:00+02:00 2026-10-25T02:30:00+01:00", "2026-10-26T02:30:00+01:00 2026-10-26T03:30:00+01:00"}},
		"open while an hour is skipped": {"sun 01:00 3h Europe/Berlin", "2026-03-28T12:00:00Z", []string{
			"2026-03-29T01:00:00+01:00 2026-03-29T05:00:00+02:00"}},
		"open while an hour comes twice": {"sun 01:00 3h Europe/Berlin", "2026-10-24T12:00:00Z", []string{
			"2026-10-25T01:00:00+02:00 2026-10-25T03:00:00+01:00"}},
		"midnight is skipped": {"sun 00:00 1h America/Santiago", "2026-09-05T12:00:00Z", []string{
			"2026-09-06T01:00:00-03:00 2026-09-06T02:00:00-03:00"}},
		"half an hour is skipped": {"sun 02:15 1h Australia/Lord_Howe", "2026-10-03T00:00:00Z", []string{
			"2026-10-04T02:30:00+11:00 2026-10-04T03:30:00+11:00"}},
		"a day that was skipped": {"fri,sat 00:00 1h Pacific/Apia", "2011-12-29T00:00:00Z", []string{
			"2011-12-31T00:00:00+14:00 2011-12-31T01:00:00+14:00", "2012-01-06T00:00:00+14:00 2012-01-06T01:00:00+14:00"}},
		"blackout": {"daily 02:00 3h UTC except 2026-12-24..2027-01-02,2027-01-04", "2026-12-23T12:00:00Z", []string{
			"2027-01-03T02:00:00Z 2027-01-03T05:00:00Z", "2027-01-05T02:00:00Z 2027-01-05T05:00:00Z"}},
		"blackout of the day after": {"daily 23:00 2h UTC except 2026-12-24", "2026-12-22T00:00:00Z", []string{
			"2026-12-22T23:00:00Z 2026-12-23T01:00:00Z", "2026-12-25T23:00:00Z 2026-12-26T01:00:00Z"}},
		"closing at midnight is not the day after": {"daily 23:00 1h UTC except 2026-12-24", "2026-12-23T00:00:00Z", []string{
			"2026-12-23T23:00:00Z 2026-12-24T00:00:00Z", "2026-12-25T23:00:00Z 2026-12-26T00:00:00Z"}},
	} {
		if got, want := told(parse(t, c.window).Next(at(t, c.after), len(c.want))), strings.Join(c.want, "\n"); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
	}
	if got := parse(t, "daily 02:00 3h UTC except 2020-01-01..2099-01-01").Next(at(t, "2026-11-23T00:00:00Z"), 3); len(got) > 0 {
		t.Errorf("all is blacked out: %v", told(got))
	}
	if got := (Window{}).Next(time.Now(), 1); len(got) > 0 {
		t.Errorf("no window: %v", told(got))
	}
}

// TestAt: the edges of a span.
func TestAt(t *testing.T) {
	t.Parallel()
	w := parse(t, "sat 02:00 3h UTC")
	for when, want := range map[string]bool{
		"2026-11-28T01:59:59Z": false, "2026-11-28T02:00:00Z": true, "2026-11-28T04:59:59Z": true, "2026-11-28T05:00:00Z": false,
		"2026-11-29T03:00:00Z": false,
	} {
		if s, got := w.At(at(t, when)); got != want || got && told([]Span{s}) != "2026-11-28T02:00:00Z 2026-11-28T05:00:00Z" {
			t.Errorf("%s: %v, %v", when, got, s)
		}
	}
	// Where spans overlap, the one that closes last counts.
	w = parse(t, "mon..fri 22:00 48h UTC")
	if s, _ := w.At(at(t, "2026-11-24T23:00:00Z")); told([]Span{s}) != "2026-11-24T22:00:00Z 2026-11-26T22:00:00Z" {
		t.Errorf("%v", s)
	}
	if s, open := w.At(at(t, "2026-11-29T21:59:00Z")); !open || told([]Span{s}) != "2026-11-27T22:00:00Z 2026-11-29T22:00:00Z" {
		t.Errorf("%v, %v", open, s)
	}
}

// zones have rules of many kinds; those of the first change at hours at which
// maintenance is done.
func zones() []string {
	return []string{"Europe/Berlin", "America/New_York", "America/Santiago", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Tehran",
		"Pacific/Apia", "Pacific/Kiritimati", "America/St_Johns", "Asia/Kathmandu", "UTC", "Asia/Gaza", "America/Nuuk", "Antarctica/Troll"}
}

// TestMinuteByMinute compares windows with what somebody sees who looks at a clock
// on the wall every minute for weeks.
func TestMinuteByMinute(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, zone := range zones() {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		for _, change := range changes(loc) {
			begin := change.Add(-4 * 24 * time.Hour).Truncate(time.Minute)
			for range 3 {
				w := some(t, rnd, zone, change.In(loc))
				compare(t, w, loc, begin, begin.Add(8*24*time.Hour))
			}
		}
	}
}

// changes are some moments at which the clocks of a zone are put to another time,
// or one where they never are.
func changes(loc *time.Location) []time.Time {
	list := []time.Time{time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)}
	for at := time.Date(2011, 12, 1, 0, 0, 0, 0, time.UTC); len(list) < 5; {
		_, end := at.In(loc).ZoneBounds()
		if end.IsZero() || end.Year() > 2040 {
			break
		}
		at = end
		if at.Year() == 2011 || at.Year() >= 2026 {
			list = append(list, at)
		}
	}
	return list
}

// some is a window that likely has to do with a change of clocks.
func some(t *testing.T, rnd *rand.Rand, zone string, change time.Time) Window {
	t.Helper()
	start := change.Add(time.Duration(rnd.IntN(300)-150) * time.Minute)
	if rnd.IntN(3) == 0 {
		start = change.Add(time.Duration(rnd.IntN(24*60)) * time.Minute)
	}
	var days []string
	for _, d := range names() {
		if rnd.IntN(3) > 0 {
			days = append(days, d)
		}
	}
	if len(days) == 0 {
		days = []string{"daily"}
	}
	text := fmt.Sprintf("%s %s %dm %s", strings.Join(days, ","), start.Format("15:04"), 1+rnd.IntN(40*60), zone)
	if rnd.IntN(2) == 0 {
		day := change.AddDate(0, 0, rnd.IntN(5)-2)
		text += " except " + day.Format(time.DateOnly)
		if rnd.IntN(2) == 0 {
			text += ".." + day.AddDate(0, 0, rnd.IntN(3)).Format(time.DateOnly)
		}
	}
	return parse(t, text)
}

// compare walks through every minute from begin to end.
func compare(t *testing.T, w Window, loc *time.Location, begin, end time.Time) {
	t.Helper()
	wall := func(t time.Time) time.Time { // what the clock shows, as if it was UTC
		l := t.In(loc)
		return time.Date(l.Year(), l.Month(), l.Day(), l.Hour(), l.Minute(), 0, 0, time.UTC)
	}
	black := func(from, to time.Time) bool {
		for ; from.Before(to); from = from.Add(time.Minute) {
			d := dateOf(from.In(loc))
			if slices.ContainsFunc(w.blackout, func(b dates) bool { return b.first.compare(d) <= 0 && d.compare(b.last) <= 0 }) {
				return true
			}
		}
		return false
	}
	var spans []Span
	// Whoever opens by the end of the walk may have opened days before it began.
	for now, shown := begin.Add(-3*24*time.Hour), wall(begin.Add(-3*24*time.Hour-time.Minute)); now.Before(end); now = now.Add(time.Minute) {
		for seen := wall(now); shown.Before(seen); { // what comes twice is not looked at twice
			shown = shown.Add(time.Minute)
			if shown.Hour()*60+shown.Minute() != w.start || !w.days[shown.Weekday()] || black(now, now.Add(w.length)) {
				continue
			}
			if k := len(spans); k == 0 || !spans[k-1].Opens.Equal(now) {
				spans = append(spans, Span{now, now.Add(w.length)})
			}
		}
	}
	var next []Span
	for now := begin; now.Before(end); now = now.Add(time.Minute) {
		var want Span
		for _, s := range spans {
			if !s.Opens.After(now) && now.Before(s.Closes) {
				want = s
			}
		}
		got, open := w.At(now)
		if open == want.Opens.IsZero() || open && (!got.Opens.Equal(want.Opens) || !got.Closes.Equal(want.Closes)) {
			t.Fatalf("%s at %s: %v %v, want %v", w, now, open, got, want)
		}
	}
	for _, s := range spans {
		if s.Opens.After(begin) {
			next = append(next, s)
		}
	}
	for i, s := range w.Next(begin, len(next)) {
		if !s.Opens.Equal(next[i].Opens) || !s.Closes.Equal(next[i].Closes) {
			t.Fatalf("%s after %s: %v, want %v", w, begin, s, next[i])
		}
	}
}

// TestHostZone: a window without a zone goes by the host's clock.
func TestHostZone(t *testing.T) {
	t.Parallel()
	s := parse(t, "daily 02:00 3h").Next(time.Now(), 1)
	if len(s) != 1 || s[0].Opens.Location() != time.Local || s[0].Opens.Hour() < 2 {
		t.Errorf("%v", s)
	}
}
