package treecopy

import (
	"sync"
	"sync/atomic"
	"time"
)

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
