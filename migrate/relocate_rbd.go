package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/rbd"
)

// stepImage is the name of the step that makes an image a device.
const stepImage = "image"

// imageKey is the image's metadata that names the run that made it.
const imageKey = "storagectl.run"

// withCeph gives f the image's host, linked to the cluster.
func withCeph(ctx context.Context, run *host.Runner, c cephlink.Cluster, f func(*rbd.Host) error) error {
	link, err := cephlink.Start(ctx, cephlink.Options{Cluster: c})
	if err != nil {
		return err
	}
	return errors.Join(f(&rbd.Host{Link: link, Run: run}), link.Close())
}

func (s *Session) spec() rbd.Spec { return s.Inputs.Target.Image.Spec }

// mapping is the image's device on this host; none is fs.ErrNotExist. It needs
// no cluster to be told.
func (s *Session) mapping(ctx context.Context) (rbd.Mapping, error) {
	all, err := (&rbd.Host{Run: s.env.Runner}).Mapped(ctx, s.spec())
	if err != nil {
		return rbd.Mapping{}, err
	}
	all = slices.DeleteFunc(all, func(m rbd.Mapping) bool { return !m.Of(s.Inputs.Target.Image.FSID) })
	for _, m := range all {
		if len(all) == 1 && !m.Dead {
			return m, nil
		}
	}
	if len(all) == 0 || len(all) == 1 {
		return rbd.Mapping{}, fmt.Errorf("image %s is not mapped here: %w", s.spec(), fs.ErrNotExist)
	}
	return rbd.Mapping{}, fmt.Errorf("image %s is mapped %d times on this host", s.spec(), len(all))
}

// imageMapped observes that the image is a device of this host.
func (s *Session) imageMapped(ctx context.Context) (bool, error) {
	if s.journal.State().Phase == engine.PhaseRollingBack {
		return true, nil // as with the target itself
	}
	if later, err := s.imageOfLater(); err != nil {
		return false, err
	} else if later != "" {
		return false, &Refusal{ID: "image-held", Text: fmt.Sprintf("run %s has image %s by now", later, s.spec()), Hint: "storagectl rollback " + s.ID + ", and begin anew with another image"}
	}
	_, err := s.mapping(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return s.inRBDMap(ctx)
}

// mapImage makes the image, if it is to be made, and maps it here alone.
func (s *Session) mapImage(ctx context.Context) error {
	t := s.Inputs.Target.Image
	err := withCeph(ctx, s.env.Runner, t.Cluster, func(h *rbd.Host) error {
		img, err := h.Look(ctx, t.Spec)
		if cephlink.IDOf(err) == cephlink.NoNamespace && t.MakeNamespace {
			if err := s.makeNamespace(ctx, h); err != nil {
				return err
			}
			img, err = h.Look(ctx, t.Spec)
		}
		if cephlink.IDOf(err) == cephlink.NoImage && t.Create {
			if err = h.Create(ctx, t.Spec, rbd.CreateOptions{Size: t.Size, DataPool: t.DataPool, Features: t.Features}); err == nil {
				_, err = s.rbdCommand(ctx, "image-meta", "set", t.Spec.String(), imageKey, s.ID)
			} else if errors.Is(err, fs.ErrExist) {
				err = &Refusal{ID: "image-held", Text: fmt.Sprintf("image %s was made by somebody else in this moment", t.Spec), Hint: "see who it was; give the name of another image"}
			}
		}
		if err != nil {
			return err
		}
		s.point("before after-image")
		if err := s.notMapped(ctx, h); err != nil {
			return err
		}
		if err := s.claimImage(ctx, img); err != nil {
			return err
		}
		_, err = h.Map(ctx, t.Spec, rbd.MapOptions{Mapper: t.Mapper, Unit: s.Inputs.Systemd, Wait: t.wait(), FailFull: true})
		return err
	})
	if err != nil {
		return imageRefusal(err)
	}
	s.point("before after-map")
	return s.setRBDMap(ctx, true)
}

// notMapped refuses an image that is mapped here already, and not by this run:
// somebody uses it, and a way back would take it from them.
func (s *Session) notMapped(ctx context.Context, h *rbd.Host) error {
	if s.facts.Mapped {
		return nil
	}
	there, err := h.Mapped(ctx, s.spec())
	if err != nil {
		return err
	}
	if len(there) > 0 {
		return mappedRefusal(there[0])
	}
	return s.learn(func(f *Facts) { f.Mapped = true })
}

func mappedRefusal(m rbd.Mapping) *Refusal {
	return &Refusal{ID: "image-mapped", Text: fmt.Sprintf("image %s is %s on this host already", m.Spec, m.Device),
		Hint: "give the name of another image, or unmap it, if nothing of it is in use"}
}

// imageRefusal makes a refusal of an image that somebody else has, and of what
// Ceph says no to.
func imageRefusal(err error) error {
	var held *rbd.HeldError
	if errors.As(err, &held) {
		return heldRefusal(held.Image)
	}
	return cephRefusal(err)
}

// cephRefusal makes a refusal of what Ceph says no to.
func cephRefusal(err error) error {
	id := cephlink.IDOf(err)
	if err == nil || id == "" {
		return err
	}
	return &Refusal{ID: "ceph-" + id, Text: err.Error(), Hint: cephlink.HintOf(err)}
}

// imageStripe is the stripe that a filesystem on the image gets, whatever maps it.
func (s *Session) imageStripe(ctx context.Context) (stripe int64, err error) {
	t := s.Inputs.Target.Image
	err = withCeph(ctx, s.env.Runner, t.Cluster, func(h *rbd.Host) error {
		img, err := h.Look(ctx, t.Spec)
		stripe = img.Stripe()
		return err
	})
	return stripe, imageRefusal(err)
}

// rbdCommand runs rbd(8) as the cluster's user.
func (s *Session) rbdCommand(ctx context.Context, args ...string) ([]byte, error) {
	argv := append([]string{"rbd"}, s.Inputs.Target.Image.Cluster.Args()...)
	return s.env.Runner.Run(ctx, host.Cmd{Argv: append(argv, args...), Timeout: time.Minute,
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}})
}

// unmapImage lets go of the image, and removes it if the run made it and it never
// was in the store's place.
func (s *Session) unmapImage(ctx context.Context) error {
	t := s.Inputs.Target.Image
	if later, err := s.imageOfLater(); err != nil {
		return err
	} else if later != "" {
		return s.note("image %s is left as it is: run %s has it", t.Spec, later)
	}
	if s.facts.Mapped {
		if err := s.setRBDMap(ctx, false); err != nil {
			return err
		}
		// Without the cluster: it may be what is lost.
		if err := (&rbd.Host{Run: s.env.Runner}).Forget(ctx, t.Spec); err != nil {
			return s.note("image %s is still served at boot: %v", t.Spec, err)
		}
	}
	err := withCeph(ctx, s.env.Runner, t.Cluster, func(h *rbd.Host) error {
		if s.facts.Mapped { // else they are of others
			if err := unmapHere(ctx, h, t); err != nil {
				return err
			}
		}
		if s.journal.State().Steps[stepMount].Mark != engine.MarkNone || !t.Create {
			return nil
		}
		if err := s.removeImage(ctx, h); err != nil {
			return err
		}
		return s.removeNamespace(ctx, h)
	})
	if err != nil { // podman is back already: a lost cluster must not keep the run open
		return s.note("image %s could not be let go of: %v", t.Spec, err)
	}
	return nil
}

// removeImage removes the image, if the run made it.
func (s *Session) removeImage(ctx context.Context, h *rbd.Host) error {
	spec := s.spec()
	_, err := h.Look(ctx, spec)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	out, err := s.rbdCommand(ctx, "image-meta", "get", spec.String(), imageKey)
	if err != nil || strings.TrimSpace(string(out)) != s.ID {
		return s.note("image %s is kept: it does not say that this run made it", spec)
	}
	return h.Remove(ctx, spec)
}

// makeNamespace makes the namespace of the image. That it was begun stands in the
// journal before: one that somebody else made meanwhile is not the run's to remove.
func (s *Session) makeNamespace(ctx context.Context, h *rbd.Host) error {
	if err := s.learn(func(f *Facts) { f.Namespace = true }); err != nil {
		return err
	}
	s.point("before namespace")
	err := h.MakeNamespace(ctx, s.spec())
	if errors.Is(err, fs.ErrExist) { // somebody else's, of this moment
		return s.learn(func(f *Facts) { f.Namespace = false })
	}
	s.point("before after-namespace")
	return err
}

// removeNamespace removes the namespace that the run made, if nothing is in it by now.
func (s *Session) removeNamespace(ctx context.Context, h *rbd.Host) error {
	if !s.facts.Namespace {
		return nil
	}
	err := h.RemoveNamespace(ctx, s.spec())
	if cephlink.IDOf(err) == cephlink.Held {
		return s.note("the namespace %s/%s is not empty, and stays", s.spec().Pool, s.spec().Namespace)
	}
	return err
}

// targetImage judges an RBD image as target: the cluster, the rights, who has it.
func (a *Assessment) targetImage(ctx context.Context, run *host.Runner, need uint64) error {
	r := a.Inputs.Request.Relocate
	spec, err := rbd.ParseSpec(r.RBD)
	if err != nil {
		a.refuse("no-target", "give it as POOL/IMAGE or POOL/NAMESPACE/IMAGE", "%v", err)
		return nil
	}
	img := &TargetImage{Spec: spec, Cluster: r.Cluster, Size: r.Size, DataPool: r.DataPool, Features: r.Features, Mapper: rbd.Mapper(r.Mapper), Wait: int(lateCluster.Seconds())}
	t := &Target{Kind: KindRBD, Where: spec.String(), FSType: r.FS, Image: img}
	a.Inputs.Target = t
	there, err := (&rbd.Host{Run: run}).Mapped(ctx, spec)
	if err != nil {
		return err
	}
	for _, m := range there {
		a.Refusals = append(a.Refusals, *mappedRefusal(m))
	}
	if file, err := rbd.AtBoot(spec); err != nil {
		return err
	} else if file != "" && len(there) == 0 {
		a.refuse("image-mapped", "give the name of another image; or see what uses it, and take it out of that file if nothing does", "%s wants image %s mapped at each boot, and it is not mapped now", file, spec)
	}
	err = withCeph(ctx, run, r.Cluster, func(h *rbd.Host) error {
		if img.Mapper == "" {
			img.Mapper = h.DefaultMapper(ctx)
		}
		if what, hint := h.Lacks(ctx, img.Mapper); what != "" {
			a.refuse("ceph-no-mapper", hint, "the image cannot be mapped by %s: %s", img.Mapper, what)
			return nil
		}
		if img.Mapper != rbd.Fuse && !a.hasUdev() { // its name under /dev/rbd is udev's, too
			return nil
		}
		report, err := ceph.Judge(ctx, h.Link, ceph.Query{Pool: spec.Pool, Namespace: spec.Namespace, DataPool: r.DataPool, Need: int64(need), TakeOver: r.TakeOver})
		if err != nil {
			return err
		}
		img.FSID = report.FSID
		a.problems(report)
		have, err := h.Look(ctx, spec)
		img.MakeNamespace = r.MakeNamespace && cephlink.IDOf(err) == cephlink.NoNamespace
		switch {
		case (img.MakeNamespace || cephlink.IDOf(err) == cephlink.NoImage) && r.Size == 0:
			a.refuse("image-size", "say --size 100G to have it made", "there is no image %s", spec)
			return nil
		case img.MakeNamespace || cephlink.IDOf(err) == cephlink.NoImage:
			img.Create, t.Make, t.Free = true, true, uint64(r.Size)
			a.kernelLacks(h, img.Features)
			return nil
		case err != nil:
			return err
		}
		if len(r.Features) > 0 {
			a.Notes = append(a.Notes, fmt.Sprintf("image %s is there: its features stay as they are", spec))
		}
		a.kernelLacks(h, have.Features)
		t.Free = uint64(have.Size)
		if r.Size > have.Size {
			a.refuse("image-size", fmt.Sprintf("rbd resize --size %dB %s, or leave --size out", r.Size, spec), "image %s is there, and smaller: %s", spec, Bytes(have.Size))
		}
		a.heldImage(img, have)
		there, err := h.Mapped(ctx, spec)
		for _, m := range there {
			if m.Shared {
				a.refuse("image-held", "rbd device unmap "+m.Device+"; the run maps it so that no other host can", "image %s is %s on this host already, without the exclusive lock", spec, m.Device)
			}
		}
		return err
	})
	return a.takeRefusal(cephRefusal(err))
}

// kernelLacks refuses an image for krbd with features that the kernel's client has not.
func (a *Assessment) kernelLacks(h *rbd.Host, features []string) {
	img := a.Inputs.Target.Image
	if lacks := h.KernelLacks(features); img.Mapper == rbd.Krbd && len(lacks) > 0 {
		a.refuse("ceph-no-mapper", "say --mapper fuse or nbd", "image %s cannot be mapped by krbd: this kernel's client lacks the feature %s", img.Spec, strings.Join(lacks, ", "))
	}
}

// problems takes over what a cluster's judgement says.
func (a *Assessment) problems(r ceph.Report) {
	for _, p := range r.Problems {
		if p.Fatal {
			a.refuse("ceph-"+p.ID, p.Hint, "%s", p.Text)
		} else {
			a.Notes = append(a.Notes, p.Text)
		}
	}
}

// takeRefusal takes over an error that is a refusal, and returns any other.
func (a *Assessment) takeRefusal(err error) error {
	var r *Refusal
	if errors.As(err, &r) {
		a.Refusals = append(a.Refusals, *r)
		return nil
	}
	return err
}
