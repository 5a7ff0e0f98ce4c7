package convert

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
)

// CompareOptions says how far Compare goes.
type CompareOptions struct {
	// Bytes also reads each file of a merged tree that is another inode than
	// in the vfs tree. Without it such a file counts as assumed when size and
	// modification time are equal: it comes from a lower layer, where it is
	// proven to be that layer's file, and vfs made the upper tree's by copying
	// it from there.
	Bytes bool
	// ContainersOnly compares the containers' trees and no image's.
	ContainersOnly bool
	// Known are images that were compared before. Where the stage is on another
	// filesystem, their trees are not compared again, as long as no layer of
	// theirs was made anew since.
	Known []string
	// anew compares the containers' trees of a staged vfs store whatever was proven of
	// them: they have been used since.
	anew bool
}

// Difference is one entry that the two stores show differently.
type Difference struct {
	Layer  string `json:"layer"` // the diff, or the top layer of the merged tree
	Path   string `json:"path"`
	Field  string `json:"field"` // "missing", "extra", "type", "mode", "owner", "size", "mtime", "attributes", "target", "device", "content", "hard link", "whiteout"
	Source string `json:"source,omitempty"`
	Staged string `json:"staged,omitempty"`
	// Explained is not empty when the overlay side shows what the layer holds
	// and vfs itself lost it: its copies of a parent's tree keep user.*
	// attributes and capabilities only, and join only regular files. And for
	// the time of a folder from which damage took something: each vfs copy has
	// its own, and overlay can show one of them.
	Explained string `json:"explained,omitempty"`
}

func (d Difference) String() string {
	s := fmt.Sprintf("%s of %q in layer %s: the store has %s, the staged one %s", d.Field, d.Path, short(d.Layer), d.Source, d.Staged)
	if d.Explained != "" {
		s += " (" + d.Explained + ")"
	}
	return s
}

// Proof is what Compare found.
type Proof struct {
	Layers      int          `json:"layers"`  // diffs looked through, each once
	Trees       int          `json:"trees"`   // merged trees compared, one for each different top layer
	Entries     int64        `json:"entries"` // compared, in diffs and trees
	SameInode   int64        `json:"same_inode"`
	SameBytes   int64        `json:"same_bytes"` // files read on both sides
	Assumed     int64        `json:"assumed"`    // see CompareOptions.Bytes
	Differences []Difference `json:"differences,omitempty"`
	More        int64        `json:"more,omitempty"` // differences beyond the first 1000 that are explained and the first 1000 that are not
	explained   int          // of Differences
}

// Unexplained lists the differences that vfs's own losses do not explain.
func (p *Proof) Unexplained() []Difference {
	return slices.DeleteFunc(slices.Clone(p.Differences), func(d Difference) bool { return d.Explained != "" })
}

const maxDifferences = 1000

// Compare proves that the staged store shows what the source shows. For the
// images named (all when none is) it looks once through the diff of each layer
// they stand on, that each file is the vfs file itself or has its bytes, and
// mounts each different top layer with the overlay driver, read-only, to
// compare the merged tree entry by entry with the vfs tree: names, type, mode,
// owner, size, mtime, attributes, link target, device, hard-link groups.
//
// With Options.Containers the containers' trees are compared too. Nothing
// stays mounted. The time is that of one walk over each different tree.
//
// Of a staged vfs store the tree of each layer is compared, and each file read. An
// overlay source is seen by mounts of its own kind, by the kernel or its program.
//
// Where the stage is on another filesystem than the source, the files of the
// diffs are read back from the disk, and so are those that go with layers, images
// and containers. It is noted in the stage that a layer's diff was found right;
// such a diff is not read again.
func Compare(ctx context.Context, o Options, images []string, c CompareOptions) (Proof, error) {
	var p Proof
	if err := o.check(); err != nil {
		return p, err
	}
	p, err := compareAll(ctx, &o, images, c)
	if err != nil {
		err = fmt.Errorf("cannot compare the stores: %w", err)
	}
	return p, err
}

func compareAll(ctx context.Context, o *Options, images []string, c CompareOptions) (p Proof, err error) {
	snap, err := readSnapshot(ctx, o.Source)
	if err != nil {
		return p, err
	}
	if c.ContainersOnly {
		snap.images, images = nil, nil
	}
	return compareSnapshot(ctx, o, snap, images, c)
}

func compareSnapshot(ctx context.Context, o *Options, snap *snapshot, images []string, c CompareOptions) (p Proof, err error) {
	layers, tops, err := compareSet(snap, o, images)
	if err != nil {
		return p, err
	}
	apart, err := o.apart()
	if err != nil {
		return p, err
	}
	if err := os.MkdirAll(o.tmp(), 0o700); err != nil {
		return p, err
	}
	unlock, err := lockStage(ctx, o)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	cmp := &comparer{ctx: ctx, o: o, snap: snap, bytes: c.Bytes, robbed: robbedFolders(o, layers)}
	if o.to() == overlay {
		if cmp.driver, err = openDriver(o); err != nil {
			return p, err
		}
		defer func() { err = errors.Join(err, cmp.driver.Close()) }()
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.tmp())) }()
	var jobs []func(*comparison) error
	if apart {
		jobs = cmp.copied(images, c.ContainersOnly)
	}
	whole := o.to() == vfs
	if c.anew && whole {
		layers = slices.DeleteFunc(layers, func(l *layer) bool { return !l.container })
	} else if apart || whole {
		layers, tops = unproven(snap, o, layers, tops, c.Known)
	}
	if whole { // each layer is a top
		tops = nil
	}
	for _, l := range layers {
		look := (*comparison).diff
		if c.anew && whole {
			look = (*comparison).whole
		} else if apart || whole {
			look = (*comparison).copiedLayer
		}
		jobs = append(jobs, func(c *comparison) error { c.proof.Layers++; return look(c, l) })
	}
	for _, l := range tops {
		jobs = append(jobs, func(c *comparison) error { c.proof.Trees++; return c.tree(l) })
	}
	return cmp.run(jobs)
}

// compareSet lists the layers under the images, and their different tops.
func compareSet(snap *snapshot, o *Options, images []string) (layers, tops []*layer, err error) {
	named := map[string]bool{}
	for _, id := range images {
		named[id] = false
	}
	top := map[string]bool{}
	for _, i := range snap.images {
		if _, ok := named[i.ID]; !ok && len(images) > 0 {
			continue
		}
		named[i.ID] = true
		for _, id := range append([]string{i.TopLayer}, i.MappedTopLayers...) {
			if snap.byID[id] != nil {
				top[id] = true
			}
		}
	}
	for id, found := range named {
		if !found {
			return nil, nil, fmt.Errorf("no image %s in the source", short(id))
		}
	}
	if o.Containers && len(images) == 0 {
		for _, c := range snap.containers {
			if snap.byID[c.LayerID] != nil {
				top[c.LayerID] = true
			}
		}
	}
	seen := map[string]bool{}
	for id := range maps.Keys(top) {
		for l := snap.byID[id]; l != nil && !seen[l.ID]; l = snap.parent(l) {
			seen[l.ID] = true
		}
	}
	for _, l := range snap.layers {
		if seen[l.ID] {
			layers = append(layers, l)
		}
		if top[l.ID] {
			tops = append(tops, l)
		}
	}
	return layers, tops, nil
}

type comparer struct {
	ctx    context.Context
	o      *Options
	snap   *snapshot
	driver *stagedDriver // of a staged overlay store
	bytes  bool
	robbed map[string][]string // by layer: folders from which damage took something
	mu     sync.Mutex          // the driver's mounts
}

// robbedFolders reads which damage the layers were staged with.
func robbedFolders(o *Options, layers []*layer) map[string][]string {
	robbed := map[string][]string{}
	for _, l := range layers {
		rc, _ := readReceipt(o, l.ID)
		for _, d := range rc.Damage {
			if d.Kind == MissingFile {
				dir, _ := split(d.Path)
				robbed[l.ID] = append(robbed[l.ID], dir)
			}
		}
	}
	return robbed
}

// comparison is one layer's or tree's share of the proof.
type comparison struct {
	*comparer
	proof   Proof
	layer   *layer
	readAll bool              // read files that are not one inode
	oneDev  bool              // inode numbers can be compared
	toVfs   map[uint64]uint64 // inodes with several names, overlay -> vfs
	toOver  map[uint64]uint64
	tick    int
}

func (c *comparer) run(jobs []func(*comparison) error) (Proof, error) {
	var total Proof
	var first error
	var mu sync.Mutex
	var wg sync.WaitGroup
	queue := make(chan func(*comparison) error, len(jobs))
	for _, j := range jobs {
		queue <- j
	}
	close(queue)
	done := 0
	for range max(c.o.Workers, 2) {
		wg.Go(func() {
			for j := range queue {
				part := &comparison{comparer: c, toVfs: map[uint64]uint64{}, toOver: map[uint64]uint64{}}
				err := c.ctx.Err()
				if err == nil {
					err = j(part)
				}
				mu.Lock()
				total.add(&part.proof)
				if err != nil && first == nil {
					first = err
				}
				done++
				if c.o.Progress != nil {
					c.o.Progress(Progress{Phase: "compare", Entries: total.Entries, ImagesDone: done, ImagesTotal: len(jobs)})
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.SortFunc(total.Differences, func(a, b Difference) int {
		return slices.Compare([]string{a.Layer, a.Path, a.Field}, []string{b.Layer, b.Path, b.Field})
	})
	return total, first
}

func (p *Proof) add(q *Proof) {
	p.Layers += q.Layers
	p.Trees += q.Trees
	p.Entries += q.Entries
	p.SameInode += q.SameInode
	p.SameBytes += q.SameBytes
	p.Assumed += q.Assumed
	p.More += q.More
	for _, d := range q.Differences {
		p.difference(d)
	}
}

// difference keeps d. Those that are explained never crowd out one that is not.
func (p *Proof) difference(d Difference) {
	kept := &p.explained
	unexplained := len(p.Differences) - p.explained
	if d.Explained == "" {
		kept = &unexplained
	}
	if *kept == maxDifferences {
		p.More++
		return
	}
	*kept++
	p.Differences = append(p.Differences, d)
}
