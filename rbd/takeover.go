package rbd

import (
	"context"
	"fmt"
	"time"
)

// TakeOverRequest asks the helper to shut out who holds an image.
type TakeOverRequest struct {
	Spec    Spec      `json:"spec"`
	Holders []Locker  `json:"holders"`        // as seen by Look; anybody else who turns up is a refusal
	Live    []Watcher `json:"live,omitempty"` // watchers to shut out, too
	Seconds int       `json:"seconds"`        // how long the cluster ignores them
}

// TakeOverOptions say how far taking over may go.
type TakeOverOptions struct {
	// Live also shuts out clients that still answer. Without it they are refused:
	// one that answers can give the image back itself.
	Live bool
}

// fenced is how long a client that was shut out stays so. It must outlast its
// memory of having had the image: a host that was only cut off from the cluster,
// and comes back later, would write on what is another's by then. An entry names
// one client of one boot, and keeps nobody else from anything.
const fenced = 90 * 24 * time.Hour

// TakeOver takes an image from holders that are gone. It proves first, without
// changing anything, that the cluster lets this user shut out a client; then
// each holder's address is put on the cluster's blocklist, so that not one
// write of its can come late; then its locks are broken. img is what Look
// returned and the operator has seen: a holder that is not in it is a refusal.
//
// An image that nobody else has is left as it is.
func (h *Host) TakeOver(ctx context.Context, img Image, opts TakeOverOptions) error {
	q := TakeOverRequest{Spec: img.Spec, Seconds: int(fenced.Seconds())}
	for _, l := range img.Lockers {
		switch {
		case l.Mine:
			continue
		case l.Alive && !opts.Live:
			return fmt.Errorf("cannot take image %s from %s at %s: it is alive; unmap it there", img.Spec, l.Client, l.Addr)
		}
		q.Holders = append(q.Holders, l)
	}
	for _, w := range img.Watchers {
		switch {
		case w.Mine:
			continue
		case !opts.Live:
			return fmt.Errorf("cannot take image %s from client.%d at %s: it is alive; unmap it there", img.Spec, w.Client, w.Addr)
		}
		q.Live = append(q.Live, w)
	}
	if len(q.Holders)+len(q.Live) == 0 {
		return nil
	}
	if err := h.Link.Call(ctx, "rbd.takeover", q, nil); err != nil {
		return fmt.Errorf("cannot take over image %s: %w", img.Spec, err)
	}
	return nil
}

// MayTakeOver tells whether the cluster lets this user shut out a client,
// without changing anything. An error with the fault no-right says what to give
// the user.
func (h *Host) MayTakeOver(ctx context.Context) error {
	if err := h.Link.Call(ctx, "ceph.mayblock", struct{}{}, nil); err != nil {
		return fmt.Errorf("cannot shut out a dead client: %w", err)
	}
	return nil
}
