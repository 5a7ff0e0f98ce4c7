package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/verify"
)

// mountLimit bounds a mount that systemd makes; a device has 90 s to appear.
const mountLimit = 2 * time.Minute

// mounted observes that the target is mounted in the store's place, and will be
// after a boot: the folder that a look at the graphroot ends in is the very one
// that was copied to, and systemd is told of it.
func (s *Session) mounted(ctx context.Context) (bool, error) {
	lacks, err := s.notMounted(ctx)
	return err == nil && lacks == "", err
}

// notMounted says what lacks for the target to be mounted, "" if nothing does.
func (s *Session) notMounted(ctx context.Context) (lacks string, err error) {
	if s.home() {
		return unless("the copy is not at the graphroot")(s.homeIn())
	}
	if told, err := s.hasBoot(); err != nil || !told {
		return "what a boot is told is not there", err
	}
	t, err := host.Mounts()
	if err != nil {
		return "", err
	}
	root := s.Inputs.Store.GraphRoot
	if len(t.Stack(root)) == 0 {
		return "nothing is mounted at " + root, nil
	}
	if s.onCephFS() {
		return unless("the folder of CephFS is not the one at " + root)(s.placeMounted(ctx))
	}
	live, err := s.openLive(ctx)
	if err != nil {
		return "", err
	}
	defer live.Close()
	if s.alone() {
		dev, err := s.deviceOf(ctx)
		if err != nil {
			return "", err
		}
		m, err := host.MountOf(live)
		if err != nil || m.Path == root && m.Dev() == unix.Mkdev(dev.Major, dev.Minor) {
			return "", err
		}
		return fmt.Sprintf("what is at %s is %s (%d:%d) mounted at %s, and not %s (%d:%d)", root, m.Source, m.Major, m.Minor, m.Path, dev.Path, dev.Major, dev.Minor), nil
	}
	copied, err := host.OpenDir(s.targetFolder())
	if errors.Is(err, os.ErrNotExist) {
		return "there is no " + s.targetFolder(), nil
	}
	if err != nil {
		return "", err
	}
	defer copied.Close()
	var a, b unix.Stat_t // two mounts of one folder
	if err := errors.Join(unix.Fstat(int(live.Fd()), &a), unix.Fstat(int(copied.Fd()), &b)); err != nil {
		return "", fmt.Errorf("cannot look at %s: %w", root, err)
	}
	if a.Dev != b.Dev || a.Ino != b.Ino {
		return fmt.Sprintf("%s is not the folder %s", root, s.targetFolder()), nil
	}
	return "", nil
}

// unless makes a reason of what does not hold.
func unless(reason string) func(bool, error) (string, error) {
	return func(is bool, err error) (string, error) {
		if is || err != nil {
			return "", err
		}
		return reason, nil
	}
}

// openLive opens the graphroot, and so has an automount make its mount. A device
// or server that does not answer must not hold the run up for ever.
func (s *Session) openLive(ctx context.Context) (*os.File, error) {
	root := s.Inputs.Store.GraphRoot
	return within(ctx, root, func() (*os.File, error) { return host.OpenDir(root) })
}

// within looks at something that may never answer, and waits for it as long as for
// a mount.
func within[T any](ctx context.Context, what string, look func() (T, error)) (T, error) {
	type answer struct {
		got T
		err error
	}
	looked := make(chan answer, 1)
	go func() {
		got, err := look()
		looked <- answer{got, err}
	}()
	var none T
	select {
	case a := <-looked:
		return a.got, a.err
	case <-ctx.Done():
		return none, ctx.Err()
	case <-time.After(mountLimit):
		return none, fmt.Errorf("cannot look at %s: it has not answered for %s", what, brief.Time(mountLimit))
	}
}

// mountTarget mounts the target in the store's place as every later boot will: by
// its line in fstab, or by its units.
func (s *Session) mountTarget(ctx context.Context) error {
	if err := s.stillOut(ctx); err != nil {
		return err
	}
	if err := s.quiet(ctx); err != nil {
		return err
	}
	if ours, err := s.ours(s.targetFolder()); err != nil {
		return err
	} else if !ours {
		return fmt.Errorf("cannot mount %s: it is not the folder that this run copied to", s.targetFolder())
	}
	if _, err := ask[none](ctx, s, opRemove, pathArg{s.copyArgs().indexFolder()}); err != nil {
		return err
	}
	for _, d := range s.dropIns() { // before what they wait for: a boot in between must not start podman first
		if err := host.WriteDropIn("", d); err != nil {
			return err
		}
		s.point("before after-drop-in " + d.Unit)
	}
	if err := s.setBoot(ctx); err != nil {
		return err
	}
	if err := s.bringUp(ctx); err != nil {
		return err
	}
	if err := s.dropPrivate(ctx); err != nil {
		return err
	}
	if lacks, err := s.notMounted(ctx); err != nil {
		return err
	} else if lacks != "" {
		return fmt.Errorf("cannot mount the target in the store's place: %s", lacks)
	}
	return s.renewWorker(ctx)
}

// bringUp makes the mount.
func (s *Session) bringUp(ctx context.Context) error {
	root := s.Inputs.Store.GraphRoot
	if !s.Inputs.Systemd {
		return s.attach(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, mountLimit)
	defer cancel()
	if err := s.onSystemBus(ctx, func(b *host.Bus) error {
		if err := b.Reload(ctx); err != nil {
			return err
		}
		for _, d := range s.dropIns()[:1] { // what systemd does not like it leaves out, with a warning
			if waits, err := b.WaitsFor(ctx, d.Unit, root); err != nil {
				return err
			} else if !waits {
				return fmt.Errorf("cannot order %s after the mount: systemd does not heed its drop-in %s", d.Unit, d.Name)
			}
		}
		s.point("before after-reload")
		return b.StartMount(ctx, root)
	}); err != nil {
		return err
	}
	live, err := s.openLive(ctx) // the first use makes the mount
	if err != nil {
		return err
	}
	return live.Close()
}

// attach mounts the target on a host without systemd.
func (s *Session) attach(ctx context.Context) error {
	if s.onCephFS() { // a path that others can change was refused
		return ceph.Mount(ctx, s.env.Runner, s.cephSource(), s.Inputs.Store.GraphRoot, s.Inputs.Target.Place.Mounter)
	}
	at, err := host.OpenDir(s.Inputs.Store.GraphRoot)
	if err != nil {
		return err
	}
	defer at.Close()
	if s.alone() {
		dev, err := s.deviceOf(ctx)
		if err != nil {
			return err
		}
		_, err = host.MountFS(host.FSMount{Source: dev.Path, Type: s.facts.Target.FSType, Flags: unix.MS_NOATIME}, at)
		return err
	}
	from, err := host.OpenDir(s.targetFolder())
	if err != nil {
		return err
	}
	defer from.Close()
	_, err = host.BindDir(from, at)
	return err
}

// unmountTarget takes the target out of the store's place, and what a boot is told
// of it.
func (s *Session) unmountTarget(ctx context.Context) error {
	if err := s.quiet(ctx); err != nil {
		return err
	}
	root := s.Inputs.Store.GraphRoot
	ctx, cancel := context.WithTimeout(ctx, mountLimit)
	defer cancel()
	if s.Inputs.Owner.Rootful() {
		if err := s.unmountMerged(); err != nil {
			return err
		}
		if err := s.detachHome(); err != nil {
			return err
		}
	}
	if err := s.endWorker(); err != nil { // its lock keeps the mount busy
		return err
	}
	for _, d := range s.dropIns() { // first: systemd would stop with the mount what requires it, a Nomad client, too
		if err := host.RemoveDropIn("", d); err != nil {
			return errors.Join(err, s.renewWorker(ctx))
		}
		s.point("before after-no drop-in " + d.Unit)
	}
	if s.Inputs.Systemd {
		if err := s.reloadSystemd(ctx); err != nil {
			return errors.Join(err, s.renewWorker(ctx))
		}
	}
	if err := s.takeDown(ctx); err != nil {
		return errors.Join(err, s.renewWorker(ctx))
	}
	s.point("before after-unmount")
	if err := s.unsetBoot(ctx); err != nil {
		return errors.Join(err, s.renewWorker(ctx))
	}
	if s.Inputs.Systemd {
		if err := s.reloadSystemd(ctx); err != nil {
			return errors.Join(err, s.renewWorker(ctx))
		}
	}
	t, err := host.Mounts()
	if m := t.Stack(root); err == nil && len(m) > 0 {
		err = fmt.Errorf("cannot unmount %s: %s is still mounted there", root, m[0].Source)
	}
	return errors.Join(err, s.renewWorker(ctx))
}

// unmountMerged takes away what "podman mount" left mounted of a rootful store's
// containers and images: none runs, and podman would not know of these mounts when
// its run state is that of before. One that somebody is in stays, and is refused.
func (s *Session) unmountMerged() error {
	t, err := host.Mounts()
	if err != nil {
		return err
	}
	home := filepath.Join(s.Inputs.Store.GraphRoot, "overlay")
	for _, m := range t.Below(home) {
		if filepath.Base(m.Path) != "merged" || filepath.Dir(filepath.Dir(m.Path)) != home {
			continue
		}
		if err := unix.Unmount(m.Path, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("cannot unmount %s: %w", m.Path, err)
		}
	}
	return nil
}

// takeDown stops the units of the mount and unmounts what is left.
func (s *Session) takeDown(ctx context.Context) error {
	root := s.Inputs.Store.GraphRoot
	if s.Inputs.Systemd {
		if err := s.onSystemBus(ctx, func(b *host.Bus) error { return b.StopMount(ctx, root) }); err != nil {
			return err
		}
	}
	for range 3 {
		t, err := host.Mounts()
		if err != nil || len(t.Stack(root)) == 0 {
			return err
		}
		if err := host.Unmount(ctx, root); err != nil {
			return err
		}
	}
	return nil
}

// verifyMoved compares what podman has now with what it had before, and runs a
// container.
func (s *Session) verifyMoved(ctx context.Context) error {
	if err := s.dropPrivate(ctx); err != nil { // of a run that was killed before it did
		return err
	}
	part, err := ask[verify.StorePart](ctx, s, opManifest, s.storeRef(s.Inputs.Request.To))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrVerification, err)
	}
	if err := s.compareManifest(ctx, part); err != nil {
		return err
	}
	if s.Inputs.Converting() {
		if err := s.checkSample(ctx); err != nil {
			return err
		}
		if _, err := ask[none](ctx, s, opRemove, pathArg{runFolder(s.Inputs.Store.GraphRoot, s.ID)}); err != nil {
			return err
		}
	}
	return s.smoke(ctx)
}

// mayCommitMoved refuses to remove the old store while the new one is not seen
// in its place.
func (s *Session) mayCommitMoved(ctx context.Context) error {
	fail := func(format string, args ...any) error {
		return &Refusal{ID: "no-new-store", Text: "the old store is not removed: " + fmt.Sprintf(format, args...),
			Hint: "see where the new store went; until it is back, the old one stays in " + s.aside()}
	}
	if s.facts.Before == nil {
		return errors.New("cannot commit: the run took no manifest before the cutover")
	}
	in, err := s.mounted(ctx)
	if err != nil {
		return err
	}
	if !in {
		return fail("the target is not mounted on %s, or would not be after a boot", s.Inputs.Store.GraphRoot)
	}
	if named, err := s.repointed(ctx); err != nil {
		return err
	} else if !named {
		return fail("podman's database does not name %s", s.Inputs.Request.To)
	}
	return s.knownLayers(ctx, s.Inputs.Request.To, s.aside())
}
