package treecopy

import (
	"sync"
	"sync/atomic"
)

// task is a folder, the rest of a very large folder, or a large file to help with.
type task struct {
	path  string
	fresh bool // the folder was made in this pass: the destination has nothing in it
	rest  *visit
	check *folder // of Verify
	help  *largeFile
}

// queue gives out what came last first, so that what waits stays little: a tree is
// walked in depth.
type queue struct {
	mu     sync.Mutex
	ready  *sync.Cond
	tasks  []task
	active int
	closed bool

	hungry atomic.Int32 // workers that wait
}

func (q *queue) init() { q.ready = sync.NewCond(&q.mu) }

func (q *queue) push(tasks ...task) {
	q.mu.Lock()
	q.tasks = append(q.tasks, tasks...)
	q.mu.Unlock()
	if len(tasks) == 1 {
		q.ready.Signal()
	} else {
		q.ready.Broadcast()
	}
}

// pop waits for a task; not ok: there will be none any more. Each task that was
// got is ended with done.
func (q *queue) pop() (task, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.tasks) == 0 && q.active > 0 && !q.closed {
		q.hungry.Add(1)
		q.ready.Wait()
		q.hungry.Add(-1)
	}
	if len(q.tasks) == 0 || q.closed {
		return task{}, false
	}
	t := q.tasks[len(q.tasks)-1]
	q.tasks[len(q.tasks)-1] = task{}
	q.tasks = q.tasks[:len(q.tasks)-1]
	q.active++
	return t, true
}

func (q *queue) done() {
	q.mu.Lock()
	q.active--
	last := q.active == 0 && len(q.tasks) == 0
	q.mu.Unlock()
	if last {
		q.ready.Broadcast()
	}
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.ready.Broadcast()
}

// drop gives up what is left.
func (q *queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	abandon(q.tasks)
	q.tasks = nil
}

func abandon(tasks []task) {
	for _, t := range tasks {
		if t.rest != nil {
			t.rest.close()
		}
	}
}
