package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/rbd"
)

func (s *Session) onCephFS() bool { return s.Inputs.Target.Kind == KindCephFS }

// cephSource is what a mount of the store's folder needs to know.
func (s *Session) cephSource() ceph.Source {
	t := s.Inputs.Target.Place
	src := ceph.Source{Place: s.cephPlace(), Cluster: t.Cluster, FSID: t.FSID}
	if t.Mounter == ceph.Kernel {
		src.Secret = s.secretFile()
	}
	return src
}

// secretFile has the key that the kernel's mounts are made with: neither fstab nor a
// command line shows it.
func (s *Session) secretFile() string { return "/etc/ceph/storagectl-" + s.ID + ".secret" }

// bootPlace is how a boot mounts the store's folder.
func (s *Session) bootPlace(e host.FstabEntry, how host.FstabHow) (host.FstabEntry, host.FstabHow, error) {
	var err error
	how.Network = true
	if t := s.Inputs.Target.Place; t.Mounter == ceph.Kernel {
		e.Source, e.Type, how.More, err = s.cephSource().Line(t.Syntax)
	} else {
		e.Source, e.Type, how.More, how.Environment, err = s.cephSource().FuseUnit()
	}
	return e, how, err
}

// preparePlace makes the store's folder, mounts it where only the owner and root
// can reach it, and claims it for this run.
func (s *Session) preparePlace(ctx context.Context) error {
	if up, err := s.deviceUp(); err != nil {
		return err
	} else if !up {
		if err := s.mountPlace(ctx); err != nil {
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
	if ours, err := s.oursIn(dir); err != nil || ours {
		return err
	}
	if alone, err := emptyBut(dir); err != nil {
		return err
	} else if !alone {
		return placeTaken(s.Inputs.Target.Where)
	}
	if err := s.giveTarget(dir); err != nil {
		return err
	}
	return s.claim(dir)
}

// emptyBut reports whether a folder holds nothing but markers.
func emptyBut(dir *os.File) (bool, error) {
	names, err := entries(dir)
	return !slices.ContainsFunc(names, func(n string) bool { return !host.IsMarker(n) }), err
}

// mountPlace makes the folder where it is not there, and mounts it where the run
// works on it.
func (s *Session) mountPlace(ctx context.Context) error {
	t, o := s.Inputs.Target.Place, s.Inputs.Owner
	err := withCeph(ctx, s.env.Runner, t.Cluster, func(h *rbd.Host) error {
		if err := s.makeSubvolume(ctx, h); err != nil {
			return err
		}
		_, _, err := ceph.MakePlace(ctx, h.Link, s.cephPlace(), ceph.Owner{UID: int(o.UID), GID: int(o.GID), Mode: 0o700})
		return err
	})
	if err != nil {
		return cephRefusal(err)
	}
	s.point("before after-place")
	if s.facts.Target == nil {
		if err := s.learn(func(f *Facts) { f.Target = &TargetFact{FSType: s.Inputs.Target.FSType} }); err != nil {
			return err
		}
	}
	return s.attachPlace(ctx)
}

// attachPlace mounts the folder where the run works on it.
func (s *Session) attachPlace(ctx context.Context) error {
	t := s.Inputs.Target.Place
	if t.Mounter == ceph.Kernel {
		key, err := ceph.Key(ctx, s.env.Runner, t.Cluster)
		if err != nil {
			return err
		}
		if err := ceph.WriteSecret(s.secretFile(), key); err != nil {
			return err
		}
	}
	if err := s.privateFolder(); err != nil {
		return err
	}
	s.point("before place-mount")
	err := ceph.Mount(ctx, s.env.Runner, s.cephSource(), s.targetFolder(), t.Mounter)
	s.point("before after-place-mount")
	return err
}

// claim writes the run's marker into an empty folder. Another host may find it empty
// at the same moment: so it is looked into again when the marker stands, which no
// other run replaces.
func (s *Session) claim(dir *os.File) error {
	m, err := s.marker()
	if err != nil {
		return err
	}
	s.point("before claim")
	if err := host.ClaimMarker(dir, m); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	s.point("before after-claim")
	ours, err := s.oursIn(dir)
	if err != nil {
		return err
	}
	alone, err := emptyBut(dir)
	if err != nil || ours && alone {
		return err
	}
	if ours {
		if err := host.RemoveMarker(dir); err != nil {
			return err
		}
	}
	return placeTaken(s.Inputs.Target.Where)
}

func placeTaken(where string) *Refusal {
	return &Refusal{ID: "target-taken", Text: where + " is not empty",
		Hint: "see what it is (" + host.MarkerName + " in it tells whose); move it away, or give another path"}
}

// settle has all that was copied written to the cluster, and what is read from then
// on come from there: ceph-fuse keeps both back in its memory, and a sync does not
// reach it.
func (s *Session) settle(ctx context.Context) error {
	if !s.onCephFS() || s.Inputs.Target.Place.Mounter != ceph.Fuse {
		return nil
	}
	if err := s.dropPrivate(ctx); err != nil {
		return err
	}
	if err := s.attachPlace(ctx); err != nil {
		return err
	}
	return s.renewWorker(ctx)
}

// placeMounted observes that what is mounted on the graphroot is the folder that
// was copied to: it has the run's marker.
func (s *Session) placeMounted(ctx context.Context) (bool, error) {
	root := s.Inputs.Store.GraphRoot
	return within(ctx, root, func() (bool, error) {
		live, err := host.OpenDir(root)
		if err != nil {
			return false, err
		}
		defer live.Close()
		m, err := host.MountOf(live)
		if err != nil || m.Path != root || m.Type != s.Inputs.Target.FSType {
			return false, err
		}
		return s.oursIn(live)
	})
}

// releasePlace removes what the run copied, and the folder and the subvolume if they
// were not there before.
func (s *Session) releasePlace(ctx context.Context) error {
	t := s.Inputs.Target.Place
	if t.Subvolume != nil && s.facts.Subvolume == nil {
		return s.letGoPlace(ctx) // nothing was begun
	}
	err := withCeph(ctx, s.env.Runner, t.Cluster, func(h *rbd.Host) error {
		if err := s.releaseFolder(ctx, h); err != nil {
			return err
		}
		return s.releaseSubvolume(ctx, h)
	})
	return errors.Join(err, s.letGoPlace(ctx))
}

func (s *Session) releaseFolder(ctx context.Context, h *rbd.Host) error {
	t, p := s.Inputs.Target.Place, s.cephPlace()
	if p.Path == "" {
		return nil // its subvolume was not made, as far as the run knows
	}
	l, err := ceph.LookPlace(ctx, h.Link, p) // before anything waits for a cluster that is lost
	if errors.Is(err, unix.ENOENT) {
		return nil // not even what it lay in
	}
	if err != nil || !l.There && !t.Create {
		return err
	}
	if l.There && s.facts.Target != nil {
		if err := s.emptyPlace(ctx); err != nil {
			return err
		}
	}
	s.point("before after-empty-place")
	if !t.Create {
		return nil
	}
	if err = ceph.RemovePlace(ctx, h.Link, p); errors.Is(err, unix.ENOTEMPTY) {
		err = nil // somebody else's by now
	}
	return err
}

// emptyPlace removes the run's copy, also after a boot.
func (s *Session) emptyPlace(ctx context.Context) error {
	if up, err := s.deviceUp(); err != nil {
		return err
	} else if !up {
		if err := s.attachPlace(ctx); err != nil {
			return err
		}
		if err := s.renewWorker(ctx); err != nil {
			return err
		}
	}
	ours, err := s.ours(s.targetFolder())
	if err == nil && ours {
		_, err = ask[none](ctx, s, opEmptyTarget, s.copyArgs())
	}
	return errors.Join(err, s.dropPrivate(ctx))
}

// letGoPlace unmounts the folder where the run worked on it, and removes what only
// its mounts needed. From a cluster that is lost it is detached.
func (s *Session) letGoPlace(ctx context.Context) error {
	if err := s.dropPrivate(ctx); err != nil {
		err2 := unix.Unmount(s.targetFolder(), unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err2 != nil && !errors.Is(err2, unix.EINVAL) {
			return errors.Join(err, err2)
		}
		if err := s.note("%s was detached as it was: %v", s.targetFolder(), err); err != nil {
			return err
		}
	}
	if err := os.Remove(s.secretFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot remove the key: %w", err)
	}
	return nil
}

// targetPlace judges a folder of CephFS as target.
func (a *Assessment) targetPlace(ctx context.Context, run *host.Runner, need uint64) error {
	r := a.Inputs.Request.Relocate
	top, made, err := a.cephTop(ctx, run)
	if err != nil || len(a.Refusals) > 0 {
		return err
	}
	p := &TargetPlace{Place: ceph.Place{FS: top.FS, Path: path.Join(top.Path, a.folderName())}, Cluster: r.Cluster, Mounter: ceph.Mounter(r.Mounter)}
	if made != nil { // then Ceph says where
		p.Subvolume, p.Create, p.Place.Path = made, true, ""
	}
	if p.Mounter == "" {
		p.Mounter = ceph.DefaultMounter(ctx, run)
	}
	t := &Target{Kind: KindCephFS, Where: p.Place.String(), Place: p, FSType: p.Mounter.FSType()}
	if made != nil {
		t.Where = path.Join(made.String(), a.folderName())
	}
	a.Inputs.Target = t
	if err := a.mounter(ctx, run, p); err != nil || len(a.Refusals) > 0 {
		return err
	}
	err = withCeph(ctx, run, r.Cluster, func(h *rbd.Host) error {
		report, err := ceph.Judge(ctx, h.Link, ceph.Query{FS: p.Place.FS, Need: int64(need)})
		if err != nil {
			return err
		}
		p.FSID = report.FSID
		if a.problems(report); len(a.Refusals) > 0 {
			return nil
		}
		if made != nil {
			return a.subvolumeRoom(ctx, h, report, made)
		}
		look, err := ceph.LookPlace(ctx, h.Link, p.Place)
		if err != nil {
			return err
		}
		if t.Free, p.Create = look.Free, !look.There; look.Entries {
			a.Refusals = append(a.Refusals, *placeTaken(t.Where))
		}
		return nil
	})
	return a.takeRefusal(cephRefusal(err))
}

// mounter refuses a client of CephFS that this host has not, or that cannot be told
// what to mount.
func (a *Assessment) mounter(ctx context.Context, run *host.Runner, p *TargetPlace) error {
	if tool := p.Mounter.Missing(); tool != "" {
		a.refuse("ceph-no-mounter", "apt install "+p.Mounter.Packages(), "there is no %s here", tool)
		return nil
	}
	src := ceph.Source{Place: p.Place, Cluster: p.Cluster}
	if p.Subvolume != nil {
		src.Place = p.Subvolume.Usual()
	}
	var err error
	if p.Mounter == ceph.Fuse {
		_, _, _, _, err = src.FuseUnit()
	} else {
		if ceph.DefaultMounter(ctx, run) != ceph.Kernel {
			a.refuse("ceph-no-mounter", "say --mounter fuse", "this kernel has no client of CephFS")
			return nil
		}
		if p.Syntax, err = ceph.SyntaxOf(ctx, run); err != nil {
			return err
		}
		if _, err := ceph.Key(ctx, run, p.Cluster); err != nil {
			a.refuse("ceph-no-key", "give its keyring with --ceph-keyring, or a file with the key with --ceph-keyfile", "%v", err)
			return nil
		}
		_, _, _, err = src.Line(p.Syntax)
	}
	if err != nil {
		a.refuse("no-target", "give paths and names of letters, digits and . - _, and monitors as HOST:PORT", "%v", err)
	}
	return nil
}
