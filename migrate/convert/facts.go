package convert

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containers/storage/pkg/idtools"
	"golang.org/x/sys/unix"
)

// facts compares what one entry is on both sides.
func (c *comparison) facts(path, name string, a, b int, x, y *unix.Stat_t) error {
	c.proof.Entries++
	kind := x.Mode & unix.S_IFMT
	if kind != y.Mode&unix.S_IFMT {
		c.differ(path, "type", fmt.Sprintf("%#o", x.Mode), fmt.Sprintf("%#o", y.Mode))
		return nil
	}
	if kind != unix.S_IFDIR {
		if err := c.grouping(path, x, y); err != nil {
			return err
		}
		if c.oneDev && x.Ino == y.Ino {
			c.proof.SameInode++ // one file: nothing in it can differ
			return nil
		}
	}
	if x.Mode != y.Mode {
		c.differ(path, "mode", fmt.Sprintf("%#o", x.Mode), fmt.Sprintf("%#o", y.Mode))
	}
	if x.Uid != y.Uid || x.Gid != y.Gid {
		d := Difference{Layer: c.layer.ID, Path: path, Field: "owner", Source: fmt.Sprintf("%d:%d", x.Uid, x.Gid), Staged: fmt.Sprintf("%d:%d", y.Uid, y.Gid)}
		root := idtools.NewIDMappingsFromMaps(c.layer.UIDMap, c.layer.GIDMap).RootPair()
		if path == "" && int(y.Uid) == root.UID && int(y.Gid) == root.GID {
			d.Explained = "the overlay driver gives a layer's root to the layer's root user at every mount"
		}
		c.proof.difference(d)
	}
	if x.Mtim != y.Mtim {
		d := Difference{Layer: c.layer.ID, Path: path, Field: "mtime", Source: fmt.Sprintf("%d.%09d", x.Mtim.Sec, x.Mtim.Nsec), Staged: fmt.Sprintf("%d.%09d", y.Mtim.Sec, y.Mtim.Nsec)}
		for l := c.layer; kind == unix.S_IFDIR && l != nil && d.Explained == ""; l = c.snap.parent(l) {
			if slices.Contains(c.robbed[l.ID], path) {
				d.Explained = "something is missing from this folder since layer " + short(l.ID)
			}
		}
		c.proof.difference(d)
	}
	if x.Rdev != y.Rdev {
		c.differ(path, "device", fmt.Sprintf("%#x", x.Rdev), fmt.Sprintf("%#x", y.Rdev))
	}
	if err := c.attributes(path, name, a, b, y); err != nil {
		return err
	}
	switch kind {
	case unix.S_IFLNK:
		return c.target(path, name, a, b)
	case unix.S_IFREG:
		return c.content(path, name, a, b, x, y)
	}
	return nil
}

func (c *comparison) target(path, name string, a, b int) error {
	p, err := readlinkat(a, name)
	if err != nil {
		return &pathError{"read link", path, err}
	}
	q, err := readlinkat(b, name)
	if err != nil {
		return &pathError{"read staged link", path, err}
	}
	if p != q {
		c.differ(path, "target", p, q)
	}
	return nil
}

func (c *comparison) content(path, name string, a, b int, x, y *unix.Stat_t) error {
	if x.Size != y.Size {
		c.differ(path, "size", fmt.Sprint(x.Size), fmt.Sprint(y.Size))
		return nil
	}
	if !c.readAll {
		c.proof.Assumed++
		return nil
	}
	return c.sameBytes(path, name, a, b)
}

func (c *comparison) sameBytes(path, name string, a, b int) error {
	if !c.oneDev {
		fromDisk(b, name)
	}
	same, err := sameContent(a, b, name, name)
	if err != nil {
		return &pathError{"read", path, err}
	}
	c.proof.SameBytes++
	if !same {
		c.differ(path, "content", "one", "another")
	}
	return nil
}

func (c *comparison) attributes(path, name string, a, b int, y *unix.Stat_t) error {
	p, err := allAttrs(fdPath(a, name))
	if err != nil {
		return &pathError{"read attributes of", path, err}
	}
	q, err := allAttrs(fdPath(b, name))
	if err != nil {
		return &pathError{"read staged attributes of", path, err}
	}
	own := func(k, _ string) bool {
		return overlays(k) || c.o.unfusing() && programs(k) || k == "security.selinux"
	}
	maps.DeleteFunc(q, own)
	maps.DeleteFunc(p, own)
	if maps.Equal(p, q) {
		return nil
	}
	d := Difference{Layer: c.layer.ID, Path: path, Field: "attributes", Source: fmt.Sprintf("%q", p), Staged: fmt.Sprintf("%q", q)}
	for l := c.layer; c.o.Source.Driver == vfs && l != nil && d.Explained == ""; l = c.snap.parent(l) {
		r, err := attrsIn(l, path)
		if err == nil {
			maps.DeleteFunc(r, own)
			if maps.Equal(r, q) && l != c.layer {
				d.Explained = "layer " + short(l.ID) + " has them, vfs lost them in its copy"
			}
		}
	}
	c.proof.difference(d)
	return nil
}

// attrsIn reads the attributes of a path in a layer's own vfs tree.
func attrsIn(l *layer, path string) (map[string]string, error) {
	root, err := openDir(unix.AT_FDCWD, l.dir())
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	dir, base := split(path)
	if base == "" {
		base = "."
	}
	if dir == "" {
		return allAttrs(fdPath(root, base))
	}
	at, err := unix.Openat2(root, dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_DIRECTORY, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return nil, err
	}
	defer unix.Close(at)
	return allAttrs(fdPath(at, base))
}

// grouping sees that names which share an inode on one side do so on the other.
func (c *comparison) grouping(path string, x, y *unix.Stat_t) error {
	if x.Nlink < 2 && y.Nlink < 2 {
		return nil
	}
	v, seenOver := c.toVfs[y.Ino]
	o, seenVfs := c.toOver[x.Ino]
	if !seenOver && !seenVfs {
		c.toVfs[y.Ino], c.toOver[x.Ino] = x.Ino, y.Ino
		return nil
	}
	if seenOver && seenVfs && v == x.Ino && o == y.Ino {
		return nil
	}
	d := Difference{Layer: c.layer.ID, Path: path, Field: "hard link", Source: fmt.Sprint("inode ", x.Ino), Staged: fmt.Sprint("inode ", y.Ino)}
	if c.o.Source.Driver == vfs && seenOver && v != x.Ino && c.oneDev && x.Mode&unix.S_IFMT != unix.S_IFREG {
		d.Explained = "one file in its layer; vfs made several in its copy"
	}
	c.proof.difference(d)
	return nil
}

// diffEntry compares one entry of a diff with the layer's vfs tree. name is in
// the diff; the vfs tree must have it unless it is a whiteout.
func (c *comparison) diffEntry(path, name string, a, b int) error {
	var x, y unix.Stat_t
	if err := unix.Fstatat(b, name, &y, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &pathError{"stat staged", path, err}
	}
	err := unix.Fstatat(a, name, &x, unix.AT_SYMLINK_NOFOLLOW)
	if y.Mode&unix.S_IFMT == unix.S_IFCHR && y.Rdev == 0 {
		return c.whiteout(path, err)
	}
	if errors.Is(err, unix.ENOENT) {
		c.differ(path, "extra", "not there", "in the diff")
		return nil
	}
	if err := c.stats(path, name, a, b, &x, &y); err != nil {
		return err
	}
	if y.Mode&unix.S_IFMT != unix.S_IFDIR || x.Mode&unix.S_IFMT != unix.S_IFDIR {
		return c.facts(path, name, a, b, &x, &y)
	}
	c.proof.Entries++
	return both(path, name, a, b, func(subA, subB int) error {
		names, err := readDir(subB)
		if err != nil {
			return &pathError{"list staged", path, err}
		}
		for _, e := range names {
			if err := c.diffEntry(join(path, e.name), e.name, subA, subB); err != nil {
				return err
			}
		}
		return nil
	})
}

// whiteout sees that what a whiteout hides is hidden in vfs too, and was there
// to hide. missing is what looking for it in the vfs tree gave.
func (c *comparison) whiteout(path string, missing error) error {
	if missing != nil && !gone(missing) {
		return &pathError{"stat", path, missing}
	}
	c.proof.Entries++
	if c.o.unfusing() {
		return nil // what is seen through the mounts tells, and what is needed was looked at
	}
	if missing == nil {
		c.differ(path, "whiteout", "there", "hidden")
		return nil
	}
	parent := c.snap.parent(c.layer)
	if parent == nil {
		c.differ(path, "whiteout", "no parent", "hides nothing")
		return nil
	}
	root, err := openDir(unix.AT_FDCWD, parent.dir())
	if err != nil {
		return &pathError{"open", parent.dir(), err}
	}
	defer unix.Close(root)
	mode, err := statBeneath(root, path)
	if err == nil && mode == 0 {
		c.differ(path, "whiteout", "not in the parent", "hides nothing")
	}
	return err
}
