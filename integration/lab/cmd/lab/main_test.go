package main

import (
	"strings"
	"testing"
)

// TestWrongUsage: what cannot be done is said, with what to type instead, before
// anything is tried.
func TestWrongUsage(t *testing.T) {
	t.Setenv("STORAGECTL_LAB_CACHE", t.TempDir())
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"", 2, "without a command"},
		{"frob", 2, `cannot do "frob"`},
		{"frob n1", 2, `cannot do "frob"`},
		{"run", 2, "without the name of a node"},
		{"run n1 root true", 1, "lab up bookworm n1"},
		{"down n1", 1, "there is none of that name"},
		{"kill n1 n2", 2, "want one NAME"},
		{"up", 2, "want RELEASE and NAME"},
		{"up bookworm", 2, "want RELEASE and NAME"},
		{"up -fs", 2, "-fs"},
		{"up -bogus bookworm n1", 2, "-bogus"},
		{"up sarge n1", 2, "bookworm, trixie"},
		{"base", 2, "lab base bookworm"},
		{"base sarge", 2, "bookworm, trixie"},
		{"store bookworm hashi", 2, "lab store bookworm hashi plain"},
		{"store sarge hashi plain", 2, "bookworm, trixie"},
		{"store bookworm other plain", 2, "root or hashi"},
		{"store bookworm hashi big", 2, "plain, containers, small or demo"},
		{"clean everything", 2, "lab clean -all"},
	} {
		var b strings.Builder
		code := tell(command(t.Context(), strings.Fields(c.args)), &b)
		text := b.String()
		if code != c.code || !strings.HasPrefix(text, "error: cannot ") || !strings.Contains(text, "\nhint: ") || !strings.Contains(text, c.says) {
			t.Errorf("lab %s: exit %d\n%s", c.args, code, text)
		}
	}
	var b strings.Builder
	if code := tell(command(t.Context(), []string{"list"}), &b); code != 0 || b.String() != "" {
		t.Errorf("lab list: %d %q", code, b.String())
	}
	if code := tell(&ranError{7}, &b); code != 7 || b.String() != "" {
		t.Errorf("a command's own status: %d %q", code, b.String())
	}
}
