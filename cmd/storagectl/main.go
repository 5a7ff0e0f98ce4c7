// Command storagectl moves a Podman container store to another driver or
// another place, as one run that can be resumed and rolled back.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"syscall"

	"github.com/storagectl/storagectl/internal/sdnotify"
	"github.com/storagectl/storagectl/migrate/convert"
	"golang.org/x/sys/unix"
)

// version is set by the linker.
var version = "unknown"

func main() {
	if convert.Reexec() { // containers/storage runs this program again for some mounts
		return
	}
	// What the shell left open is not for the processes of another user.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		fmt.Fprintf(os.Stderr, "error: cannot close inherited files: %v\n", err)
		os.Exit(exitFailed)
	}
	os.Exit(run())
}

func run() int {
	notify := sdnotify.Take()
	sweep := newSweep()
	defer sweep.close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal stops the run at a safe point; a second one ends the
	// process at once, which is safe, too: that is what the journal is for.
	context.AfterFunc(ctx, stop)

	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, point: sweep.point}
	a.life = &life{notify: notify, alive: a.alive}
	cmd := newRoot(a)
	at, err := cmd.ExecuteContextC(ctx)
	err = cmp.Or(err, a.wrong)
	a.path = at.CommandPath()
	code := exitCode(err)
	if err != nil && !errors.Is(err, errTold) {
		a.tellError(err, code)
	}
	a.close()
	return code
}

// outlast lets a command that acts on the host go on to its end when whoever
// watched it is gone: a dropped ssh (SIGHUP) or a reader that has read enough
// (SIGPIPE) must not leave podman down. What it says then is lost; the journal
// has it. They are caught, not ignored: children would inherit that.
func outlast() { signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGPIPE) }

// usageError is wrong usage: exit 2.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// errTold marks an error that the operator has read already.
var errTold = errors.New("told")

// told gives an error that still decides the exit code, but is not printed again.
func told(err error) error {
	if errors.Is(err, errTold) {
		return err
	}
	return fmt.Errorf("%w%w", errTold, err)
}
