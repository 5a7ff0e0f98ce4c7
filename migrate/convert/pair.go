package convert

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	graphdriver "github.com/containers/storage/drivers"
	"golang.org/x/sys/unix"
)

// tree mounts the layer and compares what is merged with what the source shows.
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
	v, err := c.o.view(c.ctx, l)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	return c.pair(v.dir, mnt, filepath.Join(c.driver.home, l.ID, "diff"), c.entry)
}

// whole compares a layer's staged tree with what the source shows.
func (c *comparison) whole(l *layer) (err error) {
	c.layer, c.readAll = l, true
	if !exists(l.dir()) {
		return nil // damage that was carried over
	}
	v, err := c.o.view(c.ctx, l)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	tree := filepath.Join(vfsDirs(c.o.vfsHome()), l.ID)
	return c.pair(v.dir, tree, tree, c.entry)
}

// diff looks through one layer's diff folder: beside it is the layer's vfs tree, or
// the diff of a mount program.
func (c *comparison) diff(l *layer) error {
	c.layer, c.readAll = l, true
	if !exists(l.dir()) {
		return nil
	}
	for _, from := range l.dirs() {
		diff := filepath.Join(c.driver.home, l.ID, "diff")
		if c.o.unfusing() {
			diff = filepath.Join(c.driver.home, l.ID, filepath.Base(from))
		}
		if err := c.pair(from, diff, diff, c.diffEntry); err != nil {
			return err
		}
	}
	return nil
}

// pair opens both roots, compares them and then what is below. probe is a
// folder of the staged store, which tells whether inode numbers can be
// compared: overlay shows those of the filesystem below.
func (c *comparison) pair(source, staged, probe string, entry func(string, string, int, int) error) error {
	a, err := openDir(unix.AT_FDCWD, source)
	if err != nil {
		return &pathError{"open", source, err}
	}
	defer unix.Close(a)
	b, err := openDir(unix.AT_FDCWD, staged)
	if err != nil {
		return &pathError{"open", staged, err}
	}
	defer unix.Close(b)
	var st, base unix.Stat_t
	if err := unix.Fstat(a, &st); err != nil {
		return &pathError{"stat", source, err}
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
	return both(path, name, a, b, func(subA, subB int) error { return c.children(path, subA, subB) })
}

// both opens a folder that both trees have, for a look through it.
func both(path, name string, a, b int, look func(subA, subB int) error) error {
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
	return look(subA, subB)
}

// children compares what is in a folder that both trees have.
func (c *comparison) children(path string, subA, subB int) error {
	left, err := readShown(subA)
	if err != nil {
		return &pathError{"list", path, err}
	}
	right, err := readShown(subB)
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

func (c *comparison) differ(path, field, source, staged string) {
	d := Difference{Layer: c.layer.ID, Path: path, Field: field, Source: source, Staged: staged}
	c.proof.difference(d)
}
