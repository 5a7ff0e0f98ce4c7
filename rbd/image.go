package rbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/host"
)

// Host handles images on this machine.
type Host struct {
	Link *cephlink.Client
	Run  *host.Runner

	// RunDir is where mapper fuse keeps its mounts and state, of root alone;
	// /run/storagectl/rbd if empty.
	RunDir string
	// Sys is where sysfs is mounted; /sys if empty.
	Sys string
	// StaleTime is how long Map waits for a watcher of this host that no device
	// here belongs to, as one is left for half a minute after a power cut; 45 s if
	// zero.
	StaleTime time.Duration
}

// Image is what is known of an image.
type Image struct {
	Spec        Spec      `json:"spec"`
	FSID        string    `json:"fsid"` // of its cluster
	ID          string    `json:"id"`
	Size        int64     `json:"size"` // bytes
	ObjectSize  int64     `json:"objectSize"`
	StripeUnit  int64     `json:"stripeUnit"`
	StripeCount int64     `json:"stripeCount"`
	Features    []string  `json:"features"` // layering, exclusive-lock, …
	DataPool    string    `json:"dataPool,omitempty"`
	Created     time.Time `json:"created"`
	OldFormat   bool      `json:"oldFormat,omitempty"` // format 1: no features, no lock
	Snapshots   []string  `json:"snapshots,omitempty"`

	Watchers []Watcher `json:"watchers"`
	Lockers  []Locker  `json:"lockers"`
}

// Watcher is a client that has the image open for writing.
type Watcher struct {
	Addr   string `json:"addr"`   // ADDRESS:PORT/NONCE
	Client int64  `json:"client"` // its number in the cluster
	Cookie uint64 `json:"cookie"`

	Mine  bool `json:"mine"`  // a device of this host is behind it
	Local bool `json:"local"` // it comes from an address that this host has
}

// Locker is a client that holds a lock on the image.
type Locker struct {
	Client    string `json:"client"` // "client.4123"
	Addr      string `json:"addr"`
	Cookie    string `json:"cookie"`
	Exclusive bool   `json:"exclusive"` // the exclusive lock that librbd and the kernel manage; else one set by hand

	Mine  bool `json:"mine"`
	Local bool `json:"local"`
	Alive bool `json:"alive"` // it also watches the image: it answered within the last half minute
}

// HasFeature tells whether the image has a feature.
func (i Image) HasFeature(name string) bool { return slices.Contains(i.Features, name) }

// allocUnit is the grain in which krbd tells a filesystem to write and to discard
// (its option alloc_size, Linux 5.2 and later, in bytes). The size of an object, 4 MiB
// mostly, would be none: nothing smaller could be aligned to it or discarded.
const allocUnit = 64 << 10

// Stripe is what a filesystem on the image had best align to, in bytes: what krbd tells
// it by itself. The devices of the other mappers tell nothing.
func (i Image) Stripe() int64 { return min(allocUnit, i.ObjectSize) }

// Foreign are the watchers and lockers that belong to no device of this host,
// as text with their addresses.
func (i Image) Foreign() []string {
	var w []string
	for _, x := range i.Watchers {
		if !x.Mine {
			w = append(w, fmt.Sprintf("client.%d at %s watches it", x.Client, x.Addr))
		}
	}
	for _, l := range i.Lockers {
		if !l.Mine {
			state := "which no longer answers"
			if l.Alive {
				state = "which is alive"
			}
			w = append(w, fmt.Sprintf("%s at %s, %s, holds a lock on it", l.Client, l.Addr, state))
		}
	}
	return w
}

// Free tells whether [Host.Map] would have the image now: nobody watches it, and
// locks are at most those that a dead client of this host left.
func (i Image) Free() bool {
	free, _ := judge(i)
	return free
}

// Dead tells whether all who keep this host from the image are gone, as far as the
// cluster knows: they hold the exclusive lock and do not watch the image. A watch
// ends 30 s after its client was heard last. What was locked by hand is no such
// case: that needs nobody alive.
func (i Image) Dead() bool {
	locked := false
	for _, l := range i.Lockers {
		if !l.Mine && (l.Alive || !l.Exclusive) {
			return false
		}
		locked = locked || !l.Mine
	}
	return locked && !i.Free() && !slices.ContainsFunc(i.Watchers, func(w Watcher) bool { return !w.Mine })
}

// Look returns what the cluster knows of an image. Where it is not there,
// errors.Is tells fs.ErrNotExist, and cephlink.IDOf which part is missing:
// no-pool, no-namespace or no-image. It changes nothing, and does not show up
// as a watcher.
func (h *Host) Look(ctx context.Context, spec Spec) (Image, error) {
	var img Image
	if err := h.Link.Call(ctx, "rbd.look", spec, &img); err != nil {
		return img, fmt.Errorf("cannot look at image %s: %w", spec, err)
	}
	mapped, err := h.Mapped(ctx, spec)
	if err != nil {
		return img, err
	}
	mapped = slices.DeleteFunc(mapped, func(m Mapping) bool { return !m.Of(img.FSID) })
	mark(&img, mapped, localAddrs())
	return img, nil
}

// mark fills in what of an image belongs to this host.
func mark(img *Image, mapped []Mapping, local func(netip.Addr) bool) {
	mine := func(client int64) bool {
		return slices.ContainsFunc(mapped, func(m Mapping) bool { return m.Client == client && client != 0 })
	}
	isLocal := func(addr string) bool {
		a, ok := clientAddr(addr)
		return ok && local(a)
	}
	// A client shows as one address in the list of watchers, and with another port
	// or none in that of lockers: its number is what tells it.
	alive := map[string]bool{}
	for i := range img.Watchers {
		w := &img.Watchers[i]
		w.Mine, w.Local = mine(w.Client), isLocal(w.Addr)
		alive[fmt.Sprintf("client.%d", w.Client)] = true
	}
	for i := range img.Lockers {
		l := &img.Lockers[i]
		var n int64
		if _, err := fmt.Sscanf(l.Client, "client.%d", &n); err == nil {
			l.Mine = mine(n)
		}
		l.Local, l.Alive = isLocal(l.Addr), alive[l.Client]
	}
}

// clientAddr is the IP address in what Ceph calls a client's address:
// v1:10.0.0.1:0/123, 10.0.0.1:0/123, [2001:db8::1]:0/123.
func clientAddr(s string) (netip.Addr, bool) {
	for _, prefix := range []string{"v1:", "v2:", "any:"} {
		s = strings.TrimPrefix(s, prefix)
	}
	s, _, _ = strings.Cut(s, "/")
	ap, err := netip.ParseAddrPort(s)
	return ap.Addr().Unmap(), err == nil
}

// localAddrs tells whether an address is of this host, by its interfaces now.
func localAddrs() func(netip.Addr) bool {
	ours := map[netip.Addr]bool{}
	addrs, _ := net.InterfaceAddrs() // none known: none is local, which refuses more
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				ours[ip.Unmap()] = true
			}
		}
	}
	return func(a netip.Addr) bool { return ours[a] }
}

// CreateOptions say what image to make. Zero values leave it to the cluster.
type CreateOptions struct {
	Size     int64    `json:"size"`               // bytes; must be given
	Features []string `json:"features,omitempty"` // see [CheckFeatures]; exclusive-lock is always added
	DataPool string   `json:"dataPool,omitempty"` // for the data of an image whose pool holds but metadata (erasure coding)
}

type createRequest struct {
	Spec    Spec          `json:"spec"`
	Options CreateOptions `json:"options"`
}

// Create makes an image. One that is there already is an error (fs.ErrExist):
// whether it may be used is the caller's to judge.
func (h *Host) Create(ctx context.Context, spec Spec, opts CreateOptions) error {
	if opts.Size <= 0 {
		return fmt.Errorf("cannot make image %s of %d bytes", spec, opts.Size)
	}
	if err := h.Link.Call(ctx, "rbd.create", createRequest{spec, opts}, nil); err != nil {
		return fmt.Errorf("cannot make image %s: %w", spec, err)
	}
	return nil
}

// MakeNamespace makes the namespace in the pool that an image is to be in. Where one is
// there the error is fs.ErrExist.
func (h *Host) MakeNamespace(ctx context.Context, spec Spec) error {
	if err := h.Link.Call(ctx, "rbd.makenamespace", spec, nil); err != nil {
		return fmt.Errorf("cannot make the namespace of image %s: %w", spec, err)
	}
	return nil
}

// RemoveNamespace removes the namespace of an image. One that any image is in stays
// (fault held); one that is not there is no error.
func (h *Host) RemoveNamespace(ctx context.Context, spec Spec) error {
	if err := h.Link.Call(ctx, "rbd.removenamespace", spec, nil); err != nil {
		return fmt.Errorf("cannot remove the namespace of image %s: %w", spec, err)
	}
	return nil
}

// Resize makes an image larger and returns its size then; one that is as large
// already stays as it is. It never makes one smaller. The filesystem on it is
// not touched.
//
// While mapper fuse or nbd has it that works, and a device of mapper fuse sees
// the new size after [Host.Grown]. What krbd has mapped exclusively is refused
// (fault held; errors.Is EROFS): its lock is not lent to anybody.
func (h *Host) Resize(ctx context.Context, spec Spec, size int64) (int64, error) {
	var now int64
	err := h.Link.Call(ctx, "rbd.resize", struct {
		Spec Spec  `json:"spec"`
		Size int64 `json:"size"`
	}{spec, size}, &now)
	if err != nil {
		return 0, fmt.Errorf("cannot make image %s larger: %w", spec, err)
	}
	return now, nil
}

// Remove removes an image with all its data. It is refused (fault held) while
// anybody has it open or locked, and while it has snapshots. The time it takes
// grows with the image: give ctx a deadline that allows for it.
func (h *Host) Remove(ctx context.Context, spec Spec) error {
	if err := h.Link.Call(ctx, "rbd.remove", spec, nil); err != nil {
		return fmt.Errorf("cannot remove image %s: %w", spec, err)
	}
	return nil
}

// HeldError reports an image that somebody else has.
type HeldError struct {
	Image Image
	// Stale: all who have it come from addresses of this host, but no device here
	// is theirs. They are left over, or of a container or machine behind the same
	// address.
	Stale bool
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("image %s is in use: %s", e.Image.Spec, strings.Join(e.Image.Foreign(), "; "))
}

// Is makes errors.Is(err, syscall.EBUSY) true.
func (e *HeldError) Is(target error) bool { return errors.Is(syscall.EBUSY, target) }
