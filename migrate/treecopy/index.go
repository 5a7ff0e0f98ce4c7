package treecopy

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// The index is a file of frames that is only appended to:
//
//	u32 length of payload | u32 CRC-32C of (type, u64 offset, payload) | u8 type | payload
//
// A frame's claims count only once a confirm frame names the range that it lies
// in, and a confirm frame is written after a syncfs of the destination that began
// after the frames' files were complete. So whatever part of the index survives a
// power cut, it claims nothing that the destination does not durably have. Claims
// that are about to become untrue although the source may come to look as before
// (a removed subtree) are dropped durably first; drops count unconfirmed.
//
// In memory are only a hash and an offset for each folder and for each file that
// has several names, about 25 bytes each.
const (
	frameHeader  = 'H' // the trees that the index is about
	framePass    = 'P' // a pass begins
	frameFolder  = 'D'
	frameLink    = 'L' // the first name of a file with several, before its folder is done
	framePartial = 'R' // what there is of a large file
	frameConfirm = 'C'
	frameDrop    = 'X'

	frameOverhead = 9
	magic         = "storagectl treecopy 2"
)

type located struct {
	off  int64
	seen bool // in the present pass
}

type index struct {
	file *os.File
	head header
	mac  cipher.AEAD

	mu       sync.Mutex
	buf      []byte // written next, at flushed
	flushed  int64
	from     int64 // where unconfirmed frames begin
	err      error // of an earlier write; nothing is written after it
	seed     maphash.Seed
	folders  map[uint64]located
	partials map[uint64]int64

	links    links
	pass     uint32 // of the last pass that began
	complete bool   // and whether it came to its end
	totals   Totals // of the last complete pass
}

// header binds an index to its two trees, by the roots' inodes and birth times.
type header struct {
	src, dst rootID
	key      [16]byte // of the hashes, see blockSize
}

const headerSize = len(magic) + 4*8 + 16

type rootID struct {
	ino, born uint64
}

func rootOf(fd int) (rootID, error) {
	var s unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &s); err != nil {
		return rootID{}, err
	}
	id := rootID{ino: s.Ino}
	if s.Mask&unix.STATX_BTIME != 0 {
		id.born = uint64(s.Btime.Sec)*1e9 + uint64(s.Btime.Nsec)
	}
	return id, nil
}

func (h header) bytes() []byte {
	b := []byte(magic)
	for _, v := range [...]uint64{h.src.ino, h.src.born, h.dst.ino, h.dst.born} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return append(b, h.key[:]...)
}

// openIndex opens and reads the index, or makes an empty one without a header:
// then made is true.
func openIndex(path string, create bool) (x *index, made bool, err error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, false, err
	}
	x = &index{
		file: f, seed: maphash.MakeSeed(),
		folders: map[uint64]located{}, partials: map[uint64]int64{},
	}
	x.links.init()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			err = ErrBusy
		}
		return nil, false, err
	}
	if made, err = x.load(); err != nil {
		f.Close()
		return nil, false, fmt.Errorf("cannot read the index %s: %w", path, err)
	}
	return x, made, nil
}

// begin writes the header of a new index, durably.
func (x *index) begin(h header) error {
	if _, err := rand.Read(h.key[:]); err != nil {
		return err
	}
	if err := x.bear(h); err != nil {
		return err
	}
	if _, err := x.append(frameHeader, h.bytes()); err != nil {
		return err
	}
	x.from = x.end()
	if err := x.sync(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(x.file.Name()))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// bear takes on a header.
func (x *index) bear(h header) (err error) {
	x.head = h
	x.mac, err = newMAC(h.key[:])
	return err
}

// close gives the lock back by itself: a child between its fork and its exec has
// the file open, too.
func (x *index) close() {
	_ = unix.Flock(int(x.file.Fd()), unix.LOCK_UN) // the close does it otherwise
	x.file.Close()
}

func checksum(kind byte, off int64, payload []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	var pre [9]byte
	pre[0] = kind
	binary.LittleEndian.PutUint64(pre[1:], uint64(off))
	return crc32.Update(crc32.Checksum(pre[:], table), table, payload)
}

func (x *index) end() int64 { return x.flushed + int64(len(x.buf)) }

// append adds a frame and returns its place. It is not durable before sync.
func (x *index) append(kind byte, payload []byte) (int64, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.appendLocked(kind, payload)
}

func (x *index) appendLocked(kind byte, payload []byte) (int64, error) {
	if x.err != nil {
		return 0, x.err
	}
	off := x.end()
	x.buf = binary.LittleEndian.AppendUint32(x.buf, uint32(len(payload)))
	x.buf = binary.LittleEndian.AppendUint32(x.buf, checksum(kind, off, payload))
	x.buf = append(append(x.buf, kind), payload...)
	if len(x.buf) >= 1<<20 {
		return off, x.flushLocked()
	}
	return off, nil
}

func (x *index) flushLocked() error {
	if x.err == nil {
		if _, err := x.file.WriteAt(x.buf, x.flushed); err != nil {
			x.err = fmt.Errorf("cannot write the index: %w", err)
		}
		x.flushed += int64(len(x.buf))
		x.buf = x.buf[:0]
	}
	return x.err
}

func (x *index) sync() error {
	x.mu.Lock()
	err := x.flushLocked()
	x.mu.Unlock()
	if err != nil {
		return err
	}
	if err := x.file.Sync(); err != nil {
		err = fmt.Errorf("cannot write the index: %w", err)
		x.mu.Lock()
		// What was not written back may have been dropped from memory: no later
		// sync may vouch for it.
		x.err = err
		x.mu.Unlock()
		return err
	}
	return nil
}

// read returns the payload of the frame at the given place; kind 0: of any.
func (x *index) read(off int64, kind byte) ([]byte, error) {
	return x.readInto(make([]byte, 4096), off, kind)
}

// readInto is read with the caller's memory, of which a page is enough for most.
// What was written to the file stays as it is: it is read beside the writers.
func (x *index) readInto(b []byte, off int64, kind byte) ([]byte, error) {
	x.mu.Lock()
	var err error
	if off >= x.flushed {
		err = x.flushLocked()
	}
	x.mu.Unlock()
	if err != nil {
		return nil, err
	}
	n, err := pread(int(x.file.Fd()), b, off)
	if err != nil || n < frameOverhead {
		return nil, errors.Join(errFormat, err)
	}
	size := int(binary.LittleEndian.Uint32(b))
	if size > n-frameOverhead {
		rest := make([]byte, frameOverhead+size)
		copy(rest, b[:n])
		if m, err := pread(int(x.file.Fd()), rest[n:], off+int64(n)); err != nil || n+m != len(rest) {
			return nil, errors.Join(errFormat, err)
		}
		b = rest
	}
	payload := b[frameOverhead : frameOverhead+size]
	if kind != 0 && b[8] != kind || checksum(b[8], off, payload) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, errFormat
	}
	return payload, nil
}

func (x *index) key(path string, shard uint32) uint64 {
	var h maphash.Hash
	h.SetSeed(x.seed)
	h.WriteString(path)
	h.WriteByte(0)
	h.Write([]byte{byte(shard), byte(shard >> 8), byte(shard >> 16), byte(shard >> 24)})
	return h.Sum64()
}

func (x *index) known(path string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, ok := x.folders[x.key(path, 0)]
	return ok
}

// folder returns the claim about a shard of a folder, nil if there is none. What
// is in buf afterwards is of no use.
func (x *index) folder(path string, shard uint32, buf []byte) (*folder, error) {
	x.mu.Lock()
	at, ok := x.folders[x.key(path, shard)]
	x.mu.Unlock()
	if !ok {
		return nil, nil
	}
	b, err := x.readInto(buf, at.off, frameFolder)
	if err != nil {
		return nil, fmt.Errorf("cannot read the index: %w", err)
	}
	f, err := takeFolder(b, nil)
	if err != nil || f.path != path || f.shard != shard {
		return nil, err
	}
	return f, nil
}

// put replaces the claim about a shard of a folder.
func (x *index) put(f *folder, scratch []byte) ([]byte, error) {
	scratch = f.append(scratch[:0])
	x.mu.Lock()
	defer x.mu.Unlock()
	off, err := x.appendLocked(frameFolder, scratch)
	if err == nil {
		x.folders[x.key(f.path, f.shard)] = located{off, true}
	}
	return scratch, err
}

// keep says that the claim about a shard of a folder still stands.
func (x *index) keep(path string, shard uint32) {
	x.mu.Lock()
	defer x.mu.Unlock()
	k := x.key(path, shard)
	if at, ok := x.folders[k]; ok {
		x.folders[k] = located{at.off, true}
	}
}

// confirm makes the claims written before it count: settle must make all that
// they are about durable in the destination.
func (x *index) confirm(complete bool, totals Totals, settle func() error) error {
	x.mu.Lock()
	err := x.flushLocked()
	from, to := x.from, x.end()
	x.mu.Unlock()
	if err != nil {
		return err
	}
	if err := settle(); err != nil {
		return err
	}
	b := binary.LittleEndian.AppendUint64(nil, uint64(from))
	b = binary.LittleEndian.AppendUint64(b, uint64(to))
	b = binary.LittleEndian.AppendUint32(b, x.pass)
	done := byte(0)
	if complete {
		done = 1
	}
	b = append(b, done)
	for _, v := range [...]int64{totals.Files, totals.Folders, totals.Bytes, totals.Allocated} {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	if _, err := x.append(frameConfirm, b); err != nil {
		return err
	}
	if err := x.sync(); err != nil {
		return err
	}
	x.mu.Lock()
	x.from = to
	x.mu.Unlock()
	x.complete = complete
	return nil
}

func (x *index) beginPass(pass uint32) error {
	x.pass, x.complete = pass, false
	_, err := x.append(framePass, binary.LittleEndian.AppendUint32(nil, pass))
	if err != nil {
		return err
	}
	return x.sync()
}
