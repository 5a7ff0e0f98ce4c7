package treecopy

import "sync"

// links knows for each source inode with several names where in the index its
// first copied name stands. One worker copies such a file; others that come by
// another name of it meanwhile wait.
type links struct {
	mu      sync.Mutex
	done    *sync.Cond
	known   map[uint64]int64
	pending map[uint64]struct{}
}

func (l *links) init() {
	l.done = sync.NewCond(&l.mu)
	l.known, l.pending = map[uint64]int64{}, map[uint64]struct{}{}
}

// get returns the place of the file's first name, or mine: the caller copies it
// and calls set, whatever comes of it. A place that proved wrong is given as not.
func (l *links) get(ino uint64, not int64) (off int64, mine bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if _, busy := l.pending[ino]; !busy {
			break
		}
		l.done.Wait()
	}
	if off, ok := l.known[ino]; ok && off != not {
		return off, false
	}
	l.pending[ino] = struct{}{}
	return 0, true
}

// set ends what get gave to the caller; off < 0: nothing was copied.
func (l *links) set(ino uint64, off int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pending, ino)
	if off >= 0 {
		l.known[ino] = off
	} else {
		delete(l.known, ino)
	}
	l.done.Broadcast()
}
