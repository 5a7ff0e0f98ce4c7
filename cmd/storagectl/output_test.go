package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

// TestClean: text of other people's making cannot steer the terminal, nor turn
// its text around.
func TestClean(t *testing.T) {
	var b bytes.Buffer
	fmt.Fprintf(printable{&b}, "a\x1b]0;owned\x07b\tü\n\u009b1m\xff \u202egnp.exe \u200bx\u2028y \U000e0041")
	if got, want := b.String(), "a\\x1b]0;owned\\x07b\tü\n\\x9b1m\\ufffd \\u202egnp.exe \\u200bx\\u2028y \\ue0041"; got != want {
		t.Fatalf("%q, want %q", got, want)
	}
}

// TestForgedLines: a name with a line end in it makes no line that could be ours.
func TestForgedLines(t *testing.T) {
	const name = "x\nhint: rm -rf /\u202e"
	o, text := paper(t, 0)
	o.fail("cannot migrate: it holds "+name, "podman stop "+name, 3, "busy", "")
	o.note("made: " + name + "\n")
	o.progress(migrate.Progress{Phase: "wait", Note: "in use by " + name})
	p := &migrate.Assessment{Inputs: migrate.Inputs{Store: migrate.Store{GraphRoot: "/srv/" + name, Database: name}}, Notes: []string{name},
		Plan: []migrate.PlannedStep{{Title: "stop podman", What: "stops " + name}}}
	text.WriteString(planText(p) + commitText(p.Inputs, "1", 1))
	for l := range strings.Lines(text.String()) {
		if strings.HasPrefix(strings.TrimSpace(l), "hint: rm") {
			t.Errorf("a forged line: %q", l)
		}
	}
	const want = "error: cannot migrate: it holds x\n  | hint: rm -rf /\\u202e\nhint: podman stop x\\nhint: rm -rf /\\u202e\nnote: made: x\n  | hint: rm -rf /\\u202e\n"
	if !strings.HasPrefix(text.String(), want) {
		t.Errorf("%q, want %q", text, want)
	}
	o.json = true
	var js bytes.Buffer
	o.out = &js
	o.note(name + "\u009b\U000e0041")
	var back struct{ Text string }
	if err := json.Unmarshal(js.Bytes(), &back); err != nil || back.Text != name+"\u009b\U000e0041" || strings.ContainsFunc(strings.TrimSpace(js.String()), steers) {
		t.Errorf("%q %v", js.String(), err)
	}
}

// paper is an output onto buffers: a pipe where width is 0, else a terminal.
func paper(t *testing.T, width int) (o *output, stderr *bytes.Buffer) {
	t.Helper()
	stderr = &bytes.Buffer{}
	columns := func() int { return width }
	o = &output{out: &bytes.Buffer{}, err: stderr, tty: width > 0, endBeat: func() {}, outWidth: columns, errWidth: columns}
	t.Cleanup(o.close)
	return o, stderr
}

func event(kind engine.EventKind, index int, title string, undo bool) engine.Event {
	return engine.Event{Kind: kind, Index: index, Total: 11, Undo: undo, Step: engine.Step{Name: "x", Title: title}}
}

// TestStepLines: the columns stand below each other, and nothing is wrapped on a pipe.
func TestStepLines(t *testing.T) {
	o, text := paper(t, 0)
	const long = "verify against the manifest and run a container"
	for i, title := range []string{"stop podman", long} {
		o.event(event(engine.EventBegin, 8+i, title, false))
		o.event(event(engine.EventDone, 8+i, title, false))
	}
	failed := event(engine.EventFailed, 10, "start", false)
	failed.Err = errors.New("no")
	for _, e := range []engine.Event{failed, event(engine.EventSkip, 1, long, false), event(engine.EventRedo, 2, "stop podman", false)} {
		o.event(e)
	}
	const want = ` 9/11 stop podman …
 9/11 stop podman                                      done      0.0 s
10/11 verify against the manifest and run a container …
10/11 verify against the manifest and run a container  done      0.0 s
11/11 start                                            failed     SEC
 2/11 verify against the manifest and run a container  done before
 3/11 stop podman                                      no longer holds, doing it again
`
	got := text.String()
	if i := strings.Index(got, "failed"); i > 0 {
		end := i + strings.IndexByte(got[i:], '\n')
		got = got[:i] + "failed     SEC" + got[end:]
	}
	got = regexp.MustCompile(`done      \d\.\d s`).ReplaceAllString(got, "done      0.0 s") // the time that it took
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestStepLinesFit: on a narrow terminal the columns move left, and still stand
// below each other.
func TestStepLinesFit(t *testing.T) {
	for _, c := range []struct {
		kind  engine.EventKind
		title string
		undo  bool
		width int
		want  string
	}{
		{engine.EventDone, "stop podman", false, 60, " 3/11 stop podman                            done     12.0 s"},
		{engine.EventDone, "stop podman", true, 60, " 3/11 take back: stop podman                 done     12.0 s"},
		{engine.EventSkip, "stop podman", false, 60, " 3/11 stop podman                            done before"},
		{
			engine.EventDone, "verify against the manifest and run a container", false, 60,
			" 3/11 verify against the manifest and run a container\n                                             done     12.0 s",
		},
		{runbooks.EventLeftOut, "look", false, 60, " 3/11 look                                   left out"},
		{runbooks.EventKept, "look", true, 60, " 3/11 take back: look                        left as it is"},
		{engine.EventRedo, "stop podman", false, 60, " 3/11 stop podman no longer holds, doing it again"},
		{engine.EventRedo, "stop podman", false, 40, " 3/11 stop podman no longer holds, doing\n      it again"},
	} {
		if got := stepLine(event(c.kind, 2, c.title, c.undo), 12*time.Second, c.width); got != c.want {
			t.Errorf("got\n%s\nwant\n%s", got, c.want)
		}
	}
}

// TestSignOfLife: a step that says nothing of itself is seen to be at work.
func TestSignOfLife(t *testing.T) {
	o, text := paper(t, 0)
	o.event(event(engine.EventBegin, 2, "stop podman", false))
	o.mu.Lock()
	o.sign() // too early
	o.began, o.lastLog = o.began.Add(-12*time.Second), o.lastLog.Add(-12*time.Second)
	o.sign()
	o.sign() // not again so soon
	o.lastLog = o.lastLog.Add(-12 * time.Second)
	o.mu.Unlock()
	o.progress(migrate.Progress{Phase: "wait", Done: 24, Unit: "seconds", Note: "in use by podman load (pid 7)"})
	o.mu.Lock()
	o.lastLog = o.lastLog.Add(-12 * time.Second)
	o.sign() // it tells of itself
	o.mu.Unlock()
	const want = " 3/11 stop podman …\n      still at it, 12 s\n      wait: 24 seconds, in use by podman load (pid 7)\n"
	if got := text.String(); got != want {
		t.Errorf("%q, want %q", got, want)
	}

	o, text = paper(t, 18)
	o.event(event(engine.EventBegin, 2, "stop podman", false))
	o.mu.Lock()
	o.began = o.began.Add(-3 * time.Second)
	o.sign()
	o.doing = " 3/11 stop"
	o.sign()
	o.mu.Unlock()
	o.note("a word")
	// The open line is redrawn in its place, is never wider than the terminal,
	// and gives way to others.
	if got, want := text.String(), "\r\x1b[K 3/11 stop podman\r\x1b[K 3/11 stop … 3 s\r\x1b[Knote: a word\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	o.event(event(engine.EventDone, 2, "stop podman", false))
	if o.endBeat(); o.doing != "" || o.open {
		t.Error("the step is over and still drawn")
	}
}

// TestProgressWithoutEnd: where the end is not known, a terminal shows no bar.
func TestProgressWithoutEnd(t *testing.T) {
	o, text := paper(t, 60)
	o.doing = " 1/11 stage"
	o.progress(migrate.Progress{Phase: "flush", Unit: "images", Note: "12 entries"})
	o.progress(migrate.Progress{Phase: "images", Unit: "images"})
	if got, want := text.String(), "\r\x1b[K 1/11 stage … flush, 12 entries\r\x1b[K 1/11 stage … images"; got != want || o.bar != nil {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestBeat sees the ticker itself at work, on a terminal.
func TestBeat(t *testing.T) {
	o, text := paper(t, 80)
	o.event(event(engine.EventBegin, 2, "stop podman", false))
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		o.mu.Lock()
		got := text.String()
		o.mu.Unlock()
		if strings.Contains(got, "stop podman … 1 s") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no sign of life: %q", got)
		}
	}
}

func TestAmount(t *testing.T) {
	for want, p := range map[string]migrate.Progress{
		"50 %, 1.0 kB of 2.0 kB, 3 of 7 layers": {Done: 1000, Total: 2000, Unit: "bytes", Note: "3 of 7 layers"},
		"33 %, 1 of 3 images":                   {Done: 1, Total: 3, Unit: "images"},
		"0 %, 0 of 1 image":                     {Total: 1, Unit: "images"},
		"1 allocation":                          {Done: 1, Unit: "allocations"},
		"12 entries":                            {Unit: "images", Note: "12 entries"},
	} {
		if got := amount(p); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestToldElsewhere: where stderr is systemd's journal, and that is told of steps with
// their fields, they do not stand there twice; all else does stand there.
func TestToldElsewhere(t *testing.T) {
	o, text := paper(t, 0)
	o.logged = true
	for _, k := range []engine.EventKind{engine.EventBegin, engine.EventDone, engine.EventRedo, engine.EventFailed} {
		o.event(engine.Event{Kind: k, Step: engine.Step{Name: "stop", Title: "stop podman"}, Total: 1})
	}
	o.note("a note")
	o.close()
	if text.String() != "note: a note\n" {
		t.Errorf("%q", text)
	}
}
