package podman

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// The owner worker speaks JSON lines over its stdin and stdout: one request at
// a time, any number of progress lines, one reply. End of input ends it.

type request struct {
	ID     int             `json:"id"`
	Op     string          `json:"op"`
	Args   json.RawMessage `json:"args,omitempty"`
	Cancel bool            `json:"cancel,omitempty"` // give up the request of this ID
}

type reply struct {
	Progress json.RawMessage `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Fault    *Fault          `json:"fault,omitempty"`
	Done     bool            `json:"done,omitempty"`
	Alive    bool            `json:"alive,omitempty"` // nothing to tell but that
}

// Fault is an error that crosses the pipe between storagectl and its worker
// without losing what kind it is.
type Fault struct {
	Kind   string          `json:"kind,omitempty"` // what errors.Is would have told; the handlers' own word
	Text   string          `json:"text"`
	Detail json.RawMessage `json:"detail,omitempty"`
}

func (f *Fault) Error() string { return f.Text }

// KindCanceled is the kind of a fault of a request that was cancelled.
const KindCanceled = "canceled"

// Is lets errors.Is see a cancelled request as what it is.
func (f *Fault) Is(target error) bool {
	return f.Kind == KindCanceled && target == context.Canceled
}

// Handler answers one kind of request. What it returns is sent as JSON; a
// [*Fault] in its error is sent as it is, any other error as text.
type Handler func(ctx context.Context, args json.RawMessage, progress func(any)) (any, error)

// Handle makes a [Handler] of a function with typed arguments.
func Handle[A, R any](f func(ctx context.Context, args A, progress func(any)) (R, error)) Handler {
	return func(ctx context.Context, raw json.RawMessage, progress func(any)) (any, error) {
		var a A
		if err := json.Unmarshal(raw, &a); err != nil {
			return nil, fmt.Errorf("cannot read the request: %w", err)
		}
		return f(ctx, a, progress)
	}
}

// A worker tells every beat that it lives while a request is under way. It is
// its owner's, who can stop it (SIGSTOP): one that says nothing for as long as
// silence is killed.
const (
	beat    = 5 * time.Second
	silence = time.Minute
)

// work is a request that was read, with what ends it.
type work struct {
	request
	ctx  context.Context
	stop context.CancelFunc
}

// Serve answers requests until in ends; it returns nil then. The request under
// way is cancelled when in ends, because whoever asked is gone.
func Serve(ctx context.Context, in io.Reader, out io.Writer, handlers map[string]Handler) error {
	return serve(ctx, in, out, handlers, beat)
}

func serve(ctx context.Context, in io.Reader, out io.Writer, handlers map[string]Handler, every time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	enc := json.NewEncoder(out)
	send := func(r reply) error {
		mu.Lock()
		defer mu.Unlock()
		return enc.Encode(r)
	}
	reqs, readErr := make(chan work), make(chan error, 1)
	current, cancelOne := 0, context.CancelFunc(func() {})
	go func() {
		defer close(reqs)
		// Whoever asked is gone. A request that does not heed that must not keep
		// the store locked.
		defer time.AfterFunc(15*time.Second, func() { os.Exit(1) })
		defer cancel()
		dec := json.NewDecoder(bufio.NewReader(in))
		for {
			var q request
			if err := dec.Decode(&q); err != nil {
				if !errors.Is(err, io.EOF) {
					readErr <- err
				}
				return
			}
			if q.Cancel {
				mu.Lock()
				if q.ID == current {
					cancelOne()
				}
				mu.Unlock()
				continue
			}
			// Before it is handed over: its cancel may be what is read next.
			one, stop := context.WithCancel(ctx)
			mu.Lock()
			current, cancelOne = q.ID, stop
			mu.Unlock()
			reqs <- work{q, one, stop}
		}
	}()
	for q := range reqs {
		over := make(chan struct{})
		go func() {
			t := time.NewTicker(every)
			defer t.Stop()
			for {
				select {
				case <-over:
					return
				case <-t.C:
					_ = send(reply{Alive: true})
				}
			}
		}()
		err := send(answer(q.ctx, q.request, handlers, func(p any) {
			if b, err := json.Marshal(p); err == nil {
				_ = send(reply{Progress: b}) // the reader is gone: the end of input tells
			}
		}))
		close(over)
		q.stop()
		if err != nil {
			return fmt.Errorf("cannot answer: %w", err)
		}
	}
	select {
	case err := <-readErr:
		return fmt.Errorf("cannot read a request: %w", err)
	default:
		return nil
	}
}

func answer(ctx context.Context, q request, handlers map[string]Handler, progress func(any)) reply {
	h, ok := handlers[q.Op]
	if !ok {
		return reply{Done: true, Fault: &Fault{Text: fmt.Sprintf("unknown request %q", q.Op)}}
	}
	res, err := h(ctx, q.Args, progress)
	if err != nil {
		var f *Fault
		if !errors.As(err, &f) {
			f = &Fault{Text: err.Error()}
			if ctx.Err() != nil && errors.Is(err, context.Canceled) {
				f.Kind = KindCanceled
			}
		}
		return reply{Done: true, Fault: f}
	}
	b, err := json.Marshal(res)
	if err != nil {
		return reply{Done: true, Fault: &Fault{Text: err.Error()}}
	}
	return reply{Done: true, Result: b}
}
