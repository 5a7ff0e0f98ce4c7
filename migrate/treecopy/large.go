package treecopy

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"golang.org/x/sys/unix"
)

// largeFile is a file that is copied, or verified, by several workers at once, in
// ranges.
type largeFile struct {
	path   string
	by     source
	id     entry // the source
	src    int
	dst    int // -1: it is only read
	dstIno uint64
	holes  bool

	mu   sync.Mutex
	idle *sync.Cond
	sums [][32]byte
	done []bool
	next int
	busy int
	err  error
}

func newLarge(path string, by source, src, dst int, size int64, holes bool) *largeFile {
	n := int((size + rangeSize - 1) / rangeSize)
	l := &largeFile{path: path, by: by, src: src, dst: dst, holes: holes, sums: make([][32]byte, n), done: make([]bool, n)}
	l.id.size = size
	l.idle = sync.NewCond(&l.mu)
	return l
}

// take gives out a range that is not done, -1 if there is none.
func (l *largeFile) take() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.next < len(l.done) && l.done[l.next] {
		l.next++
	}
	if l.next == len(l.done) || l.err != nil {
		return -1
	}
	l.next++
	l.busy++
	return l.next - 1
}

// work does ranges until none is left.
func (l *largeFile) work(w *worker) {
	for i := l.take(); i >= 0; i = l.take() {
		off := int64(i) * rangeSize
		n := min(rangeSize, l.id.size-off)
		if l.dst < 0 || !l.holes {
			_ = unix.Fadvise(l.src, off, n, unix.FADV_WILLNEED)
		}
		sum, err := w.hashRange(l.by, l.src, l.dst, off, n, l.holes)
		l.mu.Lock()
		l.busy--
		if err != nil && l.err == nil {
			l.err = err
		}
		if err == nil {
			l.sums[i], l.done[i] = sum, true
		}
		if l.busy == 0 {
			l.idle.Broadcast()
		}
		l.mu.Unlock()
	}
}

// finish works and waits for the others; the hash is that of the whole file.
func (l *largeFile) finish(w *worker) (sum [32]byte, err error) {
	l.work(w)
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.busy > 0 {
		l.idle.Wait()
	}
	l.next = len(l.done)
	if l.err != nil {
		return sum, l.err
	}
	h := sha256.New()
	for i := range l.sums {
		h.Write(l.sums[i][:])
	}
	h.Sum(sum[:0])
	return sum, nil
}

// helpers are the tasks that let other workers join in.
func (l *largeFile) helpers(workers int) []task {
	tasks := make([]task, max(0, min(workers, len(l.done))-1))
	for i := range tasks {
		tasks[i].help = l
	}
	return tasks
}

// copyLarge makes a large file in dst, or goes on with what an interrupted copy
// of the same state of the file has left there.
func (c *copier) copyLarge(w *worker, v *visit, it *item, e *entry) (int, error) {
	path := join(v.path, it.name)
	old, fd, err := c.resumed(v, it)
	if err != nil {
		return -1, err
	}
	if old == nil {
		if err := c.ix.dropPartial(path); err != nil {
			return -1, err
		}
		if fd, err = c.create(w, v, it.name, it.stat.Mode); err != nil {
			return -1, err
		}
	}
	d, err := fstat(fd)
	if err != nil {
		unix.Close(fd)
		return -1, failed("read in the destination", path, err)
	}
	into := fd
	if old == nil && c.cloned(it.fd, fd) {
		into = -1
	}
	l := newLarge(path, c, it.fd, into, it.stat.Size, sparse(&it.stat))
	l.id, l.dstIno = *e, d.Ino
	if old != nil {
		for i := range l.done {
			if l.sums[i], l.done[i] = old.sums[i], old.done[i]; l.done[i] {
				c.report.resumed.Add(min(rangeSize, it.stat.Size-int64(i)*rangeSize))
			}
		}
	}
	if e.flags&flagUnsettled == 0 && into >= 0 {
		c.large.add(l)
		defer c.large.remove(l)
	}
	c.queue.push(l.helpers(c.o.Workers)...)
	if e.hash, err = l.finish(w); err != nil {
		unix.Close(fd)
		return -1, failed("copy", path, err)
	}
	return fd, nil
}

// resumed finds what there is of a large file.
func (c *copier) resumed(v *visit, it *item) (*partial, int, error) {
	path := join(v.path, it.name)
	p, err := c.ix.partial(path)
	if err != nil || p == nil || !p.id.same(&it.stat) || len(p.done) != int((it.stat.Size+rangeSize-1)/rangeSize) {
		return nil, -1, err
	}
	fd, err := openIn(v.dst, it.name, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, -1, nil //nolint:nilerr // not there: it is copied from its beginning
	}
	if d, err := fstat(fd); err != nil || d.Ino != p.dstIno || d.Mode&unix.S_IFMT != unix.S_IFREG || d.Nlink != 1 {
		unix.Close(fd)
		return nil, -1, err
	}
	return p, fd, nil
}

// largeFiles are those under way, for the checkpoints.
type largeFiles struct {
	mu  sync.Mutex
	all map[*largeFile]bool
}

func (f *largeFiles) add(l *largeFile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil {
		f.all = map[*largeFile]bool{}
	}
	f.all[l] = true
}

func (f *largeFiles) remove(l *largeFile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, l)
}

// note writes to the index which ranges are done.
func (f *largeFiles) note(x *index) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for l := range f.all {
		l.mu.Lock()
		p := partial{path: l.path, id: l.id, dstIno: l.dstIno, sums: l.sums, done: l.done}
		b := p.append(nil)
		l.mu.Unlock()
		if _, err := x.append(framePartial, b); err != nil {
			return err
		}
	}
	return nil
}

// partial is the claim about a large file under way: as long as the source is in
// the state id, these ranges of dst have these hashes.
type partial struct {
	path   string
	id     entry
	dstIno uint64
	done   []bool
	sums   [][32]byte
}

func (p *partial) append(b []byte) []byte {
	o := binary.LittleEndian
	b = o.AppendUint32(b, uint32(len(p.path)))
	b = append(b, p.path...)
	b = p.id.append(b)
	b = o.AppendUint64(b, p.dstIno)
	b = o.AppendUint32(b, uint32(len(p.done)))
	for i, done := range p.done {
		if done {
			b = append(append(b, 1), p.sums[i][:]...)
		} else {
			b = append(b, 0)
		}
	}
	return b
}

func takePartial(b []byte) (*partial, error) {
	o := binary.LittleEndian
	if len(b) < 4 || uint64(len(b)) < 4+uint64(o.Uint32(b)) {
		return nil, errFormat
	}
	n := o.Uint32(b)
	p := &partial{path: string(b[4 : 4+n])}
	b, err := p.id.take(b[4+n:], string(b))
	if err != nil || len(b) < 12 {
		return nil, errFormat
	}
	p.dstIno = o.Uint64(b)
	count := int(o.Uint32(b[8:]))
	if b = b[12:]; count > len(b) {
		return nil, errFormat
	}
	p.done, p.sums = make([]bool, count), make([][32]byte, count)
	for i := range p.done {
		if len(b) == 0 || b[0] == 1 && len(b) < 33 {
			return nil, errFormat
		}
		p.done[i] = b[0] == 1
		if b = b[1:]; p.done[i] {
			b = b[copy(p.sums[i][:], b):]
		}
	}
	return p, nil
}

// partial returns what is claimed about a large file under way.
func (x *index) partial(path string) (*partial, error) {
	x.mu.Lock()
	off, ok := x.partials[x.key(path, 0)]
	x.mu.Unlock()
	if !ok {
		return nil, nil
	}
	b, err := x.read(off, framePartial)
	if err != nil {
		return nil, err
	}
	p, err := takePartial(b)
	if err != nil || p.path != path {
		return nil, err
	}
	return p, nil
}

// dropPartial durably forgets a claim about a large file that is begun anew.
func (x *index) dropPartial(path string) error {
	x.mu.Lock()
	k := x.key(path, 0)
	_, ok := x.partials[k]
	delete(x.partials, k)
	x.mu.Unlock()
	if !ok {
		return nil
	}
	if _, err := x.append(frameDrop, (&folder{path: path}).append(nil)); err != nil {
		return err
	}
	return x.sync()
}
