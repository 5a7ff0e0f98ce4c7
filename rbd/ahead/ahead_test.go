package ahead

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// memory is an image, and counts how often it was asked.
type memory struct {
	mu    sync.RWMutex
	data  []byte
	asked atomic.Int64
}

func (m *memory) read(p []byte, off int64) (int, error) {
	m.asked.Add(1)
	m.mu.RLock()
	defer m.mu.RUnlock()
	n := copy(p, m.data[min(off, int64(len(m.data))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) write(a *Image, p []byte, off int64) error {
	return a.Change(off, int64(len(p)), func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		copy(m.data[off:], p)
		return nil
	})
}

func newMemory(size int) *memory {
	m := &memory{data: make([]byte, size)}
	for i := range m.data {
		m.data[i] = byte(i * 7 >> 3)
	}
	return m
}

// TestFewRequests: small pieces beside each other cost two requests a chunk, and a
// lone one no more than itself.
func TestFewRequests(t *testing.T) {
	t.Parallel()
	m := newMemory(4 * chunkSize)
	a := New(m.read)
	p := make([]byte, 4096)
	for off := int64(0); off < int64(len(m.data)); off += int64(len(p)) {
		if n, err := a.ReadAt(p, off); n != len(p) || err != nil || !bytes.Equal(p, m.data[off:off+int64(n)]) {
			t.Fatal(off, n, err)
		}
	}
	if n := m.asked.Load(); n != 8 {
		t.Errorf("%d requests", n)
	}
}

// TestEnds: the end of an image, what lies behind it, and errors are told as they are.
func TestEnds(t *testing.T) {
	t.Parallel()
	m := newMemory(chunkSize + 5000)
	a := New(m.read)
	for range 3 {
		p := make([]byte, 4096)
		if n, err := a.ReadAt(p, chunkSize+4096); n != 904 || !errors.Is(err, io.EOF) {
			t.Error(n, err)
		}
		if n, err := a.ReadAt(p, chunkSize-1); n != 4096 || err != nil || !bytes.Equal(p, m.data[chunkSize-1:][:4096]) {
			t.Error(n, err)
		}
	}
	m.data = append(m.data, newMemory(chunkSize).data...) // it was grown
	p := make([]byte, 4096)
	if n, err := a.ReadAt(p, chunkSize+4096); n != 4096 || err != nil {
		t.Error(n, err)
	}
	broken := errors.New("broken")
	fail := true
	a = New(func(p []byte, off int64) (int, error) {
		if fail {
			return 0, broken
		}
		return m.read(p, off)
	})
	for range 3 {
		if _, err := a.ReadAt(p, 0); !errors.Is(err, broken) {
			t.Error(err)
		}
	}
	fail = false
	if n, err := a.ReadAt(p, 0); n != len(p) || err != nil {
		t.Errorf("an error is not remembered: %d %v", n, err)
	}
}

// TestBounded: no more is kept than is said.
func TestBounded(t *testing.T) {
	t.Parallel()
	m := &memory{data: make([]byte, 3*chunksKept*chunkSize)}
	a := New(m.read)
	for range 2 {
		for n := range 3 * chunksKept {
			for i := range int64(2) {
				if _, err := a.ReadAt(make([]byte, 512), int64(n)*chunkSize+512*i); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for n := range int64(3 * touchesKept) {
		_, _ = a.ReadAt(make([]byte, 512), n*chunkSize)
	}
	if len(a.chunks) > chunksKept || a.used.Len() != len(a.chunks) || len(a.touched) > touchesKept || len(a.touches) > touchesKept {
		t.Error(len(a.chunks), a.used.Len(), len(a.touched), len(a.touches))
	}
}

// TestOvertaken: a chunk whose reading began before a write is given to nobody who asks
// after it, whenever its reading ends.
func TestOvertaken(t *testing.T) {
	t.Parallel()
	m := newMemory(chunkSize)
	began, goOn := make(chan struct{}), make(chan struct{})
	a := New(func(p []byte, off int64) (int, error) {
		n, err := m.read(p, off)
		if len(p) == chunkSize && m.asked.Load() == 2 {
			close(began)
			<-goOn
		}
		return n, err
	})
	p := make([]byte, 512)
	if _, err := a.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	var slow sync.WaitGroup
	slow.Go(func() { _, _ = a.ReadAt(make([]byte, 512), 0) })
	<-began
	want := bytes.Repeat([]byte{0xAB}, 512)
	if err := m.write(a, want, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := a.ReadAt(p, 0); err != nil || !bytes.Equal(p, want) {
			t.Fatalf("what was there before the write: %x %v", p[0], err)
		}
	}
	close(goOn)
	slow.Wait()
	if _, err := a.ReadAt(p, 0); err != nil || !bytes.Equal(p, want) {
		t.Fatalf("the reading that was overtaken is kept: %x %v", p[0], err)
	}
}

// TestRandom: many readers and writers at once, each writer in sectors of its own, which
// it reads back at once; and in the end all is as it is in the image.
func TestRandom(t *testing.T) {
	t.Parallel()
	m := newMemory(6 * chunkSize)
	a := New(m.read)
	const writers, sector = 4, 512
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(w)))
			p, got := make([]byte, sector), make([]byte, sector)
			for i := range 500 {
				off := int64(rnd.IntN(len(m.data)/sector/writers)*writers+w) * sector
				for k := range p {
					p[k] = byte(i)
				}
				if err := m.write(a, p, off); err != nil {
					t.Error(err)
				}
				if n, err := a.ReadAt(got, off); n != sector || err != nil || !bytes.Equal(p, got) {
					t.Errorf("writer %d reads back %x at %d, wrote %x: %v", w, got[0], off, p[0], err)
					return
				}
				_, _ = a.ReadAt(got, int64(rnd.IntN(len(m.data)-sector)))
			}
		})
	}
	all.Wait()
	p := make([]byte, 4096)
	for off := int64(0); off < int64(len(m.data)); off += int64(len(p)) {
		if _, err := a.ReadAt(p, off); err != nil || !bytes.Equal(p, m.data[off:][:len(p)]) {
			t.Fatal(off, err)
		}
	}
}
