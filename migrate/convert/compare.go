package convert

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	graphdriver "github.com/containers/storage/drivers"
	"golang.org/x/sys/unix"
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
}

// Difference is one entry that the two stores show differently.
type Difference struct {
	Layer   string `json:"layer"` // the diff, or the top layer of the merged tree
	Path    string `json:"path"`
	Field   string `json:"field"` // "missing", "extra", "type", "mode", "owner", "size", "mtime", "attributes", "target", "device", "content", "hard link", "whiteout"
	Vfs     string `json:"vfs,omitempty"`
	Overlay string `json:"overlay,omitempty"`
	// Explained is not empty when the overlay side shows what the layer holds
	// and vfs itself lost it: its copies of a parent's tree keep user.*
	// attributes and capabilities only, and join only regular files. And for
	// the time of a folder from which damage took something: each vfs copy has
	// its own, and overlay can show one of them.
	Explained string `json:"explained,omitempty"`
}

func (d Difference) String() string {
	s := fmt.Sprintf("%s of %q in layer %s: vfs %s, overlay %s", d.Field, d.Path, short(d.Layer), d.Vfs, d.Overlay)
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
	if err := os.MkdirAll(o.tmp(), 0o700); err != nil {
		return p, err
	}
	unlock, err := lockStage(ctx, o)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	driver, err := openDriver(o)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, driver.Close(), os.RemoveAll(o.tmp())) }()
	cmp := &comparer{ctx: ctx, o: o, snap: snap, driver: driver, bytes: c.Bytes, robbed: robbedFolders(o, layers)}
	var jobs []func(*comparison) error
	for _, l := range layers {
		jobs = append(jobs, func(c *comparison) error { c.proof.Layers++; return c.diff(l) })
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
	driver *stagedDriver
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

// tree mounts the layer and compares what is merged with the vfs tree.
func (c *comparison) tree(l *layer) (err error) {
	c.layer, c.readAll = l, c.bytes
	if !exists(l.dir()) {
		return nil // damage that was carried over; there is nothing to compare with
	}
	c.mu.Lock()
	// The layer's own maps: they say who owns its root, which the driver sets
	// anew at every mount. The owners in the tree are shifted already.
	mnt, err := c.driver.Get(l.ID, graphdriver.MountOpts{Options: []string{"ro"}, UidMaps: l.UIDMap, GidMaps: l.GIDMap, DisableShifting: true})
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("mounting layer %s: %w", short(l.ID), err)
	}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		err = errors.Join(err, c.driver.Put(l.ID))
	}()
	return c.pair(l.dir(), mnt, filepath.Join(c.driver.home, l.ID, "diff"), c.entry)
}

// diff looks through one layer's diff folder.
func (c *comparison) diff(l *layer) error {
	c.layer, c.readAll = l, true
	if !exists(l.dir()) {
		return nil
	}
	diff := filepath.Join(c.driver.home, l.ID, "diff")
	return c.pair(l.dir(), diff, diff, c.diffEntry)
}

// pair opens both roots, compares them and then what is below. probe is a
// folder of the staged store, which tells whether inode numbers can be
// compared: overlay shows those of the filesystem below.
func (c *comparison) pair(vfs, over, probe string, entry func(string, string, int, int) error) error {
	a, err := openDir(unix.AT_FDCWD, vfs)
	if err != nil {
		return &pathError{"open", vfs, err}
	}
	defer unix.Close(a)
	b, err := openDir(unix.AT_FDCWD, over)
	if err != nil {
		return &pathError{"open", over, err}
	}
	defer unix.Close(b)
	var st, base unix.Stat_t
	if err := unix.Fstat(a, &st); err != nil {
		return &pathError{"stat", vfs, err}
	}
	if err := unix.Lstat(probe, &base); err != nil {
		return &pathError{"stat", probe, err}
	}
	c.oneDev = st.Dev == base.Dev
	return entry("", ".", a, b)
}

// entry compares one entry that both trees have, and what is below it.
func (c *comparison) entry(path, name string, a, b int) error {
	var x, y unix.Stat_t
	if err := c.stats(path, name, a, b, &x, &y); err != nil {
		return err
	}
	if err := c.facts(path, name, a, b, &x, &y); err != nil {
		return err
	}
	if x.Mode&unix.S_IFMT != unix.S_IFDIR || y.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	return c.children(path, name, a, b)
}

func (c *comparison) children(path, name string, a, b int) error {
	subA, err := openDir(a, name)
	if err != nil {
		return &pathError{"open", path, err}
	}
	defer unix.Close(subA)
	subB, err := openDir(b, name)
	if err != nil {
		return &pathError{"open staged", path, err}
	}
	defer unix.Close(subB)
	left, err := readDir(subA)
	if err != nil {
		return &pathError{"list", path, err}
	}
	right, err := readDir(subB)
	if err != nil {
		return &pathError{"list staged", path, err}
	}
	byName := func(p, q entry) int { return strings.Compare(p.name, q.name) }
	slices.SortFunc(left, byName)
	slices.SortFunc(right, byName)
	for i, j := 0, 0; i < len(left) || j < len(right); {
		switch {
		case j == len(right) || i < len(left) && left[i].name < right[j].name:
			c.differ(join(path, left[i].name), "missing", "there", "not there")
			i++
		case i == len(left) || right[j].name < left[i].name:
			c.differ(join(path, right[j].name), "extra", "not there", "there")
			j++
		default:
			if err := c.entry(join(path, left[i].name), left[i].name, subA, subB); err != nil {
				return err
			}
			i, j = i+1, j+1
		}
	}
	return nil
}

func (c *comparison) stats(path, name string, a, b int, x, y *unix.Stat_t) error {
	if c.tick++; c.tick&127 == 0 {
		if err := c.ctx.Err(); err != nil {
			return err
		}
	}
	if err := unix.Fstatat(a, name, x, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &pathError{"stat", path, err}
	}
	if err := unix.Fstatat(b, name, y, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &pathError{"stat staged", path, err}
	}
	return nil
}

func (c *comparison) differ(path, field, vfs, overlay string) {
	d := Difference{Layer: c.layer.ID, Path: path, Field: field, Vfs: vfs, Overlay: overlay}
	c.proof.difference(d)
}
