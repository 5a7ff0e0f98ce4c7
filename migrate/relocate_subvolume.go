package migrate

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/rbd"
)

// This file is about a subvolume of CephFS as the place of a store, which a run makes
// where it is told to.

// The helper's words for what is not there.
const (
	noSubvolume = "no-subvolume"
	noGroup     = "no-group"
)

// SubvolumeFact is the subvolume that a run began to make.
type SubvolumeFact struct {
	Group bool `json:"group,omitempty"` // its group was not there either
}

// cephPlace is the store's own folder in CephFS. Where its subvolume is to be made,
// its path is "" until then.
func (s *Session) cephPlace() ceph.Place {
	p := s.Inputs.Target.Place.Place
	if top := s.facts.SubvolumePath; top != "" {
		p.Path = path.Join(top, folderOf(s.Inputs))
	}
	return p
}

// makeSubvolume makes the subvolume that the plan says is to be made. That it was begun
// stands in the journal before, so that a way back knows what the run has made.
func (s *Session) makeSubvolume(ctx context.Context, h *rbd.Host) error {
	v := s.Inputs.Target.Place.Subvolume
	if v == nil || s.facts.SubvolumePath != "" {
		return nil
	}
	if s.facts.Subvolume == nil {
		made, err := s.mayMakeSubvolume(ctx, h, *v)
		if err != nil {
			return err
		}
		if err := s.learn(func(f *Facts) { f.Subvolume = &made }); err != nil {
			return err
		}
	}
	s.point("before subvolume")
	p, err := ceph.MakeSubvolume(ctx, h.Link, *v)
	if err != nil {
		return err
	}
	s.point("before after-subvolume")
	return s.learn(func(f *Facts) { f.SubvolumePath = p.Path })
}

// mayMakeSubvolume looks once more whether the subvolume and its group are there: what
// somebody else has made since the plan is not the run's.
func (s *Session) mayMakeSubvolume(ctx context.Context, h *rbd.Host, v ceph.NewSubvolume) (SubvolumeFact, error) {
	var f SubvolumeFact
	_, err := ceph.FindSubvolume(ctx, h.Link, v.Subvolume)
	if err == nil {
		return f, &Refusal{ID: "target-taken", Text: fmt.Sprintf("the subvolume %s was made by somebody else meanwhile", v.Subvolume),
			Hint: "see whose it is; give another name, or the same again to use it as it is"}
	}
	if cephlink.IDOf(err) != noSubvolume {
		return f, err
	}
	alone := v
	alone.NewGroup = false
	err = ceph.MayMakeSubvolume(ctx, h.Link, alone)
	if f.Group = cephlink.IDOf(err) == noGroup; f.Group && v.NewGroup {
		err = nil
	}
	return f, err
}

// releaseSubvolume removes the subvolume that the run made. If anything is in it by
// now, it stays.
func (s *Session) releaseSubvolume(ctx context.Context, h *rbd.Host) error {
	v := s.Inputs.Target.Place.Subvolume
	if v == nil {
		return nil
	}
	s.point("before subvolume-gone")
	made := *v
	made.NewGroup = s.facts.Subvolume.Group
	err := ceph.RemoveSubvolume(ctx, h.Link, made)
	if errors.Is(err, unix.ENOTEMPTY) {
		return s.note("the subvolume %s, or its group, is not empty, and stays", v.Subvolume)
	}
	return err
}

// cephTop is the folder of CephFS in which the store is to get its own; or made is the
// subvolume that is to be made for that.
func (a *Assessment) cephTop(ctx context.Context, run *host.Runner) (top ceph.Place, made *ceph.NewSubvolume, err error) {
	r := a.Inputs.Request.Relocate
	const form = "give it as FS:/PATH, the filesystem's name and a folder of it, or as FS:@GROUP/SUBVOLUME"
	if !strings.Contains(r.CephFS, ":@") {
		if top, err = ceph.ParsePlace(r.CephFS); err != nil {
			a.refuse("no-target", form, "%v", err)
		}
		return top, nil, nil
	}
	sub, err := ceph.ParseSubvolume(r.CephFS)
	if err != nil {
		a.refuse("no-target", form, "%v", err)
		return top, nil, nil
	}
	err = withCeph(ctx, run, r.Cluster, func(h *rbd.Host) error {
		top, err = ceph.FindSubvolume(ctx, h.Link, sub)
		if err == nil && r.MakeSubvolume {
			a.Notes = append(a.Notes, fmt.Sprintf("the subvolume %s is there: it is used as it is", sub))
		}
		if cephlink.IDOf(err) != noSubvolume || !r.MakeSubvolume {
			return err
		}
		made = &ceph.NewSubvolume{Subvolume: sub, Quota: r.Size}
		top = ceph.Place{FS: sub.FS}
		err = ceph.MayMakeSubvolume(ctx, h.Link, *made)
		if cephlink.IDOf(err) == noGroup && r.MakeGroup {
			made.NewGroup = true
			err = ceph.MayMakeSubvolume(ctx, h.Link, *made)
		}
		return err
	})
	return top, made, a.takeRefusal(cephRefusal(err))
}

// subvolumeRoom tells what is free for a subvolume that is to be made: what the
// filesystem has, or its quota. It also sees that the user may come there.
func (a *Assessment) subvolumeRoom(ctx context.Context, h *rbd.Host, report ceph.Report, v *ceph.NewSubvolume) error {
	look, err := ceph.LookPlace(ctx, h.Link, v.Usual())
	// Whoever may use a part of the filesystem alone cannot be asked before it is there.
	if errors.Is(err, unix.ENOENT) && len(report.Pools) > 0 && report.Pools[0].Free >= 0 {
		look.Free, err = uint64(report.Pools[0].Free), nil
	}
	if err != nil {
		return err
	}
	a.Inputs.Target.Free = look.Free
	if v.Quota > 0 {
		a.Inputs.Target.Free = min(look.Free, uint64(v.Quota))
	}
	return nil
}

// subvolumeWhat tells of a subvolume that is to be made.
func subvolumeWhat(v *ceph.NewSubvolume) string {
	if v == nil {
		return ""
	}
	text := "the subvolume " + v.String()
	if v.NewGroup {
		text = fmt.Sprintf("the group %s and %s", v.Group, text)
	}
	if v.Quota > 0 {
		return fmt.Sprintf("%s is made, with a quota of %s; ", text, Bytes(v.Quota))
	}
	return text + " is made, without a quota; "
}
