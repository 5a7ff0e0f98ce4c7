package drain

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/host"
)

func TestParseHook(t *testing.T) {
	for text, want := range map[string][]string{
		"prefect work-pool pause mypool":        {"prefect", "work-pool", "pause", "mypool"},
		`  say 'two words'  "a \"b\" \n" c\ d `: {"say", "two words", `a "b" \n`, "c d"},
		`x '' "$HOME | y"`:                      {"x", "", "$HOME | y"},
		`["/opt/my hook", "a b", ""]`:           {"/opt/my hook", "a b", ""},
		`sh -c 'exit 3 # "` + "`" + `'`:         {"sh", "-c", "exit 3 # \"`"},
	} {
		if got, err := ParseHook(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "  ", "a | b", "a && b", "a $HOME", "a `b`", "a > b", "a 'b", `a \`, `["a"`, `[]`, `[""]`, `[1]`, "[\"a\\u0000\"]"} {
		if got, err := ParseHook(text); err == nil {
			t.Errorf("%q is good: %q", text, got)
		}
	}
}

func TestHook(t *testing.T) {
	t.Setenv("NOMAD_TOKEN", "very-secret")
	r := &host.Runner{}
	text, err := Hook(t.Context(), r, []string{"sh", "-c", `echo "<$1>"; echo "to stderr" >&2; env`, "x", "two $words"}, time.Minute, "STORAGECTL_RUN=7")
	if err != nil || !strings.Contains(text, "<two $words>\nto stderr\n") || strings.Contains(text, "very-secret") || !strings.Contains(text, "STORAGECTL_RUN=7") {
		t.Errorf("%v: %s", err, text)
	}
	if text, err = Hook(t.Context(), r, []string{"sh", "-c", "echo no; exit 3", "secret"}, time.Minute); err == nil || text != "no" ||
		!strings.Contains(err.Error(), "exited with 3") || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v: %s", err, text)
	}
	if text, err = Hook(t.Context(), r, []string{"/no/such/hook"}, time.Minute); err == nil || !strings.Contains(text, "/no/such/hook") {
		t.Errorf("%v: %s", err, text)
	}
	began := time.Now()
	if text, err = Hook(t.Context(), r, []string{"sh", "-c", "echo slow; sleep 60"}, time.Second); !errors.Is(err, context.DeadlineExceeded) || text != "slow" || time.Since(began) > 20*time.Second {
		t.Errorf("%v after %s: %s", err, time.Since(began), text)
	}
}
