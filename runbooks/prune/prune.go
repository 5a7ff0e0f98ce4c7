package prune

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/verify"
)

// Store is a store that is looked at, and may be pruned. It asks podman and the worker as
// the store's owner.
type Store struct {
	CLI    podman.CLI
	Worker *podman.Worker
	Ref    verify.StoreRef
	// Seen tells when an image was seen in use before, as far as somebody remembers.
	Seen map[string]time.Time
}

// Open asks podman where its store is.
func Open(ctx context.Context, cli podman.CLI, w *podman.Worker) (*Store, error) {
	ref, err := where(ctx, cli)
	if err != nil {
		return nil, err
	}
	return &Store{CLI: cli, Worker: w, Ref: ref}, nil
}

func ask[R any](ctx context.Context, w *podman.Worker, op string, args any) (R, error) {
	ctx, cancel := context.WithTimeout(ctx, askDeadline)
	defer cancel()
	var r R
	err := w.Call(ctx, op, args, &r, nil)
	return r, err
}

// askDeadline bounds a request. The longest walk over what a container has written.
const askDeadline = 10 * time.Minute

// Look tells what the store holds and who needs it. It changes nothing. wanted are names
// from elsewhere that are kept.
func (s *Store) Look(ctx context.Context, r Rules, wanted []Wanted) (State, error) {
	var labels map[string]map[string]string
	var err error
	if len(r.Label)+len(r.LabelNot) > 0 && r.Images != "" {
		if labels, err = imageLabels(ctx, s.CLI); err != nil {
			return State{}, err
		}
	}
	ctrs, err := containers(ctx, s.CLI)
	if err != nil {
		return State{}, err
	}
	disk, err := ask[seen](ctx, s.Worker, opLook, lookArgs{Store: s.Ref, Cache: r.Cache})
	if err != nil {
		return State{}, err
	}
	if ctrs, err = s.again(ctx, ctrs, disk.Store); err != nil {
		return State{}, err
	}
	st := state(disk, s.Ref, ctrs, labels)
	st.Wanted = slices.Concat(st.Wanted, closedUnits(disk.Unread), wanted)
	for i := range st.Images {
		if at := s.Seen[st.Images[i].ID]; at.After(st.Images[i].Used) {
			st.Images[i].Used = at
		}
	}
	if r.Images != "" {
		if st.TakesParents, err = takesParents(ctx, s.CLI); err != nil {
			return State{}, err
		}
	}
	if err := s.weighContainers(ctx, &st, r); err != nil {
		return State{}, err
	}
	return st, s.addVolumes(ctx, &st, r)
}

// again lists podman's containers once more if the store has one that podman did not
// tell of: it may have been made only now.
func (s *Store) again(ctx context.Context, ctrs []Ctr, part verify.StorePart) ([]Ctr, error) {
	strange := slices.ContainsFunc(part.Containers, func(c verify.Container) bool {
		return !slices.ContainsFunc(ctrs, func(k Ctr) bool { return k.ID == c.ID })
	})
	if !strange {
		return ctrs, nil
	}
	now, err := containers(ctx, s.CLI)
	if err != nil {
		return nil, err
	}
	for _, c := range ctrs { // one that went meanwhile is no stranger
		if !slices.ContainsFunc(now, func(k Ctr) bool { return k.ID == c.ID }) {
			now = append(now, c)
		}
	}
	return now, nil
}

// written is where a layer has what was written in it.
func (s *Store) written(layer string) string {
	if s.Ref.Driver == "vfs" {
		return filepath.Join(s.Ref.GraphRoot, "vfs", "dir", layer)
	}
	return filepath.Join(s.Ref.GraphRoot, s.Ref.Driver, layer, "diff")
}

// weighContainers fills in what the layers take that containers have written.
func (s *Store) weighContainers(ctx context.Context, st *State, r Rules) error {
	var paths []string
	path := s.written
	var of []Ctr
	if r.Containers {
		of = append(of, slices.DeleteFunc(slices.Clone(st.Containers), func(c Ctr) bool { return !over(c.Status) })...)
	}
	if r.External {
		of = append(of, st.Externals...)
	}
	for _, c := range of {
		if c.Layer != "" {
			paths = append(paths, path(c.Layer))
		}
	}
	if len(paths) == 0 {
		return nil
	}
	all, err := ask[map[string]weight](ctx, s.Worker, opWeigh, paths)
	if err != nil {
		return err
	}
	weighed(st, path, all)
	return nil
}

// weighed fills in what is known of the layers that were weighed. An engine tells when its
// container ran last; one that no engine made is as young as what was written in it.
func weighed(st *State, path func(layer string) string, all map[string]weight) {
	for _, c := range slices.Concat(st.Containers, st.Externals) {
		w, known := all[path(c.Layer)]
		if l, ok := st.Layers[c.Layer]; ok && known {
			l.Bytes = w.Bytes
			st.Layers[c.Layer] = l
		}
	}
	for i, x := range st.Externals {
		if w := all[path(x.Layer)]; w.Changed.After(x.Used) {
			st.Externals[i].Used = w.Changed
		}
	}
}

func (s *Store) addVolumes(ctx context.Context, st *State, r Rules) error {
	if r.Volumes == "" {
		return nil
	}
	rows, err := volumes(ctx, s.CLI)
	if err != nil {
		return err
	}
	var paths []string
	for _, v := range rows {
		if v.Mountpoint != "" && len(v.Options) == 0 && (v.Driver == "local" || v.Driver == "") {
			paths = append(paths, v.Mountpoint)
		}
	}
	all, err := ask[map[string]weight](ctx, s.Worker, opWeigh, paths)
	if err != nil {
		return err
	}
	for _, v := range rows {
		st.Volumes = append(st.Volumes, v.vol(all[v.Mountpoint]))
	}
	return nil
}
