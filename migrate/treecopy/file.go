package treecopy

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// item is an entry to copy, opened ahead of its turn if it is a file.
type item struct {
	name string
	kind uint8
	fd   int
	stat unix.Stat_t
	err  error
}

// make copies the items of a folder, in their order.
func (c *copier) make(w *worker, v *visit, todo []item, out *folder) error {
	if len(todo) == 0 {
		return nil
	}
	if err := c.open(w, v); err != nil {
		return err
	}
	v.touched = true
	opened := 0
	defer func() {
		for i := range opened {
			if todo[i].fd > 0 {
				unix.Close(todo[i].fd)
			}
		}
	}()
	for i := range todo {
		for ; opened < len(todo) && opened < i+ahead; opened++ {
			c.advance(v, &todo[opened])
		}
		if err := w.ctx.Err(); err != nil {
			return err
		}
		it := &todo[i]
		var e *entry
		err := it.err
		if err != nil {
			err = c.vanished(join(v.path, it.name), err)
		} else {
			e, err = c.named(w, v, it)
		}
		if it.fd > 0 {
			unix.Close(it.fd)
			it.fd = 0
		}
		if err != nil {
			return err
		}
		if e != nil {
			out.entries = append(out.entries, *e)
			c.report.copied.Add(1)
		} else if err := c.clear(w, v, it.name); err != nil {
			return err
		}
	}
	return nil
}

// advance opens a file and asks the disk for its beginning.
func (c *copier) advance(v *visit, it *item) {
	if it.kind != unix.DT_REG {
		it.stat, it.err = lstat(v.src, it.name)
		return
	}
	fd, err := openIn(v.src, it.name, openRead|unix.O_NOATIME, 0)
	if err != nil {
		it.err = err
		return
	}
	it.fd = fd
	if it.stat, it.err = fstat(fd); it.err == nil && it.stat.Mode&unix.S_IFMT != unix.S_IFREG {
		it.err = unix.ENOENT // replaced by something else
	}
	if it.err == nil && it.stat.Size > 0 {
		_ = unix.Fadvise(fd, 0, min(it.stat.Size, 2<<20), unix.FADV_WILLNEED)
	}
}

// named copies what is not a folder or, where it has several names and one was
// copied, links to that. (Whiteouts, too: overlayfs makes one and links it.)
func (c *copier) named(w *worker, v *visit, it *item) (*entry, error) {
	copyIt := c.special
	if it.kind == unix.DT_REG {
		copyIt = c.file
	}
	if it.stat.Nlink < 2 {
		return copyIt(w, v, it)
	}
	for wrong := int64(-1); ; {
		off, mine := c.ix.links.get(it.stat.Ino, wrong)
		if mine {
			break
		}
		e, later, err := c.link(w, v, it, off)
		if e == nil && err == nil && later {
			// The source lost power, and with it what that claim was about. Other names
			// may have claims of before.
			if off, err := c.ix.find(&it.stat); err != nil {
				return nil, err
			} else if off >= 0 {
				if e, _, err = c.link(w, v, it, off); err != nil {
					return nil, err
				}
			}
		}
		if e != nil || err != nil {
			return e, err
		}
		wrong = off
	}
	off := int64(-1)
	defer func() { c.ix.links.set(it.stat.Ino, off) }()
	e, err := copyIt(w, v, it)
	if err != nil || e == nil {
		return nil, err
	}
	first := folder{path: v.path, entries: []entry{*e}}
	off, err = c.ix.append(frameLink, first.append(nil))
	return e, err
}

// link gives the file its further name, if the index's frame at off says rightly
// where dst has it; else nil. Later: its claim is about a later state of the file.
func (c *copier) link(w *worker, v *visit, it *item, off int64) (_ *entry, later bool, _ error) {
	b, err := c.ix.read(off, 0)
	if err != nil {
		return nil, false, fmt.Errorf("cannot read the index: %w", err)
	}
	var e entry
	f, err := takeFolder(b, func(o *entry) {
		later = later || o.ino == it.stat.Ino && stampOf(it.stat.Ctim).before(o.ctime)
		if o.ino == it.stat.Ino && o.sameSource(&it.stat) && (o.pass == c.pass || o.flags&flagUnsettled == 0) {
			e = *o
		}
	})
	if err != nil || e.dstIno == 0 {
		return nil, later, err
	}
	fd, err := openIn(c.dst, join(f.path, e.name), unix.O_PATH, 0)
	if err != nil {
		return nil, false, nil // not there: it is copied again
	}
	defer unix.Close(fd)
	if s, err := fstat(fd); err != nil || s.Ino != e.dstIno || uint8(s.Mode&unix.S_IFMT>>12) != e.kind {
		return nil, false, err
	}
	c.count(&it.stat)
	if f.path != v.path || e.name != it.name {
		if err := c.clear(w, v, it.name); err != nil {
			return nil, false, err
		}
		if err := unix.Linkat(unix.AT_FDCWD, itself(fd), v.dst, it.name, unix.AT_SYMLINK_FOLLOW); err != nil {
			return nil, false, failed("link", join(v.path, it.name), err)
		}
		c.report.links.Add(1)
	}
	e.name, e.pass = it.name, c.pass
	return &e, false, nil
}

// clear removes what dst has under the name, if anything.
func (c *copier) clear(w *worker, v *visit, name string) error {
	if v.fresh {
		// Nothing, but what this pass made itself from a file that then vanished.
		if err := unix.Unlinkat(v.dst, name, 0); err != nil && err != unix.ENOENT {
			return failed("remove from the destination", join(v.path, name), err)
		}
		return nil
	}
	s, err := lstat(v.dst, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return failed("read in the destination", join(v.path, name), err)
	}
	kind := uint8(s.Mode & unix.S_IFMT >> 12)
	if kind == unix.DT_DIR {
		return c.remove(w, v, map[string]uint8{name: kind})
	}
	if err := unix.Unlinkat(v.dst, name, 0); err != nil && err != unix.ENOENT {
		return failed("remove from the destination", join(v.path, name), err)
	}
	return nil
}

// create makes the file in dst; what is there under its name is removed.
func (c *copier) create(w *worker, v *visit, name string, mode uint32) (int, error) {
	if _, there := v.have[name]; there || v.same {
		if err := c.clear(w, v, name); err != nil {
			return -1, err
		}
	}
	for again := false; ; again = true {
		fd, err := openIn(v.dst, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, mode&0o777)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EEXIST) || again {
			return -1, failed("create", join(v.path, name), err)
		}
		if err := c.clear(w, v, name); err != nil {
			return -1, err
		}
	}
}

// file copies content, owner, mode, attributes and times, in this order: a
// write and a chown take away file capabilities, a chown takes away setuid.
func (c *copier) file(w *worker, v *visit, it *item) (*entry, error) {
	path, s := join(v.path, it.name), &it.stat
	if err := c.ids.check(s, itself(it.fd), true); err != nil {
		return nil, failed("copy", path, err)
	}
	e := entryOf(it.name, s)
	e.pass = c.pass
	if c.changing(e.ctime) {
		e.flags |= flagUnsettled
		if err := c.unsettled(path); err != nil {
			return nil, err
		}
	}
	xs, err := xattrsOfFile(it.fd, w.xattrs)
	if err != nil {
		return nil, failed("read", path, err)
	}
	e.note(xs)
	fd, err := c.content(w, v, it, &e)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := c.dress(w, fd, s, xs, !v.inherits); err != nil {
		return nil, failed("write the attributes of", path, err)
	}
	if s.Nlink > 1 {
		d, err := fstat(fd)
		if err != nil {
			return nil, failed("read in the destination", path, err)
		}
		e.dstIno = d.Ino
	}
	now, err := fstat(it.fd)
	if err != nil {
		return nil, failed("read", path, err)
	}
	if !sameStat(&now, s) && e.flags&flagUnsettled == 0 {
		e.flags |= flagUnsettled
		if err := c.unsettled(path); err != nil {
			return nil, err
		}
	}
	c.count(s)
	return &e, nil
}

// content makes the file in dst and fills it.
func (c *copier) content(w *worker, v *visit, it *item, e *entry) (int, error) {
	path, s := join(v.path, it.name), &it.stat
	if s.Size > rangeSize {
		return c.copyLarge(w, v, it, e)
	}
	fd, err := c.create(w, v, it.name, s.Mode)
	if err != nil {
		return -1, err
	}
	if s.Size == 0 {
		return fd, nil // the hash of nothing is zero, as hashRange has it
	}
	into := fd
	if c.cloned(it.fd, fd) {
		into = -1
	}
	if e.hash, err = w.hashRange(c, it.fd, into, 0, s.Size, sparse(s)); err != nil {
		unix.Close(fd)
		return -1, failed("copy", path, err)
	}
	return fd, nil
}

// dress gives an open file or folder of dst its owner, mode, attributes and times.
// With bare it has no attributes yet.
func (c *copier) dress(w *worker, fd int, s *unix.Stat_t, xs []xattr, bare bool) error {
	d, err := fstat(fd)
	if err != nil {
		return err
	}
	if s.Mode&unix.S_IFMT == unix.S_IFREG && d.Size != s.Size { // it ends in a hole, or shrank meanwhile
		if err := unix.Ftruncate(fd, s.Size); err != nil {
			return err
		}
	}
	chown := d.Uid != s.Uid || d.Gid != s.Gid
	if chown {
		if err := unix.Fchown(fd, int(s.Uid), int(s.Gid)); err != nil {
			return err
		}
	}
	if mode := s.Mode & 0o7777; d.Mode&0o7777 != mode || chown && mode&0o6000 != 0 {
		if err := unix.Fchmod(fd, mode); err != nil {
			return err
		}
	}
	if len(xs) > 0 || !bare {
		if err := setXattrs(itself(fd), true, bare, xs, w.xattrs); err != nil {
			return err
		}
	}
	times := [2]unix.Timespec{s.Atim, s.Mtim}
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
