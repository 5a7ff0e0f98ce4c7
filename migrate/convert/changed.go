package convert

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// ChangedContainers lists the ids of the source's containers whose files or
// logs the staged store has otherwise: after the stores changed places and back,
// those that were used meanwhile. One that the staged store lacks is not listed.
func ChangedContainers(ctx context.Context, o Options) ([]string, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	snap, err := readSnapshot(ctx, o.Source)
	if err != nil {
		return nil, err
	}
	snap.images = nil
	snap.containers = slices.DeleteFunc(snap.containers, func(c *container) bool { return !o.wholeStaged(c.LayerID) })
	if len(snap.containers) == 0 {
		return nil, nil
	}
	p, err := compareSnapshot(ctx, &o, snap, nil, CompareOptions{anew: true})
	if err != nil {
		return nil, fmt.Errorf("cannot compare the containers: %w", err)
	}
	var ids []string
	for _, c := range snap.containers {
		differs := slices.ContainsFunc(p.Unexplained(), func(d Difference) bool { return d.Layer == c.LayerID })
		log, err := otherLog(&o, c.ID)
		if err != nil {
			return nil, err
		}
		if differs || log {
			ids = append(ids, c.ID)
		}
	}
	return ids, nil
}

// otherLog tells whether a container's log has another length in the staged
// store: podman only ever appends to it, or begins it anew.
func otherLog(o *Options, id string) (bool, error) {
	var sizes [2]int64
	for i, dir := range []string{filepath.Join(o.Source.GraphRoot, o.Source.Driver+"-containers"), o.stagedFile("containers", "")} {
		fi, err := os.Lstat(filepath.Join(dir, id, "userdata", "ctr.log"))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("cannot look at a container's log: %w", err)
		}
		sizes[i] = fi.Size()
	}
	return sizes[0] != sizes[1], nil
}
