package convert

import (
	"errors"

	"golang.org/x/sys/unix"
)

// put puts the entry name of the open folder into the diff. It tells whether
// the name is new there. A folder is not put but answered with errIsDir.
func (f *filler) put(name string) (unix.Stat_t, bool, error) {
	if f.tick++; f.tick&127 == 0 {
		if err := f.ctx.Err(); err != nil {
			return unix.Stat_t{}, false, err
		}
	}
	f.seen.Add(1)
	l := f.top()
	var st unix.Stat_t
	if err := unix.Fstatat(l.src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return st, false, f.fail("stat", name, err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return st, false, errIsDir
	}
	if kind == unix.S_IFCHR && st.Rdev == 0 {
		f.damage = append(f.damage, Damage{Kind: Unrepresentable, Layer: f.layerID, Path: join(f.path, name), Detail: "device 0:0 means a deletion to overlay"})
	}
	isNew, err := f.putFile(l, name, &st)
	if err != nil {
		return st, false, err
	}
	if isNew {
		l.dirty = true
		if st.Nlink > 1 {
			g := f.groups[st.Ino]
			if g == nil {
				g = &group{nlink: uint64(st.Nlink)} //nolint:unconvert // uint32 on arm64
				f.groups[st.Ino] = g
			}
			g.names++
		}
	}
	return st, isNew, nil
}

func (f *filler) putFile(l *level, name string, st *unix.Stat_t) (bool, error) {
	if st.Nlink > 1 {
		if first, ok := f.copies[st.Ino]; ok {
			isNew, err := f.link(f.levels[0].dst, first, l, name)
			if !errors.Is(err, unix.EMLINK) {
				return isNew, err
			}
		}
	}
	if f.linkOK && !f.alone {
		isNew, err := f.link(l.src, name, l, name)
		switch {
		case err == nil:
			return isNew, nil
		case errors.Is(err, unix.EXDEV):
			f.linkOK, f.method = false, Reflink
		case errors.Is(err, unix.EMLINK), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.EOPNOTSUPP):
			// This file alone: it has as many names as it can have, or is
			// immutable, or the host protects hard links.
			if g := f.groups[st.Ino]; g != nil {
				f.split = append(f.split, st.Ino)
			}
		default:
			return false, err
		}
	}
	return f.copyFile(l, name, st)
}

// link makes one name in the diff. It is false when the name is there already.
func (f *filler) link(at int, from string, l *level, name string) (bool, error) {
	err := unix.Linkat(at, from, l.dst, name, 0)
	if errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	if err != nil {
		return false, f.fail("link", name, err)
	}
	f.counts.Linked++
	return true, nil
}

func (f *filler) copyFile(l *level, name string, st *unix.Stat_t) (bool, error) {
	c := copier{ctx: f.ctx, pace: f.pace, clone: f.method != Copy}
	if f.foreign {
		c.leave = f.leave
	}
	err := c.copy(l.src, l.dst, name, st)
	if errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	if err != nil {
		return false, f.fail("copy", name, err)
	}
	if f.method == Reflink && !c.clone {
		f.method = Copy
	}
	if c.cloned {
		f.counts.Reflinked++
	} else {
		f.counts.Copied++
		f.counts.Bytes += c.bytes
	}
	if st.Nlink > 1 {
		f.copies[st.Ino] = join(f.path, name)
	}
	return true, nil
}
