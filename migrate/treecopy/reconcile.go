package treecopy

import (
	"cmp"
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// list reads the source's names, in the order of shards and, in these, of inodes:
// that is about the order of the disk.
func (c *copier) list(w *worker, v *visit) error {
	err := list(v.src, w.dents, func(name []byte, ino uint64, kind uint8) {
		if n := string(name); !c.o.Skip(join(v.path, n)) {
			v.names = append(v.names, listed{name: n, ino: ino, kind: kind})
		}
	})
	if gone(err) {
		return errGone // removed since it was opened
	}
	if err != nil {
		return failed("list", v.path, err)
	}
	for v.old != nil && v.shards < v.old.shards || len(v.names) > shardSize*int(v.shards) {
		v.shards *= 2
	}
	for i := range v.names {
		v.names[i].shard = shardOf(v.names[i].name, v.shards)
	}
	slices.SortFunc(v.names, func(a, b listed) int {
		return cmp.Or(cmp.Compare(a.shard, b.shard), cmp.Compare(a.ino, b.ino))
	})
	return nil
}

// open opens the folder in dst.
func (c *copier) open(w *worker, v *visit) error {
	if v.dst >= 0 {
		return nil
	}
	fd, err := openIn(c.dst, v.path, openFolder, 0)
	if err != nil {
		return failed("open in the destination", v.path, err)
	}
	v.dst = fd
	n, err := unix.Fgetxattr(fd, aclDefault, nil)
	if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
		return failed("read in the destination", v.path, err)
	}
	v.inherits = err == nil && n > 0
	return nil
}

// reconcile removes from dst what the source does not have.
func (c *copier) reconcile(w *worker, v *visit) error {
	if err := c.open(w, v); err != nil || v.fresh {
		return err
	}
	v.have = map[string]uint8{}
	err := list(v.dst, w.dents, func(name []byte, _ uint64, kind uint8) { v.have[string(name)] = kind })
	if err != nil {
		return failed("list in the destination", v.path, err)
	}
	extra := map[string]uint8{}
	for name, kind := range v.have {
		if c.o.Skip(join(v.path, name)) {
			delete(v.have, name)
			continue
		}
		if kind == unix.DT_UNKNOWN {
			s, err := lstat(v.dst, name)
			if err != nil {
				return failed("read in the destination", join(v.path, name), err)
			}
			v.have[name] = uint8(s.Mode & unix.S_IFMT >> 12)
		}
		extra[name] = v.have[name]
	}
	for _, n := range v.names {
		if n.kind != unix.DT_SOCK {
			delete(extra, n.name)
		}
	}
	if len(extra) == 0 {
		return nil
	}
	v.touched = true
	for name := range extra {
		delete(v.have, name)
	}
	return c.remove(w, v, extra)
}
