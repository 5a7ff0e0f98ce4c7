// Package ahead reads an image in larger pieces than it is asked for, where small
// pieces beside each other are wanted.
package ahead

import (
	"container/list"
	"sync"
)

const (
	// chunkSize is how much is read at once where small pieces beside each other are
	// asked for: a request costs the cluster more than its bytes.
	chunkSize = 1 << 20
	// chunksKept bounds the memory: 16 MiB.
	chunksKept = 16
	// touchesKept is how many places are remembered as asked for once.
	touchesKept = 1024
)

// Reader reads, as [io.ReaderAt] does.
type Reader func(p []byte, off int64) (int, error)

// Image reads a whole chunk when a second small piece of it is asked for. Nobody
// else writes to an image whose exclusive lock is held, so that what was read is
// true until a write of our own.
type Image struct {
	read Reader

	mu      sync.Mutex
	chunks  map[int64]*list.Element // of *chunk, by number
	used    *list.List              // the one used last is first
	touched map[int64]bool
	touches []int64 // in the order in which they came
}

// chunk is a part of the image that was read, or is being read.
type chunk struct {
	number int64
	done   chan struct{} // closed once data and err stand
	data   []byte
	err    error
}

// New makes an Image of what read reads.
func New(read Reader) *Image {
	return &Image{read: read, chunks: map[int64]*list.Element{}, used: list.New(), touched: map[int64]bool{}}
}

// ReadAt reads what was written before it was called.
func (a *Image) ReadAt(p []byte, off int64) (int, error) {
	number, in := off/chunkSize, off%chunkSize
	if in+int64(len(p)) > chunkSize || len(p) > chunkSize/2 {
		return a.read(p, off)
	}
	c, mine := a.chunk(number)
	if mine {
		a.fill(c)
	}
	if c != nil {
		<-c.done
		if c.err == nil && len(c.data) == chunkSize {
			return copy(p, c.data[in:]), nil
		}
	}
	return a.read(p, off) // the end of the image, or an error that is to be told of these bytes
}

// chunk gives the chunk of a number, and whether the caller is to fill it; nil at the
// first touch.
func (a *Image) chunk(number int64) (c *chunk, mine bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.chunks[number]; e != nil {
		a.used.MoveToFront(e)
		return e.Value.(*chunk), false
	}
	if !a.touched[number] {
		a.touched[number] = true
		if a.touches = append(a.touches, number); len(a.touches) > touchesKept {
			delete(a.touched, a.touches[0])
			a.touches = a.touches[1:]
		}
		return nil, false
	}
	c = &chunk{number: number, done: make(chan struct{})}
	a.chunks[number] = a.used.PushFront(c)
	if a.used.Len() > chunksKept {
		a.drop(a.used.Back())
	}
	return c, true
}

func (a *Image) fill(c *chunk) {
	defer close(c.done)
	buf := make([]byte, chunkSize)
	n, err := a.read(buf, c.number*chunkSize)
	c.data, c.err = buf[:n], err
	if err == nil && n == chunkSize {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.chunks[c.number]; e != nil && e.Value == any(c) {
		a.drop(e)
	}
}

// drop forgets a chunk; who waits for it still gets it. mu is held.
func (a *Image) drop(e *list.Element) {
	a.used.Remove(e)
	delete(a.chunks, e.Value.(*chunk).number)
}

// Change does something to a part of the image. What is read from when it returns on
// is new: a chunk whose reading began before is given to nobody who asks later.
func (a *Image) Change(off, length int64, do func() error) error {
	a.forget(off, length)
	defer a.forget(off, length)
	return do()
}

func (a *Image) forget(off, length int64) {
	if length <= 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	first, last := off/chunkSize, (off+length-1)/chunkSize
	for e := a.used.Front(); e != nil; {
		next := e.Next()
		if n := e.Value.(*chunk).number; first <= n && n <= last {
			a.drop(e)
		}
		e = next
	}
}
