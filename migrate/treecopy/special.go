package treecopy

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// special copies symbolic links, device files and fifos.
func (c *copier) special(w *worker, v *visit, it *item) (*entry, error) {
	path, s := join(v.path, it.name), &it.stat
	if err := c.ids.check(s, place(v.src, it.name), false); err != nil {
		return nil, failed("copy", path, err)
	}
	if s.Mode&unix.S_IFMT == unix.S_IFDIR || s.Mode&unix.S_IFMT == unix.S_IFREG {
		return nil, c.unsettled(path) // replaced by something else meanwhile
	}
	e := entryOf(it.name, s)
	e.pass = c.pass
	if s.Mode&unix.S_IFMT == unix.S_IFSOCK {
		c.report.sockets.Add(1)
		return nil, nil
	}
	if c.changing(e.ctime) {
		e.flags |= flagUnsettled
		if err := c.unsettled(path); err != nil {
			return nil, err
		}
	}
	xs, err := xattrsOf(place(v.src, it.name), false, w.xattrs)
	if err != nil {
		return nil, c.vanished(path, err)
	}
	e.note(xs)
	if err := c.clear(w, v, it.name); err != nil {
		return nil, err
	}
	if e.kind == unix.DT_LNK {
		target, err := readlink(v.src, it.name, w.buf)
		if err != nil {
			return nil, c.vanished(path, err)
		}
		e.hash = sha256.Sum256([]byte(target))
		if err := unix.Symlinkat(target, v.dst, it.name); err != nil {
			return nil, failed("create", path, err)
		}
	} else if err := unix.Mknodat(v.dst, it.name, s.Mode, int(s.Rdev)); err != nil {
		if errors.Is(err, unix.EPERM) && e.kind != unix.DT_FIFO {
			err = fmt.Errorf("device %d:%d: %w", unix.Major(s.Rdev), unix.Minor(s.Rdev), err)
		}
		return nil, failed("create", path, err)
	}
	ino, dressed := c.dressSpecial(w, v, it.name, s, xs)
	e.dstIno = ino
	now, err := lstat(v.src, it.name)
	if dressed != nil {
		if err != nil || !sameStat(&now, s) {
			return nil, c.unsettled(path) // attributes of something else, which does not suit
		}
		return nil, failed("write the attributes of", path, dressed)
	}
	if (err != nil || !sameStat(&now, s)) && e.flags&flagUnsettled == 0 {
		e.flags |= flagUnsettled
		if err := c.unsettled(path); err != nil {
			return nil, err
		}
	}
	c.count(s)
	return &e, nil
}

// dressSpecial returns the inode, too.
func (c *copier) dressSpecial(w *worker, v *visit, name string, s *unix.Stat_t, xs []xattr) (uint64, error) {
	if err := unix.Fchownat(v.dst, name, int(s.Uid), int(s.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, err
	}
	fd, err := openIn(v.dst, name, unix.O_PATH, 0)
	if err != nil && !errors.Is(err, unix.ELOOP) {
		return 0, err
	}
	// RESOLVE_NO_SYMLINKS refuses even O_PATH of a symbolic link: it has no mode.
	var d unix.Stat_t
	if err == nil {
		defer unix.Close(fd)
		d, err = fstat(fd)
		if mode := s.Mode & 0o7777; err == nil && d.Mode&0o7777 != mode {
			err = unix.Chmod(itself(fd), mode)
		}
	} else {
		d, err = lstat(v.dst, name)
	}
	if err != nil {
		return 0, err
	}
	if len(xs) > 0 || v.inherits {
		if err := setXattrs(place(v.dst, name), false, !v.inherits, xs, w.xattrs); err != nil {
			return 0, err
		}
	}
	times := []unix.Timespec{s.Atim, s.Mtim}
	if err := unix.UtimesNanoAt(v.dst, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, err
	}
	if s.Nlink < 2 {
		return 0, nil
	}
	return d.Ino, nil
}

func readlink(dir int, name string, buf []byte) (string, error) {
	n, err := unix.Readlinkat(dir, name, buf)
	if errors.Is(err, unix.EINVAL) {
		err = unix.ENOENT // it is something else by now
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
