package treecopy

import (
	"cmp"
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// How much is risked between two checkpoints.
const checkpointEvery = 5 * time.Second

// copier is one Copy under way.
type copier struct {
	o        Options
	src, dst int
	srcDev   uint64
	ids      ids
	ix       *index
	pass     uint32
	began    stamp // what changed in the source at or after it is not settled
	clone    atomic.Bool
	pace     host.Pace
	meter    *meter
	queue    queue
	large    largeFiles
	report   counters
}

type counters struct {
	files, folders, symlinks, devices, fifos, sockets, links atomic.Int64
	copied, unchanged, removed, unsettled, bytes, resumed    atomic.Int64
}

// worker holds what one worker uses again and again.
type worker struct {
	ctx     context.Context
	own     []task
	buf     []byte // file data
	dents   []byte
	xattrs  []byte
	scratch []byte

	mac   cipher.AEAD
	nonce [12]byte
	out   [16]byte
	none  []byte // the tag of a block of zeros
}

func newWorker(ctx context.Context, mac cipher.AEAD) *worker {
	return &worker{
		ctx: ctx, mac: mac, buf: make([]byte, blockSize), dents: make([]byte, 32<<10), xattrs: make([]byte, 64<<10),
	}
}

// Copy makes dst equal to src; both are open folders, and everything below is
// reached by way of them: no symbolic link is followed, no other mount entered.
// Called again with the same index it copies what changed since and removes what
// is gone, and after an interruption it goes on where the last checkpoint was.
// When it returns nil all is durable in dst.
//
// Without Options.Strict the source may be in use: what changes or vanishes while
// it is copied is no error, and is settled by the next pass.
func Copy(ctx context.Context, src, dst *os.File, o Options) (Report, error) {
	start := time.Now()
	if o.Workers <= 0 {
		o.Workers = 16
		if o.Strict {
			o.Workers = 32
		}
	}
	if o.Skip == nil {
		o.Skip = func(string) bool { return false }
	}
	c := &copier{o: o, src: int(src.Fd()), dst: int(dst.Fd())}
	c.pace.PerSecond = o.BytesPerSecond
	if err := c.prepare(); err != nil {
		return Report{}, err
	}
	defer c.ix.close()
	total := o.Expect
	if total == (Totals{}) {
		total = c.ix.totals
	}
	c.meter = startMeter(total, o.Progress)
	err := c.run(ctx)
	c.meter.end()
	report := c.reported()
	report.Seconds = time.Since(start).Seconds()
	runtime.KeepAlive(src)
	runtime.KeepAlive(dst)
	return report, err
}

// prepare opens the index and sees that it belongs to these trees.
func (c *copier) prepare() error {
	s, err := fstat(c.src)
	if err != nil {
		return failed("read", "", err)
	}
	c.srcDev = s.Dev
	d, err := fstat(c.dst)
	if err != nil {
		return failed("read the destination", "", err)
	}
	c.clone.Store(s.Dev == d.Dev)
	if c.ids, err = readIDs(); err != nil {
		return fmt.Errorf("cannot read the id maps: %w", err)
	}
	var head header
	if head.src, err = rootOf(c.src); err != nil {
		return failed("read", "", err)
	}
	if head.dst, err = rootOf(c.dst); err != nil {
		return failed("read the destination", "", err)
	}
	x, made, err := openIndex(c.o.Index, true)
	if err != nil {
		return err
	}
	c.ix = x
	if err := c.bind(head, made); err != nil {
		x.close()
		return err
	}
	return nil
}

func (c *copier) bind(head header, made bool) error {
	if !made && (c.ix.head.src != head.src || c.ix.head.dst != head.dst) {
		return ErrOtherTree
	}
	there := map[string]bool{}
	if err := list(c.dst, make([]byte, 32<<10), func(name []byte, _ uint64, _ uint8) {
		if n := string(name); !c.o.Skip(n) {
			there[n] = true
		}
	}); err != nil {
		return failed("list the destination", "", err)
	}
	if made {
		if len(there) > 0 {
			return ErrNotEmpty
		}
		if err := c.ix.begin(head); err != nil {
			return err
		}
	} else if err := c.ix.believe(there); err != nil {
		return err
	}
	c.pass = c.ix.pass
	if c.ix.complete || c.pass == 0 {
		c.pass++
	}
	return c.ix.beginPass(c.pass)
}

// run is Copy from the first byte on.
func (c *copier) run(ctx context.Context) error {
	c.meter.enter("sync source")
	if err := c.mark(ctx); err != nil {
		return err
	}
	if err := syncfs(c.src); err != nil {
		return failed("sync the filesystem of", "", err)
	}
	c.meter.enter("copy")
	if err := c.work(ctx); err != nil {
		return err
	}
	c.meter.enter("sync")
	if err := c.ix.dropUnseen(); err != nil {
		return err
	}
	return c.ix.confirm(true, Totals{
		Files: c.meter.files.Load(), Folders: c.report.folders.Load(), Bytes: c.report.bytes.Load(),
	}, func() error { return failedSync(syncfs(c.dst)) })
}

// mark sets c.began. An mmap'ed page that is already dirty can be written again
// without a new ctime, until it was written back. So all that changed before this
// moment shows in ctime after a syncfs; what bears a later ctime is unsettled.
func (c *copier) mark(ctx context.Context) (err error) {
	// A remote source's ctimes may come from another clock. One that is behind ours,
	// by so many seconds at most, must not have a change look settled.
	skew := int64(0)
	if remote(c.src) {
		skew = 2
	}
	if !c.o.Strict {
		c.began, err = coarse()
	} else {
		// What was written just before a strict pass is none of the changes that it
		// refuses: it waits until that is older than c.began, where the clocks are
		// equal or the server's is behind. Of a server that is ahead, what was written
		// in the time that it is ahead by is refused although nobody changed it since.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(skew) * time.Second):
		}
		c.began, err = caughtUp(ctx)
	}
	c.began.sec -= skew
	return err
}

func failedSync(err error) error {
	if err != nil {
		return fmt.Errorf("cannot sync the destination: %w", err)
	}
	return nil
}

// work lets the workers loose on the root, with a checkpoint now and then.
func (c *copier) work(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Each worker spends its time in system calls, where Go would otherwise wait
	// for its monitor to notice before another worker may run.
	if n := runtime.GOMAXPROCS(0); n < c.o.Workers {
		runtime.GOMAXPROCS(c.o.Workers)
		defer runtime.GOMAXPROCS(n)
	}
	c.queue.init()
	c.queue.push(task{})
	stopWaiting := context.AfterFunc(ctx, c.queue.close)
	defer stopWaiting()
	var workers, keeper sync.WaitGroup
	for range c.o.Workers {
		workers.Go(func() {
			if c.o.IdleIO {
				host.IdleIO()
			}
			w := newWorker(ctx, c.ix.mac)
			for {
				t, ok := c.queue.pop()
				if !ok {
					return
				}
				w.own = append(w.own, t)
				if err := c.settle(w); err != nil {
					cancel(err)
				}
				c.queue.done()
			}
		})
	}
	done := make(chan struct{})
	keeper.Go(func() {
		tick := time.NewTicker(cmp.Or(c.o.checkpoint, checkpointEvery))
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-ctx.Done():
				return
			case <-tick.C:
				if err := c.checkpoint(); err != nil {
					cancel(err)
				}
			}
		}
	})
	workers.Wait()
	close(done)
	keeper.Wait()
	c.queue.drop()
	return context.Cause(ctx)
}

// settle does what the worker has, and all that comes of it. It shares only with
// who has nothing: to pass each folder through the queue costs more than to
// look at it.
func (c *copier) settle(w *worker) error {
	for len(w.own) > 0 {
		if n := len(w.own) / 2; n > 0 && c.queue.hungry.Load() > 0 {
			c.queue.push(w.own[:n]...) // the first are the highest, with the most below them
			w.own = append(w.own[:0], w.own[n:]...)
		}
		t := w.own[len(w.own)-1]
		w.own = w.own[:len(w.own)-1]
		if err := c.do(w, t); err != nil {
			abandon(w.own)
			w.own = nil
			return err
		}
	}
	return nil
}

func (c *copier) do(w *worker, t task) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	switch {
	case t.help != nil:
		t.help.work(w)
		return nil
	case t.rest != nil:
		return c.shard(w, t.rest)
	default:
		return c.folder(w, t)
	}
}

// checkpoint makes what was copied so far durable, and the index say so.
func (c *copier) checkpoint() error {
	if err := c.large.note(c.ix); err != nil {
		return err
	}
	return c.ix.confirm(false, Totals{}, func() error { return failedSync(syncfs(c.dst)) })
}

// changing says that the source changed since this pass began. A ctime that lies
// in the future was made by a clock that was wrong, not by a change during it.
func (c *copier) changing(ctime stamp) bool {
	if ctime.before(c.began) {
		return false
	}
	now := stampOf(unix.NsecToTimespec(time.Now().Add(2 * time.Second).UnixNano()))
	return ctime.before(now)
}

// unsettled counts what moved under our hands, or refuses it.
func (c *copier) unsettled(path string) error {
	if c.o.Strict {
		return failed("copy", path, ErrChanged)
	}
	c.report.unsettled.Add(1)
	return nil
}

// vanished handles an error of looking at a listed name.
func (c *copier) vanished(path string, err error) error {
	if gone(err) {
		return c.unsettled(path)
	}
	if errors.Is(err, unix.EPERM) && !c.ids.all {
		err = ErrUnmapped // of O_NOATIME: see open(2)
	}
	return failed("read", path, err)
}

func (c *copier) reported() Report {
	r := &c.report
	return Report{
		Pass: int(c.pass), Files: r.files.Load(), Folders: r.folders.Load(), Symlinks: r.symlinks.Load(),
		Devices: r.devices.Load(), Fifos: r.fifos.Load(), Sockets: r.sockets.Load(), Links: r.links.Load(),
		Copied: r.copied.Load(), Unchanged: r.unchanged.Load(), Removed: r.removed.Load(),
		Unsettled: r.unsettled.Load(), Bytes: r.bytes.Load(), CopiedBytes: c.meter.copied.Load(),
		ResumedBytes: r.resumed.Load(),
	}
}

// remote filesystems stamp files with a server's clock.
func remote(fd int) bool {
	var s unix.Statfs_t
	if err := unix.Fstatfs(fd, &s); err != nil {
		return true
	}
	switch s.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.F2FS_SUPER_MAGIC:
		return false
	}
	return true
}
