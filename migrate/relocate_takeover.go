package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/rbd"
)

// stepTakeOver is the name of the step that shuts out an image's dead holder.
const stepTakeOver = "take-over"

// heldRefusal tells who has an image, and what lifts that: a client that watches
// it is alive, and can give it back itself.
func heldRefusal(img rbd.Image) *Refusal {
	r := &Refusal{ID: "image-held", Text: fmt.Sprintf("image %s is in use: %s", img.Spec, strings.Join(img.Foreign(), "; ")),
		Hint: "unmap it there; if that host is dead, its watch ends within half a minute: look again then. An image that two hosts write to is lost"}
	switch {
	case img.Dead():
		r.Hint = "unmap it there, if that host is only cut off; if it is dead, or may lose what it has not written, say --take-over: it is shut out of the cluster, and its lock broken"
	case len(img.Watchers) == 0:
		r.Hint = "somebody locked it by hand: rbd lock list and rbd lock remove, if that is over"
	}
	return r
}

// heldImage judges who has an image that is to be the target.
func (a *Assessment) heldImage(t *TargetImage, have rbd.Image) {
	switch {
	case len(have.Foreign()) == 0 || have.Free():
	case have.Dead() && a.Inputs.Request.Relocate.TakeOver:
		t.Holders = slices.DeleteFunc(slices.Clone(have.Lockers), func(l rbd.Locker) bool { return l.Mine })
		a.Notes = append(a.Notes, fmt.Sprintf("what %s has not written to %s is lost, and what it writes from now on fails; what the image holds can be looked at only then", holders(t.Holders), t.Spec))
	default:
		a.Refusals = append(a.Refusals, *heldRefusal(have))
	}
}

func holders(ls []rbd.Locker) string {
	var words []string
	for _, l := range ls {
		words = append(words, fmt.Sprintf("%s at %s", l.Client, l.Addr))
	}
	return strings.Join(words, ", ")
}

// takenOver observes that no lock of the dead holders is left on the image.
func (s *Session) takenOver(ctx context.Context) (bool, error) {
	left, _, err := s.lookHolders(ctx)
	return len(left) == 0, err
}

// lookHolders gives those of the dead holders that still have their lock.
func (s *Session) lookHolders(ctx context.Context) (left []rbd.Locker, img rbd.Image, err error) {
	t := s.Inputs.Target.Image
	err = withCeph(ctx, s.env.Runner, t.Cluster, func(h *rbd.Host) error {
		img, err = h.Look(ctx, t.Spec)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) { // then nobody has it
		return nil, img, nil
	}
	for _, l := range img.Lockers {
		if slices.ContainsFunc(t.Holders, func(k rbd.Locker) bool { return k.Client == l.Client && k.Cookie == l.Cookie && k.Addr == l.Addr }) {
			left = append(left, l)
		}
	}
	return left, img, err
}

// takeOver shuts out the holders that the operator has seen, and nobody else.
func (s *Session) takeOver(ctx context.Context) error {
	left, img, err := s.lookHolders(ctx)
	if err != nil || len(left) == 0 {
		return cephRefusal(err)
	}
	if !img.Dead() { // one came back
		return heldRefusal(img)
	}
	img.Lockers = left
	err = withCeph(ctx, s.env.Runner, s.Inputs.Target.Image.Cluster, func(h *rbd.Host) error {
		return h.TakeOver(ctx, img, rbd.TakeOverOptions{})
	})
	s.point("before after-take-over")
	return cephRefusal(err)
}

// tellShutOut tells on the way back what cannot be taken back.
func (s *Session) tellShutOut(context.Context) error {
	return s.note("%s may not write to the cluster any more (ceph osd blocklist ls): that host has to map image %s anew", holders(s.Inputs.Target.Image.Holders), s.spec())
}

// claimImage has an image that was there name this run: one that made it, was cut off
// and comes to its rollback later must not remove what it holds by then.
func (s *Session) claimImage(ctx context.Context, img rbd.Image) error {
	if s.Inputs.Target.Image.Create || len(img.Watchers) > 0 { // the mapping will fail, or is ours
		return nil
	}
	out, err := s.rbdCommand(ctx, "image-meta", "get", s.spec().String(), imageKey)
	if who := strings.TrimSpace(string(out)); err != nil || who == "" || who == s.ID { // it names none
		return nil //nolint:nilerr // rbd fails where there is no such key
	}
	_, err = s.rbdCommand(ctx, "image-meta", "set", s.spec().String(), imageKey, s.ID)
	return err
}

// imageOfLater names a later run of this host that has moved a store onto the image, or
// is about to, when this one had been cut off; "": none. What a boot, this host and the
// cluster know of the image is that one's then.
func (s *Session) imageOfLater() (string, error) {
	runs, err := s.env.Dir.List()
	if err != nil {
		return "", err
	}
	for _, run := range runs[slices.Index(runs, s.ID)+1:] {
		h, err := engine.ReadHeader(s.env.Dir.RunPath(run))
		if err != nil || h.Job != JobRelocate {
			continue // what cannot be read at all is told of by history
		}
		in, err := DecodeInputs(engine.State{Header: h})
		if err != nil || in.Target == nil || in.Target.Image == nil || in.Target.Image.Spec != s.spec() || in.Target.Image.FSID != s.Inputs.Target.Image.FSID {
			continue
		}
		st, err := engine.Read(s.env.Dir.RunPath(run))
		if err != nil { // it may be one
			return run, nil //nolint:nilerr // history tells of it
		}
		if m := st.Steps[stepImage].Mark; m != engine.MarkNone && m != engine.MarkUndone {
			return run, nil
		}
	}
	return "", nil
}
