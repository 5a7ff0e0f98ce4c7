package treecopy

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// pace lets no more bytes pass than allowed per second, over any second or so.
type pace struct {
	perSecond int64
	mu        sync.Mutex
	next      time.Time // when what was let pass so far is paid for
}

func (p *pace) take(ctx context.Context, n int64) error {
	if p.perSecond <= 0 {
		return ctx.Err()
	}
	p.mu.Lock()
	now := time.Now()
	if floor := now.Add(-100 * time.Millisecond); p.next.Before(floor) {
		p.next = floor
	}
	p.next = p.next.Add(time.Duration(float64(n) / float64(p.perSecond) * float64(time.Second)))
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

// meter counts, and tells how far it is from time to time.
type meter struct {
	phase                atomic.Pointer[string]
	files, bytes, copied atomic.Int64
	total                Totals
	stop                 chan struct{}
	stopped              sync.WaitGroup
	changed              chan struct{}
}

func startMeter(total Totals, fn func(Progress)) *meter {
	m := &meter{total: total, stop: make(chan struct{}), changed: make(chan struct{}, 1)}
	start := ""
	m.phase.Store(&start)
	if fn == nil {
		return m
	}
	m.stopped.Go(func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-m.stop:
				fn(m.now())
				return
			case <-tick.C:
			case <-m.changed:
			}
			fn(m.now())
		}
	})
	return m
}

func (m *meter) now() Progress {
	return Progress{
		Phase: *m.phase.Load(), Files: m.files.Load(), Bytes: m.bytes.Load(), Copied: m.copied.Load(),
		TotalFiles: m.total.Files, TotalBytes: m.total.Bytes,
	}
}

func (m *meter) enter(phase string) {
	m.phase.Store(&phase)
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func (m *meter) end() {
	close(m.stop)
	m.stopped.Wait()
}

// idle puts the calling goroutine's thread into the idle class of I/O. The thread
// ends with the goroutine.
func idle() {
	const whoProcess, classIdle = 1, 3 << 13 // linux/ioprio.h
	runtime.LockOSThread()
	// A scheduler without classes ignores it; so do we.
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, classIdle)
}
