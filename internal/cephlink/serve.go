package cephlink

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// Protocol is the version of the wire. Both sides must have the same: they are
// built and installed together.
const Protocol = 1

type request struct {
	ID   int             `json:"id"`
	Op   string          `json:"op"`
	Args json.RawMessage `json:"args,omitempty"`
}

type reply struct {
	ID     int             `json:"id"`
	Result json.RawMessage `json:"result,omitempty"`
	Fault  *Fault          `json:"fault,omitempty"`
}

// Hello is the first answer of a helper.
type Hello struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"` // of storagectl-ceph
	Ceph     string `json:"ceph"`    // of the libraries, such as 16.2.15
}

// Handler answers one kind of request.
type Handler func(args json.RawMessage) (any, error)

// Handle makes a [Handler] of a function with typed arguments.
func Handle[A, R any](f func(A) (R, error)) Handler {
	return func(raw json.RawMessage) (any, error) {
		var a A
		if err := json.Unmarshal(raw, &a); err != nil {
			return nil, fmt.Errorf("cannot read the request: %w", err)
		}
		return f(a)
	}
}

// Serve answers the requests in in, one at a time, until it ends. A call into
// a Ceph library cannot be cancelled: whoever asks kills the process instead.
func Serve(in io.Reader, out io.Writer, handlers map[string]Handler) error {
	dec, enc := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	for {
		var q request
		if err := dec.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("cannot read a request: %w", err)
		}
		if err := enc.Encode(answer(q, handlers)); err != nil {
			return fmt.Errorf("cannot answer: %w", err)
		}
	}
}

func answer(q request, handlers map[string]Handler) reply {
	h, ok := handlers[q.Op]
	if !ok {
		return reply{ID: q.ID, Fault: &Fault{Op: q.Op, ID: NoHelper, Text: fmt.Sprintf("the helper does not know the request %q", q.Op)}}
	}
	res, err := h(q.Args)
	if err != nil {
		return reply{ID: q.ID, Fault: FaultOf(q.Op, err)}
	}
	b, err := json.Marshal(res)
	if err != nil {
		return reply{ID: q.ID, Fault: FaultOf(q.Op, err)}
	}
	return reply{ID: q.ID, Result: b}
}

// FaultOf makes a fault of any error, and keeps the number that Ceph gave.
func FaultOf(op string, err error) *Fault {
	var f *Fault
	if errors.As(err, &f) {
		g := *f
		g.Op, g.Text = op, err.Error()
		if g.Errno == 0 {
			g.Errno = Errno(err)
		}
		return &g
	}
	return &Fault{Op: op, Errno: Errno(err), Text: err.Error()}
}

// Errno is the number that an error of a Ceph library or of the system carries,
// positive; 0 where it has none.
func Errno(err error) int {
	var coded interface{ ErrorCode() int }
	var num syscall.Errno
	switch {
	case errors.As(err, &coded):
		return max(coded.ErrorCode(), -coded.ErrorCode())
	case errors.As(err, &num):
		return int(num)
	}
	return 0
}
