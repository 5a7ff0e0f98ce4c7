package report

import (
	"fmt"
	"io"
	"strings"
)

// Markdown writes the report as text that reads well as it is, and as GitHub and
// others show it.
func Markdown(w io.Writer, d Data) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n", plain(d.Headline))
	fmt.Fprintf(&b, "storagectl %s, run %s: **%s**, %s", plain(d.Job), plain(d.Run), plain(d.Outcome.word()), when(d))
	if d.Host != "" {
		fmt.Fprintf(&b, ", on %s", plain(d.Host))
	}
	b.WriteString("\n\n")
	for _, f := range figures(d) {
		fmt.Fprintf(&b, "- %s %s%s\n", f.Name, plain(f.Value), optional(", %s", f.Note))
	}
	b.WriteString("\n")
	for _, s := range d.Words {
		fmt.Fprintf(&b, "%s\n\n", plain(s))
	}
	wrong, notes := split(d.Events)
	mdEvents(&b, "What went wrong", wrong)
	if len(d.Next) > 0 {
		b.WriteString("## How to go on\n\n")
		for _, c := range d.Next {
			fmt.Fprintf(&b, "- %s%s\n", code(c.Line), optional(": %s", plain(c.What)))
		}
		b.WriteString("\n")
	}
	mdTasks(&b, d.Tasks)
	mdSteps(&b, d)
	if d.Store != nil {
		mdStore(&b, *d.Store)
	}
	mdChecks(&b, d)
	if len(d.Containers) > 0 {
		b.WriteString("## Containers\n\n| container | image | what became of it |\n| --- | --- | --- |\n")
		for _, c := range d.Containers {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", plain(c.Name), plain(c.Image), plain(c.Became))
		}
		b.WriteString("\n")
	}
	mdEvents(&b, "Worth knowing", notes)
	if len(d.Groups) > 0 {
		b.WriteString("## Facts\n\n")
	}
	for _, g := range d.Groups {
		fmt.Fprintf(&b, "### %s\n\n", plain(g.Title))
		for _, f := range g.Facts {
			fmt.Fprintf(&b, "- %s: %s\n", plain(f.Name), plain(f.Value))
		}
		b.WriteString("\n")
	}
	if len(d.Missing) > 0 {
		b.WriteString("## What this report cannot tell\n\n")
		for _, m := range d.Missing {
			fmt.Fprintf(&b, "- %s\n", plain(m))
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "Written %s UTC from the run's journal. All times are UTC.\n", stamp(d.Made))
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("cannot write the report: %w", err)
	}
	return nil
}

func mdTasks(b *strings.Builder, tasks []Task) {
	if len(tasks) == 0 {
		return
	}
	b.WriteString("## Tasks\n\n")
	for _, t := range tasks {
		fmt.Fprintf(b, "- **%s**: %s%s%s\n  %s\n", plain(t.ID), plain(t.word()), optional(", %s", plain(t.Text)), optional(", run %s", plain(t.Run)), code(t.Line))
	}
	b.WriteString("\n")
	for _, t := range tasks {
		if t.Made == nil {
			continue
		}
		fmt.Fprintf(b, "### Run %s, of task %s\n\n%s: **%s**\n\n", plain(t.Made.Run), plain(t.ID), plain(t.Made.Headline), plain(t.Made.Outcome.word()))
		for _, w := range t.Made.Words {
			fmt.Fprintf(b, "%s\n\n", plain(w))
		}
		fmt.Fprintf(b, "- %s tells all of it\n\n", code(t.Made.More))
	}
}

func mdSteps(b *strings.Builder, d Data) {
	b.WriteString("## Steps in time\n\n| step | | began | took |\n| --- | --- | --- | ---: |\n")
	for _, s := range d.Steps {
		began, took := "", ""
		if len(s.Acts) > 0 {
			began, took = stamp(s.Acts[0].From), Length(s.took())
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", plain(s.Title), plain(s.state()), began, took)
	}
	b.WriteString("\n")
	for _, s := range []struct {
		what  string
		spans []Span
	}{{"podman was stopped", d.Down}, {"the node was out of service", d.Away}} {
		for _, sp := range s.spans {
			fmt.Fprintf(b, "- %s from %s for %s%s\n", s.what, stamp(sp.From), Length(sp.Length()), map[bool]string{true: ", and still is"}[sp.Open])
		}
	}
	for _, p := range d.Pauses {
		fmt.Fprintf(b, "- pause of %s from %s: %s\n", Length(p.Length()), stamp(p.From), plain(p.Why))
	}
	if len(d.Down)+len(d.Away)+len(d.Pauses) > 0 {
		b.WriteString("\n")
	}
}

func mdStore(b *strings.Builder, s Store) {
	name := func(what, otherwise string) string {
		if what == "" {
			return otherwise
		}
		return "on " + plain(what)
	}
	bytes := func(n int64) string {
		if n == 0 {
			return "–"
		}
		return size(n)
	}
	fmt.Fprintf(b, "## Store\n\n%s\n\n", plain(s.How))
	two := s.Before > 0 && s.After > 0
	row := func(what string, before, after int64) {
		fmt.Fprintf(b, "| %s | %s |", what, bytes(before))
		if two {
			fmt.Fprintf(b, " %s |", bytes(after))
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(b, "| image, with all its layers | %s |", name(s.Was, "before"))
	if two {
		fmt.Fprintf(b, " %s |\n| --- | ---: | ---: |\n", name(s.Is, "after"))
	} else {
		b.WriteString("\n| --- | ---: |\n")
	}
	for _, i := range s.Images {
		row(plain(i.title())+optional(" (%s)", plain(i.more())), i.Before, i.After)
	}
	if s.Rest != nil {
		row(plain(s.Rest.title()), s.Rest.Before, s.Rest.After)
	}
	if s.Before > 0 {
		row("**all, each layer once**"+optional(" (%s)", change(s.Before, s.After)), s.Before, s.After)
	}
	b.WriteString("\n")
}

func mdChecks(b *strings.Builder, d Data) {
	if len(d.Checks) > 0 {
		b.WriteString("## What was verified\n\n| | | |\n| --- | --- | --- |\n")
		for _, c := range d.Checks {
			fmt.Fprintf(b, "| %s | %s | %s |\n", plain(c.What), c.Result.word(), plain(c.Text))
		}
		b.WriteString("\n")
	}
	if len(d.Calls) > 0 {
		b.WriteString("### The calls of a Docker client\n\n| call | | | saw | took |\n| --- | --- | --- | --- | ---: |\n")
		for _, c := range d.Calls {
			fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", plain(c.Name), plain(c.What), c.result(), plain(c.Saw), Length(seconds(c.Seconds)))
		}
		b.WriteString("\n")
	}
}

func mdEvents(b *strings.Builder, title string, events []Event) {
	if len(events) == 0 {
		return
	}
	fmt.Fprintf(b, "## %s\n\n", title)
	for _, e := range events {
		head := plain(e.Kind.word())
		if !e.Time.IsZero() {
			head += " " + stamp(e.Time)
		}
		text := strings.TrimRight(e.Text, "\n")
		if !strings.Contains(text, "\n") {
			fmt.Fprintf(b, "- %s%s: %s\n", head, optional(", %s", plain(e.Step)), plain(text))
			continue
		}
		// A fence that the text itself cannot close.
		fence := "```"
		for strings.Contains(text, fence) {
			fence += "`"
		}
		fmt.Fprintf(b, "- %s%s:\n\n  %s\n  %s\n  %s\n\n", head, optional(", %s", plain(e.Step)), fence, strings.ReplaceAll(text, "\n", "\n  "), fence)
	}
	b.WriteString("\n")
}

// optional is text in a format, or nothing.
func optional(format, text string) string {
	if text == "" {
		return ""
	}
	return fmt.Sprintf(format, text)
}

// plain is text in one line of which nothing is markup, of Markdown or of HTML.
func plain(text string) string {
	var b strings.Builder
	for _, r := range strings.TrimSpace(text) {
		switch {
		case r == '&':
			b.WriteString("&amp;")
		case r == '<':
			b.WriteString("&lt;")
		case r == '>':
			b.WriteString("&gt;")
		case r == '\n', r == '\r', r == '\t':
			b.WriteByte(' ')
		case strings.ContainsRune("\\`*_[]~|#", r):
			b.WriteByte('\\')
			b.WriteRune(r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// code is a text of one line as it is typed.
func code(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	fence := "`"
	for strings.Contains(text, fence) {
		fence += "`"
	}
	if len(fence) > 1 || text == "" {
		return fence + " " + text + " " + fence
	}
	return fence + text + fence
}
