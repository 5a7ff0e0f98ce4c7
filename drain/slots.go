package drain

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"
)

// DefaultSlotPath is where the slots of a whole cluster are; those of a node
// pool or a datacenter are in a path of their own.
const DefaultSlotPath = "storagectl/slots/cluster"

// slotSpace is the namespace of the slots, whatever namespace jobs use.
const slotSpace = "default"

// SlotOptions say which slot is wanted and for whom.
type SlotOptions struct {
	Path  string        // DefaultSlotPath if empty
	Slots int           // at most so many at a time
	Run   string        // whose it is
	Owner string        // user@host, for people
	TTL   time.Duration // 10 s to 24 h; 30 s if zero: a dead owner's slot is free after TTL and as long again
	// Mine is the slot that a run had before it was cut off.
	Mine *SlotRef
	// Waiting is told once who is in the way.
	Waiting func([]Slot)
}

// SlotRef is what a resumed run needs to take its own slot again.
type SlotRef struct {
	Path string `json:"path"`
	Lock string `json:"lock"`
}

// Slot is a slot as others see it.
type Slot struct {
	Path  string    `json:"path"`
	Held  bool      `json:"held"`
	Owner string    `json:"owner,omitempty"`
	Run   string    `json:"run,omitempty"`
	Since time.Time `json:"since,omitzero"`
	TTL   string    `json:"ttl,omitempty"`
}

// Lease is a held slot. It renews itself until Release, or until it is lost.
type Lease struct {
	Ref SlotRef

	c      *Client
	ttl    time.Duration
	cancel context.CancelFunc
	lose   func()        // closes lost
	lost   chan struct{} // closed when another may hold the slot
	ended  chan struct{} // closed when the renewal has ended
}

// Lost is closed when the lease is lost.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Err is [ErrLost] once the lease is lost.
func (l *Lease) Err() error {
	select {
	case <-l.lost:
		return fmt.Errorf("%w: %s", ErrLost, l.Ref.Path)
	default:
		return nil
	}
}

// Check asks Nomad whether the slot is still held, and gives it another TTL. It
// is [ErrLost] if it is not. Servers that do not answer are not taken for a
// loss before a TTL has passed.
func (l *Lease) Check(ctx context.Context) error {
	if err := l.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, l.ttl/3)
	defer cancel()
	if err := l.c.renew(ctx, l.Ref, l.ttl); err != nil && !passing(err) {
		l.lose()
	}
	return l.Err()
}

// AcquireSlot waits until a slot is free, takes it and keeps it renewed. ctx
// bounds the wait alone; Release ends the lease.
func (c *Client) AcquireSlot(ctx context.Context, o SlotOptions) (*Lease, error) {
	if o.Path == "" {
		o.Path = DefaultSlotPath
	}
	if o.TTL == 0 {
		o.TTL = 30 * time.Second
	}
	if o.Slots < 1 {
		return nil, fmt.Errorf("cannot take one of %d slots", o.Slots)
	}
	if o.Mine != nil {
		var asked time.Time
		err := c.few(ctx, func(ctx context.Context) error {
			asked = time.Now()
			return c.renew(ctx, *o.Mine, o.TTL)
		})
		if err == nil {
			return c.hold(*o.Mine, o.TTL, asked), nil
		}
		// The variable may be gone, too, or be there without a lock.
		if s := status(err); !taken(err) && s != http.StatusNotFound && s != http.StatusBadRequest {
			return nil, c.slotError(err, o)
		}
	}
	for told := false; ; {
		for i := 1; i <= o.Slots; i++ {
			ref, asked, err := c.tryLock(ctx, fmt.Sprintf("%s/%d", o.Path, i), o)
			if err == nil {
				return c.hold(ref, o.TTL, asked), nil
			}
			if !taken(err) && status(err) != http.StatusNotFound { // deleted meanwhile: tried again
				return nil, c.slotError(err, o)
			}
		}
		if !told && o.Waiting != nil {
			slots, err := c.Slots(ctx, o.Path)
			if err != nil {
				return nil, err
			}
			o.Waiting(slots)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("cannot get one of the %d slots of %s: %w", o.Slots, o.Path, ctx.Err())
		case <-time.After(2 * time.Second): // a variable that is locked cannot be watched for its end
		}
	}
}

func (c *Client) slotError(err error, o SlotOptions) error {
	if status(err) == http.StatusForbidden {
		return rightsError([]string{"variables " + o.Path + ": read, write, list"}, Rights{SlotPath: o.Path})
	}
	return fmt.Errorf("cannot get a slot of %s: %w", o.Path, err)
}

func taken(err error) bool { return status(err) == http.StatusConflict }

func slotWrite(w *api.WriteOptions) *api.WriteOptions {
	w.Namespace = slotSpace
	return w
}

// tryLock tells when it asked for the lock, too: Nomad counts from some moment
// between that and its answer.
func (c *Client) tryLock(ctx context.Context, path string, o SlotOptions) (_ SlotRef, asked time.Time, _ error) {
	v := &api.Variable{Namespace: slotSpace, Path: path,
		Items: api.VariableItems{"owner": o.Owner, "run": o.Run, "since": time.Now().UTC().Format(time.RFC3339)},
		Lock:  &api.VariableLock{TTL: o.TTL.String(), LockDelay: max(o.TTL/3, 10*time.Second).String()}}
	var out *api.Variable
	err := c.few(ctx, func(ctx context.Context) (err error) {
		w := slotWrite(c.change(ctx, "lock"))
		asked = time.Now()
		out, _, err = c.api.Variables().AcquireLock(v, w)
		return err
	})
	if err != nil {
		return SlotRef{}, asked, err
	}
	if out == nil || out.LockID() == "" {
		return SlotRef{}, asked, errors.New("Nomad gave a lock without an id") //nolint:staticcheck // a name
	}
	ref := SlotRef{Path: path, Lock: out.LockID()}
	// Only a management token sees whether a variable is locked. But both the
	// release and the expiry of a lock change the variable's index: whoever
	// knows the index of the acquisition knows whether the lock is still held.
	v.Items["index"] = strconv.FormatUint(out.ModifyIndex, 10)
	v.Items["ttl"] = o.TTL.String()
	note := &api.Variable{Namespace: slotSpace, Path: path + holder, Items: v.Items}
	err = c.few(ctx, func(ctx context.Context) error {
		_, _, err := c.api.Variables().Update(note, slotWrite(c.change(ctx, "slot-note")))
		return err
	})
	if err != nil {
		return SlotRef{}, asked, errors.Join(err, c.ReleaseSlot(ctx, ref))
	}
	return ref, asked, nil
}

// holder is where a slot's last holder is written down, below the slot itself.
const holder = "/holder"

func (c *Client) renew(ctx context.Context, ref SlotRef, ttl time.Duration) error {
	v := &api.Variable{Namespace: slotSpace, Path: ref.Path, Lock: &api.VariableLock{ID: ref.Lock, TTL: ttl.String()}}
	_, _, err := c.api.Variables().RenewLock(v, slotWrite(write(ctx)))
	return err
}

// hold renews the lease three times in each TTL. It is lost when Nomad says so,
// or when no renewal came through for a TTL, counted from before it was asked for:
// by the monotonic clock, so that a clock that is set does not matter. last is when
// the lock itself was asked for.
func (c *Client) hold(ref SlotRef, ttl time.Duration, last time.Time) *Lease {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Lease{Ref: ref, c: c, ttl: ttl, cancel: cancel, lost: make(chan struct{}), ended: make(chan struct{})}
	l.lose = sync.OnceFunc(func() { close(l.lost) })
	go func() {
		defer close(l.ended)
		wait := ttl/3 - time.Since(last)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			asked := time.Now()
			call, done := context.WithTimeout(ctx, min(ttl/3, ttl-time.Since(last)))
			err := c.renew(call, ref, ttl)
			done()
			switch {
			case ctx.Err() != nil:
				return
			case err == nil:
				last, wait = asked, ttl/3
			case !passing(err), time.Since(last) >= ttl:
				l.lose()
				return
			default:
				wait = min(time.Second, max(0, ttl-time.Since(last)))
			}
		}
	}()
	return l
}

// Leave stops the renewal and leaves the slot to time: for a run that will be
// resumed.
func (l *Lease) Leave() {
	l.cancel()
	<-l.ended
}

// Release gives the slot back.
func (l *Lease) Release(ctx context.Context) error {
	l.Leave()
	return l.c.ReleaseSlot(ctx, l.Ref)
}

// ReleaseSlot gives a slot back. A slot that is not ours any more is no error.
func (c *Client) ReleaseSlot(ctx context.Context, ref SlotRef) error {
	v := &api.Variable{Namespace: slotSpace, Path: ref.Path, Lock: &api.VariableLock{ID: ref.Lock}}
	err := c.few(ctx, func(ctx context.Context) error {
		_, _, err := c.api.Variables().ReleaseLock(v, slotWrite(c.change(ctx, "unlock")))
		if lockGone(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot give slot %s back: %w", ref.Path, err)
	}
	return nil
}

// lockGone says whether the answer to a release means that the lock is no more.
// Where the servers' state store finds that, they answer 500, and only the words
// tell it from a server in trouble (nomad/state/state_store_variables.go).
func lockGone(err error) bool {
	var u api.UnexpectedResponseError
	if !errors.As(err, &u) {
		return false
	}
	switch status(err) {
	case http.StatusConflict, http.StatusBadRequest, http.StatusNotFound:
		return true
	case http.StatusInternalServerError:
		return strings.Contains(u.Body(), "variable doesn't exist") || strings.Contains(u.Body(), "variable doesn't hold a lock")
	}
	return false
}

// Slots lists the slots under a path that were ever used.
func (c *Client) Slots(ctx context.Context, path string) ([]Slot, error) {
	if path == "" {
		path = DefaultSlotPath
	}
	var metas []*api.VariableMetadata
	err := c.few(ctx, func(ctx context.Context) (err error) {
		q := query(ctx)
		q.Namespace = slotSpace
		metas, _, err = c.api.Variables().PrefixList(path+"/", q)
		return err
	})
	if err != nil {
		return nil, c.slotError(err, SlotOptions{Path: path})
	}
	var slots []Slot
	for _, m := range metas {
		if _, err := strconv.Atoi(m.Path[strings.LastIndexByte(m.Path, '/')+1:]); err != nil {
			continue
		}
		var v *api.Variable
		err := c.few(ctx, func(ctx context.Context) (err error) {
			q := query(ctx)
			q.Namespace = slotSpace
			v, _, err = c.api.Variables().Peek(m.Path+holder, q)
			return err
		})
		if err != nil {
			return nil, c.slotError(err, SlotOptions{Path: path})
		}
		s := Slot{Path: m.Path, Held: v != nil && v.Items["index"] == strconv.FormatUint(m.ModifyIndex, 10)}
		if s.Held {
			s.Owner, s.Run, s.TTL = v.Items["owner"], v.Items["run"], v.Items["ttl"]
			s.Since, _ = time.Parse(time.RFC3339, v.Items["since"]) // zero: not known
		}
		slots = append(slots, s)
	}
	return slots, nil
}
