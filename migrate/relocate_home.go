package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// This file is the way home: from a mount of its own a store comes back to be a
// plain folder, on the filesystem that its place is on.

// home reports whether the store becomes a plain folder at its place.
func (s *Session) home() bool { return s.Inputs.Target.Kind == KindHome }

// homeArgs are what the worker is asked to make in a folder of its owner's.
type homeArgs struct {
	Half   string      `json:"half"`   // where it is made
	Folder string      `json:"folder"` // where it is once it is whole
	Marker host.Marker `json:"marker"`
}

// makeHome makes the folder that a store is copied home to. It appears whole, with
// the run's marker, or not at all. It runs in the worker.
func makeHome(a homeArgs) error {
	if err := os.Mkdir(a.Half, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cannot make a folder for the store: %w", err)
	}
	dir, err := openFolder(a.Half)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := host.WriteMarker(dir, a.Marker); err != nil {
		return err
	}
	if err := host.RenameNew(unix.AT_FDCWD, a.Half, unix.AT_FDCWD, a.Folder); err != nil {
		return fmt.Errorf("cannot make %s: %w", a.Folder, err)
	}
	return syncDirs(filepath.Dir(a.Folder))
}

// removeHome removes what was made of a copy that never was in the store's place.
func (s *Session) removeHome(ctx context.Context) error {
	if _, err := ask[none](ctx, s, opRemove, pathArg{runFolder(s.Inputs.Target.Where, s.ID)}); err != nil {
		return err
	}
	folder := s.targetFolder()
	if ours, err := s.ours(folder); err != nil {
		return err
	} else if ours { // else it is not there, or empty already
		if _, err := ask[none](ctx, s, opEmptyTarget, s.copyArgs()); err != nil {
			return err
		}
	}
	p, err := s.place()
	if err != nil {
		return err
	}
	defer p.close()
	if err := unix.Unlinkat(int(p.parent.Fd()), filepath.Base(folder), unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot remove %s: %w", folder, err)
	}
	s.point("before after-home-gone")
	return syncFolder(p.parent)
}

// homeIn observes that the copy is in the store's place: no mount there, and the
// run's marker in the folder.
func (s *Session) homeIn() (bool, error) {
	t, err := host.Mounts()
	if err != nil || len(t.Stack(s.Inputs.Store.GraphRoot)) > 0 {
		return false, err
	}
	return s.ours(s.Inputs.Store.GraphRoot)
}

// moveHome renames the copy to the place of the empty mount point.
func (s *Session) moveHome(ctx context.Context) error {
	if err := s.stillOut(ctx); err != nil {
		return err
	}
	if err := s.quiet(ctx); err != nil {
		return err
	}
	if in, err := s.homeIn(); err != nil || in {
		return err
	}
	t, err := host.Mounts()
	if err != nil {
		return err
	}
	if m := t.Stack(s.Inputs.Store.GraphRoot); len(m) > 0 {
		return fmt.Errorf("cannot move the copy to its place: %s is mounted there", m[0].Source)
	}
	if ours, err := s.ours(s.targetFolder()); err != nil {
		return err
	} else if !ours {
		return fmt.Errorf("cannot move %s to its place: it is not the folder that this run copied to", s.targetFolder())
	}
	if _, err := ask[none](ctx, s, opRemove, pathArg{s.copyArgs().indexFolder()}); err != nil {
		return err
	}
	p, err := s.place()
	if err != nil {
		return err
	}
	defer p.close()
	if err := s.clearPlace(p); err != nil {
		return err
	}
	if err := p.move(filepath.Base(s.targetFolder()), p.base); err != nil {
		return err
	}
	s.point("before after-home")
	return nil
}

// leaveHome makes the store's place a mount point again. The copy, which may hold
// what was written since, stays beside it.
func (s *Session) leaveHome(ctx context.Context) error {
	if err := s.quiet(ctx); err != nil {
		return err
	}
	p, err := s.place()
	if err != nil {
		return err
	}
	defer p.close()
	if in, err := s.homeIn(); err != nil {
		return err
	} else if in {
		if s.Inputs.Owner.Rootful() {
			if err := s.detachHome(); err != nil {
				return err
			}
		}
		if err := p.move(p.base, filepath.Base(s.targetFolder())); err != nil {
			return err
		}
		s.point("before after-home-left")
	}
	if closed, err := s.closedPoint(); err != nil || closed {
		return err
	}
	if err := s.clearPlace(p); err != nil {
		return err
	}
	return s.makePoint(p)
}

// homeward reports whether what is asked for is the way home from a mount.
func (a *Assessment) homeward() bool {
	dir, err := filepath.Abs(a.Inputs.Request.Relocate.Path)
	return err == nil && a.Look.Mountpoint && a.Inputs.Request.Relocate.Path != "" && dir == filepath.Dir(a.Inputs.Store.GraphRoot)
}

// targetHome judges the folder that the graphroot lies in, as the place to which
// the store comes home from its mount.
func (a *Assessment) targetHome() error {
	dir := filepath.Dir(a.Inputs.Store.GraphRoot)
	f, err := host.OpenDir(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return a.targetOn(KindHome, f)
}
