package treecopy

import (
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/storagectl/storagectl/internal/host"
)

// VerifyOptions of Verify; as in Options.
type VerifyOptions struct {
	Index          string
	Skip           func(rel string) bool
	LastOnly       bool // only what was written since the last complete Copy but one
	Workers        int
	BytesPerSecond int64
	IdleIO         bool
	Progress       func(Progress)
}

// VerifyReport of a Verify.
type VerifyReport struct {
	Files     int64        `json:"files"` // all that is not a folder
	Folders   int64        `json:"folders"`
	Bytes     int64        `json:"bytes"` // read
	Differing int64        `json:"differing"`
	Examples  []Difference `json:"examples,omitempty"` // at most 50
	Seconds   float64      `json:"seconds"`
}

// Difference is one way in which the destination is not as it was written.
type Difference struct {
	Path string `json:"path"`
	What string `json:"what"` // "missing", "unexpected", "content", "mode", "owner", …
}

// Verify reads what dst has and compares it with what Copy noted when it read the
// source: names, kinds, contents, owners, modes, times, attributes, and which
// names are of one file. If anything differs the error is ErrDiffers; the claims
// about the folders with differences and about all names of a differing file
// are dropped, so that the next Copy makes them anew.
//
// File data is dropped from the page cache before it is read: what is compared
// comes from the block device (or the network filesystem's client), which may
// have a cache of its own. Names and attributes may come from memory.
func Verify(ctx context.Context, dst *os.File, o VerifyOptions) (VerifyReport, error) {
	start := time.Now()
	if o.Workers <= 0 {
		o.Workers = 16
	}
	if o.Skip == nil {
		o.Skip = func(string) bool { return false }
	}
	x, made, err := openIndex(o.Index, false)
	if err != nil {
		return VerifyReport{}, err
	}
	defer x.close()
	if made || !x.complete {
		return VerifyReport{}, ErrIncomplete
	}
	root, err := rootOf(int(dst.Fd()))
	if err != nil {
		return VerifyReport{}, failed("read the destination", "", err)
	}
	if root != x.head.dst {
		return VerifyReport{}, ErrOtherTree
	}
	if err := failedSync(syncfs(int(dst.Fd()))); err != nil {
		return VerifyReport{}, err
	}
	total := x.totals
	if o.LastOnly {
		total = Totals{}
	}
	v := &verifier{
		o: o, dst: int(dst.Fd()), ix: x, meter: startMeter(total, o.Progress),
		read1: map[uint64]bool{}, bad: map[uint64]bool{}, drop: map[string]bool{},
	}
	v.pace.PerSecond = o.BytesPerSecond
	v.meter.enter("verify")
	err = v.run(ctx)
	v.meter.end()
	v.report.Files, v.report.Bytes = v.meter.files.Load(), v.meter.copied.Load()
	v.report.Seconds = time.Since(start).Seconds()
	runtime.KeepAlive(dst)
	if err == nil && v.report.Differing > 0 {
		if err = v.distrust(); err == nil {
			d := v.report.Examples[0]
			err = fmt.Errorf("%w: %d differences, the first: %q: %s", ErrDiffers, v.report.Differing, d.Path, d.What)
		}
	}
	return v.report, err
}

type verifier struct {
	o     VerifyOptions
	dst   int
	ix    *index
	pace  host.Pace
	meter *meter
	queue queue

	mu     sync.Mutex
	report VerifyReport
	read1  map[uint64]bool // files with several names whose content was read
	bad    map[uint64]bool // of these, the differing ones, by inode in dst
	drop   map[string]bool // folders whose claims are not true
}

func (v *verifier) read(w *worker, n int64) error {
	v.meter.copied.Add(n)
	return v.pace.Take(w.ctx, n)
}

// run feeds the workers with the folders in the order in which they were written,
// which is about that of the disk.
func (v *verifier) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if n := runtime.GOMAXPROCS(0); n < v.o.Workers {
		runtime.GOMAXPROCS(v.o.Workers)
		defer runtime.GOMAXPROCS(n)
	}
	v.queue.init()
	v.queue.active = 1 // the feeder
	stopWaiting := context.AfterFunc(ctx, v.queue.close)
	defer stopWaiting()
	room := make(chan struct{}, 4*v.o.Workers)
	var all sync.WaitGroup
	for range v.o.Workers {
		all.Go(func() {
			if v.o.IdleIO {
				host.IdleIO()
			}
			w := newWorker(ctx, v.ix.mac)
			for {
				t, ok := v.queue.pop()
				if !ok {
					return
				}
				if t.help != nil {
					t.help.work(w)
				} else {
					if err := v.folder(w, t.check); err != nil {
						cancel(err)
					}
					<-room
				}
				v.queue.done()
			}
		})
	}
	_, err := v.ix.frames(func(off int64, kind byte, b []byte) error {
		if kind != frameFolder {
			return nil
		}
		f, err := takeFolder(b, nil)
		if err != nil {
			return err
		}
		if at, ok := v.ix.folders[v.ix.key(f.path, f.shard)]; !ok || at.off != off {
			return nil // replaced by a later one
		}
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		v.queue.push(task{check: f})
		return nil
	})
	if err != nil {
		cancel(err)
	}
	v.queue.done()
	all.Wait()
	return context.Cause(ctx)
}

// differs notes a difference.
func (v *verifier) differs(folder, path, what string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Differing++
	v.drop[folder] = true
	if path == "" {
		path = "."
	}
	if len(v.report.Examples) < 50 {
		v.report.Examples = append(v.report.Examples, Difference{path, what})
	}
}

// distrust drops the claims that are not true.
func (v *verifier) distrust() error {
	if _, err := v.ix.frames(func(_ int64, kind byte, b []byte) error {
		if kind != frameFolder || len(v.bad) == 0 {
			return nil
		}
		f, err := takeFolder(b, nil)
		if err != nil {
			return err
		}
		for i := range f.entries {
			if e := &f.entries[i]; e.dstIno != 0 && v.bad[e.dstIno] {
				v.drop[f.path] = true
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if err := v.ix.drop(slices.Collect(maps.Keys(v.drop))...); err != nil {
		return fmt.Errorf("cannot drop claims: %w", err)
	}
	return nil
}
