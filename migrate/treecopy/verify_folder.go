package treecopy

import (
	"crypto/sha256"

	"golang.org/x/sys/unix"
)

// folder compares one folder of dst, or a shard of it, with the claim about it.
func (v *verifier) folder(w *worker, f *folder) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	own := !v.o.LastOnly || f.self.pass == v.ix.pass
	if !own {
		if todo := v.due(f.entries); len(todo) == 0 {
			return nil
		}
	}
	fd, err := openIn(v.dst, f.path, openFolder|unix.O_NOATIME, 0)
	if gone(err) {
		v.differs(f.path, f.path, "missing")
		return nil
	}
	if err != nil {
		return failed("open in the destination", f.path, err)
	}
	defer unix.Close(fd)
	if own {
		if f.shard == 0 {
			if err := v.own(w, f, fd); err != nil {
				return err
			}
		}
		if err := v.names(w, f, fd); err != nil {
			return err
		}
	}
	return v.entries(w, f, fd)
}

// due are the entries that are to be read.
func (v *verifier) due(all []entry) []*entry {
	var due []*entry
	for i := range all {
		if e := &all[i]; e.kind != unix.DT_DIR && (!v.o.LastOnly || e.pass == v.ix.pass) {
			due = append(due, e)
		}
	}
	return due
}

func (v *verifier) own(w *worker, f *folder, fd int) error {
	v.mu.Lock()
	v.report.Folders++
	v.mu.Unlock()
	s, err := fstat(fd)
	if err != nil {
		return failed("read in the destination", f.path, err)
	}
	if what := f.self.looks(&s); what != "" {
		v.differs(f.path, f.path, what)
	}
	xs, err := xattrsOf(itself(fd), true, w.xattrs)
	if err != nil {
		return failed("read in the destination", f.path, err)
	}
	if !f.self.hasXattrs(xs) {
		v.differs(f.path, f.path, "extended attributes")
	}
	return nil
}

// names compares which names there are.
func (v *verifier) names(w *worker, f *folder, fd int) error {
	claimed := make(map[string]uint8, len(f.entries))
	for i := range f.entries {
		claimed[f.entries[i].name] = f.entries[i].kind
	}
	err := list(fd, w.dents, func(name []byte, _ uint64, kind uint8) {
		n := string(name)
		if f.shards > 1 && shardOf(n, f.shards) != f.shard || v.o.Skip(join(f.path, n)) {
			return
		}
		was, ok := claimed[n]
		if !ok {
			v.differs(f.path, join(f.path, n), "unexpected")
		} else if kind != was && kind != unix.DT_UNKNOWN {
			v.differs(f.path, join(f.path, n), "kind")
		}
		delete(claimed, n)
	})
	if err != nil {
		return failed("list in the destination", f.path, err)
	}
	for n, kind := range claimed {
		if kind == unix.DT_DIR { // of others it shows when they are opened
			v.differs(f.path, join(f.path, n), "missing")
		}
	}
	return nil
}

// looks says what of owner, mode, times and size is not as claimed.
func (e *entry) looks(s *unix.Stat_t) string {
	switch {
	case e.kind != uint8(s.Mode&unix.S_IFMT>>12):
		return "kind"
	case e.uid != s.Uid || e.gid != s.Gid:
		return "owner"
	case e.mode != s.Mode&^unix.S_IFMT:
		return "mode"
	case e.mtime != stampOf(s.Mtim):
		return "time of modification"
	case e.kind == unix.DT_REG && e.size != s.Size:
		return "size"
	case (e.kind == unix.DT_CHR || e.kind == unix.DT_BLK) && e.rdev != s.Rdev:
		return "device number"
	case e.dstIno != 0 && e.dstIno != s.Ino:
		return "hard link"
	}
	return ""
}

// hasXattrs compares attributes; a label that the source did not have is the
// system's.
func (e *entry) hasXattrs(xs []xattr) bool {
	without := ""
	if e.flags&flagSELinux == 0 {
		without = selinux
	}
	return hashXattrs(xs, without) == e.xattrs
}

// entries compares what is not a folder.
func (v *verifier) entries(w *worker, f *folder, fd int) error {
	due := v.due(f.entries)
	items := make([]item, len(due))
	opened := 0
	defer func() {
		for i := range items {
			if items[i].fd > 0 {
				unix.Close(items[i].fd)
			}
		}
	}()
	for i, e := range due {
		for ; opened < len(due) && opened < i+ahead; opened++ {
			v.advance(fd, due[opened], &items[opened])
		}
		if err := w.ctx.Err(); err != nil {
			return err
		}
		it := &items[i]
		path := join(f.path, e.name)
		switch {
		case gone(it.err):
			v.differs(f.path, path, "missing")
		case it.err != nil:
			return failed("read in the destination", path, it.err)
		default:
			if err := v.one(w, f, fd, e, it); err != nil {
				return err
			}
		}
		v.meter.files.Add(1)
		v.meter.bytes.Add(e.size / max(int64(e.nlink), 1))
		if it.fd > 0 {
			unix.Close(it.fd)
			it.fd = 0
		}
	}
	return nil
}

// advance opens a file, drops it from memory and asks the disk for its beginning.
func (v *verifier) advance(dir int, e *entry, it *item) {
	if e.kind != unix.DT_REG {
		it.stat, it.err = lstat(dir, e.name)
		return
	}
	fd, err := openIn(dir, e.name, openRead|unix.O_NOATIME, 0)
	if err != nil {
		it.err = err
		return
	}
	it.fd = fd
	if it.stat, it.err = fstat(fd); it.err == nil && it.stat.Size > 0 && it.stat.Mode&unix.S_IFMT == unix.S_IFREG {
		_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
		_ = unix.Fadvise(fd, 0, min(it.stat.Size, 2<<20), unix.FADV_WILLNEED)
	}
}

func (v *verifier) one(w *worker, f *folder, dir int, e *entry, it *item) error {
	path := join(f.path, e.name)
	what := e.looks(&it.stat)
	if what != "" {
		v.differs(f.path, path, what)
		if what == "kind" || what == "size" {
			v.distrustFile(e)
			return nil
		}
	}
	var xs []xattr
	var err error
	if it.fd > 0 {
		xs, err = xattrsOfFile(it.fd, w.xattrs)
	} else {
		xs, err = xattrsOf(place(dir, e.name), false, w.xattrs)
	}
	if err != nil {
		return failed("read in the destination", path, err)
	}
	if !e.hasXattrs(xs) {
		v.differs(f.path, path, "extended attributes")
		v.distrustFile(e)
	}
	if what != "" {
		v.distrustFile(e)
	}
	sum := e.hash
	switch {
	case e.kind == unix.DT_LNK:
		target, err := readlink(dir, e.name, w.buf)
		if err != nil {
			return failed("read in the destination", path, err)
		}
		sum = sha256.Sum256([]byte(target))
	case e.kind == unix.DT_REG && !v.again(e):
		if sum, err = v.hash(w, path, it); err != nil {
			return failed("read in the destination", path, err)
		}
	}
	if sum != e.hash {
		v.differs(f.path, path, "content")
		v.distrustFile(e)
	}
	return nil
}

// again says whether the file's content was read under another name.
func (v *verifier) again(e *entry) bool {
	if e.dstIno == 0 {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	was := v.read1[e.dstIno]
	v.read1[e.dstIno] = true
	return was
}

// distrustFile sees that all names of the file are copied anew.
func (v *verifier) distrustFile(e *entry) {
	if e.dstIno != 0 {
		v.mu.Lock()
		v.bad[e.dstIno] = true
		v.mu.Unlock()
	}
}

func (v *verifier) hash(w *worker, path string, it *item) ([32]byte, error) {
	s := &it.stat
	if s.Size <= rangeSize {
		return w.hashRange(v, it.fd, -1, 0, s.Size, sparse(s))
	}
	l := newLarge(path, v, it.fd, -1, s.Size, sparse(s))
	v.queue.push(l.helpers(v.o.Workers)...)
	return l.finish(w)
}
