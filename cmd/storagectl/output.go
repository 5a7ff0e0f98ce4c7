package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/storagectl/storagectl/internal/engine"
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
	tty      bool

	bars    *mpb.Progress
	bar     *mpb.Bar
	open    bool // the terminal's line says what is being done, without an end
	phase   string
	began   time.Time
	lastLog time.Time
}

func newOutput(a *app) *output {
	o := &output{out: a.stdout, err: a.stderr, json: a.json, quiet: a.quiet}
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
	fmt.Fprintln(o.out, head+rest)
}

type stepMessage struct {
	Step    string  `json:"step"`
	Title   string  `json:"title"`
	Index   int     `json:"index"`
	Total   int     `json:"total"`
	Status  string  `json:"status"` // begin, done, skip, redo, failed
	Undo    bool    `json:"undo,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
	Error   string  `json:"error,omitempty"`
}

// event tells of a step.
func (o *output) event(e engine.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	took := time.Since(o.began)
	if e.Kind == engine.EventBegin {
		o.began, o.lastLog = time.Now(), time.Now()
	}
	if e.Kind == engine.EventDone || e.Kind == engine.EventFailed {
		o.endBar()
	}
	if o.json {
		m := stepMessage{Step: e.Step.Name, Title: e.Step.Title, Index: e.Index + 1, Total: e.Total, Status: string(e.Kind), Undo: e.Undo}
		if e.Kind == engine.EventDone {
			m.Seconds = took.Seconds()
		}
		if e.Err != nil {
			m.Error = e.Err.Error()
		}
		o.message("step", m)
		return
	}
	if o.quiet {
		return
	}
	name := fmt.Sprintf("%2d/%d %s", e.Index+1, e.Total, e.Step.Title)
	if e.Undo {
		name = fmt.Sprintf("%2d/%d take back: %s", e.Index+1, e.Total, e.Step.Title)
	}
	if e.Kind == engine.EventBegin && o.tty {
		fmt.Fprintf(o.err, "%s …", name)
		o.open = true
		return
	}
	o.clearLine()
	switch e.Kind {
	case engine.EventBegin:
		fmt.Fprintf(o.err, "%s …\n", name)
	case engine.EventDone:
		fmt.Fprintf(o.err, "%s: done, %s\n", name, seconds(took))
	case engine.EventSkip:
		fmt.Fprintf(o.err, "%s: done before\n", name)
	case engine.EventRedo:
		fmt.Fprintf(o.err, "%s: no longer holds, doing it again\n", name)
	case engine.EventFailed:
		fmt.Fprintf(o.err, "%s: failed after %s\n", name, seconds(took))
	}
}

// progress tells how far a step is.
func (o *output) progress(p migrate.Progress) {
	o.mu.Lock()
	defer o.mu.Unlock()
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
		fmt.Fprintf(o.err, "      %s: %s\n", p.Phase, amount(p))
	}
}

func amount(p migrate.Progress) string {
	text := fmt.Sprintf("%d of %d %s", p.Done, p.Total, p.Unit)
	if p.Unit == "bytes" {
		text = fmt.Sprintf("%s of %s", migrate.Bytes(p.Done), migrate.Bytes(p.Total))
	}
	if p.Total > 0 {
		text = fmt.Sprintf("%d %%, %s", 100*p.Done/p.Total, text)
	}
	if p.Note != "" {
		text += ", " + p.Note
	}
	return text
}

func (o *output) draw(p migrate.Progress) {
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
			counters, speed = decor.CountersKiloByte("% .1f / % .1f"), decor.AverageSpeed(decor.SizeB1000(0), " % .1f/s")
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
	o.endBar()
}

// note tells something worth knowing.
func (o *output) note(text string) {
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
		fmt.Fprintf(o.err, "note: %s\n", clean(text))
	}
}

// fail tells an error and what can be done about it.
func (o *output) fail(text, hint string, code int, id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.endBar()
	if o.json {
		o.message("error", struct {
			Error string `json:"error"`
			Hint  string `json:"hint,omitempty"`
			Code  int    `json:"code"`
			ID    string `json:"id,omitempty"` // of a refusal
		}{text, hint, code, id})
		return
	}
	o.clearLine()
	fmt.Fprintf(o.err, "error: %s\n", clean(text))
	if hint != "" {
		fmt.Fprintf(o.err, "hint: %s\n", clean(hint))
	}
}

// result writes what a command was asked for: v as a message of this kind, or
// the text.
func (o *output) result(kind string, v any, text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.endBar()
	o.clearLine()
	if o.json {
		o.message(kind, v)
		return
	}
	fmt.Fprint(o.out, text)
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

// clean writes control characters, but for line ends and tabs, as escapes.
func clean(text string) string {
	var b strings.Builder
	for _, r := range text {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || r == utf8.RuneError) {
			fmt.Fprintf(&b, "\\x%02x", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
