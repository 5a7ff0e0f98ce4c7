package sdnotify

import (
	"sync"
	"time"
)

// Pulse says once in a while that work goes on, as long as the work gives signs of
// life itself: one that hangs falls silent. Nil does nothing. It is safe for
// concurrent use.
type Pulse struct {
	mu       sync.Mutex
	heard    time.Time
	patience time.Duration
	stop     chan struct{}
	stopped  sync.Once
}

// NewPulse calls beat at each interval, beginning with the first one, while the last
// sign is not older than patience, until Stop.
func NewPulse(every, patience time.Duration, beat func()) *Pulse {
	p := &Pulse{heard: time.Now(), patience: patience, stop: make(chan struct{})}
	go func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-p.stop:
				return
			case <-t.C:
				if p.lives() {
					beat()
				}
			}
		}
	}()
	return p
}

// lives goes by the monotonic clock: one that jumps is no silence.
func (p *Pulse) lives() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.heard) <= p.patience
}

// Sign is a sign of life.
func (p *Pulse) Sign() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard = time.Now()
}

// Begin is a sign of life, and says how long what begins now may be silent.
func (p *Pulse) Begin(patience time.Duration) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard, p.patience = time.Now(), patience
}

// Stop ends it.
func (p *Pulse) Stop() {
	if p != nil {
		p.stopped.Do(func() { close(p.stop) })
	}
}
