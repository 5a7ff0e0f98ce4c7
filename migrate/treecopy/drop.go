package treecopy

import (
	"errors"

	"golang.org/x/sys/unix"
)

// drop durably forgets the claims about these folders.
func (x *index) drop(paths ...string) error {
	if len(paths) == 0 {
		return nil
	}
	var offs []int64
	for _, path := range paths {
		for shard := uint32(0); ; shard++ {
			off, err := x.dropOne(path, shard)
			if err != nil {
				return err
			}
			if off < 0 {
				break
			}
			offs = append(offs, off)
		}
	}
	lost := map[uint64]bool{}
	for _, off := range offs {
		if err := x.forgetLinks(off, lost); err != nil {
			return err
		}
	}
	return errors.Join(x.sync(), x.relink(lost))
}

func (x *index) dropOne(path string, shard uint32) (int64, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	k := x.key(path, shard)
	at, ok := x.folders[k]
	if !ok {
		return -1, nil
	}
	delete(x.folders, k)
	_, err := x.appendLocked(frameDrop, (&folder{path: path, shard: shard}).append(nil))
	return at.off, err
}

// dropUnseen forgets what this pass did not come by: it is no longer there.
func (x *index) dropUnseen() error {
	x.mu.Lock()
	var offs []int64
	for _, at := range x.folders {
		if !at.seen {
			offs = append(offs, at.off)
		}
	}
	x.mu.Unlock()
	for _, off := range offs {
		b, err := x.read(off, frameFolder)
		if err != nil {
			return err
		}
		f, err := takeFolder(b, func(*entry) {})
		if err != nil {
			return err
		}
		x.mu.Lock()
		delete(x.folders, x.key(f.path, f.shard))
		f.entries = nil
		_, err = x.appendLocked(frameDrop, f.append(nil))
		x.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// believe forgets everything if nothing of what the root is said to hold is there:
// the destination was made anew.
func (x *index) believe(there map[string]bool) error {
	root, err := x.folder("", 0, make([]byte, 4096))
	if err != nil || root == nil || len(root.entries) == 0 {
		return err
	}
	for _, e := range root.entries {
		if there[e.name] {
			return nil
		}
	}
	var paths []string
	for _, at := range x.folders {
		b, err := x.read(at.off, frameFolder)
		if err != nil {
			return err
		}
		f, err := takeFolder(b, func(*entry) {})
		if err != nil {
			return err
		}
		if f.shard == 0 {
			paths = append(paths, f.path)
		}
	}
	return x.drop(paths...)
}

// forgetLinks sees that nothing is linked to what a dropped frame claims. The
// files that are lost so may have other names in other folders: see relink.
func (x *index) forgetLinks(off int64, lost map[uint64]bool) error {
	b, err := x.read(off, frameFolder)
	if err != nil {
		return err
	}
	x.links.mu.Lock()
	defer x.links.mu.Unlock()
	_, err = takeFolder(b, func(e *entry) {
		if e.nlink > 1 && x.links.known[e.ino] == off {
			delete(x.links.known, e.ino)
			lost[e.ino] = true
		}
	})
	return err
}

// relink looks for other names of lost files.
func (x *index) relink(lost map[uint64]bool) error {
	if len(lost) == 0 {
		return nil
	}
	x.mu.Lock()
	err := x.flushLocked()
	x.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = x.frames(func(off int64, kind byte, b []byte) error {
		if kind != frameFolder {
			return nil
		}
		f, err := takeFolder(b, nil)
		if err != nil {
			return err
		}
		x.mu.Lock()
		at, live := x.folders[x.key(f.path, f.shard)]
		x.mu.Unlock()
		if !live || at.off != off {
			return nil
		}
		x.links.mu.Lock()
		defer x.links.mu.Unlock()
		for i := range f.entries {
			if e := &f.entries[i]; lost[e.ino] && e.nlink > 1 && e.dstIno != 0 {
				if _, ok := x.links.known[e.ino]; !ok {
					x.links.known[e.ino] = off
				}
			}
		}
		return nil
	})
	return err
}

// find looks through the index for a claim about the file in this very state, of
// whatever name; -1 if there is none.
func (x *index) find(s *unix.Stat_t) (int64, error) {
	x.mu.Lock()
	err := x.flushLocked()
	x.mu.Unlock()
	if err != nil {
		return -1, err
	}
	found := int64(-1)
	_, err = x.frames(func(off int64, kind byte, b []byte) error {
		if kind != frameFolder || found >= 0 {
			return nil
		}
		match := false
		f, err := takeFolder(b, func(e *entry) {
			match = match || e.dstIno != 0 && e.ino == s.Ino && e.same(s)
		})
		if err != nil || !match {
			return err
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		if at, live := x.folders[x.key(f.path, f.shard)]; live && at.off == off {
			found = off
		}
		return nil
	})
	return found, err
}
