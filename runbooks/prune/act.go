package prune

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/verify"
)

// Apply removes things one after the other, as [Choose] gave them for st, until they are
// over, enough is free, or ctx ends. Each is looked at again just before, and after: what
// came of it is written into it. tell is called before each. The error is of a look that
// failed or of ctx: what could not be removed is told by its verdict alone.
func (s *Store) Apply(ctx context.Context, st State, r Rules, things []Thing, tell func(n int, t Thing)) error {
	layers := maps.Clone(st.Layers) // that are there
	for n := range things {
		t := &things[n]
		if t.Verdict != Remove && t.Verdict != Spare {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		whole := context.WithoutCancel(ctx) // podman is not cut off in the middle of a removal
		if r.Floor > 0 {
			// What was removed may take the filesystem a moment.
			free, err := s.Free(whole, true)
			if err != nil {
				return err
			}
			if free >= r.Floor {
				t.Verdict, t.Why = Spare, "enough is free without it"
				continue
			}
		}
		t.Verdict, t.Why = Remove, ""
		tell(n, *t)
		if err := s.remove(whole, t, st.TakesParents); err != nil {
			return err
		}
		if err := s.count(whole, t, layers); err != nil {
			return err
		}
	}
	return nil
}

// count notes what went with a thing that was removed, and takes it from layers.
func (s *Store) count(ctx context.Context, t *Thing, layers map[string]Layer) error {
	if t.Verdict != Removed {
		return nil
	}
	if t.Kind == Volume || t.Kind == Cache {
		t.Freed = t.Bytes
		return nil
	}
	part, err := ask[verify.StorePart](ctx, s.Worker, opStore, s.Ref)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, l := range part.Layers {
		there[l.ID] = true
	}
	for id, l := range layers {
		if !there[id] {
			t.Freed += l.Bytes
			delete(layers, id)
		}
	}
	return nil
}

// Free is how many bytes of the store's filesystem are free; with sync after what was
// removed is counted.
func (s *Store) Free(ctx context.Context, sync bool) (uint64, error) {
	return ask[uint64](ctx, s.Worker, opFree, freeArgs{Path: s.Ref.GraphRoot, Sync: sync})
}

// remove removes one thing if it is still as it was chosen, and looks whether it is gone.
func (s *Store) remove(ctx context.Context, t *Thing, takesParents bool) error {
	why, err := s.changed(ctx, *t)
	if err != nil {
		return err
	}
	if why == whyGone && t.Kind == Image && takesParents {
		t.Verdict, t.Why = Removed, "with what was built on it"
		return nil
	}
	if why == whyGone {
		t.Verdict, t.Why = Left, "somebody else has removed it"
		return nil
	}
	if why != "" {
		t.Verdict, t.Why = Left, why
		return nil
	}
	said := s.order(ctx, *t, takesParents)
	why, err = s.changed(ctx, *t)
	if err != nil {
		return err
	}
	switch {
	case why == whyGone:
		t.Verdict = Removed
	case why != "":
		t.Verdict, t.Why = Left, why
	case said != nil:
		t.Verdict, t.Why = Failed, said.Error()
	default:
		t.Verdict, t.Why = Failed, "podman says that it is removed, and it is still there"
	}
	return nil
}

// order has the thing removed, without force.
func (s *Store) order(ctx context.Context, t Thing, takesParents bool) error {
	cli := s.CLI
	cli.Limit = removeLimit
	var orders [][]string
	switch t.Kind {
	case Cache:
		_, err := ask[bool](ctx, s.Worker, opRmTree, t.ID)
		return err
	case Container, External:
		orders = [][]string{{"rm", t.ID}} // without its volumes
	case Volume:
		orders = [][]string{{"volume", "rm", t.ID}}
	case Image:
		part, err := ask[verify.StorePart](ctx, s.Worker, opStore, s.Ref)
		if err != nil {
			return err
		}
		orders = imageOrders(part, t.ID, takesParents)
	default:
		return fmt.Errorf("cannot remove a %s", t.Kind)
	}
	for _, args := range orders {
		if _, err := cli.Run(ctx, nil, args...); err != nil {
			return err
		}
	}
	return nil
}

// imageOrders remove an image by its id: a name may be another's by the time that podman
// runs. By its id podman removes one that has several names only by force, so that all
// but one are taken from it before, which fails for a name that it has no more.
func imageOrders(part verify.StorePart, id string, takesParents bool) [][]string {
	var orders [][]string
	i := slices.IndexFunc(part.Images, func(i verify.Image) bool { return i.ID == id })
	if i >= 0 && len(part.Images[i].Names) > 1 {
		names := slices.Clone(part.Images[i].Names)
		// One with a digest stays to the last: not all releases take such a one away alone.
		slices.SortStableFunc(names, func(a, b string) int { return strings.Count(b, "@") - strings.Count(a, "@") })
		for _, name := range names[1:] {
			orders = append(orders, []string{"untag", id, name})
		}
	}
	rm := []string{"rmi"}
	if !takesParents {
		rm = append(rm, "--no-prune")
	}
	return append(orders, append(rm, id))
}

// removeLimit is how long podman may take to remove one thing.
const removeLimit = 30 * time.Minute

// whyGone says that a thing is no longer there.
const whyGone = "gone"

// changed says why a thing is not to be removed now although it was chosen: it is gone
// ([whyGone]), or somebody uses it. "" is that it is as it was.
func (s *Store) changed(ctx context.Context, t Thing) (string, error) {
	switch t.Kind {
	case Container:
		return s.containerChanged(ctx, t)
	case Volume:
		return s.volumeChanged(ctx, t)
	case External:
		return s.externalChanged(ctx, t)
	case Cache:
		all, err := ask[seen](ctx, s.Worker, opLook, lookArgs{Store: s.Ref, Cache: true})
		if err != nil {
			return "", err
		}
		i := slices.IndexFunc(all.Caches, func(d Dir) bool { return d.Path == t.ID })
		switch {
		case i < 0:
			return whyGone, nil
		case all.Building != "":
			return "an image is being built (" + all.Building + ")", nil
		case all.Caches[i].Used.After(t.Used):
			return "it was used meanwhile", nil
		}
		return "", nil
	}
	part, err := ask[verify.StorePart](ctx, s.Worker, opStore, s.Ref)
	if err != nil {
		return "", err
	}
	return imageChanged(part, t), nil
}

func (s *Store) externalChanged(ctx context.Context, t Thing) (string, error) {
	disk, err := ask[seen](ctx, s.Worker, opLook, lookArgs{Store: s.Ref})
	if err != nil {
		return "", err
	}
	var w weight
	if i := slices.IndexFunc(disk.Store.Containers, func(c verify.Container) bool { return c.ID == t.ID }); i >= 0 && disk.Store.Containers[i].Layer != "" {
		path := s.written(disk.Store.Containers[i].Layer)
		all, err := ask[map[string]weight](ctx, s.Worker, opWeigh, []string{path})
		if err != nil {
			return "", err
		}
		w = all[path]
	}
	known, err := containers(ctx, s.CLI)
	if err != nil {
		return "", err
	}
	return externalNow(disk, known, w, t), nil
}

// externalNow is changed for a container that podman did not make.
func externalNow(disk seen, known []Ctr, w weight, t Thing) string {
	i := slices.IndexFunc(disk.Store.Containers, func(c verify.Container) bool { return c.ID == t.ID })
	switch {
	case i < 0:
		return whyGone
	case slices.ContainsFunc(known, func(c Ctr) bool { return c.ID == t.ID }):
		return "podman knows it now"
	case disk.Store.Containers[i].Metadata != "":
		return engineMade
	case disk.Building != "":
		return "an image is being built (" + disk.Building + ")"
	case w.Changed.After(t.Used):
		return "it was used meanwhile"
	}
	return ""
}

// imageChanged is changed for an image, by the store's records.
func imageChanged(part verify.StorePart, t Thing) string {
	i := slices.IndexFunc(part.Images, func(i verify.Image) bool { return i.ID == t.ID })
	if i < 0 {
		return whyGone
	}
	img := part.Images[i]
	if c := slices.IndexFunc(part.Containers, func(c verify.Container) bool { return c.Image == t.ID }); c >= 0 {
		return "container " + podman.Container{ID: part.Containers[c].ID, Names: part.Containers[c].Names}.Name() + " uses it"
	}
	for _, n := range img.Names {
		if !slices.Contains(t.Names, n) {
			return "it has another name now: " + n
		}
	}
	for _, other := range part.Images {
		if other.ID != t.ID && len(img.Chain) > 0 && len(other.Chain) > 0 && other.Chain[0] != img.Chain[0] && slices.Contains(other.Chain, img.Chain[0]) {
			return "another image is built on it"
		}
	}
	return ""
}

func (s *Store) containerChanged(ctx context.Context, t Thing) (string, error) {
	list, err := s.CLI.Containers(ctx)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(list, func(c podman.Container) bool { return c.ID == t.ID }) {
		return whyGone, nil
	}
	all, err := s.one(ctx, t.ID)
	if err != nil || len(all) == 0 {
		return "", err
	}
	switch c := all[0]; {
	case !over(c.Status):
		return fmt.Sprintf("it is %q now", c.Status), nil
	case c.Used.After(t.Used):
		return "it was used meanwhile", nil
	}
	return "", nil
}

func (s *Store) one(ctx context.Context, id string) ([]Ctr, error) {
	is, err := list[inspected](ctx, s.CLI, "container", "inspect", id)
	if err != nil {
		return nil, err
	}
	var all []Ctr
	for _, i := range is {
		all = append(all, i.ctr())
	}
	return all, nil
}

func (s *Store) volumeChanged(ctx context.Context, t Thing) (string, error) {
	rows, err := volumes(ctx, s.CLI)
	if err != nil {
		return "", err
	}
	// It is weighed before it is looked who has it: a container that came and went in
	// between has left its traces, or is there.
	var w weight
	if i := slices.IndexFunc(rows, func(v volumeRow) bool { return v.Name == t.ID }); i >= 0 && rows[i].Mountpoint != "" {
		all, err := ask[map[string]weight](ctx, s.Worker, opWeigh, []string{rows[i].Mountpoint})
		if err != nil {
			return "", err
		}
		w = all[rows[i].Mountpoint]
	}
	ctrs, err := containers(ctx, s.CLI)
	if err != nil {
		return "", err
	}
	return volumeNow(rows, ctrs, w, t), nil
}

// volumeNow is changed for a volume, by what podman tells and by the weight of its data.
func volumeNow(rows []volumeRow, ctrs []Ctr, w weight, t Thing) string {
	i := slices.IndexFunc(rows, func(v volumeRow) bool { return v.Name == t.ID })
	if i < 0 {
		return whyGone
	}
	for _, c := range ctrs {
		if slices.Contains(c.VolumesOf, t.ID) {
			return "container " + c.Name + " has it now"
		}
	}
	for _, v := range rows {
		// Podman takes the beginning of a name for the name if no other begins so: were this
		// volume gone by then, it would remove that one.
		if v.Name != t.ID && strings.HasPrefix(v.Name, t.ID) {
			return "the name of volume " + v.Name + " begins as its own, which podman may take for it"
		}
	}
	// Another of the same name is younger, too.
	if !rows[i].vol(w).Used.Equal(t.Used) {
		return "it was used meanwhile"
	}
	return ""
}

// Failures are the things that could not be removed, as one error; nil if there is none.
func Failures(things []Thing) error {
	var errs []error
	for _, t := range things {
		if t.Verdict == Failed {
			errs = append(errs, fmt.Errorf("cannot remove %s %s: %s", t.Kind, t.Name, t.Why))
		}
	}
	return errors.Join(errs...)
}
