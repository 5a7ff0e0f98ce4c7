package treecopy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	shardSize = 8192 // entries that are handled, and remembered, at once
	ahead     = 16   // files opened, and asked of the disk, before their turn
)

// visit is a folder being copied.
type visit struct {
	path     string
	src, dst int // dst is -1 until it is needed
	stat     unix.Stat_t
	fresh    bool // made in this pass
	inherits bool // what is made in dst gets a default ACL
	old      *folder
	same     bool // nothing was added or removed since the claim old
	leave    bool // it changed since this pass began and there is a claim: the next pass settles it
	touched  bool // something was made or removed in dst
	names    []listed
	have     map[string]uint8 // what dst holds, by kind
	shards   uint32
	left     uint32 // shards to do; the last one done is number 0, which stands for the whole
}

type listed struct {
	name  string
	ino   uint64
	shard uint32
	kind  uint8
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// folder begins with a folder of the source.
//
// Why a folder that is changing is left alone where there is a claim: the change
// may not be durable in the source. After a power cut the source could look again
// as the claim says, while the destination no longer does.
func (c *copier) folder(w *worker, t task) error {
	fd, err := openIn(c.src, t.path, openFolder|unix.O_NOATIME, 0)
	if err != nil {
		return c.vanished(t.path, err)
	}
	v := &visit{path: t.path, src: fd, dst: -1, fresh: t.fresh, shards: 1}
	if err := c.begin(w, v); err != nil {
		v.close()
		if errors.Is(err, errGone) {
			return c.unsettled(t.path)
		}
		return err
	}
	return c.shard(w, v)
}

// errGone: a folder of the source vanished while it was read.
var errGone = errors.New("it is gone")

func (v *visit) close() {
	unix.Close(v.src)
	if v.dst >= 0 {
		unix.Close(v.dst)
	}
}

func (c *copier) begin(w *worker, v *visit) error {
	var err error
	if v.stat, err = fstat(v.src); err != nil {
		return failed("read", v.path, err)
	}
	if err := c.ids.check(&v.stat, itself(v.src), true); err != nil {
		return failed("copy", v.path, err)
	}
	c.report.folders.Add(1)
	if !v.fresh {
		if v.old, err = c.ix.folder(v.path, 0, w.buf[:4096]); err != nil {
			return err
		}
	}
	v.same = v.old != nil && v.old.self.same(&v.stat)
	if !v.same && c.changing(stampOf(v.stat.Ctim)) {
		if err := c.unsettled(v.path); err != nil {
			return err
		}
		v.leave = v.old != nil
	}
	if v.same || v.leave {
		v.shards, v.left = v.old.shards, v.old.shards
		return nil
	}
	if err := c.list(w, v); err != nil {
		return err
	}
	v.left = v.shards
	return c.reconcile(w, v)
}

// shard copies one shard of a folder, and hands on what lies below it.
func (c *copier) shard(w *worker, v *visit) error {
	v.left--
	out := folder{path: v.path, shard: v.left, shards: v.shards}
	var kids []task
	changed := !v.same
	err := func() error {
		old := v.old
		if old != nil && v.left&(v.old.shards-1) != 0 {
			var err error
			if old, err = c.ix.folder(v.path, v.left&(v.old.shards-1), w.buf[:4096]); err != nil {
				return err
			}
		}
		todo, err := c.sift(w, v, old, &out, &kids)
		if err != nil {
			return err
		}
		changed = changed || len(todo) > 0
		if err := c.make(w, v, todo, &out); err != nil {
			return err
		}
		return c.finish(w, v, changed, &out)
	}()
	if err != nil || v.left == 0 {
		v.close()
	}
	if err != nil {
		return err
	}
	if v.left > 0 {
		w.own = append(w.own, task{rest: v})
	}
	if len(kids) > 0 {
		slices.Reverse(kids) // the last one is the first one taken
		w.own = append(w.own, kids...)
	}
	return nil
}

// sift finds what of a shard must be copied: the rest still is as claimed, or is
// left alone, and goes to out.
func (c *copier) sift(w *worker, v *visit, old, out *folder, kids *[]task) ([]item, error) {
	var todo []item
	if v.same || v.leave {
		if old == nil {
			return nil, nil
		}
		out.entries = old.entries[:0] // what is kept moves to the front
		for i := range old.entries {
			e := &old.entries[i]
			if c.o.Skip(join(v.path, e.name)) {
				continue
			}
			if e.kind == unix.DT_DIR {
				*kids = append(*kids, task{path: join(v.path, e.name)})
				out.entries = append(out.entries, *e)
				continue
			}
			if err := c.judge(v, e, out, &todo); err != nil {
				return nil, err
			}
		}
		return todo, nil
	}
	claims := map[string]*entry{}
	if old != nil {
		for i := range old.entries {
			claims[old.entries[i].name] = &old.entries[i]
		}
	}
	from, _ := slices.BinarySearchFunc(v.names, v.left, func(n listed, s uint32) int { return cmp.Compare(n.shard, s) })
	for _, n := range v.names[from:] {
		if n.shard != v.left {
			break
		}
		if n.kind == unix.DT_UNKNOWN {
			s, err := lstat(v.src, n.name)
			if err != nil {
				if err := c.vanished(join(v.path, n.name), err); err != nil {
					return nil, err
				}
				continue
			}
			n.kind = uint8(s.Mode & unix.S_IFMT >> 12)
		}
		claim := claims[n.name]
		held, there := v.have[n.name]
		switch {
		case n.kind == unix.DT_SOCK:
			c.report.sockets.Add(1)
			if there {
				v.touched = true
				if err := c.remove(w, v, map[string]uint8{n.name: held}); err != nil {
					return nil, err
				}
			}
		case n.kind == unix.DT_DIR:
			fresh, err := c.makeFolder(w, v, n.name)
			if err != nil {
				return nil, err
			}
			*kids = append(*kids, task{path: join(v.path, n.name), fresh: fresh})
			out.entries = append(out.entries, entry{name: n.name, kind: unix.DT_DIR})
		case claim == nil || claim.kind != n.kind || !there || held != n.kind:
			todo = append(todo, item{name: n.name, kind: n.kind})
		default:
			if err := c.judge(v, claim, out, &todo); err != nil {
				return nil, err
			}
		}
	}
	return todo, nil
}

// judge compares an entry of the source with the claim about it.
func (c *copier) judge(v *visit, e *entry, out *folder, todo *[]item) error {
	s, err := lstat(v.src, e.name)
	switch {
	case err == nil && e.same(&s):
		c.count(&s)
		c.report.unchanged.Add(1)
		out.entries = append(out.entries, *e)
	case v.leave, err == nil && c.changing(stampOf(s.Ctim)), err != nil && gone(err):
		out.entries = append(out.entries, *e)
		return c.unsettled(join(v.path, e.name))
	case err != nil:
		return failed("read", join(v.path, e.name), err)
	default:
		*todo = append(*todo, item{name: e.name, kind: uint8(s.Mode & unix.S_IFMT >> 12)})
	}
	return nil
}

// count an entry that is settled.
func (c *copier) count(s *unix.Stat_t) {
	share := int64(0)
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		share = s.Size / max(int64(s.Nlink), 1)
	case unix.S_IFLNK:
		c.report.symlinks.Add(1)
	case unix.S_IFIFO:
		c.report.fifos.Add(1)
	default:
		c.report.devices.Add(1)
	}
	c.report.files.Add(1)
	c.report.bytes.Add(share)
	c.meter.files.Add(1)
	c.meter.bytes.Add(share)
}

// finish ends a shard and, with the last one, gives the folder in dst its looks.
func (c *copier) finish(w *worker, v *visit, changed bool, out *folder) error {
	v.touched = v.touched || changed && !v.leave
	if v.leave || !changed && (v.left > 0 || !v.touched) {
		c.ix.keep(v.path, v.left)
		return nil
	}
	if v.left > 0 {
		var err error
		w.scratch, err = c.ix.put(out, w.scratch)
		return err
	}
	if err := c.open(w, v); err != nil {
		return err
	}
	xs, err := xattrsOf(itself(v.src), true, w.xattrs)
	if err != nil {
		return failed("read", v.path, err)
	}
	out.self = entryOf("", &v.stat)
	out.self.pass = c.pass
	out.self.note(xs)
	if err := c.dress(w, v.dst, &v.stat, xs, false); err != nil {
		return failed("write the attributes of", v.path, err)
	}
	now, err := fstat(v.src)
	if err != nil {
		return failed("read", v.path, err)
	}
	if c.changing(out.self.ctime) {
		out.self.flags |= flagUnsettled
	} else if !sameStat(&now, &v.stat) {
		out.self.flags |= flagUnsettled
		if err := c.unsettled(v.path); err != nil {
			return err
		}
	}
	w.scratch, err = c.ix.put(out, w.scratch)
	return err
}

// makeFolder sees that dst has a folder of this name, and says whether it is new.
func (c *copier) makeFolder(w *worker, v *visit, name string) (fresh bool, err error) {
	path := join(v.path, name)
	if held, there := v.have[name]; there {
		if held == unix.DT_DIR {
			return false, nil
		}
		if err := c.remove(w, v, map[string]uint8{name: held}); err != nil {
			return false, err
		}
	}
	if c.ix.known(path) {
		// Somebody else removed it. What is claimed about it ends before it is made anew.
		if err := c.ix.drop(path); err != nil {
			return false, err
		}
	}
	if err := unix.Mkdirat(v.dst, name, 0o700); err != nil {
		return false, fmt.Errorf("cannot make the folder %q: %w", path, err)
	}
	v.touched = true
	return true, nil
}
