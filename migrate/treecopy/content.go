package treecopy

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"

	"golang.org/x/sys/unix"
)

// A file is hashed in blocks, each by AES-GMAC (SP 800-38D; no data is encrypted)
// under a random key that the index holds: seven times as fast as SHA-256 with the
// processor's help. With an unknown key no two contents can be made to have one
// tag, but by chance: 1 in 2^128 for each 16 bytes of a block. The nonce is always
// the same: that would help who sees the tags, and they are only in the index.
// The hash of a file of one block is its tag; of a larger one SHA-256 of the tags,
// and above rangeSize SHA-256 of the ranges' hashes. Holes count as zeros.
const (
	blockSize = 256 << 10
	rangeSize = 64 * blockSize
)

// source is what a reading of file data is paced, counted and cancelled by.
type source interface {
	read(w *worker, n int64) error
}

func (c *copier) read(w *worker, n int64) error {
	c.meter.copied.Add(n)
	return c.pace.Take(w.ctx, n)
}

// sparse: the file has fewer blocks than its size asks for.
func sparse(s *unix.Stat_t) bool { return s.Blocks*512 < s.Size }

// cloned lets dst share the file's blocks, where the filesystem can. The source is
// read for its hash all the same: so it is the copy that a Verify proves.
// copy_file_range is not used: without shared blocks it spares nothing, as
// the data must be read for the hash.
func (c *copier) cloned(src, dst int) bool {
	if !c.clone.Load() {
		return false
	}
	if err := unix.IoctlFileClone(dst, src); err != nil {
		c.clone.Store(false)
		return false
	}
	return true
}

// reading is one range of a file being read.
type reading struct {
	w          *worker
	by         source
	src, dst   int // dst is -1 if nothing is to be written
	end        int64
	holes      bool  // the file may have holes
	data, stop int64 // the present segment: a hole up to data, then data up to stop
}

// hashRange reads n bytes at off, writes them to dst unless that is -1, and
// returns their hash. What is a hole is not written. Where the file has become
// shorter zeros count, as dst will have there.
func (w *worker) hashRange(by source, src, dst int, off, n int64, holes bool) (sum [32]byte, err error) {
	r := reading{w: w, by: by, src: src, dst: dst, end: off + n, holes: holes, data: off, stop: off}
	if !holes {
		r.stop = r.end
	}
	if n == 0 {
		return sum, nil
	}
	tags := sha256.New()
	for pos := off; pos < r.end; pos += blockSize {
		b := w.buf[:min(blockSize, r.end-pos)]
		hole, err := r.block(b, pos)
		if err != nil {
			return sum, err
		}
		tag := w.tag(b, hole)
		if n <= blockSize {
			copy(sum[:], tag)
			return sum, nil
		}
		tags.Write(tag)
	}
	tags.Sum(sum[:0])
	return sum, nil
}

// block fills b from pos and writes what of it is data; hole: there is none.
func (r *reading) block(b []byte, pos int64) (hole bool, err error) {
	end := pos + int64(len(b))
	hole, cleared := true, false
	for at := pos; at < end; at = r.stop {
		if at >= r.stop {
			if r.data, r.stop, err = segment(r.src, at, r.end); err != nil {
				return false, err
			}
		}
		if r.data >= end {
			break
		}
		from, to := max(at, r.data), min(r.stop, end)
		if (from > pos || to < end) && !cleared {
			clear(b)
			cleared = true
		}
		hole = false
		part := b[from-pos : to-pos]
		if err := r.by.read(r.w, int64(len(part))); err != nil {
			return false, err
		}
		got, err := pread(r.src, part, from)
		if err != nil {
			return false, err
		}
		if r.dst >= 0 {
			if err := pwrite(r.dst, part[:got], from); err != nil {
				return false, err
			}
		}
		if got < len(part) { // it has become shorter
			clear(part[got:])
			r.data, r.stop = r.end, r.end
		}
	}
	if hole {
		clear(b)
	}
	return hole, nil
}

// tag is the block's tag; the caller uses it before the next call.
func (w *worker) tag(b []byte, hole bool) []byte {
	if !hole || len(b) != blockSize {
		return w.mac.Seal(w.out[:0], w.nonce[:], nil, b)
	}
	// A file that is one large hole asks for the same again and again.
	if len(w.none) == 0 {
		w.none = w.mac.Seal(nil, w.nonce[:], nil, b)
	}
	return w.none
}

// newMAC is the keyed checksum of an index.
func newMAC(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// segment finds the next data in [pos, end): data == end if there is none.
func segment(fd int, pos, end int64) (data, stop int64, err error) {
	data, err = unix.Seek(fd, pos, unix.SEEK_DATA)
	if err == unix.ENXIO || err == nil && data >= end {
		return end, end, nil
	}
	if err != nil {
		return pos, end, nil //nolint:nilerr // no such thing as holes here: all is data
	}
	stop, err = unix.Seek(fd, data, unix.SEEK_HOLE)
	if err == unix.ENXIO { // cut off meanwhile
		return data, end, nil
	}
	return data, min(stop, end), err
}
