package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/host"
)

// deviceOf finds the run's device: an image by its mapping, any other by the
// filesystem that is on it, as soon as that is known, because a device's name can
// change with a boot.
func (s *Session) deviceOf(ctx context.Context) (host.BlockDevice, error) {
	if s.Inputs.Target.Kind == KindRBD {
		m, err := s.mapping(ctx)
		if err != nil {
			return host.BlockDevice{}, err
		}
		return host.LookDevice(m.Device)
	}
	if s.facts.Target != nil {
		return s.env.Runner.FindDevice(ctx, "UUID="+s.facts.Target.UUID)
	}
	return host.LookDevice(s.Inputs.Target.Where)
}

// deviceUp reports whether a target that the store gets for itself is mounted where
// the run works on it.
func (s *Session) deviceUp() (bool, error) {
	if !s.alone() {
		return true, nil
	}
	t, err := host.Mounts()
	if err != nil {
		return false, err
	}
	_, up := t.At(s.targetFolder())
	return up, nil
}

// deviceBroken reports whether what is mounted where the run works on the device
// takes nothing any more: a filesystem that could not write its own records, as to
// a cluster that is full, shuts itself down, or becomes read-only. CephFS does not.
func (s *Session) deviceBroken() (bool, error) {
	if up, err := s.deviceUp(); err != nil || !up || !s.alone() || s.onCephFS() {
		return false, err
	}
	dir, err := host.OpenDir(s.targetFolder())
	if errors.Is(err, unix.EIO) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &fs); err != nil && !errors.Is(err, unix.EIO) {
		return false, fmt.Errorf("cannot look at %s: %w", s.targetFolder(), err)
	} else if err != nil || fs.Flags&unix.ST_RDONLY != 0 {
		return true, nil
	}
	_, err = s.ours(s.targetFolder())
	return errors.Is(err, unix.EIO), nil
}

// leaveBroken unmounts a filesystem that is broken. Mounted anew it is whole, but
// not all need be in it that the copy's index says: that is not believed any more.
func (s *Session) leaveBroken(ctx context.Context) error {
	if err := s.note("the filesystem on %s has shut itself down: it is mounted anew, and the copy begins anew", s.Inputs.Target.Where); err != nil {
		return err
	}
	if err := s.learn(func(f *Facts) { f.Boots = append(slices.Clone(f.Boots), "") }); err != nil {
		return err
	}
	s.point("before after-broken")
	return s.dropPrivate(ctx)
}

// prepareDevice makes the filesystem, if one is to be made, mounts it where only
// the owner and root can reach it, and gives it to the owner.
func (s *Session) prepareDevice(ctx context.Context) error {
	if broken, err := s.deviceBroken(); err != nil {
		return err
	} else if broken {
		if err := s.leaveBroken(ctx); err != nil {
			return err
		}
	}
	if up, err := s.deviceUp(); err != nil {
		return err
	} else if !up {
		if err := s.mountDevice(ctx); err != nil {
			return err
		}
		if err := s.renewWorker(ctx); err != nil {
			return err
		}
	}
	dir, err := host.OpenDir(s.targetFolder())
	if err != nil {
		return err
	}
	defer dir.Close()
	if ours, err := s.ours(s.targetFolder()); err != nil {
		return err
	} else if !ours {
		names, err := entries(dir)
		if err != nil {
			return err
		}
		names = slices.DeleteFunc(names, func(n string) bool { return n == "lost+found" || host.IsMarker(n) })
		if len(names) > 0 {
			return &Refusal{ID: "device-files", Text: fmt.Sprintf("the filesystem on %s holds files: %s", s.Inputs.Target.Where, few(names)),
				Hint: "give a device that is free; nothing on it was changed"}
		}
		if err := s.giveTarget(dir); err != nil {
			return err
		}
		s.point("before device-mark")
		if err := s.mark(dir); err != nil { // last: what bears it is ready
			return err
		}
	}
	return syncFolder(dir)
}

// giveTarget gives the top of a filesystem that is mounted where the run works on it
// to the owner alone.
func (s *Session) giveTarget(dir *os.File) error {
	o := s.Inputs.Owner
	if err := unix.Fchownat(int(dir.Fd()), "", int(o.UID), int(o.GID), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("cannot give the target to %s: %w", o.Name, err)
	}
	if err := os.Chmod(s.targetFolder(), 0o700); err != nil { // the folders above are root's
		return fmt.Errorf("cannot close the target to others: %w", err)
	}
	return nil
}

// mountDevice mounts the device where the run works on it.
func (s *Session) mountDevice(ctx context.Context) error {
	dev, err := s.deviceOf(ctx)
	if err != nil {
		return err
	}
	if dev.InUse && len(dev.Mounts) > 0 {
		return &Refusal{ID: "device-busy", Text: fmt.Sprintf("%s is mounted on %s", dev.Path, dev.Mounts[0].Path), Hint: "unmount it; the store gets the filesystem for itself"}
	}
	if s.facts.Target == nil {
		fact, err := s.filesystem(ctx, dev)
		if err != nil {
			return err
		}
		if err := s.learn(func(f *Facts) { f.Target = &fact }); err != nil {
			return err
		}
	}
	if err := s.privateFolder(); err != nil {
		return err
	}
	dir, err := host.OpenDir(s.targetFolder())
	if err != nil {
		return err
	}
	defer dir.Close()
	s.point("before device-mount")
	_, err = host.MountFS(host.FSMount{Source: dev.Path, Type: s.facts.Target.FSType, Flags: unix.MS_NOATIME}, dir)
	s.point("before after-device-mount")
	return err
}

// privateFolder makes the folder that the run mounts its target on.
func (s *Session) privateFolder() error {
	if _, err := host.PrivateDir(privateMounts, s.ID); err != nil {
		return err
	}
	return openWay()
}

// openWay lets the owner's worker through to its own folder, and no further.
func openWay() error {
	for _, d := range []string{filepath.Dir(privateMounts), privateMounts} {
		if err := os.Chmod(d, 0o711); err != nil {
			return fmt.Errorf("cannot open the way to a mount: %w", err)
		}
	}
	return nil
}

// filesystem gives the device's filesystem: the empty one that is there, also of
// an earlier try of this run, or one that is made.
func (s *Session) filesystem(ctx context.Context, dev host.BlockDevice) (TargetFact, error) {
	t, r := s.Inputs.Target, s.Inputs.Request.Relocate
	use, err := judgeDevice(ctx, s.env.Runner, dev, r.Format, deviceLabel(s.ID))
	if err != nil {
		return TargetFact{}, err
	}
	if use != nil {
		return TargetFact{UUID: use.UUID, FSType: use.Type}, nil
	}
	opts := host.MkfsOptions{Type: t.FSType, Label: deviceLabel(s.ID), Replace: r.Format, Marker: host.MarkerName}
	if t.Image != nil {
		if opts.Stripe, err = s.imageStripe(ctx); err != nil {
			return TargetFact{}, err
		}
	}
	fs, err := s.env.Runner.Mkfs(ctx, dev.Path, opts)
	var taken *host.OccupiedError
	if errors.As(err, &taken) {
		return TargetFact{}, &Refusal{ID: "device-taken", Text: err.Error(), Hint: "see what is on it; --format replaces a filesystem that holds no files, and nothing else"}
	}
	s.point("before after-mkfs")
	return TargetFact{UUID: fs.UUID, FSType: fs.Type}, err
}

// deviceLabel names a filesystem of a run's, in the 12 bytes that XFS has.
func deviceLabel(run string) string {
	number, rest, _ := strings.Cut(run, "-")
	return "sctl" + number + rest[max(0, len(rest)-4):]
}

// dropPrivate takes the target from where the run worked on it.
func (s *Session) dropPrivate(ctx context.Context) error {
	if !s.alone() {
		return nil
	}
	up, err := s.deviceUp()
	if err != nil {
		return err
	}
	if up {
		if err := s.endWorker(); err != nil { // it has the mount in sight
			return err
		}
		if err := host.Unmount(ctx, s.targetFolder()); err != nil {
			return errors.Join(err, s.renewWorker(ctx))
		}
		s.point("before after-private-unmount")
		if err := s.renewWorker(ctx); err != nil {
			return err
		}
	}
	if s.onCephFS() { // what was written has to arrive
		if err := ceph.Unmount(ctx, s.env.Runner, s.targetFolder()); err != nil {
			return err
		}
	}
	if err := os.Remove(s.targetFolder()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot remove the mount point: %w", err)
	}
	return nil
}

// releaseDevice empties the device and lets go of it. Its filesystem stays.
func (s *Session) releaseDevice(ctx context.Context) error {
	broken, err := s.deviceBroken()
	if err != nil {
		return err
	}
	if broken {
		if err := s.note("the copy that was begun on %s is still there: its filesystem has shut itself down", s.Inputs.Target.Where); err != nil {
			return err
		}
	} else if up, err := s.deviceUp(); err != nil {
		return err
	} else if up {
		if ours, err := s.ours(s.targetFolder()); err != nil {
			return err
		} else if ours {
			if _, err := ask[none](ctx, s, opEmptyTarget, s.copyArgs()); err != nil {
				return err
			}
		}
	}
	if up, err := s.deviceUp(); err != nil || up {
		return errors.Join(err, s.dropPrivate(ctx))
	}
	if s.facts.Target != nil { // after a boot
		if err := s.note("the copy that was begun on %s is still there: wipe it if it is not wanted", s.Inputs.Target.Where); err != nil {
			return err
		}
	}
	return s.dropPrivate(ctx)
}

// targetDevice judges a block device as target.
func (a *Assessment) targetDevice(ctx context.Context, run *host.Runner) error {
	r := a.Inputs.Request.Relocate
	var dev host.BlockDevice
	var err error
	if host.IsTag(r.Device) {
		dev, err = run.FindDevice(ctx, r.Device)
	} else {
		dev, err = host.LookDevice(r.Device)
	}
	if err != nil {
		a.refuse("no-target", "give a block device by its path, by UUID=… or LABEL=… of its filesystem, or by PARTUUID=… or PARTLABEL=…", "%v", err)
		return nil
	}
	t := &Target{Kind: KindDevice, Where: dev.Path, FSType: r.FS, Free: uint64(dev.Size)}
	a.Inputs.Target = t
	switch {
	case dev.InUse && len(dev.Mounts) > 0:
		a.refuse("device-busy", "unmount it, or move the store into a folder on it with --path", "%s is mounted on %s", dev.Path, dev.Mounts[0].Path)
		return nil
	case dev.InUse:
		a.refuse("device-busy", "give a device that is free", "%s is in use: by swap, RAID, LVM or the like", dev.Path)
		return nil
	case dev.ReadOnly:
		a.refuse("device-busy", "give a device that can be written to", "%s is read-only", dev.Path)
		return nil
	}
	if !a.hasUdev() {
		return nil
	}
	use, err := judgeDevice(ctx, run, dev, r.Format, "")
	var refusal *Refusal
	if errors.As(err, &refusal) {
		a.Refusals = append(a.Refusals, *refusal)
		return nil
	}
	if t.Make = use == nil; !t.Make {
		t.FSType = use.Type
	}
	return err
}

// hasUdev refuses a host where systemd would wait in vain for what udev tells of a
// device before it mounts it.
func (a *Assessment) hasUdev() bool {
	_, err := os.Lstat("/run/udev/control")
	if err == nil || !host.HasSystemd() {
		return true
	}
	a.refuse("udev", "start systemd-udevd, or mount the device yourself and give a folder on it with --path", "udev does not run here, without which systemd mounts no device: %v", err)
	return false
}

// judgeDevice decides what becomes of what is on a device: where nothing is, a
// filesystem is to be made (nil); an empty one is used; all else is a [*Refusal].
// With format an empty one is made anew, too, unless it has the label.
func judgeDevice(ctx context.Context, run *host.Runner, dev host.BlockDevice, format bool, label string) (*host.Signature, error) {
	found, err := run.Signatures(ctx, dev.Path)
	if err != nil {
		return nil, err
	}
	taken := func(hint, text string, args ...any) (*host.Signature, error) {
		return nil, &Refusal{ID: "device-taken", Text: fmt.Sprintf(text, args...), Hint: hint}
	}
	if len(found) == 0 {
		blank, err := host.Blank(dev.Path)
		if err == nil && !blank && !format {
			return taken("if it may go, say --format", "%s has no signature that is known, but it is not empty", dev.Path)
		}
		return nil, err
	}
	fs := found[0]
	if len(found) > 1 || fs.Table || fs.Type != "xfs" && fs.Type != "ext4" {
		return taken("give a device that is free; wipefs --all wipes what is not wanted any more", "%s holds %s", dev.Path, fs)
	}
	files, err := host.FilesOn(dev.Path, fs.Type, host.MarkerName)
	if err != nil {
		return taken("give a device that is free", "%s holds %s, and that cannot be looked into: %v", dev.Path, fs, err)
	}
	if len(files) > 0 {
		return nil, &Refusal{ID: "device-files", Text: fmt.Sprintf("the filesystem on %s holds files: %s", dev.Path, few(files)),
			Hint: "give a device that is free; one with files is never made anew"}
	}
	if format && (label == "" || fs.Label != label) {
		return nil, nil
	}
	return &fs, nil
}
