package dockerapi

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// dial connects to the socket with the rights that the owner has outside of the
// user namespace in which the owner's worker is root: a mode that locks the owner
// out locks a worker of Prefect's out.
func dial(ctx context.Context, path string) (net.Conn, error) {
	type dialed struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialed, 1)
	go func() {
		var d dialed
		// Never unlocked: so this thread ends here, and what it gave up with it.
		runtime.LockOSThread()
		if d.err = dropOverride(); d.err == nil {
			d.conn, d.err = (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
		done <- d
	}()
	d := <-done
	return d.conn, d.err
}

// dropOverride takes from this thread the right to pass over modes, if it has that
// only in a user namespace.
func dropOverride() error {
	m, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return fmt.Errorf("cannot see which users there are: %w", err)
	}
	if f := strings.Fields(string(m)); len(f) < 2 || f[1] == "0" {
		return nil
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("cannot read capabilities: %w", err)
	}
	data[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	if err := unix.Capset(&head, &data[0]); err != nil {
		return fmt.Errorf("cannot drop capabilities: %w", err)
	}
	return nil
}
