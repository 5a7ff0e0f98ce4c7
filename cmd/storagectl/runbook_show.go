package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/runbooks"
)

// show looks at what a runbook would do now.
func (a *app) show(ctx context.Context, b *runbooks.Runbook, plan runbooks.Plan) showMessage {
	m := showMessage{runbookMessage: runbookMessage{Name: b.Name, Origin: b.Origin, Description: b.Description, Params: b.Params},
		Values: plan.Params, Window: plan.Window, Longest: plan.Longest.Seconds(),
		Hooks: runbookHooks{b.Hooks.BeforeDrain, b.Hooks.AfterStop, b.Hooks.BeforeStart, b.Hooks.AfterReturn, b.Hooks.OnFailure}}
	for _, t := range plan.Tasks {
		s := showTask{PlannedTask: t, Line: t.Line()}
		var err error
		if s.Seen, err = t.When.Look(ctx, a.env().Runner, a.dir(), b.Name, t.ID, time.Now()); err != nil {
			s.Unseen = err.Error()
		}
		m.Tasks = append(m.Tasks, s)
	}
	if b.Window != nil {
		for _, s := range b.Window.Next(time.Now(), 3) {
			m.Opens = append(m.Opens, s.Opens)
		}
	}
	return m
}

func showText(m showMessage) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Runbook %s (%s)\n", m.Name, oneLine(m.Origin))
	if m.Description != "" {
		fmt.Fprintf(&b, "%s\n", oneLine(m.Description))
	}
	if len(m.Params) > 0 {
		b.WriteString("\nParameters\n")
	}
	for _, name := range slices.Sorted(maps.Keys(m.Params)) {
		p := m.Params[name]
		value := m.Values[name]
		if value == "" {
			value = "(none)"
		}
		fmt.Fprintf(&b, "  %-16s %s", name, oneLine(value))
		if p.Description != "" {
			b.WriteString(" — " + oneLine(p.Description))
		}
		b.WriteString("\n")
	}
	b.WriteString("\nTasks\n")
	for i, t := range m.Tasks {
		fmt.Fprintf(&b, "  %2d %s\n       %s\n", i+1, t.ID, oneLine(t.Line))
		if t.User != "" {
			fmt.Fprintf(&b, "       as user %s\n", oneLine(t.User))
		}
		for _, s := range t.Seen {
			verdict := "holds"
			if !s.Holds {
				verdict = "does not hold: it would be left out"
			}
			fmt.Fprintf(&b, "       when %s = %s: %s (it is %s)\n", s.Key, oneLine(s.Wants), verdict, oneLine(s.Saw))
		}
		if t.Unseen != "" {
			fmt.Fprintf(&b, "       when: %s\n", oneLine(t.Unseen))
		}
		if t.Timeout > 0 {
			fmt.Fprintf(&b, "       %s at most\n", brief.Time(t.Timeout))
		}
		if t.Continue {
			b.WriteString("       if it fails, the next task follows\n")
		}
	}
	if m.Window != "" {
		fmt.Fprintf(&b, "\nWindow\n  %s\n", oneLine(m.Window))
	}
	for _, at := range m.Opens {
		fmt.Fprintf(&b, "  opens %s\n", at.Format("Mon 2006-01-02 15:04 MST"))
	}
	if m.Longest > 0 {
		fmt.Fprintf(&b, "\nLimit\n  %s\n", brief.Time(time.Duration(m.Longest*float64(time.Second))))
	}
	hooks := []struct {
		name string
		list [][]string
	}{
		{"before-drain", m.Hooks.BeforeDrain}, {"after-stop", m.Hooks.AfterStop}, {"before-start", m.Hooks.BeforeStart},
		{"after-return", m.Hooks.AfterReturn}, {"on-failure", m.Hooks.OnFailure},
	}
	title := "\nHooks\n"
	for _, h := range hooks {
		for _, argv := range h.list {
			fmt.Fprintf(&b, "%s  %-13s %s\n", title, h.name, oneLine(runbooks.Typed(argv)))
			title = ""
		}
	}
	return b.String()
}
