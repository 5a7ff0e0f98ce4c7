package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
)

// targetReady observes that the target's folder is there, was tried by the owner and
// bears this run's marker, or is in the store's place already.
func (s *Session) targetReady(ctx context.Context) (bool, error) {
	if s.journal.State().Phase == engine.PhaseRollingBack {
		return true, nil // the way back needs no target, and leads away from a lost one, too
	}
	if broken, err := s.deviceBroken(); err != nil || broken || !s.facts.Tried {
		return false, err
	}
	up, err := s.deviceUp()
	if err != nil {
		return false, err
	}
	if up {
		ours, err := within(ctx, s.targetFolder(), func() (bool, error) { return s.ours(s.targetFolder()) })
		if err != nil || ours {
			return ours, err
		}
	}
	return s.mounted(ctx)
}

// ours reports whether a folder has this run's marker.
func (s *Session) ours(folder string) (bool, error) {
	dir, err := host.OpenDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	return s.oursIn(dir)
}

func (s *Session) oursIn(dir *os.File) (bool, error) {
	m, err := host.ReadMarker(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && m.Run == s.ID, err
}

// prepareTarget makes the target's folder, and has the owner's worker try it.
func (s *Session) prepareTarget(ctx context.Context) error {
	var err error
	switch {
	case s.onCephFS():
		err = s.preparePlace(ctx)
	case s.alone():
		err = s.prepareDevice(ctx)
	default:
		err = s.makeFolder(ctx)
	}
	if err != nil || s.facts.Tried { // a trial leaves its time on the folder, and the copy may be there
		return err
	}
	if err := s.probe(ctx); err != nil {
		return err
	}
	return s.learn(func(f *Facts) { f.Tried = true })
}

// makeFolder makes the store's folder on a filesystem that is mounted. It
// appears whole, with the run's marker and the owner's, or not at all.
func (s *Session) makeFolder(ctx context.Context) error {
	t, folder := s.Inputs.Target, s.targetFolder()
	if ours, err := s.ours(folder); err != nil || ours {
		return err
	}
	where, err := host.OpenDir(t.Where)
	if err != nil {
		return err
	}
	defer where.Close()
	if m, err := host.MountOf(where); err != nil {
		return err
	} else if id, err := host.FilesystemID(where); err != nil {
		return err
	} else if m.Path != t.On || id != t.ID {
		return &Refusal{ID: "target-gone", Text: fmt.Sprintf("%s does not lie on the filesystem any more that was mounted on %s", t.Where, t.On),
			Hint: "mount the target's filesystem as it was, then try again"}
	}
	if s.home() && t.Units { // others can change it: it is not for root to make anything there
		m, err := s.marker()
		if err != nil {
			return err
		}
		_, err = ask[none](ctx, s, opMakeHome, homeArgs{Half: runFolder(t.Where, s.ID), Folder: folder, Marker: m})
		return err
	}
	half := runFolder("", s.ID)
	at := int(where.Fd())
	if err := unix.Mkdirat(at, half, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("cannot make a folder in %s: %w", t.Where, err)
	}
	s.point("before after-target-half")
	dir, err := host.OpenBelow(where, half)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := s.mark(dir); err != nil {
		return err
	}
	o := s.Inputs.Owner
	if err := unix.Fchownat(int(dir.Fd()), "", int(o.UID), int(o.GID), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("cannot give %s to %s: %w", folder, o.Name, err)
	}
	s.point("before after-target-mark")
	err = host.RenameNew(at, half, at, filepath.Base(folder))
	if errors.Is(err, unix.EEXIST) {
		return targetTaken(folder)
	}
	if err != nil {
		return fmt.Errorf("cannot make %s: %w", folder, err)
	}
	return syncFolder(where)
}

func targetTaken(folder string) *Refusal {
	return &Refusal{ID: "target-taken", Text: folder + " is there already",
		Hint: "see what it is; move it away, or give another --path"}
}

// marker is what the run's marker says.
func (s *Session) marker() (host.Marker, error) {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return host.Marker{}, fmt.Errorf("cannot mark the target: %w", err)
	}
	return host.Marker{Run: s.ID, Host: strings.TrimSpace(string(id)), Owner: s.Inputs.Owner.Name,
		Store: s.Inputs.Store.GraphRoot, Made: time.Now()}, nil
}

// mark writes the run's marker into an open folder.
func (s *Session) mark(dir *os.File) error {
	m, err := s.marker()
	if err != nil {
		return err
	}
	return host.WriteMarker(dir, m)
}

// syncFolder makes a folder's entries durable; it may be open as a path only.
func syncFolder(dir *os.File) error {
	d, err := host.Readable(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("cannot sync %s: %w", dir.Name(), err)
	}
	return nil
}

// releaseTarget takes away what the run made on the target. Once the target was
// in the store's place it may hold the only copy of something, and is kept.
func (s *Session) releaseTarget(ctx context.Context) error {
	if s.journal.State().Steps[stepMount].Mark != engine.MarkNone {
		drop := s.dropPrivate
		if s.onCephFS() {
			drop = s.letGoPlace
		}
		if err := drop(ctx); err != nil {
			return err
		}
		where := s.TargetFolder()
		if s.home() {
			where = s.targetFolder()
		}
		return s.note("the copy in %s is kept: it was in use, and holds what was written since the cutover. Remove it when it is not wanted", where)
	}
	remove := s.removeCopy
	switch {
	case s.home() && s.Inputs.Target.Units: // the owner made it
		remove = s.removeHome
	case s.onCephFS():
		remove = s.releasePlace
	case s.alone():
		remove = s.releaseDevice
	}
	if err := remove(ctx); err != nil { // podman is back already: a lost target must not keep the run open
		return s.note("what the run made in %s could not be removed: %v", s.TargetFolder(), err)
	}
	return nil
}

// removeCopy removes the folder of the run from a filesystem that others use, too.
func (s *Session) removeCopy(ctx context.Context) error {
	t, folder := s.Inputs.Target, s.targetFolder()
	where, err := host.OpenDir(t.Where)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer where.Close()
	half := runFolder("", s.ID)
	if dir, err := host.OpenBelow(where, half); err == nil {
		if err := errors.Join(host.RemoveMarker(dir), dir.Close()); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	remove := []string{half}
	if ours, err := s.ours(folder); err != nil {
		return err
	} else if ours {
		if _, err := ask[none](ctx, s, opEmptyTarget, s.copyArgs()); err != nil {
			return err
		}
		remove = append(remove, filepath.Base(folder))
	}
	for _, name := range remove {
		err := unix.Unlinkat(int(where.Fd()), name, unix.AT_REMOVEDIR)
		s.point("before after-target-gone")
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cannot remove %s: %w", filepath.Join(t.Where, name), err)
		}
	}
	return syncFolder(where)
}
