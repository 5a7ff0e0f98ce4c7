// Package host is what storagectl does to the machine it runs on: processes,
// durable files, systemd units. It knows nothing of steps, and each verb looks
// at the effect instead of trusting a message.
package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// User is whom a command runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary groups; none by default
}

// Cmd is one command to run. Its environment is exactly Env: nothing is
// inherited, so that a secret in storagectl's environment stays there.
type Cmd struct {
	Argv    []string
	Env     []string
	Dir     string // "/" if empty
	As      *User  // nil: as storagectl itself
	Stdin   io.Reader
	Timeout time.Duration // how long it may take; 2 minutes if zero
}

// ExitError reports a command that ran and failed.
type ExitError struct {
	Argv   []string
	Code   int // -1: ended by a signal
	Stderr string
}

func (e *ExitError) Error() string {
	msg := strings.TrimSpace(e.Stderr)
	if msg == "" {
		msg = "it said nothing"
	}
	return fmt.Sprintf("%s exited with %d: %s", strings.Join(e.Argv, " "), e.Code, msg)
}

// Runner runs commands. The zero value is ready.
type Runner struct {
	// Point, if set, is called before and after each command. The crash sweep
	// kills the process there.
	Point func(string)
}

const (
	maxStderr = 16 << 10
	maxStdout = 64 << 20 // podman's longest lists are some megabytes
)

// Run runs c to its end and returns what it wrote to stdout. A command that
// exits with another status than 0 gives an [*ExitError] beside its output.
// When ctx ends or the timeout passes, the command and all its children that
// stayed in its process group are killed.
func (r *Runner) Run(ctx context.Context, c Cmd) ([]byte, error) {
	timeout := c.Timeout
	if timeout == 0 {
		timeout = 2 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdin = c.Env, c.Dir, c.Stdin
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	// It has no parent-death signal: what podman or rbd had begun when this program was
	// killed is better ended by them than cut off. A run that goes on looks at what is
	// there, and waits for podman's processes of before.
	//
	// A session of its own: a command that runs as another user must not have
	// root's terminal, into which it could type (TIOCSTI).
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if c.As != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.As.UID, Gid: c.As.GID, Groups: c.As.Groups}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// A grandchild that keeps the pipes open must not hold us.
	cmd.WaitDelay = 2 * time.Second
	stdout := limited{max: maxStdout}
	stderr := &tail{max: maxStderr}
	cmd.Stdout, cmd.Stderr = &stdout, stderr

	r.point("before " + filepath.Base(c.Argv[0]))
	began := time.Now()
	release, err := StartFor(cmd, c.As != nil)
	if err == nil {
		err = cmd.Wait()
	}
	release()
	r.point("after " + filepath.Base(c.Argv[0]))
	var ee *exec.ExitError
	switch {
	case stdout.over:
		return nil, fmt.Errorf("cannot take what %s says: more than %d bytes", c.Argv[0], maxStdout)
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return stdout.b, nil
	case ctx.Err() != nil:
		err = fmt.Errorf("cannot finish %s: stopped after %s: %w",
			strings.Join(c.Argv, " "), time.Since(began).Round(100*time.Millisecond), ctx.Err())
		if words := bytes.TrimSpace(stderr.b); len(words) > 0 {
			err = fmt.Errorf("%w: %s", err, words)
		}
		return stdout.b, err
	case errors.As(err, &ee):
		return stdout.b, &ExitError{Argv: c.Argv, Code: ee.ExitCode(), Stderr: string(stderr.b)}
	}
	return stdout.b, fmt.Errorf("cannot run %s: %w", c.Argv[0], err)
}

func (r *Runner) point(what string) {
	if r.Point != nil {
		r.Point(what)
	}
}

// limited keeps what is written to it up to max bytes, and drops the rest: a
// command of another user must not fill root's memory.
type limited struct {
	b    []byte
	max  int
	over bool
}

func (l *limited) Write(p []byte) (int, error) {
	if len(l.b)+len(p) > l.max {
		l.over = true
		return len(p), nil
	}
	l.b = append(l.b, p...)
	return len(p), nil
}

// tail keeps the last max bytes that are written to it.
type tail struct {
	b   []byte
	max int
}

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if n := len(t.b) - t.max; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}
