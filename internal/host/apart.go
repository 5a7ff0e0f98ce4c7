package host

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// StartFor starts cmd from a thread of its own that lives until release is
// called, once the command has been waited for: a command whose parent-death
// signal is set gets it when the thread that started it ends.
//
// With apart, for a command of another user, it is started without what a
// process hands down beside files, environment and terminal: it has a new and
// empty session keyring (a login by PAM gives root one, and whoever has it may
// read the keys in it, whatever the uid: session-keyring(7)), and no nice value,
// I/O priority or scheduling policy above the usual.
func StartFor(cmd *exec.Cmd, apart bool) (release func(), err error) {
	started, over := make(chan error, 1), make(chan struct{})
	go func() {
		// Never unlocked: the thread ends with the goroutine, and with it all that
		// was changed of it. Other threads keep what they have.
		runtime.LockOSThread()
		if apart {
			if err := shed(); err != nil {
				started <- err
				return
			}
		}
		err := cmd.Start()
		started <- err
		if err == nil {
			<-over
		}
	}()
	if err := <-started; err != nil {
		return func() {}, err
	}
	return sync.OnceFunc(func() { close(over) }), nil
}

// shed takes from the calling thread what its children must not inherit.
func shed() error {
	if err := ownKeyring(); err != nil {
		return fmt.Errorf("cannot leave the session keyring: %w", err)
	}
	// What is lower than usual stays: it was meant for all of the job.
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return fmt.Errorf("cannot see the scheduling policy: %w", err)
	}
	switch above := attr.Nice < 0; attr.Policy {
	case unix.SCHED_NORMAL, unix.SCHED_BATCH:
		if !above {
			break
		}
		fallthrough
	case unix.SCHED_FIFO, unix.SCHED_RR, unix.SCHED_DEADLINE:
		if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0); err != nil {
			return fmt.Errorf("cannot leave the scheduling policy: %w", err)
		}
	}
	return usualIOPriority()
}

// ownKeyring gives the calling thread a new session keyring. Where keys cannot
// be had at all, because the kernel has none or a filter forbids them, a child
// cannot have them either.
func ownKeyring() error {
	_, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0) // no name: a new one
	if errors.Is(err, unix.ENOSYS) {
		return nil
	}
	if errors.Is(err, unix.EPERM) {
		if _, look := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); errors.Is(look, unix.EPERM) {
			return nil
		}
	}
	return err
}

// usualIOPriority ends an I/O priority above the usual (ioprio_set(2)).
func usualIOPriority() error {
	const (
		process             = 1 // IOPRIO_WHO_PROCESS; 0 is the calling thread
		shift               = 13
		realtime, bestOfAll = 1, 2 // classes
		usual               = 4    // level in bestOfAll
	)
	p, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, process, 0, 0)
	class, level := p>>shift, p&(1<<shift-1)
	above := class == realtime || class == bestOfAll && level < usual
	if errno == 0 && above { // else there is none: a kernel without block devices, or a filter
		_, _, errno = unix.Syscall(unix.SYS_IOPRIO_SET, process, 0, 0)
		if errno != 0 {
			return fmt.Errorf("cannot leave the I/O priority: %w", errno)
		}
	}
	return nil
}
