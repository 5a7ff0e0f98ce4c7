package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/rbd"
)

// This file is the way from CephFS, where an earlier run has put the store.

// OldPlace is the folder of CephFS that a store stands on.
type OldPlace struct {
	Source  ceph.Source  `json:"source"`
	Mounter ceph.Mounter `json:"mounter"`
	Made    bool         `json:"made,omitempty"` // the earlier run made the folder
}

// earlierPlace is the folder of CephFS that a run moved a store to; nil if it was
// something else, or that run is not known here.
func earlierPlace(dir engine.Dir, run string) *OldPlace {
	if run == "" {
		return nil
	}
	st, err := engine.Read(dir.RunPath(run))
	if err != nil {
		return nil
	}
	in, err := DecodeInputs(st)
	if err != nil || in.Target == nil || in.Target.Place == nil {
		return nil
	}
	earlier := &Session{ID: run, Inputs: in}
	if raw, is := st.Facts["subvolumePath"]; is && json.Unmarshal(raw, &earlier.facts.SubvolumePath) != nil {
		return nil
	}
	return &OldPlace{Source: earlier.cephSource(), Mounter: in.Target.Place.Mounter, Made: in.Target.Place.Create}
}

// mountOld mounts the old store at the run's own place.
func (s *Session) mountOld(ctx context.Context) error {
	m := s.Inputs.Store.Mount
	if m.Place == nil {
		return s.env.Runner.MountAsBoot(ctx, m.BootMount, s.aside())
	}
	return ceph.Mount(ctx, s.env.Runner, m.Place.Source, s.aside(), m.Place.Mounter)
}

// oldWritten returns when all that was written to an old store at a folder, where it is
// mounted no more, is where another mount finds it.
func (s *Session) oldWritten(ctx context.Context, at string) error {
	if s.Inputs.Store.Mount.Place == nil {
		return nil
	}
	return ceph.Written(ctx, at)
}

// isOldPlace reports whether a folder is the old store in CephFS. It is told by the
// marker: the top of a mount has the same inode number in all of ceph-fuse's.
func (s *Session) isOldPlace(dir *os.File) (bool, error) {
	m, err := host.ReadMarker(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && m.Run == s.Inputs.Store.Mount.Run, err
}

// dropPlace removes what only the mounts of the old store needed, and its folder, which
// is empty, if the earlier run made it.
func (s *Session) dropPlace(ctx context.Context, p *OldPlace) error {
	if p.Source.Secret != "" {
		if err := os.Remove(p.Source.Secret); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot remove the key: %w", err)
		}
	}
	if !p.Made {
		return s.note("the folder %s stays: it was there before", p.Source.Place)
	}
	err := withCeph(ctx, s.env.Runner, p.Source.Cluster, func(h *rbd.Host) error {
		return ceph.RemovePlace(ctx, h.Link, p.Source.Place)
	})
	if err != nil { // the store is where it is to be: a cluster that is away is no reason to fail
		return s.note("the folder %s stays: %v", p.Source.Place, err)
	}
	return nil
}
