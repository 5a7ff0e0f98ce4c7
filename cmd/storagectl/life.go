package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/sdnotify"
	"github.com/storagectl/storagectl/migrate"
)

// life tells systemd, and whoever reads the messages, that this program lives and what
// it does. Nil does nothing.
type life struct {
	notify *sdnotify.Notifier
	alive  func() // tells it by a message
	pulse  *sdnotify.Pulse
	// patience is how long a step of the run that is gone on with may be silent.
	patience func(step string, undo bool) time.Duration
}

// begin says that the work on a run has begun. The step that is under way when ctx
// ends is done to its end.
func (l *life) begin(ctx context.Context, patience func(string, bool) time.Duration) {
	if l == nil {
		return
	}
	l.patience = patience
	l.notify.Ready()
	if l.pulse == nil {
		context.AfterFunc(ctx, l.notify.Stopping)
		l.pulse = sdnotify.NewPulse(l.notify.Every(), patience("", false), func() {
			l.notify.Alive()
			l.alive()
		})
	}
}

// sign says that it is not hung, while it waits.
func (l *life) sign() {
	if l != nil {
		l.pulse.Sign()
	}
}

// event passes on what a step does.
func (l *life) event(to func(engine.Event)) func(engine.Event) {
	if l == nil {
		return to
	}
	return func(e engine.Event) {
		if e.Kind == engine.EventBegin {
			l.notify.Status(stepName(e))
		}
		l.pulse.Begin(l.patience(e.Step.Name, e.Undo))
		to(e)
	}
}

// progress passes on how far a step is.
func (l *life) progress(to func(migrate.Progress)) func(migrate.Progress) {
	if l == nil {
		return to
	}
	return func(p migrate.Progress) {
		l.pulse.Sign()
		to(p)
	}
}

// line passes on what a task's command tells: a sign of life, and perhaps a step.
func (l *life) line(to func(task string, line []byte)) func(string, []byte) {
	if l == nil {
		return to
	}
	return func(task string, line []byte) {
		l.pulse.Sign()
		var m struct {
			Type string `json:"message_type"`
			stepMessage
		}
		if json.Unmarshal(line, &m) == nil && m.Type == "step" && m.Status == string(engine.EventBegin) {
			l.notify.Status(fmt.Sprintf("%s: %d/%d %s", task, m.Index, m.Total, m.Title))
		}
		to(task, line)
	}
}

// close ends it. A service that has ended without a word that it was up has failed, for
// systemd.
func (l *life) close() {
	if l != nil {
		l.pulse.Stop()
		l.notify.Ready()
	}
}
