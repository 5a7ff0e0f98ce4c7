package treecopy

import (
	"context"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Scan counts what Copy would copy. The source may be in use; what vanishes
// meanwhile is not counted.
func Scan(ctx context.Context, src *os.File, skip func(rel string) bool, workers int) (Totals, error) {
	if workers <= 0 {
		workers = 8
	}
	if skip == nil {
		skip = func(string) bool { return false }
	}
	s := &scan{src: int(src.Fd()), skip: skip, seen: map[uint64]bool{}}
	s.queue.init()
	s.queue.push(task{})
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopWaiting := context.AfterFunc(ctx, s.queue.close)
	defer stopWaiting()
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			w := newWorker(ctx, nil)
			for {
				t, ok := s.queue.pop()
				if !ok {
					return
				}
				if err := s.folder(w, t.path); err != nil {
					cancel(err)
				}
				s.queue.done()
			}
		})
	}
	all.Wait()
	runtime.KeepAlive(src)
	return s.totals, context.Cause(ctx)
}

type scan struct {
	src    int
	skip   func(string) bool
	queue  queue
	mu     sync.Mutex
	totals Totals
	seen   map[uint64]bool // inodes with several names
}

func (s *scan) folder(w *worker, path string) error {
	fd, err := openIn(s.src, path, openFolder, 0)
	if gone(err) {
		return nil
	}
	if err != nil {
		return failed("read", path, err)
	}
	defer unix.Close(fd)
	var names []string
	var kids []task
	if err := list(fd, w.dents, func(name []byte, _ uint64, kind uint8) {
		switch n := string(name); {
		case s.skip(join(path, n)):
		case kind == unix.DT_DIR:
			kids = append(kids, task{path: join(path, n)})
		default:
			names = append(names, n)
		}
	}); err != nil && !gone(err) {
		return failed("list", path, err)
	}
	var t Totals
	t.Folders = 1
	if own, err := fstat(fd); err == nil {
		t.Allocated += own.Blocks * 512
	}
	for _, n := range names {
		st, err := lstat(fd, n)
		switch {
		case gone(err):
			continue
		case err != nil:
			return failed("read", join(path, n), err)
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			kids = append(kids, task{path: join(path, n)})
			continue
		case st.Mode&unix.S_IFMT == unix.S_IFSOCK:
			continue
		}
		t.Files++
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			t.Bytes += st.Size / max(int64(st.Nlink), 1)
		}
		if st.Nlink < 2 || s.first(st.Ino) {
			t.Allocated += st.Blocks * 512
		}
	}
	s.mu.Lock()
	s.totals.Files += t.Files
	s.totals.Folders += t.Folders
	s.totals.Bytes += t.Bytes
	s.totals.Allocated += t.Allocated
	s.mu.Unlock()
	s.queue.push(kids...)
	return w.ctx.Err()
}

func (s *scan) first(ino uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[ino] {
		return false
	}
	s.seen[ino] = true
	return true
}
