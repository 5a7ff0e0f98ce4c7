package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
)

// This file is root's part of the cutover. The graphroot may lie in a folder of
// its owner, who can put anything in its place at any time: so everything here
// goes by descriptors that were opened without following links, and renames and
// removals are of entries of one folder.

// place is where the graphroot is: an entry of a folder.
type place struct {
	parent *os.File
	base   string
}

func (s *Session) place() (place, error) {
	root := s.Inputs.Store.GraphRoot
	d, err := host.OpenDir(filepath.Dir(root))
	return place{d, filepath.Base(root)}, err
}

func (p place) close() { _ = p.parent.Close() }

func (p place) has(name string) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(p.parent.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot look at %s: %w", filepath.Join(p.parent.Name(), name), err)
	}
	return true, nil
}

func (p place) owner(name string) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(p.parent.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
		return 0, fmt.Errorf("cannot look at %s: %w", filepath.Join(p.parent.Name(), name), err)
	}
	return st.Uid, nil
}

// move renames an entry and never replaces another.
func (p place) move(from, to string) error {
	at := int(p.parent.Fd())
	if err := host.RenameNew(at, from, at, to); err != nil {
		return fmt.Errorf("cannot rename %s to %s in %s: %w", from, to, p.parent.Name(), err)
	}
	return syncFolder(p.parent)
}

// point names a moment between two acts of root's own, for the crash sweep.
func (s *Session) point(name string) {
	if s.env.Point != nil {
		s.env.Point(name)
	}
}

// asideThere reports whether the old store is beside its place, or where the run
// reaches it.
func (s *Session) asideThere() (bool, error) {
	if s.Inputs.Store.Mount != nil {
		return s.reached()
	}
	p, err := s.place()
	if err != nil {
		return false, err
	}
	defer p.close()
	return p.has(filepath.Base(s.aside()))
}

// away reports whether the store is moved aside and its place is empty, or cannot
// be entered: podman cannot be asked then.
func (s *Session) away(ctx context.Context) (bool, error) {
	if !s.relocating() {
		return false, nil
	}
	there, err := s.asideThere()
	if err != nil || !there {
		return false, err
	}
	t, err := host.Mounts()
	if err != nil {
		return false, err
	}
	if s.home() {
		in, err := s.homeIn()
		return !in, err
	}
	if len(t.Stack(s.Inputs.Store.GraphRoot)) == 0 {
		return true, nil
	}
	live, err := s.openLive(ctx)
	if err != nil {
		return true, s.note("the target is not there: %v", err)
	}
	defer live.Close()
	if t, err = host.Mounts(); err != nil { // an automount that fails may go, and leave the empty folder
		return false, err
	}
	_, there = t.At(s.Inputs.Store.GraphRoot)
	return !there, nil
}

// asideAlone observes that the old store is aside, and that in its place is the
// mount point: empty, or with something mounted on it.
func (s *Session) asideAlone(context.Context) (bool, error) {
	if there, err := s.asideThere(); err != nil || !there {
		return false, err
	}
	t, err := host.Mounts()
	if err != nil || len(t.Stack(s.Inputs.Store.GraphRoot)) > 0 {
		return err == nil, err
	}
	return s.closedPoint()
}

func entries(dir *os.File) ([]string, error) {
	d, err := host.Readable(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("cannot list %s: %w", dir.Name(), err)
	}
	return names, nil
}

// moveAside renames the store aside and makes an immutable mount point in its
// place: from then on nothing can be written to either by mistake.
func (s *Session) moveAside(ctx context.Context) error {
	if err := s.stillOut(ctx); err != nil {
		return err
	}
	if err := s.quiet(ctx); err != nil {
		return err
	}
	p, err := s.place()
	if err != nil {
		return err
	}
	defer p.close()
	aside := filepath.Base(s.aside())
	gone, err := p.has(aside)
	if err != nil {
		return err
	}
	if !gone {
		if owner, err := p.owner(p.base); err != nil {
			return err
		} else if owner != s.Inputs.Owner.UID {
			return fmt.Errorf("cannot move the store aside: %s belongs to user %d", s.Inputs.Store.GraphRoot, owner)
		}
		if err := s.detachHome(); err != nil {
			return err
		}
		if err := s.nobodyIn(s.Inputs.Store.GraphRoot); err != nil {
			return err
		}
		s.point("before aside")
		if err := p.move(p.base, aside); err != nil {
			return err
		}
		s.point("before after-aside")
	}
	if err := s.mountPoint(p); err != nil {
		return err
	}
	return s.nobodyIn(s.aside()) // who came in between
}

// nobodyIn refuses to go on while any process has something open in the store:
// what it wrote there after the copy would be lost with the old store.
func (s *Session) nobodyIn(dir string) error {
	users, err := host.Users(dir, s.worker.PID())
	if err != nil || len(users) == 0 {
		return err
	}
	words := make([]string, 0, 5)
	for _, u := range users[:min(5, len(users))] {
		words = append(words, u.String())
	}
	return &Refusal{ID: "busy", Text: "the store is in use by " + strings.Join(words, ", "),
		Hint: "end these, or have them leave the store, then try again"}
}

// detachHome takes away the mount that the overlay driver of a rootful podman
// has of its folder on itself: it would go aside with the store. In a user's
// folder root unmounts nothing: the path could lead elsewhere by then.
func (s *Session) detachHome() error {
	t, err := host.Mounts()
	if err != nil {
		return err
	}
	for _, m := range t.Below(s.Inputs.Store.GraphRoot) {
		if !s.Inputs.Owner.Rootful() || m.Path != filepath.Join(s.Inputs.Store.GraphRoot, "overlay") {
			return &Refusal{ID: "mount", Text: m.Path + " is mounted in the store", Hint: "unmount it: podman umount --all, podman image unmount --force --all, or umount"}
		}
		if err := unix.Unmount(m.Path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("cannot detach the mount of %s on itself: %w", m.Path, err)
		}
	}
	return nil
}

// mountPoint makes an empty immutable folder in the store's place. What podman
// made there while the store was away is kept beside it.
func (s *Session) mountPoint(p place) error {
	if done, err := s.asideAlone(context.Background()); err != nil || done {
		return err
	}
	if err := s.clearPlace(p); err != nil {
		return err
	}
	return s.makePoint(p)
}

func (s *Session) makePoint(p place) error {
	// It stays root's: nobody has to do anything in it.
	if err := unix.Mkdirat(int(p.parent.Fd()), p.base, 0o755); err != nil {
		return fmt.Errorf("cannot make the mount point: %w", err)
	}
	s.point("before after-mount-point")
	dir, err := host.OpenBelow(p.parent, p.base)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = host.SetImmutable(dir, true)
	if errors.Is(err, errors.ErrUnsupported) {
		return errors.Join(s.note("the mount point %s cannot be made immutable: its filesystem does not know that", s.Inputs.Store.GraphRoot), syncFolder(p.parent))
	}
	return errors.Join(err, syncFolder(p.parent))
}

// clearPlace takes what is in the store's place out of the way: an empty folder
// is removed, anything else is kept beside it under a name of its own.
func (s *Session) clearPlace(p place) error {
	there, err := p.has(p.base)
	if err != nil || !there {
		return err
	}
	dir, err := host.OpenBelow(p.parent, p.base)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := host.SetImmutable(dir, false); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	s.point("before after-mutable")
	err = unix.Unlinkat(int(p.parent.Fd()), p.base, unix.AT_REMOVEDIR)
	s.point("before after-clear-place")
	if err == nil || !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	for i := 1; ; i++ {
		stray := fmt.Sprintf("%s%s%s-stray.%d", p.base, asideMark, s.ID, i)
		if taken, err := p.has(stray); err != nil {
			return err
		} else if taken {
			continue
		}
		if err := p.move(p.base, stray); err != nil {
			return err
		}
		return s.note("podman was used while its store was moved aside; what it made then is kept in %s", filepath.Join(p.parent.Name(), stray))
	}
}

// moveBack returns the old store to its place.
func (s *Session) moveBack(ctx context.Context) error {
	if err := s.quiet(ctx); err != nil {
		return err
	}
	p, err := s.place()
	if err != nil {
		return err
	}
	defer p.close()
	aside := filepath.Base(s.aside())
	if there, err := p.has(aside); err != nil || !there {
		return err
	}
	t, err := host.Mounts()
	if err != nil {
		return err
	}
	if m := t.Stack(s.Inputs.Store.GraphRoot); len(m) > 0 {
		return fmt.Errorf("cannot return the old store to its place: %s is still mounted there", m[0].Source)
	}
	if err := s.clearPlace(p); err != nil {
		return err
	}
	if err := p.move(aside, p.base); err != nil {
		return err
	}
	s.point("before after-aside-back")
	return s.renewWorker(ctx)
}

// renewWorker starts the worker anew: one that was begun before a mount need not
// see it, and its lock is of the folder that was in the store's place then.
func (s *Session) renewWorker(ctx context.Context) error {
	err := s.endWorker()
	if err != nil {
		return err
	}
	if s.worker, err = podman.StartWorker(ctx, s.Inputs.Owner, s.env.Point, s.Inputs.ConfEnv...); err != nil {
		return err
	}
	return s.lockStore(ctx)
}

// endWorker ends the worker and its lock.
func (s *Session) endWorker() error {
	w := s.worker
	if s.worker = nil; w == nil {
		return nil
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("cannot end the worker: %w", err)
	}
	return nil
}

// asideGone observes that the old store is removed.
func (s *Session) asideGone(context.Context) (bool, error) {
	there, err := s.asideThere()
	return !there, err
}

// removeAside removes the old store.
func (s *Session) removeAside(ctx context.Context) error {
	if err := s.mayCommit(ctx); err != nil { // also when it is resumed
		return err
	}
	if _, err := ask[none](ctx, s, opEmptyAside, pathArg{s.aside()}); err != nil {
		return err
	}
	p, err := s.place()
	if err != nil {
		return err
	}
	defer p.close()
	err = unix.Unlinkat(int(p.parent.Fd()), filepath.Base(s.aside()), unix.AT_REMOVEDIR)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot remove %s: %w", s.aside(), err)
	}
	return syncFolder(p.parent)
}
