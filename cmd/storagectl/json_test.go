package main

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/report"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/verify/doctor"
)

// TestJSONIsDocumented: each field of each message is named in docs/json.md, in
// the part on that message.
func TestJSONIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	all := string(b)
	part := func(from, to string) string {
		_, text, ok := strings.Cut(all, from)
		if to != "" && ok {
			text, _, ok = strings.Cut(text, to)
		}
		if !ok {
			t.Fatalf("docs/json.md has no part from %q to %q", from, to)
		}
		return text
	}
	for _, c := range []struct {
		name string
		v    any
		text string
	}{
		{"step", stepMessage{}, part("**`step`**", "**`progress`**")},
		{"progress", migrate.Progress{}, part("**`progress`**", "**`note`**")},
		{"result", resultMessage{}, part("## result", "## plan, already")},
		{"plan", migrate.Assessment{}, part("## plan, already", "## status, run")},
		{"status", statusMessage{}, part("## status, run", "## report")},
		{"report", report.Data{}, part("## report", "## check, doctor, verify")},
		{"written", writtenMessage{}, part("## What each command ends with", "## While a run")},
		{"drained", held{}, part("## What each command ends with", "## While a run")},
		{"check", doctor.Result{}, part("## check, doctor, verify", "## runbook, valid")},
		{"doctor", doctorMessage{}, part("## check, doctor, verify", "## runbook, valid")},
		{"differences", differencesMessage{}, part("## check, doctor, verify", "## runbook, valid")},
		{"fix", fixMessage{}, part("## check, doctor, verify", "## runbook, valid")},
		{"manifest", manifestMessage{}, part("## check, doctor, verify", "## runbook, valid")},
		{"prune", pruneMessage{}, part("## prune", "## runbook, valid")},
		{"audit", auditMessage{}, part("## What each command ends with", "## While a run")},
		{"metrics", sample{}, part("## What each command ends with", "## While a run")},
		{"task", taskMessage{}, part("**`task`**", "**`note`**")},
		{"runbook", showMessage{}, part("## runbook, valid, show", "## nothing")},
		{"runbook-result", runbookResult{}, part("## runbook, valid, show", "## nothing")},
		{"installed", installedMessage{}, part("## What each command ends with", "## While a run")},
		{"cluster", drain.Slot{}, part("## What each command ends with", "## While a run")},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, f := range fields(reflect.TypeOf(c.v), nil) {
				if !strings.Contains(c.text, "`"+f+"`") {
					t.Errorf("docs/json.md does not tell of %s", f)
				}
			}
		})
	}
}

// fields are the JSON names of a type's fields, and of those below them.
func fields(t reflect.Type, seen []reflect.Type) []string {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		return fields(t.Elem(), seen)
	case reflect.Struct:
	default:
		return nil
	}
	if t == reflect.TypeFor[time.Time]() || slices.Contains(seen, t) {
		return nil
	}
	seen = append(seen, t)
	var names []string
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
			continue
		case name == "" && !f.Anonymous:
			name = f.Name
		}
		if name != "" {
			names = append(names, name)
		}
		names = append(names, fields(f.Type, seen)...)
	}
	return names
}
