package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/rbd"
)

// JobGrow is the name of the job that makes an image larger on which a store
// stands already, and the filesystem on it. Nothing is copied.
const JobGrow = "grow"

// The steps of a grow job that no other has, by the names that journals know.
const (
	stepLetGo    = "let-go"
	stepResize   = "resize"
	stepTakeBack = "take-back"
)

// StepGrowFS is the step that makes a filesystem as large as its image.
const StepGrowFS = "grow-filesystem"

// GrowFact is what growing did.
type GrowFact struct {
	Image  int64 `json:"image"`  // bytes of the image now
	Before int64 `json:"before"` // bytes of the filesystem, as statfs(2) reckons them
	After  int64 `json:"after"`
}

// Growing reports whether the job only makes an image larger.
func (in Inputs) Growing() bool {
	return in.Target != nil && in.Target.Image != nil && in.Target.Image.Had > 0
}

// online reports whether the image can grow while it is mapped. The kernel's client
// keeps the exclusive lock for itself, and resizes for nobody.
func (t *TargetImage) online() bool { return t.Mapper != rbd.Krbd }

// growSteps make the image larger, and then the filesystem. A larger image harms
// nobody: until the last step the way back is to leave it so.
func (s *Session) growSteps() []engine.Step {
	resize := engine.Step{Name: stepResize, Title: "make the image larger", Holds: s.resized, Do: s.resize}
	last := engine.Step{Name: StepGrowFS, Title: "make the filesystem as large", Final: true, Do: s.growFilesystem}
	if s.Inputs.Target.Image.online() {
		return []engine.Step{resize, last}
	}
	resize.Needs = []string{stepStop, stepLetGo}
	return s.around([]engine.Step{
		{Name: stepStop, Title: "stop podman", Pausable: true, Holds: s.stopped, Do: s.stop, Undo: s.putBack},
		{Name: stepLetGo, Title: "unmount the store and unmap the image", Needs: []string{stepStop},
			Holds: s.letGone, Do: s.letGo, Undo: s.takeBack},
		resize,
		{Name: stepTakeBack, Title: "map the image and mount the store again", Needs: []string{stepStop},
			Holds: s.backInUse, Do: s.takeBack},
		{Name: stepStart, Title: "start what ran before", Holds: s.started, Do: s.startUnits},
		last,
	})
}

// resized observes that the image is as large as it is to be.
func (s *Session) resized(ctx context.Context) (bool, error) {
	t := s.Inputs.Target.Image
	var now int64
	err := withCeph(ctx, s.env.Runner, t.Cluster, func(h *rbd.Host) error {
		img, err := h.Look(ctx, t.Spec)
		now = img.Size
		return err
	})
	return now >= t.Size, cephRefusal(err)
}

func (s *Session) resize(ctx context.Context) error {
	t := s.Inputs.Target.Image
	err := withCeph(ctx, s.env.Runner, t.Cluster, func(h *rbd.Host) error {
		_, err := h.Resize(ctx, t.Spec, t.Size)
		return err
	})
	s.point("before after-resize")
	return cephRefusal(err)
}

// growFilesystem has the device and the filesystem become as large as the image.
// It observes by itself, and is done again until the journal has it.
func (s *Session) growFilesystem(ctx context.Context) error {
	t := s.Inputs.Target.Image
	m, err := s.mapping(ctx)
	if err != nil {
		return err
	}
	h := &rbd.Host{Run: s.env.Runner}
	if err := h.Grown(ctx, m); err != nil {
		return err
	}
	s.point("before after-grown-device")
	size, err := h.DeviceSize(m.Device)
	if err != nil {
		return err
	}
	if size < t.Size&^511 { // a device has whole sectors
		return fmt.Errorf("cannot grow the filesystem: image %s has %d bytes, and its device %s only %d", t.Spec, t.Size, m.Device, size)
	}
	live, err := s.openLive(ctx)
	if err != nil {
		return err
	}
	defer live.Close()
	if on, err := standsOn(live, m.Device); err != nil {
		return err
	} else if !on {
		return fmt.Errorf("cannot grow the filesystem: %s is not mounted on %s", m.Device, live.Name())
	}
	before, after, err := host.Grow(live)
	if err != nil {
		return err
	}
	s.point("before after-grown")
	full, err := host.Full(live, m.Device)
	if err != nil {
		return err
	}
	if !full {
		return fmt.Errorf("the filesystem on %s has %d bytes after it grew, and the device %d", m.Device, after, size)
	}
	if s.facts.Grown != nil { // of a try that was cut off
		before = s.facts.Grown.Before
	}
	return s.learn(func(f *Facts) { f.Grown = &GrowFact{Image: size, Before: before, After: after} })
}

// standsOn reports whether a folder is the top of what is mounted from a device.
func standsOn(dir *os.File, device string) (bool, error) {
	dev, err := host.LookDevice(device)
	if err != nil {
		return false, err
	}
	m, err := host.MountOf(dir)
	return m.Path == dir.Name() && m.Dev() == unix.Mkdev(dev.Major, dev.Minor), err
}

// letGone observes that nothing of the image is left on this host.
func (s *Session) letGone(ctx context.Context) (bool, error) {
	if t, err := host.Mounts(); err != nil || len(t.Stack(s.Inputs.Store.GraphRoot)) > 0 {
		return false, err
	}
	_, err := s.mapping(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// letGo unmounts the store and unmaps the image.
func (s *Session) letGo(ctx context.Context) error {
	if err := s.stillOut(ctx); err != nil {
		return err
	}
	if err := s.quiet(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, mountLimit)
	defer cancel()
	if s.Inputs.Owner.Rootful() {
		if err := s.detachHome(); err != nil {
			return err
		}
	}
	if err := s.endWorker(); err != nil { // its lock keeps the mount busy
		return err
	}
	err := s.rememberRequirers(ctx)
	if err == nil {
		err = s.takeDown(ctx)
	}
	s.point("before after-store-unmount")
	if err == nil {
		err = s.unmapAll(ctx)
	}
	return errors.Join(err, s.renewWorker(ctx))
}

// rememberRequirers notes what systemd stops with the mount, such as Nomad's agents.
func (s *Session) rememberRequirers(ctx context.Context) error {
	if len(s.facts.Required) > 0 { // of an earlier try they are down
		return nil
	}
	return s.onSystemBus(ctx, func(b *host.Bus) error {
		units, err := b.Requirers(ctx, s.Inputs.Store.GraphRoot)
		if err != nil {
			return err
		}
		return s.learn(func(f *Facts) { f.Required = units })
	})
}

func (s *Session) unmapAll(ctx context.Context) error {
	t := s.Inputs.Target.Image
	return withCeph(ctx, s.env.Runner, t.Cluster, func(h *rbd.Host) error { return unmapHere(ctx, h, t) })
}

// unmapHere takes an image from this host, however often it is mapped. One of the
// same name in another cluster stays.
func unmapHere(ctx context.Context, h *rbd.Host, img *TargetImage) error {
	all, err := h.Mapped(ctx, img.Spec)
	if err != nil {
		return err
	}
	for _, m := range all {
		if !m.Of(img.FSID) {
			continue
		}
		if err := h.Unmap(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// takenBack observes that the store is in its place, on the image.
func (s *Session) takenBack(ctx context.Context) (bool, error) {
	if t, err := host.Mounts(); err != nil || len(t.Stack(s.Inputs.Store.GraphRoot)) == 0 {
		return false, err
	}
	m, err := s.mapping(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	live, err := s.openLive(ctx)
	if err != nil {
		return false, err
	}
	defer live.Close()
	return standsOn(live, m.Device)
}

// backInUse observes that, and that nothing is left to start that systemd had stopped.
func (s *Session) backInUse(ctx context.Context) (bool, error) {
	back, err := s.takenBack(ctx)
	return back && len(s.facts.Required) == 0, err
}

// takeBack maps the image and has systemd mount the store as at any boot.
func (s *Session) takeBack(ctx context.Context) error {
	t := s.Inputs.Target.Image
	err := withCeph(ctx, s.env.Runner, t.Cluster, func(h *rbd.Host) error {
		_, err := h.Map(ctx, t.Spec, rbd.MapOptions{Mapper: t.Mapper, Unit: true, Wait: t.wait()})
		return err
	})
	if err != nil {
		return imageRefusal(err)
	}
	s.point("before after-map-again")
	ctx, cancel := context.WithTimeout(ctx, mountLimit)
	defer cancel()
	root := s.Inputs.Store.GraphRoot
	if err := s.onSystemBus(ctx, func(b *host.Bus) error { return b.StartMount(ctx, root) }); err != nil {
		return err
	}
	if back, err := s.takenBack(ctx); err != nil {
		return err
	} else if !back {
		return fmt.Errorf("image %s is mapped, but not what systemd has mounted on %s", t.Spec, root)
	}
	s.point("before after-mount-again")
	for _, unit := range s.facts.Required {
		if err := s.onSystemBus(ctx, func(b *host.Bus) error { return b.Start(ctx, unit) }); err != nil {
			// It must not keep podman down: whether Nomad's client is there the return sees itself.
			if err := s.note("%s had to stop with the mount, and does not start: %v", unit, err); err != nil {
				return err
			}
		}
	}
	if err := s.learn(func(f *Facts) { f.Required = nil }); err != nil {
		return err
	}
	return s.renewWorker(ctx)
}
