package main

import (
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// narrowest is the least width that text is wrapped for: below it, the indents
// alone would fill the line.
const narrowest = 30

// columns is how wide the terminal behind w is now, 0 where there is none.
func columns(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// wrap breaks the lines of text between words so that none is wider than width,
// and indents what follows to where the line's own text begins. A word that is
// too long stays whole, so that a path can be copied, and so does a command that
// mends: it is pasted as one line. Width 0 is a pipe: nothing is broken there.
func wrap(text string, width int) string {
	if width < narrowest {
		return text
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		body := strings.TrimSuffix(line, "\n")
		wrapLine(&b, body, width)
		b.WriteString(line[len(body):])
	}
	return b.String()
}

func wrapLine(b *strings.Builder, line string, width int) {
	if utf8.RuneCountInString(line) <= width || strings.HasPrefix(strings.TrimLeft(line, " "), "mend  ") {
		b.WriteString(line)
		return
	}
	at := hang(line)
	b.WriteString(line[:at])
	indent := utf8.RuneCountInString(line[:at])
	if indent > width/2 { // a label as long as that leaves no room beside it
		indent = 4
	}
	used, first := utf8.RuneCountInString(line[:at]), true
	for word := range strings.FieldsSeq(line[at:]) {
		n := utf8.RuneCountInString(word)
		switch {
		case first:
		case used+1+n > width:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			used = indent
		default:
			b.WriteByte(' ')
			used++
		}
		b.WriteString(word)
		used, first = used+n, false
	}
}

// hang is where the text of a line begins, in bytes: after the indent, the
// number of a step, and a label that a colon or two spaces end, or two such, as an
// outcome and a check.
func hang(line string) int {
	at := 0
	skip := func(set string) { at += len(line[at:]) - len(strings.TrimLeft(line[at:], set)) }
	skip(" ↓")
	if utf8.RuneCountInString(line[:at]) < 5 && strings.IndexAny(line[at:], "0123456789") == 0 { // deeper in it is no step's
		skip("0123456789/")
		skip(" ")
	}
	word, _, _ := strings.Cut(line[at:], " ")
	if word == "note:" || word == "error:" || word == "hint:" {
		return at + len(word) + 1
	}
	for range 2 {
		word, _, _ := strings.Cut(line[at:], " ")
		if !strings.HasPrefix(line[at+len(word):], "  ") {
			break
		}
		at += len(word)
		skip(" ")
	}
	return at
}
