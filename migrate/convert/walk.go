package convert

import (
	"bytes"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// walker fills a diff by comparing the layer's tree with its parent's: for
// layers without a list, layers whose owners are shifted, containers' writable
// layers, and where a list does not explain its tree.
type walker struct {
	*filler
	parent int // the parent's tree, -1 without one
	// since is when a container's tree was made as a copy of its parent's. A
	// file whose inode did not change after that holds what the parent holds,
	// so its content need not be read. Zero: compare contents.
	since time.Time

	own, below map[string]uint64 // files with several names -> inode, in either tree
	placed     map[string]bool   // of those, the ones that were put
}

func fillFromTrees(f *filler, parent int, since time.Time) error {
	w := &walker{filler: f, parent: parent, since: since,
		own: map[string]uint64{}, below: map[string]uint64{}, placed: map[string]bool{}}
	f.counts.Walked++
	src, err := openDir(f.levels[0].src, ".")
	if err != nil {
		return f.fail("open", "", err)
	}
	defer unix.Close(src)
	if parent >= 0 {
		if parent, err = openDir(parent, "."); err != nil {
			return f.fail("open the parent's", "", err)
		}
		defer unix.Close(parent)
	}
	if err := w.walk("", src, parent); err != nil {
		return err
	}
	if err := w.matchGroups(); err != nil {
		return err
	}
	return f.regroup()
}

func (w *walker) walk(dir string, src, parent int) error {
	names, err := readDir(src)
	if err != nil {
		return &pathError{"list", dir, err}
	}
	if parent >= 0 {
		if err := w.hideMissing(dir, src, parent); err != nil {
			return err
		}
	}
	for _, e := range names {
		if err := w.compare(dir, e.name, src, parent); err != nil {
			return err
		}
	}
	return nil
}

// hideMissing makes whiteouts for what only the parent has.
func (w *walker) hideMissing(dir string, src, parent int) error {
	names, err := readDir(parent)
	if err != nil {
		return &pathError{"list the parent's", dir, err}
	}
	for _, e := range names {
		var st unix.Stat_t
		err := unix.Fstatat(src, e.name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			err = w.whiteoutAt(join(dir, e.name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) compare(dir, name string, src, parent int) error {
	if w.tick++; w.tick&127 == 0 {
		if err := w.ctx.Err(); err != nil {
			return err
		}
	}
	p := join(dir, name)
	var a, b unix.Stat_t
	if err := unix.Fstatat(src, name, &a, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &pathError{"stat", p, err}
	}
	had := false
	if parent >= 0 {
		err := unix.Fstatat(parent, name, &b, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return &pathError{"stat the parent's", p, err}
		}
		had = err == nil
	}
	isDir := a.Mode&unix.S_IFMT == unix.S_IFDIR
	if !isDir {
		if a.Nlink > 1 {
			w.own[p] = a.Ino
		}
		if had && b.Nlink > 1 && b.Mode&unix.S_IFMT != unix.S_IFDIR {
			w.below[p] = b.Ino
		}
	}
	same := false
	if had {
		var err error
		if same, err = w.same(src, parent, name, &a, &b); err != nil {
			return &pathError{"compare", p, err}
		}
	}
	if isDir {
		return w.compareDir(p, name, src, parent, had && b.Mode&unix.S_IFMT == unix.S_IFDIR, same)
	}
	if same {
		return nil
	}
	w.placed[p] = true
	return w.putPath(dir, name)
}

func (w *walker) putPath(dir, name string) error {
	if err := w.enter(dir); err != nil {
		return err
	}
	_, _, err := w.put(name)
	return err
}

func (w *walker) compareDir(p, name string, src, parent int, hadDir, same bool) error {
	if !same {
		if err := w.enter(p); err != nil {
			return err
		}
	}
	sub, err := openDir(src, name)
	if err != nil {
		return &pathError{"open", p, err}
	}
	defer unix.Close(sub)
	below := -1
	if hadDir {
		if below, err = openDir(parent, name); err != nil {
			return &pathError{"open the parent's", p, err}
		}
		defer unix.Close(below)
	}
	return w.walk(p, sub, below)
}

// same reports whether the parent's entry is just like the layer's.
func (w *walker) same(src, parent int, name string, a, b *unix.Stat_t) (bool, error) {
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Mtim != b.Mtim {
		return false, nil
	}
	kind := a.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && (a.Size != b.Size || a.Rdev != b.Rdev) {
		return false, nil
	}
	if kind == unix.S_IFLNK {
		x, err := readlinkat(src, name)
		if err != nil {
			return false, err
		}
		y, err := readlinkat(parent, name)
		if err != nil || x != y {
			return false, err
		}
	}
	if equal, err := sameAttrs(src, parent, name); err != nil || !equal {
		return false, err
	}
	if kind != unix.S_IFREG || a.Size == 0 || a.Dev == b.Dev && a.Ino == b.Ino {
		return true, nil
	}
	if changed := time.Unix(a.Ctim.Unix()); !w.since.IsZero() && changed.Before(w.since) {
		return true, nil
	}
	return sameContent(src, parent, name, name)
}

// sameAttrs compares the extended attributes of two entries.
func sameAttrs(dirA, dirB int, name string) (bool, error) {
	a, err := allAttrs(fdPath(dirA, name))
	if err != nil {
		return false, err
	}
	b, err := allAttrs(fdPath(dirB, name))
	if err != nil || len(a) != len(b) {
		return false, err
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || w != v {
			return false, nil
		}
	}
	return true, nil
}

// allAttrs reads the attributes of path itself, without those that overlay
// keeps for itself.
func allAttrs(path string) (map[string]string, error) {
	names, err := attrNames(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if err != nil || len(names) == 0 {
		return nil, err
	}
	out := make(map[string]string, len(names))
	for _, n := range names {
		v, err := readAttr(func(b []byte) (int, error) { return unix.Lgetxattr(path, n, b) })
		if err != nil {
			return nil, err
		}
		out[n] = string(v)
	}
	return out, nil
}

// sameContent compares two regular files byte by byte.
func sameContent(dirA, dirB int, nameA, nameB string) (bool, error) {
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	a, err := unix.Openat(dirA, nameA, flags, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(a)
	b, err := unix.Openat(dirB, nameB, flags, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(b)
	x, y := make([]byte, 128<<10), make([]byte, 128<<10)
	for off := int64(0); ; {
		n, err := readFull(a, x, off)
		if err != nil {
			return false, err
		}
		m, err := readFull(b, y, off)
		if err != nil || n != m || !bytes.Equal(x[:n], y[:n]) {
			return false, err
		}
		if n < len(x) {
			return true, nil
		}
		off += int64(n)
	}
}

// readFull reads until the buffer or the file ends.
func readFull(fd int, buf []byte, off int64) (int, error) {
	n := 0
	for n < len(buf) {
		m, err := unix.Pread(fd, buf[n:], off+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || m == 0 {
			return n, err
		}
		n += m
	}
	return n, nil
}

// matchGroups puts every name of a hard-link group that the merged tree would
// show otherwise than the layer's tree: one inode here and several below, or
// one below and several here.
func (w *walker) matchGroups() error {
	again := map[string]bool{}
	mark := func(one, other map[string]uint64) {
		names := map[uint64][]string{}
		for p, ino := range one {
			names[ino] = append(names[ino], p)
		}
		for _, group := range names {
			differ := false
			for _, p := range group {
				if len(group) > 1 && (other[p] == 0 || other[p] != other[group[0]] || w.placed[p] != w.placed[group[0]]) {
					differ = true
				}
			}
			for _, p := range group {
				if differ {
					again[p] = true
				}
			}
		}
	}
	mark(w.own, w.below)
	mark(w.below, w.own)
	for p := range again {
		dir, base := split(p)
		err := w.putPath(dir, base)
		if err != nil && !errors.Is(err, errIsDir) && !gone(err) {
			return err
		}
	}
	return nil
}
