package treecopy

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

const (
	flagUnsettled = 1 << iota // changed at or after the pass began: the next pass copies it anew
	flagSELinux               // the source has a security.selinux attribute
)

// stamp is a time as the kernel gives it.
type stamp struct {
	sec  int64
	nsec int32
}

func stampOf(t unix.Timespec) stamp { return stamp{t.Sec, int32(t.Nsec)} }

func (s stamp) before(o stamp) bool {
	return s.sec < o.sec || s.sec == o.sec && s.nsec < o.nsec
}

// entry is a claim: as long as the source has this name with this inode, size,
// mtime and ctime, the destination durably has it with these attributes and a
// content of this hash.
type entry struct {
	name         string
	kind         uint8 // DT_REG, DT_DIR, …
	flags        uint8
	pass         uint32 // in which pass it was written
	mode         uint32 // permission bits, setuid, setgid, sticky
	uid, gid     uint32
	nlink        uint32
	rdev         uint64
	ino          uint64 // in the source
	dstIno       uint64 // in the destination; only of files with several names
	size         int64
	mtime, ctime stamp
	hash         [32]byte // of content (see hashRange) or link target
	xattrs       [16]byte // of names and values; zero: none
}

// entryOf takes over what stat tells.
func entryOf(name string, s *unix.Stat_t) entry {
	e := entry{
		name: name, kind: uint8(s.Mode & unix.S_IFMT >> 12), mode: s.Mode &^ unix.S_IFMT,
		uid: s.Uid, gid: s.Gid, nlink: uint32(s.Nlink), ino: s.Ino, size: s.Size,
		mtime: stampOf(s.Mtim), ctime: stampOf(s.Ctim),
	}
	if e.kind == unix.DT_CHR || e.kind == unix.DT_BLK {
		e.rdev = s.Rdev
	}
	return e
}

// same says whether the source still is what the claim is about.
func (e *entry) same(s *unix.Stat_t) bool {
	return e.flags&flagUnsettled == 0 && e.sameSource(s)
}

// sameSource is the same for a claim of this pass, settled or not.
func (e *entry) sameSource(s *unix.Stat_t) bool {
	return e.kind == uint8(s.Mode&unix.S_IFMT>>12) && e.ino == s.Ino && sameSize(e.size, s) &&
		e.ctime == stampOf(s.Ctim) && e.mtime == stampOf(s.Mtim)
}

// sameSize: the size of a folder says nothing. ceph-fuse gives the bytes of all that
// lies below, which the MDS adds up some time after they were written
// (client_dirsize_rbytes, see ceph-fuse's configuration reference).
func sameSize(was int64, s *unix.Stat_t) bool {
	return was == s.Size || s.Mode&unix.S_IFMT == unix.S_IFDIR
}

// sameStat: nothing happened to the file between the two looks.
func sameStat(a, b *unix.Stat_t) bool {
	return a.Ino == b.Ino && sameSize(a.Size, b) && a.Ctim == b.Ctim && a.Mtim == b.Mtim && a.Mode == b.Mode
}

const fixedEntry = 1 + 1 + 4 + 4*4 + 8*3 + 8 + 12*2 + 32 + 16 + 2

func (e *entry) append(b []byte) []byte {
	o := binary.LittleEndian
	b = append(b, e.kind, e.flags)
	for _, v := range [...]uint32{e.pass, e.mode, e.uid, e.gid, e.nlink} {
		b = o.AppendUint32(b, v)
	}
	for _, v := range [...]uint64{e.rdev, e.ino, e.dstIno, uint64(e.size)} {
		b = o.AppendUint64(b, v)
	}
	for _, t := range [...]stamp{e.mtime, e.ctime} {
		b = o.AppendUint64(b, uint64(t.sec))
		b = o.AppendUint32(b, uint32(t.nsec))
	}
	b = append(b, e.hash[:]...)
	b = append(b, e.xattrs[:]...)
	b = o.AppendUint16(b, uint16(len(e.name)))
	return append(b, e.name...)
}

// errFormat: a frame whose checksum is right does not read as what it says.
var errFormat = errors.New("index has an unknown format")

// take reads one entry and returns the rest. The text has the same bytes at its
// end, so that names need no memory of their own.
func (e *entry) take(b []byte, text string) ([]byte, error) {
	if len(b) < fixedEntry {
		return nil, errFormat
	}
	o := binary.LittleEndian
	e.kind, e.flags = b[0], b[1]
	b = b[2:]
	for _, p := range [...]*uint32{&e.pass, &e.mode, &e.uid, &e.gid, &e.nlink} {
		*p, b = o.Uint32(b), b[4:]
	}
	var size uint64
	for _, p := range [...]*uint64{&e.rdev, &e.ino, &e.dstIno, &size} {
		*p, b = o.Uint64(b), b[8:]
	}
	e.size = int64(size)
	for _, t := range [...]*stamp{&e.mtime, &e.ctime} {
		t.sec, t.nsec, b = int64(o.Uint64(b)), int32(o.Uint32(b[8:])), b[12:]
	}
	b = b[copy(e.hash[:], b):]
	b = b[copy(e.xattrs[:], b):]
	n := int(o.Uint16(b))
	if b = b[2:]; len(b) < n {
		return nil, errFormat
	}
	e.name = text[len(text)-len(b):][:n]
	return b[n:], nil
}

// folder is the claim about a folder: itself and its entries, or those whose
// names fall to one shard of them (see shardOf).
type folder struct {
	path          string
	shard, shards uint32
	self          entry
	entries       []entry
}

func (f *folder) append(b []byte) []byte {
	o := binary.LittleEndian
	b = o.AppendUint32(b, uint32(len(f.path)))
	b = append(b, f.path...)
	b = o.AppendUint32(b, f.shard)
	b = o.AppendUint32(b, f.shards)
	b = f.self.append(b)
	b = o.AppendUint32(b, uint32(len(f.entries)))
	for i := range f.entries {
		b = f.entries[i].append(b)
	}
	return b
}

// takeFolder reads a folder's frame. With a function each entry is handed to it,
// for the time of the call, instead of being kept.
func takeFolder(b []byte, each func(*entry)) (*folder, error) {
	o := binary.LittleEndian
	if len(b) < 4 || uint64(len(b)) < 12+uint64(o.Uint32(b)) {
		return nil, errFormat
	}
	f := &folder{}
	n, text := o.Uint32(b), string(b)
	f.path, b = text[4:4+n], b[4+n:]
	f.shard, f.shards, b = o.Uint32(b), o.Uint32(b[4:]), b[8:]
	b, err := f.self.take(b, text)
	if err != nil || len(b) < 4 {
		return nil, errFormat
	}
	count := o.Uint32(b)
	b = b[4:]
	if uint64(count)*fixedEntry > uint64(len(b)) {
		return nil, errFormat
	}
	if each == nil {
		f.entries = make([]entry, count)
		for i := range f.entries {
			if b, err = f.entries[i].take(b, text); err != nil {
				return nil, err
			}
		}
		return f, nil
	}
	var e entry
	for range count {
		if b, err = e.take(b, text); err != nil {
			return nil, err
		}
		each(&e)
	}
	return f, nil
}

// shardOf says to which shard of a very large folder a name belongs. The number
// of shards is a power of two and only grows, so that the names of a new shard
// are all in one shard of before. (FNV-1a: it spreads, it need not resist.)
func shardOf(name string, shards uint32) uint32 {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	return (h ^ h>>15) & (shards - 1)
}
