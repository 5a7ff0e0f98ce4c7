package treecopy

import (
	"crypto/sha256"
	"hash"

	"golang.org/x/sys/unix"
)

// The hash of a file is SHA-256 of its content or, where it is larger than
// rangeSize, of the hashes of its ranges one after another. Holes count as zeros.
const rangeSize = 16 << 20

// source is what a reading of file data is paced, counted and cancelled by.
type source interface {
	read(w *worker, n int64) error
}

func (c *copier) read(w *worker, n int64) error {
	c.meter.copied.Add(n)
	return c.pace.take(w.ctx, n)
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

// hashRange reads n bytes at off, writes them to dst unless that is -1, and
// returns their hash. What is a hole is not written. Where the file has become
// shorter zeros count, as dst will have there.
func (w *worker) hashRange(by source, src, dst int, off, n int64, holes bool) (sum [32]byte, err error) {
	h := sha256.New()
	end := off + n
	for pos := off; pos < end; {
		data, stop := pos, end
		if holes {
			if data, stop, err = segment(src, pos, end); err != nil {
				return sum, err
			}
			if data == end && pos == off {
				return w.zeroSum(n), nil
			}
		}
		w.zeros(h, data-pos)
		for pos = data; pos < stop; {
			b := w.buf[:min(int64(len(w.buf)), stop-pos)]
			if err := by.read(w, int64(len(b))); err != nil {
				return sum, err
			}
			got, err := pread(src, b, pos)
			if err != nil {
				return sum, err
			}
			if dst >= 0 {
				if err := pwrite(dst, b[:got], pos); err != nil {
					return sum, err
				}
			}
			h.Write(b[:got])
			pos += int64(got)
			if got < len(b) {
				w.zeros(h, end-pos)
				h.Sum(sum[:0])
				return sum, nil
			}
		}
	}
	h.Sum(sum[:0])
	return sum, nil
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

func (w *worker) zeros(h hash.Hash, n int64) {
	if n > 0 && w.none == nil {
		w.none = make([]byte, 64<<10)
	}
	for ; n > 0; n -= int64(len(w.none)) {
		h.Write(w.none[:min(n, int64(len(w.none)))])
	}
}

// zeroSum is the hash of so many zeros; a file that is one large hole asks for the
// same again and again.
func (w *worker) zeroSum(n int64) (sum [32]byte) {
	if n != rangeSize {
		h := sha256.New()
		w.zeros(h, n)
		h.Sum(sum[:0])
		return sum
	}
	if w.zeroRange == ([32]byte{}) {
		h := sha256.New()
		w.zeros(h, n)
		h.Sum(w.zeroRange[:0])
	}
	return w.zeroRange
}
