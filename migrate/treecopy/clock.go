package treecopy

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// coarse is the clock that the kernel stamps changes by, as of its last tick.
func coarse() (stamp, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now); err != nil {
		return stamp{}, err
	}
	return stampOf(now), nil
}

// caughtUp waits until the coarse clock has passed the moment of the call, for a
// tick (10 ms at most), and returns it. What this host's kernel stamped before the
// call bears an earlier ctime, also where the stamp was a fine one (from Linux 6.13
// on that of a change of what was looked at since its last; always that of
// ceph-fuse); what it stamps after the return bears none that is earlier. A clock
// that is put back holds it up for a second at most.
func caughtUp(ctx context.Context) (stamp, error) {
	called := time.Now()
	from := stampOf(unix.NsecToTimespec(called.UnixNano()))
	for {
		now, err := coarse()
		if err != nil || from.before(now) || time.Since(called) > time.Second {
			return now, err
		}
		select {
		case <-ctx.Done():
			return stamp{}, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}
