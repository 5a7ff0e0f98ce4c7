package convert

import (
	"path/filepath"
	"slices"

	"github.com/containers/storage"
	"golang.org/x/sys/unix"
)

// This file is about a stage on another filesystem than the source. Nothing is
// shared then: each file is a copy, and counts only when it was read back.

// apart reports whether the stage is on another filesystem than the source.
func (o *Options) apart() (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Stat(o.Source.GraphRoot, &a); err != nil {
		return false, &pathError{"stat", o.Source.GraphRoot, err}
	}
	if err := unix.Stat(o.Stage, &b); err != nil {
		return false, &pathError{"stat", o.Stage, err}
	}
	return a.Dev != b.Dev, nil
}

// fromDisk has the next read of a file come from the disk and not from memory,
// as far as the kernel can: what it has not yet written stays.
func fromDisk(dir int, name string) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return // the read itself tells
	}
	defer unix.Close(fd)
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
}

// unproven leaves out the layers whose diffs were proven, and the tops of known
// images that stand on such layers alone.
func unproven(snap *snapshot, o *Options, layers, tops []*layer, known []string) (_, _ []*layer) {
	proven := map[string]bool{}
	for _, l := range layers {
		r, ok := readReceipt(o, l.ID)
		proven[l.ID] = ok && r.Proven && r.Identity == l.identity()
	}
	seen := map[string]bool{}
	for _, i := range snap.images {
		for _, id := range append([]string{i.TopLayer}, i.MappedTopLayers...) {
			seen[id] = slices.Contains(known, i.ID)
			for l := snap.byID[id]; l != nil && seen[id]; l = snap.parent(l) {
				seen[id] = proven[l.ID]
			}
		}
	}
	layers = slices.DeleteFunc(slices.Clone(layers), func(l *layer) bool { return proven[l.ID] })
	return layers, slices.DeleteFunc(slices.Clone(tops), func(l *layer) bool { return seen[l.ID] })
}

// copied are the comparisons of the folders that go with images and containers.
func (c *comparer) copied(images []string, containersOnly bool) []func(*comparison) error {
	var jobs []func(*comparison) error
	add := func(kind, id string) {
		jobs = append(jobs, func(p *comparison) error {
			p.layer = &layer{Layer: storage.Layer{ID: id}} // what differences are told by
			return p.folder(c.o.Source.GraphRoot, kind, id)
		})
	}
	for _, i := range c.snap.images {
		if !containersOnly && (len(images) == 0 || slices.Contains(images, i.ID)) {
			add("images", i.ID)
		}
	}
	if c.o.Containers && len(images) == 0 {
		for _, i := range c.snap.containers {
			add("containers", i.ID)
		}
	}
	return jobs
}

// copiedLayer compares a layer's files, its list and its data with the copies of
// them, and notes that they are right.
func (c *comparison) copiedLayer(l *layer) error {
	look := c.diff
	if c.o.to() == vfs {
		look = c.whole
	}
	if err := look(l); err != nil {
		return err
	}
	if err := c.list(l); err != nil {
		return err
	}
	if err := c.folder(l.base, "layers", l.ID); err != nil {
		return err
	}
	if c.proof.More > 0 || len(c.proof.Unexplained()) > 0 {
		return nil
	}
	r, ok := readReceipt(c.o, l.ID)
	if !ok {
		return nil // it is made anew the next time
	}
	r.Proven = true
	return writeReceipt(c.o, l.ID, r)
}

// folder compares a folder of the store's records, if there is one, with its copy.
func (c *comparison) folder(base, kind, name string) error {
	from, to := filepath.Join(c.o.Source.folder(base, kind), name), c.o.stagedFile(kind, name)
	c.readAll = true
	switch {
	case !exists(from):
		return nil
	case !exists(to):
		c.differ(name, "missing", "there", "not there")
		return nil
	}
	return c.pair(from, to, filepath.Dir(to), c.entry)
}

// list compares a layer's list, if it has one, with its copy.
func (c *comparison) list(l *layer) error {
	name := filepath.Base(l.list())
	copied := c.o.stagedFile("layers", name)
	switch {
	case !exists(l.list()):
		return nil
	case !exists(copied):
		c.differ(name, "missing", "there", "not there")
		return nil
	}
	from, err := openDir(unix.AT_FDCWD, filepath.Dir(l.list()))
	if err != nil {
		return &pathError{"open", l.list(), err}
	}
	defer unix.Close(from)
	to, err := openDir(unix.AT_FDCWD, filepath.Dir(copied))
	if err != nil {
		return &pathError{"open", copied, err}
	}
	defer unix.Close(to)
	c.oneDev = false
	return c.sameBytes(name, name, from, to)
}
