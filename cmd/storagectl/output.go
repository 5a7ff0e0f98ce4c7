package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/storagectl/storagectl/migrate"
)

// lineEvery is how often a step tells how far it is where nobody looks at a
// terminal: often enough not to seem hung, seldom enough for a log.
const lineEvery = 10 * time.Second

// output writes results to stdout and everything else to stderr: bars on a
// terminal, calm lines on a pipe, JSON lines where asked for.
type output struct {
	mu       sync.Mutex
	out, err io.Writer
	json     bool
	quiet    bool
	tty      bool   // err is a terminal that can redraw a line
	stateDir string // of [paste]
	logged   bool   // err is systemd's journal, which is told of steps with their fields

	// How wide the terminals behind out and err are now; 0: no terminal.
	outWidth, errWidth func() int

	bars    *mpb.Progress
	bar     *mpb.Bar
	open    bool   // the terminal's line says what is being done, without an end
	line    string // that line
	phase   string
	began   time.Time
	lastLog time.Time
	heard   time.Time // when there was progress last
	doing   string    // the step under way
	// When the task of a runbook began that is under way.
	taskBegan time.Time
	endBeat   context.CancelFunc
}

func newOutput(a *app) *output {
	o := &output{out: a.stdout, err: a.stderr, json: a.json, quiet: a.quiet, endBeat: func() {}, stateDir: a.givenDir,
		outWidth: func() int { return columns(a.stdout) }, errWidth: func() int { return columns(a.stderr) }}
	if !o.json {
		o.out = printable{a.stdout}
	}
	if f, ok := a.stderr.(*os.File); ok {
		o.tty = term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
	}
	return o
}

// message writes one JSON line: the fields of v after message_type and time.
func (o *output) message(kind string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		b = []byte(`{}`)
	}
	head := fmt.Sprintf(`{"message_type":%q,"time":%q`, kind, time.Now().UTC().Format(time.RFC3339Nano))
	rest := strings.TrimPrefix(string(b), "{")
	if rest != "}" {
		head += ","
	}
	fmt.Fprintln(o.out, head+cleanJSON(rest))
}

// progress tells how far a step is.
func (o *output) progress(p migrate.Progress) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.heard = time.Now()
	switch {
	case o.json:
		if time.Since(o.lastLog) >= time.Second || o.phase != p.Phase {
			o.lastLog, o.phase = time.Now(), p.Phase
			o.message("progress", p)
		}
	case o.quiet:
	case o.tty:
		o.draw(p)
	default:
		if time.Since(o.lastLog) < lineEvery {
			return
		}
		o.lastLog = time.Now()
		fmt.Fprintf(o.err, "      %s: %s\n", p.Phase, oneLine(amount(p)))
	}
}

// amount is how far a step is, as far as that is known.
func amount(p migrate.Progress) string {
	count := func(n int64) string {
		if p.Unit == "bytes" {
			return migrate.Bytes(n)
		}
		return migrate.Count(n, strings.TrimSuffix(p.Unit, "s"), p.Unit)
	}
	var words []string
	switch {
	case p.Total > 0 && p.Unit == "bytes":
		words = append(words, fmt.Sprintf("%d %%", 100*p.Done/p.Total), fmt.Sprintf("%s of %s", count(p.Done), count(p.Total)))
	case p.Total > 0:
		words = append(words, fmt.Sprintf("%d %%", 100*p.Done/p.Total), fmt.Sprintf("%d of %s", p.Done, count(p.Total)))
	case p.Done > 0:
		words = append(words, count(p.Done))
	}
	if p.Note != "" {
		words = append(words, p.Note)
	}
	return strings.Join(words, ", ")
}

func (o *output) draw(p migrate.Progress) {
	if p.Total == 0 { // no bar without an end
		o.endBar()
		o.phase = p.Phase
		o.redraw(strings.TrimSuffix(p.Phase+", "+oneLine(amount(p)), ", "))
		return
	}
	if o.bar == nil || o.phase != p.Phase {
		o.endBar()
		o.phase = p.Phase
		if o.open { // the bar has the lines below
			fmt.Fprintln(o.err)
			o.open = false
		}
		o.bars = mpb.New(mpb.WithOutput(o.err), mpb.WithWidth(64), mpb.WithRefreshRate(150*time.Millisecond))
		counters, speed := decor.CountersNoUnit("%d / %d "+p.Unit), decor.AverageSpeed(0, " %.0f/s")
		if p.Unit == "bytes" {
			counters, speed = decor.CountersKiloByte("% .1f / % .1f"), decor.AverageSpeed(decor.SizeB1000(0), " % .1f")
		}
		o.bar = o.bars.AddBar(p.Total,
			mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name("      "+p.Phase+" ")),
			mpb.AppendDecorators(counters, speed, decor.Name(" "), decor.AverageETA(decor.ET_STYLE_GO)))
	}
	o.bar.SetTotal(p.Total, false)
	o.bar.SetCurrent(p.Done)
}

// clearLine makes room for a line that says more than the one left open.
func (o *output) clearLine() {
	if o.open {
		fmt.Fprint(o.err, "\r\x1b[K")
		o.open = false
	}
}

func (o *output) endBar() {
	if o.bar != nil {
		o.bar.Abort(true)
		o.bars.Wait()
		o.bar, o.bars = nil, nil
	}
}

func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.endStep()
}

// note tells something worth knowing.
func (o *output) note(text string) {
	text = paste(text, o.stateDir)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.json {
		o.message("note", struct {
			Text string `json:"text"`
		}{text})
		return
	}
	if !o.quiet {
		o.clearLine()
		fmt.Fprint(o.err, wrap("note: "+quoted(text)+"\n", o.errWidth()))
	}
}

// after tells something when the result was told already. As a message it would be
// taken for the end: there it is left out.
func (o *output) after(text string) {
	if !o.json {
		o.note(text)
	}
}

// fail tells an error and what can be done about it; policy is lines that go
// with the hint, to be copied.
func (o *output) fail(text, hint string, code int, id, policy string) {
	text, hint = paste(text, o.stateDir), paste(hint, o.stateDir)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.endStep()
	if o.json {
		o.message("error", struct {
			Error string `json:"error"`
			Hint  string `json:"hint,omitempty"`
			Code  int    `json:"code"`
			ID    string `json:"id,omitempty"` // of a refusal

			Policy string `json:"policy,omitempty"` // for Nomad, as HCL
		}{text, hint, code, id, policy})
		return
	}
	o.clearLine()
	fmt.Fprint(o.err, wrap("error: "+quoted(text)+"\n", o.errWidth()))
	if hint != "" {
		fmt.Fprint(o.err, wrap("hint: "+oneLine(hint)+"\n", o.errWidth()))
	}
	for line := range strings.Lines(policy) {
		fmt.Fprintln(o.err, oneLine(strings.TrimSuffix(line, "\n")))
	}
}

// result writes what a command was asked for: v as a message of this kind, or
// the text.
func (o *output) result(kind string, v any, text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.endStep()
	o.clearLine()
	if o.json {
		o.message(kind, v)
		return
	}
	fmt.Fprint(o.out, wrap(paste(text, o.stateDir), o.outWidth()))
}

// say writes what people read and programs do not.
func (o *output) say(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	fmt.Fprint(o.out, wrap(paste(text, o.stateDir), o.outWidth()))
}

// printable passes text on without what would steer a terminal: names, paths and
// messages come from other people's files.
type printable struct{ w io.Writer }

func (p printable) Write(b []byte) (int, error) {
	if _, err := io.WriteString(p.w, clean(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// clean writes as escapes what would steer a terminal or turn its text around:
// characters that are no text of themselves, but for line ends and tabs.
func clean(text string) string {
	return escape(text, func(r rune) string {
		switch {
		case r == '\n', r == '\t', !steers(r):
			return ""
		case r < 0x100:
			return fmt.Sprintf("\\x%02x", r)
		}
		return fmt.Sprintf("\\u%04x", r)
	})
}

// oneLine is clean for what is part of a line, such as the name of a file, which
// must not make further lines.
func oneLine(text string) string {
	return strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(clean(text))
}

// quoted is clean for a message. Only its first line stands where our own words
// do; those that follow, of another program's or with a name in them, are seen
// to be quoted.
func quoted(text string) string {
	return strings.ReplaceAll(clean(strings.TrimRight(text, "\n")), "\n", "\n  | ")
}

// steers tells characters that control a terminal, that are seen only by what
// they do to others (as U+202E, which turns the text around), and that are none.
func steers(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) || r == utf8.RuneError
}

// escape puts for each character what with says, and leaves it where that is "".
func escape(text string, with func(rune) string) string {
	if !strings.ContainsFunc(text, steers) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if e := with(r); e != "" {
			b.WriteString(e)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// cleanJSON escapes the same in JSON, where these characters stand in strings only.
func cleanJSON(text string) string {
	return escape(text, func(r rune) string {
		if !steers(r) {
			return ""
		}
		if a, b := utf16.EncodeRune(r); r > 0xffff {
			return fmt.Sprintf("\\u%04x\\u%04x", a, b)
		}
		return fmt.Sprintf("\\u%04x", r)
	})
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
