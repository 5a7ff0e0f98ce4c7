package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
)

//go:embed page.html
var page string

// HTML writes the report as one page that needs nothing else: no network, no script.
// Its policy forbids a browser to load or run anything, should a name get past the
// escaping after all.
func HTML(w io.Writer, d Data) error {
	t, err := template.New("report").Funcs(template.FuncMap{
		"size": size, "stamp": stamp, "change": change, "short": short,
		"length": func(s float64) string { return Length(seconds(s)) },
		"legend": legendWord,
		"fold":   func(text string) bool { return len(text) > foldAt || strings.Count(text, "\n") > 2 },
		"first":  first,
	}).Parse(page)
	if err == nil {
		err = t.Execute(w, newView(d))
	}
	if err != nil {
		return fmt.Errorf("cannot write the report: %w", err)
	}
	return nil
}

// foldAt is how many bytes of text stand in the page unfolded. What a hook has
// said may be long.
const foldAt = 400

// first is the beginning of a text that is folded.
func first(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if r := []rune(line); len(r) > 100 {
		line = string(r[:100])
	}
	return line + " …"
}

// view is what the page is written from: everything in words.
type view struct {
	Data
	When, Word, Tone string
	Figures          []figure
	Line             line
	Images           []imageRow
	Checks           []checkRow
	Calls            []callRow
	Wrong, Notes     []eventRow
	Tasks            []taskRow
}

type imageRow struct {
	Title, More string
	Image
	BeforeBar, AfterBar string // of 100
}

type taskRow struct {
	Task
	Word, Mark, Tone, Took string
	MadeWord, MadeTone     string
}

type checkRow struct{ What, Word, Mark, Tone, Text string }

type callRow struct{ Name, What, Saw, Word, Mark, Tone, Took string }

type eventRow struct{ When, Word, Tone, Step, Text string }

func newView(d Data) view {
	v := view{Data: d, When: when(d), Word: d.Outcome.word(), Tone: d.Outcome.tone(), Figures: figures(d), Line: newLine(d)}
	if d.Store != nil {
		v.Images = imageRows(*d.Store)
	}
	for _, t := range d.Tasks {
		r := taskRow{Task: t, Word: t.word(), Tone: t.tone(), Mark: map[string]string{"good": "✓", "bad": "✗"}[t.tone()]}
		if r.Mark == "" {
			r.Mark = "–"
		}
		if t.Seconds > 0 {
			r.Took = Length(seconds(t.Seconds))
		}
		if t.Made != nil {
			r.MadeWord, r.MadeTone = t.Made.Outcome.word(), t.Made.Outcome.tone()
		}
		v.Tasks = append(v.Tasks, r)
	}
	for _, c := range d.Checks {
		mark, tone := marks(c.Result == Passed, c.Result == NotMade)
		v.Checks = append(v.Checks, checkRow{c.What, c.Result.word(), mark, tone, c.Text})
	}
	for _, c := range d.Calls {
		mark, tone := marks(c.OK, c.Left)
		v.Calls = append(v.Calls, callRow{c.Name, c.What, c.Saw, c.result(), mark, tone, Length(seconds(c.Seconds))})
	}
	for i := range v.Figures { // a number and its unit stay together
		v.Figures[i].Value = strings.NewReplacer("→ ", "→ ", " ", "\u00a0").Replace(v.Figures[i].Value)
	}
	wrong, notes := split(d.Events)
	v.Wrong, v.Notes = eventRows(wrong), eventRows(notes)
	return v
}

func marks(ok, not bool) (mark, tone string) {
	switch {
	case not:
		return "–", "calm"
	case ok:
		return "✓", "good"
	}
	return "✗", "bad"
}

func eventRows(events []Event) []eventRow {
	var rows []eventRow
	for _, e := range events {
		r := eventRow{Word: e.Kind.word(), Tone: "calm", Step: e.Step, Text: e.Text}
		if e.Kind.bad() {
			r.Tone = "bad"
		}
		if !e.Time.IsZero() {
			r.When = stamp(e.Time)
		}
		rows = append(rows, r)
	}
	return rows
}

func imageRows(s Store) []imageRow {
	images := s.Images
	if s.Rest != nil {
		images = append(images[:len(images):len(images)], *s.Rest)
	}
	most := int64(1)
	for _, i := range images {
		most = max(most, i.Before, i.After)
	}
	percent := func(n int64) string { return fmt.Sprintf("%.1f", 100*float64(n)/float64(most)) }
	var rows []imageRow
	for _, i := range images {
		rows = append(rows, imageRow{i.title(), i.more(), i, percent(i.Before), percent(i.After)})
	}
	return rows
}
