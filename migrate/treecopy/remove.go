package treecopy

import "golang.org/x/sys/unix"

// remove removes names, and all below them, from a folder of dst. Claims about
// folders among them are dropped durably before.
func (c *copier) remove(w *worker, v *visit, names map[string]uint8) error {
	var known []string
	for name, kind := range names {
		if kind != unix.DT_DIR {
			continue
		}
		var err error
		if known, err = c.claimed(w, join(v.path, name), known); err != nil {
			return err
		}
	}
	if err := c.ix.drop(known...); err != nil {
		return err
	}
	for name, kind := range names {
		if _, err := c.removeOne(w, v.dst, v.path, name, kind); err != nil {
			return err
		}
	}
	return nil
}

type child struct {
	name string
	kind uint8
}

// children of a folder of dst, with their kinds.
func (c *copier) children(w *worker, fd int, path string) ([]child, error) {
	var all []child
	err := list(fd, w.dents, func(name []byte, _ uint64, kind uint8) {
		all = append(all, child{string(name), kind})
	})
	if err != nil {
		return nil, failed("list in the destination", path, err)
	}
	for i := range all {
		if all[i].kind == unix.DT_UNKNOWN {
			s, err := lstat(fd, all[i].name)
			if err != nil {
				return nil, failed("read in the destination", join(path, all[i].name), err)
			}
			all[i].kind = uint8(s.Mode & unix.S_IFMT >> 12)
		}
	}
	return all, nil
}

// claimed adds the folders at and below a path that the index knows of.
func (c *copier) claimed(w *worker, path string, known []string) ([]string, error) {
	if err := w.ctx.Err(); err != nil {
		return nil, err
	}
	if c.ix.known(path) {
		known = append(known, path)
	}
	fd, err := openIn(c.dst, path, openFolder, 0)
	if err != nil {
		return nil, failed("open in the destination", path, err)
	}
	all, err := c.children(w, fd, path)
	unix.Close(fd)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if e.kind == unix.DT_DIR {
			if known, err = c.claimed(w, join(path, e.name), known); err != nil {
				return nil, err
			}
		}
	}
	return known, nil
}

// removeOne removes one name from the open folder dir of dst. What is skipped
// stays, and so do the folders above it.
func (c *copier) removeOne(w *worker, dir int, path, name string, kind uint8) (stays bool, err error) {
	full := join(path, name)
	if c.o.Skip(full) {
		return true, nil
	}
	if kind != unix.DT_DIR {
		if err := unix.Unlinkat(dir, name, 0); err != nil && err != unix.ENOENT {
			return false, failed("remove from the destination", full, err)
		}
		c.report.removed.Add(1)
		return false, nil
	}
	fd, err := openIn(dir, name, openFolder, 0)
	if err != nil {
		return false, failed("open in the destination", full, err)
	}
	defer unix.Close(fd)
	all, err := c.children(w, fd, full)
	if err != nil {
		return false, err
	}
	for _, e := range all {
		if err := w.ctx.Err(); err != nil {
			return false, err
		}
		kept, err := c.removeOne(w, fd, full, e.name, e.kind)
		if err != nil {
			return false, err
		}
		stays = stays || kept
	}
	if stays {
		return true, nil
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return false, failed("remove from the destination", full, err)
	}
	c.report.removed.Add(1)
	return false, nil
}
