package convert

import (
	"errors"

	"golang.org/x/sys/unix"
)

// whiteoutAt hides the parent's path p in the diff. p must not be in the
// layer's tree.
func (f *filler) whiteoutAt(p string) error {
	dir, base := split(p)
	if err := f.enter(dir); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(f.top().src, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nil
		}
		_, _, err := f.put(base)
		return err
	}
	err := unix.Mknodat(f.top().dst, base, unix.S_IFCHR, 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return f.fail("hide", base, err)
	}
	f.top().dirty = true
	f.counts.Whiteouts++
	return nil
}

// setOpaque makes folder d of the diff hide what the parent has there.
func (f *filler) setOpaque(d string) error {
	if err := f.enter(d); err != nil {
		return err
	}
	if err := unix.Fsetxattr(f.top().dst, overlayAttr("opaque"), []byte("y"), 0); err != nil {
		return f.fail("make opaque", "", err)
	}
	f.counts.Opaque++
	return nil
}

// putTree puts folder d with everything below it.
func (f *filler) putTree(d string) error {
	if err := f.enter(d); err != nil {
		return err
	}
	names, err := readShown(f.top().src)
	if err != nil {
		return f.fail("list", "", err)
	}
	for _, e := range names {
		if err := f.enter(d); err != nil {
			return err
		}
		_, _, err := f.put(e.name)
		if errors.Is(err, errIsDir) {
			err = f.putTree(join(d, e.name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// regroup puts every further name of an inode of which the diff holds some
// names but not all: a hard link into a lower layer would otherwise show as
// two files. Names outside the tree (somebody's copy by links) are not ours.
func (f *filler) regroup() error {
	if err := f.rejoin(); err != nil {
		return err
	}
	short := map[uint64]bool{}
	for ino, g := range f.groups {
		if g.names < g.nlink {
			short[ino] = true
		}
	}
	if len(short) == 0 {
		return nil
	}
	if err := f.popTo(0); err != nil {
		return err
	}
	f.fresh = false
	var found [][2]string
	err := findInodes(f.levels[0].src, "", short, &found)
	if err != nil {
		return err
	}
	for _, p := range found {
		if err := f.enter(p[0]); err != nil {
			return err
		}
		_, isNew, err := f.put(p[1])
		if err != nil {
			return err
		}
		if isNew {
			f.counts.Regroup++
		}
	}
	return nil
}

// rejoin makes names that were linked before their inode could take no more
// into names of the copy that the others got.
func (f *filler) rejoin() error {
	if len(f.split) == 0 {
		return nil
	}
	split := map[uint64]bool{}
	for _, ino := range f.split {
		split[ino] = true
	}
	root, err := openDir(f.levels[0].dst, ".")
	if err != nil {
		return f.fail("open staged", "", err)
	}
	defer unix.Close(root)
	var found [][2]string
	if err := findInodes(root, "", split, &found); err != nil {
		return err
	}
	for _, p := range found {
		if err := f.enter(p[0]); err != nil {
			return err
		}
		l := f.top()
		var st unix.Stat_t
		if err := unix.Fstatat(l.dst, p[1], &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return f.fail("stat staged", p[1], err)
		}
		if err := unix.Unlinkat(l.dst, p[1], 0); err != nil {
			return f.fail("remove staged", p[1], err)
		}
		f.counts.Linked--
		if _, err := f.link(f.levels[0].dst, f.copies[st.Ino], l, p[1]); err != nil {
			return err
		}
		l.dirty = true
	}
	return nil
}

// findInodes collects folder and name of every entry with one of the inodes.
func findInodes(fd int, dir string, inodes map[uint64]bool, found *[][2]string) error {
	names, err := readDir(fd)
	if err != nil {
		return &pathError{"list", dir, err}
	}
	for _, e := range names {
		if e.kind != unix.DT_DIR && e.kind != unix.DT_UNKNOWN {
			if inodes[e.ino] {
				*found = append(*found, [2]string{dir, e.name})
			}
			continue
		}
		sub, err := openDir(fd, e.name)
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			if inodes[e.ino] {
				*found = append(*found, [2]string{dir, e.name})
			}
			continue
		}
		if err != nil {
			return &pathError{"open", join(dir, e.name), err}
		}
		err = findInodes(sub, join(dir, e.name), inodes, found)
		unix.Close(sub)
		if err != nil {
			return err
		}
	}
	return nil
}

// statBeneath tells the mode of a path below root without following any
// symlink, 0 when there is no such path. root -1 has nothing.
func statBeneath(root int, p string) (mode uint32, err error) {
	if root < 0 {
		return 0, nil
	}
	if p == "" {
		return unix.S_IFDIR, nil
	}
	fd, err := unix.Openat2(root, p, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return 0, nil
	}
	if err != nil {
		return 0, &pathError{"look up", p, err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, &pathError{"stat", p, err}
	}
	return st.Mode, nil
}

// listBeneath lists root itself through a descriptor of its own, as another
// layer may be reading the shared one.
func listBeneath(root int) ([]entry, error) {
	fd, err := openDir(root, ".")
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return readDir(fd)
}
