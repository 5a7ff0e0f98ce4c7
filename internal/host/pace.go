package host

import (
	"context"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Pace lets no more bytes pass than allowed a second, over any second or so. It
// may be used by several goroutines.
type Pace struct {
	PerSecond int64 // 0: as many as come

	mu   sync.Mutex
	next time.Time // when what was let pass so far is paid for
}

// Take waits until n more bytes may pass, or ctx ends.
func (p *Pace) Take(ctx context.Context, n int64) error {
	if p.PerSecond <= 0 {
		return ctx.Err()
	}
	p.mu.Lock()
	now := time.Now()
	if floor := now.Add(-100 * time.Millisecond); p.next.Before(floor) {
		p.next = floor
	}
	p.next = p.next.Add(time.Duration(float64(n) / float64(p.PerSecond) * float64(time.Second)))
	wait := p.next.Sub(now)
	p.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// IdleIO asks for input and output only when nobody else wants any, for the thread
// of the calling goroutine, which ends with the goroutine.
func IdleIO() {
	const whoProcess, classIdle = 1, 3 << 13 // linux/ioprio.h
	runtime.LockOSThread()
	// A scheduler without classes ignores it; so do we.
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, classIdle)
}
