package migrate

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/rbd"
)

// oldGone observes that nothing of the old store is left: neither its files, which
// go before their mount does, nor what told of it, nor what it was on.
func (s *Session) oldGone(context.Context) (bool, error) {
	if up, err := s.reached(); err != nil || up || !s.facts.SourceGone {
		return false, err
	}
	if _, err := os.Lstat(filepath.Dir(s.aside())); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	now, err := readFstab()
	return !host.HasParked(now, s.ID), err
}

// OldThere reports whether the old store of a run is where the run can remove it.
func (s *Session) OldThere() (bool, error) {
	if !s.relocating() || s.Inputs.Store.Mount == nil {
		return true, nil // on the same filesystem as its place, or in it
	}
	return s.reached()
}

// removeOldMount removes the old store from the filesystem that it was on, and what
// an earlier run had made for it. The filesystem itself stays, and an image.
func (s *Session) removeOldMount(ctx context.Context) error {
	if err := s.mayCommit(ctx); err != nil { // also when it is resumed
		return err
	}
	up, err := s.reached()
	if err != nil {
		return err
	}
	if up {
		left, err := ask[[]string](ctx, s, opEmptyOld, pathArg{s.aside()})
		if err != nil {
			return err
		}
		if len(left) > 0 {
			if err := s.note("on %s is left what is not podman's: %s", s.Inputs.Store.Mount.Source, few(left)); err != nil {
				return err
			}
		}
	}
	s.point("before after-old-emptied")
	if err := s.leaveOld(ctx); err != nil {
		return errors.Join(err, s.renewWorker(ctx))
	}
	s.point("before after-old-unmounted")
	if err := s.freshWorker(ctx); err != nil {
		return err
	}
	if _, err := ask[none](ctx, s, opLock, pathArg{s.Inputs.Store.GraphRoot}); err != nil {
		return err
	}
	if !s.facts.SourceGone { // else it is told twice
		if err := s.dropSource(ctx, up); err != nil {
			return err
		}
		s.point("before after-source-dropped")
		if err := s.learn(func(f *Facts) { f.SourceGone = true }); err != nil {
			return err
		}
	}
	return s.editFstab(ctx, func(now []byte) ([]byte, error) { return host.DropParked(now, s.ID), nil })
}

// dropSource takes away what an earlier run had made for the old store to be on,
// and tells of what stays. Only one that was emptied is told to be empty: a disk that is
// given up may come back, or was not there when a commit was resumed.
func (s *Session) dropSource(ctx context.Context, emptied bool) error {
	m := s.Inputs.Store.Mount
	holds := "an empty filesystem"
	if !emptied {
		holds = "what it held"
		if err := s.note("what %s holds of the old store was not removed: it could not be reached", m.Source); err != nil {
			return err
		}
	}
	if m.Place != nil {
		return s.dropPlace(ctx, m.Place)
	}
	if slices.Contains(m.Options, "bind") {
		return s.dropFolder(m)
	}
	if img := s.earlierImage(); img != nil {
		if err := s.unmapEarlier(ctx, img); err != nil { // the store is where it is to be: a cluster that is away is no reason to fail
			return s.note("image %s could not be let go of: %v", img.Spec, err)
		}
		return s.note("image %s is not mapped any more, and holds %s; rbd rm %s removes it", img.Spec, holds, img.Spec)
	}
	if !emptied {
		return nil
	}
	return s.note("%s holds an empty filesystem now; wipefs --all wipes it, if it is not wanted any more", m.Source)
}

// dropFolder removes the folder that an earlier run made, if nothing is in it.
func (s *Session) dropFolder(m *OldMount) error {
	if m.Run == "" || filepath.Base(m.Source) != folderOf(s.Inputs) {
		return s.note("the folder %s stays", m.Source)
	}
	if who, err := host.Changeable(m.Source); err != nil || who != "" {
		return s.note("the folder %s stays: others than root can change the way to it", m.Source)
	}
	above, err := host.OpenDir(filepath.Dir(m.Source))
	if err != nil {
		return s.note("the folder %s stays: %v", m.Source, err)
	}
	defer above.Close()
	err = unix.Unlinkat(int(above.Fd()), filepath.Base(m.Source), unix.AT_REMOVEDIR)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return s.note("the folder %s stays: %v", m.Source, err)
	}
	return syncFolder(above)
}

// earlierImage is the image of Ceph that an earlier run moved the store to; nil if
// it was something else, or that run is not known here.
func (s *Session) earlierImage() *TargetImage {
	run := s.Inputs.Store.Mount.Run
	if run == "" {
		return nil
	}
	st, err := engine.Read(s.env.Dir.RunPath(run))
	if err != nil {
		return nil
	}
	in, err := DecodeInputs(st)
	if err != nil || in.Target == nil || in.Target.Image == nil || in.Target.Image.Spec.Link() != s.Inputs.Store.Mount.Source {
		return nil
	}
	return in.Target.Image
}

// unmapEarlier takes an image from this host: what maps it at boot, then the mapping.
func (s *Session) unmapEarlier(ctx context.Context, img *TargetImage) error {
	if err := s.editRBDMap(func(now []byte) ([]byte, error) { return rbd.RemoveEntry(now, img.Spec) }); err != nil {
		return err
	}
	if err := (&rbd.Host{Run: s.env.Runner}).Forget(ctx, img.Spec); err != nil {
		return err
	}
	s.point("before after-image-forgotten")
	return withCeph(ctx, s.env.Runner, img.Cluster, func(h *rbd.Host) error { return unmapHere(ctx, h, img) })
}
