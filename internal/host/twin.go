package host

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A rootless podman runs itself once more, in the user namespace, and the child
// does the work. On SIGTERM the parent of `podman system service` ends at once,
// and may end before it has passed the signal on (seen, podman 4.3.1); with the
// unit's KillMode=process nobody else tells the child. It then serves on, in a
// scope of its own, until it has been idle for 5 s.

// twins are the children of a service's main process that are the same command,
// as pidfds. Nil where the unit is no service, does not run podman itself, or
// has none: the children of another program are its own affair.
func (b *Bus) twins(ctx context.Context, unit string) []int {
	return twinsOf(b.MainPID(ctx, unit))
}

// MainPID is the main process of a service, 0 where it has none or is no service.
func (b *Bus) MainPID(ctx context.Context, unit string) int {
	if !strings.HasSuffix(unit, ".service") {
		return 0
	}
	p, err := b.conn.GetUnitTypePropertyContext(ctx, unit, "Service", "MainPID")
	if err != nil {
		return 0
	}
	main, _ := p.Value.Value().(uint32)
	return int(main)
}

func twinsOf(main int) []int {
	if main == 0 || !runs(strconv.Itoa(main), "podman") {
		return nil
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", main))
	if err != nil || len(line) == 0 {
		return nil
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	var fds []int
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if !childOf(pid, main) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // gone
		}
		// Looked at once more, now that the number cannot be another's.
		own, err := os.ReadFile(dir + "/cmdline")
		if err == nil && bytes.Equal(own, line) && childOf(pid, main) {
			fds = append(fds, fd)
		} else {
			_ = unix.Close(fd)
		}
	}
	return fds
}

func childOf(pid, parent int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The name, in parentheses, may hold anything; state and parent follow it.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	return len(f) > 1 && f[1] == strconv.Itoa(parent)
}

// endTwins passes the signal on, if they live, and lets go of them.
func endTwins(fds []int) {
	for _, fd := range fds {
		_ = unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0) // gone: good
		_ = unix.Close(fd)
	}
}
