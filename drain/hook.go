package drain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/host"
)

// hookText is how much of a hook's output is kept, in bytes.
const hookText = 4000

// Hook runs a command of the operator's, without a shell, and returns what it
// wrote to stdout and stderr. Its environment is small and has no token: PATH,
// HOME, LANG, and more. At its timeout it is killed, with its process group.
func Hook(ctx context.Context, r *host.Runner, argv []string, timeout time.Duration, more ...string) (string, error) {
	return Command(ctx, r, "hook", argv, timeout, more...)
}

// Command runs what is no hook as [Hook] does; kind is what errors call it.
func Command(ctx context.Context, r *host.Runner, kind string, argv []string, timeout time.Duration, more ...string) (string, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/"
	}
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home, "LANG=C.UTF-8"}
	return Told(kind, argv, timeout, func(words []string) ([]byte, error) {
		return r.Run(ctx, host.Cmd{Argv: words, Timeout: timeout, Env: append(env, more...)})
	})
}

// Told has run run a command, and returns the end of what it wrote to stdout and
// stderr.
func Told(kind string, argv []string, timeout time.Duration, run func(words []string) ([]byte, error)) (string, error) {
	// This shell makes one stream of the two, and sees nothing of the words.
	out, err := run(append([]string{"/bin/sh", "-c", `exec "$@" 2>&1`, kind}, argv...))
	text := strings.TrimSpace(string(out))
	if len(text) > hookText {
		text = "… " + text[len(text)-hookText:]
	}
	var exit *host.ExitError
	switch {
	case err == nil:
		return text, nil
	case errors.As(err, &exit):
		return text, fmt.Errorf("cannot run the %s %s: it exited with %d", kind, HookName(argv), exit.Code)
	case errors.Is(err, context.DeadlineExceeded):
		return text, fmt.Errorf("cannot run the %s %s: it did not end within %s: %w", kind, HookName(argv), brief.Time(timeout), context.DeadlineExceeded)
	}
	return text, fmt.Errorf("cannot run the %s %s: %w", kind, HookName(argv), err)
}

// HookName is a hook for people: its command, without the words after it, which
// may hold a secret.
func HookName(argv []string) string { return filepath.Base(argv[0]) }

// ParseHook reads a hook as people write it: a JSON list of words, or words
// between blanks, with ', " and \ as in a shell. Nothing else is as in a shell,
// and what would mean something to one is refused unless it is quoted.
func ParseHook(text string) ([]string, error) {
	text = strings.TrimSpace(text)
	var argv []string
	if strings.HasPrefix(text, "[") {
		if err := json.Unmarshal([]byte(text), &argv); err != nil {
			return nil, fmt.Errorf("cannot read the hook %s as a JSON list of words: %w", text, err)
		}
	} else {
		var err error
		if argv, err = words(text); err != nil {
			return nil, err
		}
	}
	if len(argv) == 0 || argv[0] == "" {
		return nil, errors.New("cannot use a hook without a command")
	}
	if slices.ContainsFunc(argv, func(w string) bool { return strings.ContainsRune(w, 0) }) {
		return nil, errors.New("cannot use a hook with a zero byte")
	}
	return argv, nil
}

func words(text string) ([]string, error) {
	var list []string
	var word strings.Builder
	in := false // inside a word
	var quote rune
	escaped := false
	for _, r := range text {
		switch {
		case escaped:
			if quote == '"' && r != '"' && r != '\\' {
				word.WriteRune('\\')
			}
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			in, escaped = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			in, quote = true, r
		case r == ' ' || r == '\t' || r == '\n':
			if in {
				list, in = append(list, word.String()), false
				word.Reset()
			}
		case strings.ContainsRune("|&;<>$`", r):
			return nil, fmt.Errorf("cannot use the hook %q: no shell runs that would know %q; quote it, or put it into a script", text, r)
		default:
			in = true
			word.WriteRune(r)
		}
	}
	if quote != 0 || escaped {
		return nil, fmt.Errorf("cannot use the hook %q: a quote is not closed", text)
	}
	if in {
		list = append(list, word.String())
	}
	return list, nil
}
