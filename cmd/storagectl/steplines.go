package main

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/runbooks"
)

type stepMessage struct {
	Step    string  `json:"step"`
	Title   string  `json:"title"`
	Index   int     `json:"index"`
	Total   int     `json:"total"`
	Status  string  `json:"status"` // begin, done, skip, redo, failed, paused
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
	if e.Kind == engine.EventDone || e.Kind == engine.EventFailed || e.Kind == engine.EventPaused {
		o.endStep()
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
	o.clearLine()
	if e.Kind != engine.EventBegin {
		if !o.logged {
			fmt.Fprintln(o.err, stepLine(e, took, o.errWidth()))
		}
		return
	}
	o.doing = stepName(e)
	switch {
	case o.tty:
		o.redraw("")
	case !o.logged:
		fmt.Fprintf(o.err, "%s …\n", o.doing)
	}
	o.beat()
}

func stepName(e engine.Event) string {
	title := e.Step.Title
	if e.Undo {
		title = takeBack + title
	}
	return fmt.Sprintf("%2d/%d %s", e.Index+1, e.Total, title)
}

const (
	takeBack = "take back: "
	// nameWidth is the column that what became of a step stands in: the longest
	// title of a plan, its number before it, and a space behind it.
	nameWidth = 54
	// whatWidth is what the words on a step that was done take.
	whatWidth = 15
)

// stepLine tells in columns which step it is, what became of it, and the
// seconds. Where a terminal is too narrow for the first column, the others
// stand on a line of their own.
func stepLine(e engine.Event, took time.Duration, width int) string {
	name := stepName(e)
	what := map[engine.EventKind]string{
		engine.EventDone:      fmt.Sprintf("done   %8s", seconds(took)),
		engine.EventFailed:    fmt.Sprintf("failed %8s", seconds(took)),
		engine.EventSkip:      "done before",
		engine.EventPaused:    fmt.Sprintf("paused %8s", seconds(took)),
		engine.EventRedo:      "no longer holds, doing it again",
		runbooks.EventLeftOut: "left out",
		runbooks.EventKept:    "left as it is",
	}[e.Kind]
	column := nameWidth
	if e.Undo {
		column += len(takeBack)
	}
	if width >= narrowest {
		column = min(column, width-whatWidth-1)
	}
	switch {
	case utf8.RuneCountInString(name) > column:
		return fmt.Sprintf("%s\n%-*s %s", wrap(name, width), column, "", what)
	case width >= narrowest && column+1+len(what) > width:
		return wrap(name+" "+what, width)
	}
	return fmt.Sprintf("%-*s %s", column, name, what)
}

// beat tells once in a while that the step under way is still at it, until
// endStep: nobody can tell a silent wait from a program that hangs.
func (o *output) beat() {
	o.endBeat()
	ctx, cancel := context.WithCancel(context.Background())
	o.endBeat = cancel
	go func() {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				o.mu.Lock()
				if ctx.Err() == nil {
					o.sign()
				}
				o.mu.Unlock()
			}
		}
	}()
}

// alive tells who reads the messages that the work goes on.
func (a *app) alive() {
	a.out.mu.Lock()
	defer a.out.mu.Unlock()
	if a.out.json {
		a.out.message("alive", struct{}{})
	}
}

// sign is a sign of life of a step that has no progress to tell of.
func (o *output) sign() {
	if time.Since(o.heard) < 2*time.Second { // it tells of itself
		return
	}
	so := fmt.Sprintf("%.0f s", time.Since(o.began).Seconds())
	switch {
	case o.bar != nil:
	case o.tty:
		o.redraw(so)
	case time.Since(o.lastLog) >= lineEvery:
		o.lastLog = time.Now()
		fmt.Fprintf(o.err, "      still at it, %s\n", so)
	}
}

// redraw writes the open line of the terminal anew. It must not be wider than
// the terminal: only one line can be taken back.
func (o *output) redraw(so string) {
	line := []rune(o.doing + " … " + so)
	if width := o.errWidth(); width > 0 && len(line) >= width {
		line = line[:width-1]
	}
	if o.open && o.line == string(line) {
		return
	}
	o.open, o.line = true, string(line)
	fmt.Fprintf(o.err, "\r\x1b[K%s", o.line)
}

// endStep ends what is drawn of the step under way.
func (o *output) endStep() {
	o.endBeat()
	o.endBar()
	o.doing = ""
}
