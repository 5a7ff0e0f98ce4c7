package migrate

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// This file takes the old mount down, and puts it up again.

// takeOldDown takes the old mount down and makes sure that it does not come back.
func (s *Session) takeOldDown(ctx context.Context) error {
	if err := s.stillOut(ctx); err != nil {
		return err
	}
	if err := s.quiet(ctx); err != nil {
		return err
	}
	root := s.Inputs.Store.GraphRoot
	here, err := s.oldHere(ctx)
	if err != nil {
		return err
	}
	if t, err := host.Mounts(); err != nil {
		return err
	} else if m := t.Stack(root); !here && len(m) > 0 { // nobody has judged whether that may go
		return fmt.Errorf("cannot take the old store's mount down: what is on %s now, %s, is something else", root, m[0].Source)
	}
	if err := s.closePoint(); err != nil {
		return err
	}
	s.point("before after-point-closed")
	if s.facts.OldBoot == nil { // of an earlier try some may be gone
		files, err := host.BootFiles(root, s.Inputs.Store.Mount.Run)
		if err != nil {
			return err
		}
		if err := s.learn(func(f *Facts) { f.OldBoot = &files }); err != nil {
			return err
		}
	}
	// First what makes others need the mount: systemd would stop them with it.
	if err := s.removeOldBoot(ctx, host.BootFile.DropsIn); err != nil {
		return err
	}
	if here {
		if s.Inputs.Owner.Rootful() {
			if err := s.detachHome(); err != nil {
				return err
			}
		}
		if err := s.nobodyIn(root); err != nil {
			return err
		}
	}
	if err := s.endWorker(); err != nil { // its lock keeps the mount busy
		return err
	}
	down, cancel := context.WithTimeout(ctx, mountLimit)
	defer cancel()
	if err := s.takeDown(down); err != nil {
		return errors.Join(oldBusy(err), s.renewWorker(ctx))
	}
	if err := s.oldWritten(down, root); err != nil {
		return errors.Join(err, s.renewWorker(ctx))
	}
	s.point("before after-old-down")
	err = s.removeOldBoot(ctx, func(host.BootFile) bool { return true })
	if err == nil {
		err = s.editFstab(ctx, func(now []byte) ([]byte, error) { return host.ParkFstab(now, s.ID, root) })
	}
	if err == nil {
		err = s.reloadSystemd(ctx)
	}
	if err == nil {
		s.point("before after-old-parked")
		err = s.reachOld(ctx)
		s.point("before after-old-reached")
	}
	return errors.Join(err, s.renewWorker(ctx))
}

func oldBusy(err error) error {
	var busy *host.BusyError
	if errors.As(err, &busy) {
		return &Refusal{ID: "busy", Text: err.Error(), Hint: "end these, or have them leave the store, then try again"}
	}
	return err
}

// removeOldBoot takes away what tells systemd of the old mount, as far as it is
// wanted, and has systemd heed that.
func (s *Session) removeOldBoot(ctx context.Context, wanted func(host.BootFile) bool) error {
	gone := false
	for _, f := range slices.Backward(*s.facts.OldBoot) { // what starts a unit before the unit
		there, err := f.There()
		if err != nil {
			return err
		}
		if !there || !wanted(f) {
			continue
		}
		if err := f.Remove(); err != nil {
			return err
		}
		gone = true
		s.point("before after-no " + filepath.Base(f.Path))
	}
	if !gone {
		return nil
	}
	return s.reloadSystemd(ctx)
}

// closePoint makes the mount point immutable, beneath what is mounted there.
func (s *Session) closePoint() error {
	dir, err := host.Underneath(s.Inputs.Store.GraphRoot)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = host.SetImmutable(dir, true)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return s.note("the mount point %s cannot be made immutable: its filesystem does not know that", s.Inputs.Store.GraphRoot)
	case errors.Is(err, unix.ENOTEMPTY):
		return hiddenFiles(s.Inputs.Store.GraphRoot)
	}
	return err
}

func hiddenFiles(root string) *Refusal {
	return &Refusal{ID: "graphroot-mount", Text: "files lie hidden in " + root + ", beneath what is mounted there",
		Hint: "look at them (mount --bind the folder above it elsewhere), and move them away"}
}

// putOldUp mounts the old store in its place again, and tells boots of it as
// before. It needs nothing of the target.
func (s *Session) putOldUp(ctx context.Context) error {
	if err := s.quiet(ctx); err != nil {
		return err
	}
	root := s.Inputs.Store.GraphRoot
	if here, err := s.oldHere(ctx); err != nil {
		return err
	} else if here { // it never was down
		if err := s.endWorker(); err != nil {
			return err
		}
	} else if t, err := host.Mounts(); err != nil {
		return err
	} else if m := t.Stack(root); len(m) > 0 {
		return fmt.Errorf("cannot return the old store to its place: %s is still mounted there", m[0].Source)
	}
	if err := s.leaveOld(ctx); err != nil {
		return errors.Join(err, s.renewWorker(ctx))
	}
	s.point("before after-old-left")
	if err := s.tellOldAgain(ctx); err != nil {
		return err
	}
	mount, cancel := context.WithTimeout(ctx, mountLimit)
	defer cancel()
	if err := s.onSystemBus(mount, func(b *host.Bus) error { return b.StartMount(mount, root) }); err != nil {
		return err
	}
	s.point("before after-old-up")
	if here, err := s.oldHere(ctx); err != nil {
		return err
	} else if !here {
		return fmt.Errorf("cannot return the old store to its place: %s is not what was there", s.Inputs.Store.Mount.Source)
	}
	// Only now: where the mount fails, podman must not begin a new store beneath it.
	if err := s.openPoint(); err != nil {
		return err
	}
	if err := s.freshWorker(ctx); err != nil {
		return err
	}
	_, err := ask[none](ctx, s, opLock, pathArg{root})
	return err
}

// tellOldAgain puts back what told boots of the old mount.
func (s *Session) tellOldAgain(ctx context.Context) error {
	if s.facts.OldBoot != nil {
		for _, f := range *s.facts.OldBoot {
			if err := f.Restore(); err != nil {
				return err
			}
			s.point("before after-back " + filepath.Base(f.Path))
		}
	}
	if err := s.editFstab(ctx, func(now []byte) ([]byte, error) { return host.UnparkFstab(now, s.ID), nil }); err != nil {
		return err
	}
	return s.reloadSystemd(ctx)
}

// openPoint makes the mount point as it was.
func (s *Session) openPoint() error {
	if !s.Inputs.Store.Mount.Open {
		return nil
	}
	dir, err := host.Underneath(s.Inputs.Store.GraphRoot)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := host.SetImmutable(dir, false); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
