package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/window"
	"github.com/storagectl/storagectl/migrate"
)

// windowFlags are when the host may be out of service.
func windowFlags(f *pflag.FlagSet, r *migrate.Request) {
	f.Var(windowFlag{&r.Window}, "window", "when the host may be out of service: days, start, length and perhaps a zone and dates without one, in quotes (\"sat,sun 02:00 3h Europe/Berlin except 2026-12-24..2027-01-02\")")
	f.DurationVar(&r.WindowWait, "window-wait", 0, "how long to wait for it when all is staged; then the run stops, to be resumed (exit 5)")
	nowFlag(f, &r.Now)
}

// nowFlag is the word that a window does not matter.
func nowFlag(f *pflag.FlagSet, now *bool) {
	f.BoolVar(now, "now", false, "go on although the maintenance window is closed, or too short; the journal notes it")
}

// windowFlag is a window as a flag.
type windowFlag struct{ w **window.Window }

func (f windowFlag) Set(text string) error {
	w, err := window.Parse(text)
	if err == nil {
		*f.w = &w
	}
	return err
}

func (f windowFlag) Type() string   { return "window" }
func (f windowFlag) String() string { return "" }

func checkWindow(r migrate.Request) error {
	switch {
	case r.WindowWait < 0:
		return usagef("cannot wait %s for a window: give no time below zero", brief.Time(r.WindowWait))
	case r.Window == nil && (r.WindowWait > 0 || r.Now):
		return usagef("cannot use --window-wait or --now without --window: without one the host may be out of service at any time")
	}
	return nil
}

// windowHint tells when and how a run goes on that its window has stopped.
func windowHint(err error) string {
	var closed *migrate.ClosedError
	text := "storagectl resume goes on in the window; resume --now goes on at once"
	if errors.As(err, &closed) && !closed.Next.Opens.IsZero() {
		text += "; it opens next at " + closed.Next.Opens.Format("Mon 2006-01-02 15:04 MST")
	}
	return text + ". Nothing is out of service"
}

// waitingFor is the window of a run that has not stopped podman yet; nil: there is none.
func waitingFor(st engine.State, in migrate.Inputs) *migrate.WindowPlan {
	if st.Phase != engine.PhaseRunning || in.Request.Now || !migrate.BeforeStop(st) {
		return nil
	}
	w := migrate.LookAtWindow(in.Request.Window, time.Now())
	var f migrate.Facts
	if w != nil && st.LoadFacts(&f) == nil && len(f.Needs) > 0 { // status shows what it can
		w.Need = &f.Needs[len(f.Needs)-1]
	}
	return w
}

// windowLines tell of it in a status.
func windowLines(w *migrate.WindowPlan) string {
	if w == nil {
		return ""
	}
	lines := strings.SplitAfter(w.Text(), "\n")
	return fmt.Sprintf("window   %s\n%s", w.Spec, strings.Join(lines[1:], ""))
}
