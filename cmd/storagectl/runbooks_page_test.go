package main

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/internal/window"
	"github.com/storagectl/storagectl/runbooks"
)

// keyTables are the tables of docs/runbooks.md on the keys of a file.
func keyTables() string {
	var b strings.Builder
	table := func(title, head string, t reflect.Type) {
		fmt.Fprintf(&b, "\n### %s\n\n", title)
		if head != "" {
			fmt.Fprintf(&b, "%s\n\n", head)
		}
		b.WriteString("| key | |\n| --- | --- |\n")
		for f := range t.Fields() {
			key, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
			if doc := f.Tag.Get("doc"); doc != "" {
				fmt.Fprintf(&b, "| `%s` | %s |\n", key, doc)
			}
		}
	}
	table("The file", "", reflect.TypeFor[runbooks.Runbook]())
	b.WriteString("| `window` | when the host may be out of service; without it at any time |\n")
	table("[params.NAME]", "", reflect.TypeFor[runbooks.Param]())
	table("[[task]]", "", reflect.TypeFor[runbooks.Task]())
	table("when", "Conditions of a task. They are looked at right before it begins; what cannot be seen stops the run.", reflect.TypeFor[runbooks.When]())
	b.WriteString("\n### [window]\n\n| key | |\n| --- | --- |\n")
	what := map[string]string{
		"days": "`daily`, days (`sat`), or ranges of them (`mon..fri`)", "start": "HH:MM", "length": "how long it is open: 3h",
		"zone": "of IANA, as Europe/Berlin (default: the host's)", "blackout": "days on which it stays closed: 2026-12-24, or 2026-12-24..2027-01-02",
	}
	for f := range reflect.TypeFor[window.Table]().Fields() {
		key, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		fmt.Fprintf(&b, "| `%s` | %s |\n", key, what[key])
	}
	table("[limits]", "", reflect.TypeFor[runbooks.Limits]())
	table("[[notify]]", "As in [the configuration](config.md).", reflect.TypeFor[tell.Target]())
	table("[hooks]", "Each is a list of commands, each a list of words; no shell runs.", reflect.TypeFor[runbooks.Hooks]())
	return b.String()
}

// TestRunbooksPage: docs/runbooks.md lists each key that a file can have, and each
// runbook that comes with storagectl.
func TestRunbooksPage(t *testing.T) {
	const path = "../../docs/runbooks.md"
	const first, last = "<!-- keys: made of the code -->\n", "<!-- end of keys -->\n"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), first)
	_, tail, ok2 := strings.Cut(rest, last)
	if !ok || !ok2 {
		t.Fatal("the marks of the keys are gone")
	}
	want := head + first + keyTables() + "\n" + last + tail
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		b = []byte(want)
	}
	if string(b) != want {
		t.Error("docs/runbooks.md is not what the code says: go test ./cmd/storagectl -run TestRunbooksPage -update")
	}
	if strings.Contains(keyTables(), "|  |") {
		t.Error("a key has no words")
	}
	all, err := runbooks.List(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if !strings.Contains(string(b), "`"+f.Name+"`") {
			t.Errorf("docs/runbooks.md does not tell of %s", f.Name)
		}
		said := map[string]string{}
		for name, p := range f.Runbook.Params {
			if p.Required {
				said[name] = map[string]string{"size": "1G"}[p.Type] + map[string]string{"": "pool/img"}[p.Type]
			}
		}
		if _, err := f.Runbook.Expand(said, known()); err != nil {
			t.Error(err)
		}
	}
}
