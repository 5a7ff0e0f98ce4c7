package tell

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// queued is how many events may wait for one target: more than a run has points.
	queued = 64
	// firstPause is before the second attempt at a webhook; each pause is twice the
	// one before.
	firstPause = time.Second
	// giveUp is how long a webhook is tried for one event.
	giveUp = time.Minute
)

// Sender tells targets of events: to each in their order, beside the run.
type Sender struct {
	cancel context.CancelFunc
	lines  []*line
}

// line is the way to one target.
type line struct {
	target Target
	queue  chan Event
	done   chan struct{}
	pause  time.Duration

	mu     sync.Mutex
	failed []error
}

// NewSender begins to serve targets. Close ends it.
func NewSender(targets []Target) *Sender { return newSender(targets, firstPause) }

func newSender(targets []Target, pause time.Duration) *Sender {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Sender{cancel: cancel}
	for _, t := range targets {
		l := &line{target: t, queue: make(chan Event, queued), done: make(chan struct{}), pause: pause}
		s.lines = append(s.lines, l)
		go l.serve(ctx)
	}
	return s
}

// Send has the targets that want it told of an event. It returns at once.
func (s *Sender) Send(e Event) {
	if e.ID == "" {
		e.ID = rand.Text()
	}
	for _, l := range s.lines {
		if !l.target.Wants(e.Point) {
			continue
		}
		select {
		case l.queue <- e:
		default:
			l.fail(e, errors.New("too many events wait for it"))
		}
	}
}

// Close waits until all is told, or ctx ends; then what is not told yet is given
// up. It returns what was not delivered. Nothing may be sent afterwards.
func (s *Sender) Close(ctx context.Context) []error {
	for _, l := range s.lines {
		close(l.queue)
	}
	var errs []error
	for _, l := range s.lines {
		select {
		case <-l.done:
		case <-ctx.Done():
			s.cancel()
			<-l.done
		}
		errs = append(errs, l.failed...)
	}
	s.cancel()
	return errs
}

// Send tells targets of one event, and returns what was not delivered until ctx ended.
func Send(ctx context.Context, targets []Target, e Event) error {
	s := NewSender(targets)
	s.Send(e)
	return errors.Join(s.Close(ctx)...)
}

func (l *line) serve(ctx context.Context) {
	defer close(l.done)
	for e := range l.queue {
		if err := l.deliver(ctx, e); err != nil {
			l.fail(e, err)
		}
	}
}

func (l *line) fail(e Event, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = append(l.failed, fmt.Errorf("%s was not told of %q: %w", l.target.Name(), e.Point, err))
}

func (l *line) deliver(ctx context.Context, e Event) error {
	if ctx.Err() != nil {
		return errors.New("no time was left")
	}
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return fmt.Errorf("cannot write it: %w", err)
	}
	if len(l.target.Exec) > 0 {
		return l.run(ctx, e, body.Bytes())
	}
	ctx, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	var last error
	for pause := l.pause; ; pause *= 2 {
		err := l.post(ctx, e, body.Bytes())
		if err != nil && ctx.Err() != nil { // cut short: what the one before met says more
			return cmp.Or(last, errors.New("it did not answer in time"))
		}
		var again *againError
		if err == nil || !errors.As(err, &again) {
			return err
		}
		last = err
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}
