package rbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/host"
)

// MapOptions say how to map an image.
type MapOptions struct {
	Mapper  Mapper   // "": krbd where the kernel has it, else fuse
	Options []string // further options of krbd or nbd, as rbd(8) has them
	// Unit serves mapper fuse or nbd by a systemd unit that comes back at boot,
	// instead of by a process of this boot alone.
	Unit bool
	// FailFull has a write fail that finds the cluster or the pool full, instead of
	// waiting for room, where krbd knows how (Linux 5.0). Mapper fuse does so in any
	// case, and nbd in none.
	FailFull bool
	// Wait is how long the unit waits at a boot for a cluster that does not answer.
	Wait time.Duration
}

// Times of Map.
const (
	mapTime    = 90 * time.Second
	unmapTime  = 2 * time.Minute // dirty data is written first
	secondLook = 10 * time.Second
)

// Map makes an image a device of this host, and of no other. It refuses with a
// [*HeldError] what anybody else has open or locked; then it maps with the
// exclusive lock, which is not passed on to who asks for it; then it looks again
// who has the image, and takes the mapping back if somebody else does. Of two
// hosts that map at once the one that gets the lock wins.
//
// A watcher or lock of this host's own address with no device behind it, as a
// power cut leaves them, is waited out for StaleTime; the cluster then breaks
// such a lock itself as the new holder takes it, which needs the caps of the
// profile rbd.
//
// An image that is mapped here already, by the same mapper and alone, is
// returned as it is; mapped by krbd without the exclusive lock it is an error.
func (h *Host) Map(ctx context.Context, spec Spec, opts MapOptions) (Mapping, error) {
	if opts.Mapper == "" {
		opts.Mapper = h.DefaultMapper(ctx)
	}
	before, m, err := h.waitFree(ctx, spec, opts.Mapper)
	if err != nil || m.Device != "" {
		return m, err
	}
	if before.OldFormat || !before.HasFeature("exclusive-lock") {
		return Mapping{}, fmt.Errorf("cannot map image %s so that nobody else has it: it lacks the feature exclusive-lock (rbd feature enable %s exclusive-lock)", spec, spec)
	}
	if m, err = h.attach(ctx, spec, opts); err != nil {
		// A boot's service may have mapped it in this moment.
		there, lerr := h.mapped(ctx, spec, opts.Mapper)
		if lerr != nil || there.Device == "" {
			return Mapping{}, fmt.Errorf("cannot map image %s: %w", spec, err)
		}
		return there, h.alone(ctx, there)
	}
	if err := h.alone(ctx, m); err != nil {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmapTime)
		defer cancel()
		return Mapping{}, errors.Join(err, h.Unmap(back, m))
	}
	return m, nil
}

// DefaultMapper is krbd where the kernel has it or can load it, else fuse.
func (h *Host) DefaultMapper(ctx context.Context) Mapper {
	if what, _ := h.Lacks(ctx, Krbd); what == "" {
		return Krbd
	}
	return Fuse
}

// Lacks tells what a mapper needs and this host has not, and what would help; "" where
// it has all.
func (h *Host) Lacks(ctx context.Context, m Mapper) (what, hint string) {
	tools, module, shows := []string{"rbd"}, "rbd", h.sys("bus/rbd")
	switch m {
	case NBD:
		tools, module, shows = []string{"rbd", "rbd-nbd"}, "nbd", h.sys("block/nbd0")
	case Fuse:
		module, shows = "fuse", "/dev/fuse"
	case Krbd:
	}
	packages := map[string]string{"rbd": "ceph-common", "rbd-nbd": "rbd-nbd"}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			return "there is no " + tool + " here", "apt install " + packages[tool]
		}
	}
	if _, err := os.Stat(shows); err == nil {
		return "", ""
	}
	_, _ = h.Run.Run(ctx, host.Cmd{Argv: []string{"modprobe", module}, Env: toolEnv(), Timeout: 20 * time.Second})
	if _, err := os.Stat(shows); err == nil {
		return "", ""
	}
	if m == Fuse {
		return "there is no /dev/fuse here", "modprobe fuse; where this is a container, give it the device"
	}
	return "this kernel has no " + module, "say --mapper fuse, or load the module " + module
}

// mapped is the mapping that the image has here, none if it has none: by the same mapper,
// and alone. What is left of one whose process is gone is taken away.
func (h *Host) mapped(ctx context.Context, spec Spec, by Mapper) (Mapping, error) {
	there, err := h.Mapped(ctx, spec)
	if err != nil {
		return Mapping{}, err
	}
	if len(there) > 0 {
		img, err := h.Look(ctx, spec)
		if err != nil {
			return Mapping{}, err
		}
		for _, m := range there { // they would get each other's names under /dev/rbd
			if !m.Of(img.FSID) {
				return Mapping{}, fmt.Errorf("cannot map image %s of the cluster %s: %s is one of that name already, of the cluster %s", spec, img.FSID, m.Device, m.FSID)
			}
		}
	}
	if len(there) == 1 && there[0].Mapper == by && !there[0].Dead && !there[0].Shared {
		return there[0], nil
	}
	for _, m := range there {
		if m.Shared {
			return Mapping{}, fmt.Errorf("cannot map image %s for this host alone: it is %s already, without the exclusive lock", spec, m.Device)
		}
		if !m.Dead || m.Mapper != by {
			return Mapping{}, fmt.Errorf("cannot map image %s: it is %s already, by mapper %s", spec, m.Device, m.Mapper)
		}
		if err := h.Unmap(ctx, m); err != nil {
			return Mapping{}, err
		}
	}
	return Mapping{}, nil
}

// waitFree returns when nobody has the image, or with the mapping that it has here: after
// a boot its own service may be at it, and get it only when the watch of before is over.
// Who else has it is a HeldError.
func (h *Host) waitFree(ctx context.Context, spec Spec, by Mapper) (Image, Mapping, error) {
	wait := h.StaleTime
	if wait == 0 {
		wait = 45 * time.Second
	}
	for end := time.Now().Add(wait); ; {
		if m, err := h.mapped(ctx, spec, by); err != nil || m.Device != "" {
			return Image{}, m, err
		}
		img, err := h.Look(ctx, spec)
		if err != nil {
			return img, Mapping{}, err
		}
		free, stale := judge(img)
		if free {
			return img, Mapping{}, nil
		}
		if !stale || time.Now().After(end) {
			return img, Mapping{}, &HeldError{Image: img, Stale: stale}
		}
		select {
		case <-ctx.Done():
			return img, Mapping{}, errors.Join(&HeldError{Image: img, Stale: true}, ctx.Err())
		case <-time.After(time.Second):
		}
	}
}

// judge tells whether an image may be mapped: nobody watches it, and what locks
// there are belong to dead clients of this host. stale: all who are in the way
// have addresses of this host.
func judge(img Image) (free, stale bool) {
	free, stale = len(img.Watchers) == 0, true
	for _, w := range img.Watchers {
		stale = stale && w.Local
	}
	for _, l := range img.Lockers {
		// A lock that was set by hand is never broken by the cluster itself.
		free = free && l.Local && !l.Alive && l.Exclusive
		stale = stale && l.Local && l.Exclusive
	}
	return free, stale
}

// alone looks until the image has no other watcher and no other lock than those
// of the mapping, and the mapping has the lock.
func (h *Host) alone(ctx context.Context, m Mapping) error {
	for end := time.Now().Add(secondLook); ; {
		img, err := h.Look(ctx, m.Spec)
		if err != nil {
			return err
		}
		others := len(img.Foreign())
		if m.Client == 0 { // the mapper does not tell which of the clients it is
			others -= unknownSelf(img)
		}
		if others == 0 && len(img.Lockers) == 1 {
			return nil
		}
		// Who lost the race for the lock leaves by itself.
		if time.Now().After(end) {
			if others == 0 {
				return fmt.Errorf("cannot see the exclusive lock on image %s: %d locks", m.Spec, len(img.Lockers))
			}
			return &HeldError{Image: img}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// unknownSelf counts the one client of this host that both watches and locks
// the image: with nobody there before, that is the new mapping.
func unknownSelf(img Image) int {
	for _, l := range img.Lockers {
		if l.Local && l.Alive {
			return 2 // as watcher and as locker
		}
	}
	return 0
}

func (h *Host) attach(ctx context.Context, spec Spec, opts MapOptions) (Mapping, error) {
	ctx, cancel := context.WithTimeout(ctx, mapTime)
	defer cancel()
	switch opts.Mapper {
	case Krbd:
		return h.rbdMap(ctx, spec, opts)
	case NBD:
		if !opts.Unit {
			return h.rbdMap(ctx, spec, opts)
		}
		return h.serve(ctx, spec, opts)
	case Fuse:
		return h.serve(ctx, spec, opts)
	}
	return Mapping{}, fmt.Errorf("there is no mapper %q", opts.Mapper)
}

// rbdMap maps by rbd(8), and takes what the kernel says then for the truth.
func (h *Host) rbdMap(ctx context.Context, spec Spec, opts MapOptions) (Mapping, error) {
	argv := append([]string{"rbd"}, h.Link.Cluster.Args()...)
	argv = append(argv, "device", "map", "--device-type", string(opts.Mapper), "--exclusive")
	options := slices.Clone(opts.Options)
	if _, err := os.Stat("/run/udev/control"); err != nil && opts.Mapper == Krbd {
		options = append(options, "noudev") // rbd would wait for udev's word
	}
	if opts.FailFull && opts.Mapper == Krbd && kernelFailsFull() {
		options = append(options, "abort_on_full")
	}
	if len(options) > 0 {
		argv = append(argv, "--options", strings.Join(options, ","))
	}
	out, err := h.Run.Run(ctx, host.Cmd{Argv: append(argv, spec.String()), Env: toolEnv(), Timeout: mapTime})
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return Mapping{}, errors.Join(err, h.takeBack(ctx, spec, opts.Mapper))
	}
	if err != nil {
		return Mapping{}, err
	}
	device := strings.TrimSpace(string(out))
	now, err := h.Mapped(ctx, spec)
	if err != nil {
		return Mapping{}, err
	}
	for _, m := range now {
		if m.Device == device && m.Mapper == opts.Mapper {
			return m, nil
		}
	}
	return Mapping{}, fmt.Errorf("rbd says that it is %s, and the kernel does not", device)
}

// kernelFailsFull reports whether the kernel's client knows abort_on_full: an older one
// refuses to map with an option that it does not know.
func kernelFailsFull() bool {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	major, _, _ := strings.Cut(string(b), ".")
	n, aerr := strconv.Atoi(major)
	return err == nil && aerr == nil && n >= 5
}

// takeBack unmaps what a program mapped that was killed meanwhile: the kernel goes on
// with what it was asked for. The image was not mapped here by the mapper before. What
// rbd-nbd maps in a process of its own may still come later, and is found by the next
// look at the image.
func (h *Host) takeBack(ctx context.Context, spec Spec, by Mapper) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmapTime)
	defer cancel()
	now, err := h.Mapped(ctx, spec)
	for _, m := range now {
		if m.Mapper == by {
			err = errors.Join(err, h.Unmap(ctx, m))
		}
	}
	return err
}

// Unmap takes a device away, when all that was written is in the cluster. It
// refuses (EBUSY) while the device is mounted or otherwise in use, and never
// forces. One that is gone already is no error.
func (h *Host) Unmap(ctx context.Context, m Mapping) error {
	ctx, cancel := context.WithTimeout(ctx, unmapTime)
	defer cancel()
	if m.Mapper == Fuse {
		if err := h.unserve(ctx, m); err != nil {
			return fmt.Errorf("cannot unmap image %s: %w", m.Spec, err)
		}
		return nil
	}
	now, err := h.Mapped(ctx, m.Spec)
	if err != nil {
		return err
	}
	here := func(list []Mapping) bool {
		for _, n := range list {
			if n.Device == m.Device && n.Mapper == m.Mapper {
				return true
			}
		}
		return false
	}
	if !here(now) {
		return nil
	}
	if err := waitUnused(ctx, m.Device); err != nil {
		return fmt.Errorf("cannot unmap image %s: %w", m.Spec, err)
	}
	if m.Mapper == NBD { // its service, if it has one, unmaps it
		if err := h.stopUnit(ctx, m.Spec); err != nil {
			return fmt.Errorf("cannot unmap image %s: %w", m.Spec, err)
		}
		if now, err = h.Mapped(ctx, m.Spec); err != nil || !here(now) {
			return err
		}
	}
	argv := append([]string{"rbd"}, h.Link.Cluster.Args()...)
	_, err = h.Run.Run(ctx, host.Cmd{Argv: append(argv, "device", "unmap", "--device-type", string(m.Mapper), m.Device), Env: toolEnv(), Timeout: unmapTime})
	if now, lerr := h.Mapped(ctx, m.Spec); lerr == nil && !here(now) {
		return nil // whatever the program said
	} else if err == nil {
		err = errors.Join(lerr, errors.New("it is still there"))
	}
	return fmt.Errorf("cannot unmap image %s from %s: %w", m.Spec, m.Device, err)
}

// Grown lets the device see that its image is larger. The kernel's own client
// and nbd see it by themselves; a loop device must be told.
func (h *Host) Grown(ctx context.Context, m Mapping) error {
	if m.Mapper != Fuse {
		return nil
	}
	// The loop device asks the file's cached attributes: refresh them first.
	if _, err := os.Stat(m.File); err != nil {
		return fmt.Errorf("cannot see the new size of image %s: %w", m.Spec, err)
	}
	_, err := h.Run.Run(ctx, host.Cmd{Argv: []string{"losetup", "--set-capacity", m.Device}, Env: toolEnv(), Timeout: 20 * time.Second})
	if err != nil {
		return fmt.Errorf("cannot show the new size of image %s to %s: %w", m.Spec, m.Device, err)
	}
	return nil
}

// DeviceSize is the size of a block device in bytes, as the kernel has it.
func (h *Host) DeviceSize(device string) (int64, error) {
	var sectors int64
	b, err := os.ReadFile(h.sys(filepath.Join("class/block", filepath.Base(device), "size")))
	if err == nil {
		_, err = fmt.Sscan(string(b), &sectors)
	}
	if err != nil {
		return 0, fmt.Errorf("cannot tell the size of %s: %w", device, err)
	}
	return sectors * 512, nil // sysfs counts in these whatever the device does
}
