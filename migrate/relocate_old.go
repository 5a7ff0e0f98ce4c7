package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
)

// This file is the cutover of a store that stands on a mount of its own. Nothing
// is renamed aside then: the mount is taken down, no boot makes it any more, and
// until the commit the old store is reached at a place of the run's.

// OldMount is the mount at a graphroot that a relocation takes away.
type OldMount struct {
	host.BootMount
	Folder string `json:"folder"`         // the store's folder, as [host.FolderID] knows it
	Open   bool   `json:"open,omitempty"` // the mount point was not immutable
	// Place is the folder of CephFS that is mounted; nil where it is anything else.
	Place *OldPlace `json:"place,omitempty"`
}

// oldPlace is where the old store is reached once its mount is taken down. The
// folder above lets only the owner and root through.
func oldPlace(run string) string { return filepath.Join(privateMounts, run+"-old", "store") }

// reached reports whether the old store is mounted at the run's own place.
func (s *Session) reached() (bool, error) {
	t, err := host.Mounts()
	if err != nil {
		return false, err
	}
	_, up := t.At(s.aside())
	return up, nil
}

// inForce reports whether a step was begun and is not taken back.
func (s *Session) inForce(step string) bool {
	m := s.journal.State().Steps[step].Mark
	return m != engine.MarkNone && m != engine.MarkUndone
}

// lockOld has the worker lock the old store, wherever it is: after a boot it is
// mounted nowhere, once no boot is told of it. What may be mounted in its place is
// not asked: a way back must not need the target.
func (s *Session) lockOld(ctx context.Context) error {
	root := s.Inputs.Store.GraphRoot
	lock := func(path string) error {
		_, err := ask[none](ctx, s, opLock, pathArg{path})
		return err
	}
	if up, err := s.reached(); err != nil {
		return err
	} else if up {
		return lock(s.aside())
	}
	if !s.inForce(stepMount) {
		if here, err := s.oldHere(ctx); err != nil {
			return err
		} else if here {
			return lock(root)
		}
	}
	if err := s.reachOld(ctx); err != nil {
		if s.inForce(stepCommit) || s.env.OldLost { // it is emptied, and what it was on may be gone
			return lock(root)
		}
		return &Refusal{ID: "store-gone", Text: fmt.Sprintf("the old store is not there: %v", err),
			Hint: "see where its filesystem is; without it the run cannot be rolled back. If it is lost for good: storagectl commit --old-lost " + s.ID}
	}
	if err := s.freshWorker(ctx); err != nil {
		return err
	}
	return lock(s.aside())
}

// oldHere reports whether the old mount is at the graphroot.
func (s *Session) oldHere(ctx context.Context) (bool, error) {
	t, err := host.Mounts()
	if err != nil || len(t.Stack(s.Inputs.Store.GraphRoot)) == 0 {
		return false, err
	}
	live, err := s.openLive(ctx)
	if err != nil {
		return false, err
	}
	defer live.Close()
	return s.isOld(live)
}

func (s *Session) isOld(dir *os.File) (bool, error) {
	if s.Inputs.Store.Mount.Place != nil {
		return s.isOldPlace(dir)
	}
	id, err := host.FolderID(dir)
	return id == s.Inputs.Store.Mount.Folder, err
}

// reachOld mounts the old store where only root and the owner come: as a boot
// did, in another place.
func (s *Session) reachOld(ctx context.Context) error {
	if up, err := s.reached(); err != nil || up {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, mountLimit)
	defer cancel()
	for _, u := range s.Inputs.Store.Mount.Requires { // after a boot nothing else may ask for it
		if err := s.onSystemBus(ctx, func(b *host.Bus) error { return b.Start(ctx, u) }); err != nil {
			return err
		}
	}
	above, err := host.PrivateDir(privateMounts, filepath.Base(filepath.Dir(s.aside())))
	if err != nil {
		return err
	}
	if err := openWay(); err != nil {
		return err
	}
	// The store's own mode may open it to all: at its old place others were in the way.
	if _, err := host.LetThrough(above, s.Inputs.Owner.UID, s.Inputs.Owner.GID); err != nil {
		return err
	}
	if err := os.Mkdir(s.aside(), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cannot make a place for the old store: %w", err)
	}
	if err := s.mountOld(ctx); err != nil {
		return err
	}
	dir, err := host.OpenDir(s.aside())
	if err != nil {
		return err
	}
	is, err := s.isOld(dir)
	if err = errors.Join(err, dir.Close()); err == nil && !is {
		err = fmt.Errorf("%s holds something else", s.Inputs.Store.Mount.Source)
	}
	if err != nil {
		return errors.Join(err, host.Unmount(ctx, s.aside()))
	}
	return nil
}

// leaveOld takes the old store from the run's place. The worker, which has it in
// sight, is ended.
func (s *Session) leaveOld(ctx context.Context) error {
	up, err := s.reached()
	if err != nil {
		return err
	}
	if up {
		if err := s.endWorker(); err != nil {
			return err
		}
		if err := host.Unmount(ctx, s.aside()); err != nil {
			return err
		}
	}
	if err := s.oldWritten(ctx, s.aside()); err != nil {
		return err
	}
	for _, dir := range []string{s.aside(), filepath.Dir(s.aside())} {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot remove the old store's place: %w", err)
		}
	}
	return nil
}

// freshWorker starts the worker anew, without a lock.
func (s *Session) freshWorker(ctx context.Context) error {
	if err := s.endWorker(); err != nil {
		return err
	}
	w, err := podman.StartWorker(ctx, s.Inputs.Owner, s.env.Point, s.Inputs.ConfEnv...)
	s.worker = w
	return err
}

// oldAway observes that the old mount is taken down, that no boot makes it, that
// nobody can write where it was, and that the old store is reached.
func (s *Session) oldAway(context.Context) (bool, error) {
	if up, err := s.reached(); err != nil || !up {
		return false, err
	}
	if told, err := s.oldTold(); err != nil || told {
		return false, err
	}
	t, err := host.Mounts()
	if err != nil || len(t.Stack(s.Inputs.Store.GraphRoot)) > 0 {
		return false, err
	}
	return s.closedPoint()
}

// closedPoint reports whether an empty immutable folder is where the store was.
func (s *Session) closedPoint() (bool, error) {
	dir, err := host.Underneath(s.Inputs.Store.GraphRoot)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	on, err := host.Immutable(dir)
	if errors.Is(err, errors.ErrUnsupported) {
		on, err = true, nil
	}
	if err != nil || !on {
		return false, err
	}
	names, err := entries(dir)
	return len(names) == 0, err
}

// oldTold reports whether a boot is still told of the old mount.
func (s *Session) oldTold() (bool, error) {
	if s.facts.OldBoot == nil {
		return true, nil
	}
	for _, f := range *s.facts.OldBoot {
		if there, err := f.There(); err != nil || there {
			return there, err
		}
	}
	now, err := readFstab()
	if err != nil {
		return false, err
	}
	parked, err := host.ParkFstab(now, s.ID, s.Inputs.Store.GraphRoot)
	return string(parked) != string(now), err
}

func readFstab() ([]byte, error) {
	b, err := os.ReadFile(fstabPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot read fstab: %w", err)
	}
	return b, nil
}

// editFstab changes /etc/fstab where a change is needed.
func (s *Session) editFstab(ctx context.Context, edit func([]byte) ([]byte, error)) error {
	now, err := readFstab()
	if err != nil {
		return err
	}
	want, err := edit(now)
	if err != nil || string(want) == string(now) {
		return err
	}
	warnings, err := s.env.Runner.WriteFstab(ctx, fstabPath, now, want)
	for _, w := range warnings {
		err = errors.Join(err, s.note("findmnt says of the new fstab: %s", w))
	}
	s.point("before after-fstab")
	return err
}

func (s *Session) reloadSystemd(ctx context.Context) error {
	return s.onSystemBus(ctx, func(b *host.Bus) error { return b.Reload(ctx) })
}
