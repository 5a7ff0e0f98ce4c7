package host

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func run(t *testing.T, c Cmd) (string, error) {
	t.Helper()
	c.Env = append(c.Env, "PATH=/usr/bin:/bin")
	out, err := (&Runner{}).Run(t.Context(), c)
	return strings.TrimSpace(string(out)), err
}

// TestNoTerminal: a command that runs as somebody else is in a session of its
// own, so that it cannot type into our terminal.
func TestNoTerminal(t *testing.T) {
	out, err := run(t, Cmd{Argv: []string{"sh", "-c", `echo $$ $(cut -d" " -f6 /proc/$$/stat); (echo x >/dev/tty) 2>/dev/null && echo tty`}})
	if err != nil {
		// The shell's status is the last command's, and that one must fail.
		var ee *ExitError
		if !errors.As(err, &ee) {
			t.Fatal(err)
		}
	}
	f := strings.Fields(out)
	if len(f) != 2 || f[0] != f[1] {
		t.Fatalf("pid, session, terminal: %q", out)
	}
}

func TestRunAsUser(t *testing.T) {
	t.Setenv("STORAGECTL_TEST_SECRET", "x")
	out, err := run(t, Cmd{Argv: []string{"sh", "-c", "id -u; id -G; pwd; env"}, As: &User{UID: 2000, GID: 2001}})
	if err != nil {
		t.Fatal(err)
	}
	l := strings.Split(out, "\n")
	if l[0] != "2000" || l[1] != "2001" || l[2] != "/" || strings.Contains(out, "SECRET") {
		t.Fatalf("%q", out)
	}
}

func TestBounds(t *testing.T) {
	if _, err := run(t, Cmd{Argv: []string{"head", "-c", "70000000", "/dev/zero"}}); err == nil {
		t.Fatal("endless output was taken")
	}
	begin := time.Now()
	_, err := run(t, Cmd{Argv: []string{"sh", "-c", "sleep 100 & sleep 100"}, Timeout: 200 * time.Millisecond})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 10*time.Second {
		t.Fatalf("%v after %s", err, time.Since(begin))
	}
	// The caller may have had less patience than the command's own limit.
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = (&Runner{}).Run(short, Cmd{Argv: []string{"sleep", "100"}, Timeout: time.Hour})
	if err == nil || strings.Contains(err.Error(), "1h") || strings.HasSuffix(err.Error(), ": ") {
		t.Fatalf("%v", err)
	}
	var ee *ExitError
	if _, err = run(t, Cmd{Argv: []string{"sh", "-c", "echo no >&2; exit 3"}}); !errors.As(err, &ee) || ee.Code != 3 || ee.Stderr != "no\n" {
		t.Fatalf("%v", err)
	}
	if _, err = run(t, Cmd{Argv: []string{"no-such-program"}}); err == nil || errors.As(err, &ee) && ee.Code == 0 {
		t.Fatalf("%v", err)
	}
}

func TestUnitsWithoutSystemd(t *testing.T) {
	if _, err := UserBus(t.Context(), t.TempDir(), os.Getuid()); err == nil {
		t.Fatal("a bus where there is none")
	}
}
