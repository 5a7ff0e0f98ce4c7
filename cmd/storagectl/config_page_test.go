package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/internal/tell"
)

// TestConfigPage: what docs/config.md lists is what the code has.
func TestConfigPage(t *testing.T) {
	const path = "../../docs/config.md"
	var keys, ids strings.Builder
	keys.WriteString("| key | type | |\n| --- | --- | --- |\n")
	for _, k := range tell.Keys() {
		if k.Doc == "" {
			t.Errorf("nothing is said of %s", k.Name)
		}
		fmt.Fprintf(&keys, "| `%s` | %s | %s |\n", k.Name, k.Type, k.Doc)
	}
	ids.WriteString("| MESSAGE_ID | |\n| --- | --- |\n")
	for _, p := range append([]tell.Point{""}, tell.Points()...) {
		what := "`" + string(p) + "`"
		if p == "" {
			what = "a step"
		}
		fmt.Fprintf(&ids, "| `%s` | %s |\n", tell.MessageID(p), what)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := between(t, between(t, string(b), "keys", keys.String()), "message ids", ids.String())
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(b) {
		t.Error("docs/config.md is not what the code says: go test ./cmd/storagectl -run TestConfigPage -update")
	}
	for _, p := range tell.Points() {
		if !strings.Contains(string(b), "\n| `"+string(p)+"` | ") {
			t.Errorf("docs/config.md does not say when %s is", p)
		}
	}
}

// between puts text between the marks of a name in a page.
func between(t *testing.T, page, name, text string) string {
	t.Helper()
	mark := "<!-- " + name + ": made of the code by go test ./cmd/storagectl -run TestConfigPage -update -->\n"
	before, rest, ok := strings.Cut(page, mark)
	_, after, end := strings.Cut(rest, "<!-- end of "+name+" -->")
	if !ok || !end {
		t.Fatalf("the page has no marks for %s", name)
	}
	return before + mark + text + "<!-- end of " + name + " -->" + after
}
