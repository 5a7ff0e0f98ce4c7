package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// Sync brings <Stage>/new to hold what the source holds now. It may be killed
// at any instant and run again: a layer is believed only if its receipt says
// that it was whole, and is made anew otherwise. A second Sync after nothing
// changed reads records only.
//
// Beside a live store it takes none of the store's locks and changes nothing
// in it but the link counts of files; an image that is removed meanwhile is
// left out. On return everything staged is on disk: a power cut cannot undo it.
//
// Errors: *DamageError, ErrNoNativeOverlay, ErrBusy, or what the system said,
// wrapped (unix.ENOSPC is told so). After any of them Sync may be run again.
func Sync(ctx context.Context, o Options) (Report, error) {
	var r Report
	if err := o.check(); err != nil {
		return r, err
	}
	r, err := syncStage(ctx, &o)
	var damaged *DamageError
	if err != nil && !errors.As(err, &damaged) {
		err = fmt.Errorf("cannot stage the store: %w", err)
	}
	return r, err
}

func syncStage(ctx context.Context, o *Options) (r Report, err error) {
	snap, damage, err := readChecked(ctx, o)
	if err == nil {
		err = snap.convertible()
	}
	if err != nil {
		return r, err
	}
	if len(damage) > 0 && !o.KeepDamaged {
		r.Damage = damage
		return r, &DamageError{damage}
	}
	for _, dir := range []string{o.Stage, o.newRoot(), o.receipts(), o.tmp(),
		o.stagedFile("layers", ""), o.stagedFile("images", ""), o.stagedFile("containers", "")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return r, err
		}
	}
	unlock, err := lockStage(ctx, o)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	target, err := openTarget(o)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, target.Close(), os.RemoveAll(o.tmp())) }()
	boot, err := bootID()
	if err != nil {
		return r, err
	}
	// An image may go or come while its layers are staged: then the records
	// are read anew, and only what differs is done again.
	for try := 0; ; try++ {
		if r.Damage = damage; len(damage) > 0 && !o.KeepDamaged {
			return r, &DamageError{damage}
		}
		s := &stager{o: o, snap: snap, target: target, boot: boot}
		s.pace.PerSecond = o.BytesPerSecond
		gone, err := s.sync(ctx, &r)
		if err != nil || !gone {
			return r, err
		}
		if try == 20 {
			return r, errors.New("images kept vanishing while they were staged")
		}
		if snap, damage, err = readChecked(ctx, o); err != nil {
			return r, err
		}
	}
}

// lockStage waits up to 10 s for another Sync on this stage to end.
func lockStage(ctx context.Context, o *Options) (func() error, error) {
	f, err := os.OpenFile(filepath.Join(o.Stage, "convert.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f.Close, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(err, f.Close())
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(ErrBusy, f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// sync does one pass. It answers true when a layer or an image vanished under
// it.
func (s *stager) sync(ctx context.Context, r *Report) (bool, error) {
	want := s.snap.wanted(s.o.Containers)
	have, todo, err := s.believed(want)
	if err != nil {
		return false, err
	}
	dropped, err := s.drop(have)
	if err != nil {
		return false, err
	}
	r.DroppedLayers = append(r.DroppedLayers, dropped...)
	damage := append([]Damage(nil), r.Damage...)
	for _, l := range want {
		if rc, ok := readReceipt(s.o, l.ID); ok && have[l.ID] {
			damage = append(damage, rc.Damage...)
		}
	}
	for _, l := range todo {
		if err := s.create(l); err != nil {
			return false, err
		}
	}
	stop := s.report(todo)
	res := s.fillAll(ctx, todo)
	stop()
	r.add(res.counts)
	r.NewLayers = append(r.NewLayers, res.staged...)
	damage = append(damage, res.damage...)
	if res.err != nil || len(res.failed) > 0 {
		vanished, err := s.vanished(ctx, res.failed)
		if err != nil {
			return false, err
		}
		r.Vanished = append(r.Vanished, vanished...)
		if res.err == nil && len(vanished) > 0 {
			return true, nil
		}
		if res.err != nil && len(vanished) == 0 {
			return false, res.err
		}
		if res.err != nil {
			return true, ctx.Err()
		}
	}
	if len(damage) > 0 && !s.o.KeepDamaged {
		r.Damage = damage
		return false, &DamageError{damage}
	}
	r.Damage = damage
	err = s.seal(ctx, want, r)
	if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	now, readErr := readSnapshot(ctx, s.o.Source)
	if readErr != nil {
		return false, errors.Join(err, readErr)
	}
	for _, i := range s.snap.images {
		if !slices.ContainsFunc(now.images, func(n *image) bool { return n.dataKey() == i.dataKey() }) {
			return true, nil
		}
	}
	return false, err
}

// believed splits the wanted layers into those that are staged already and
// those to be made. A layer on a parent that has to be made anew is made anew
// too, for it names its parent's folder by a link that changes.
func (s *stager) believed(want []*layer) (have map[string]bool, todo []*layer, err error) {
	sealed, err := s.sealedLayers()
	if err != nil {
		return nil, nil, err
	}
	have = map[string]bool{}
	for _, l := range want {
		rc, ok := readReceipt(s.o, l.ID)
		ok = ok && rc.Identity == l.identity() && (rc.Boot == s.boot || sealed[l.ID] == rc.Identity)
		ok = ok && !l.container && s.target.whole(l.ID)
		if p := s.snap.below(l); p != nil && !have[p.ID] {
			ok = false
		}
		if ok {
			have[l.ID] = true
		} else {
			todo = append(todo, l)
		}
	}
	return have, todo, nil
}

// drop takes everything away that have does not name: first from the staged
// records, durably, then from disk.
func (s *stager) drop(have map[string]bool) ([]string, error) {
	if err := s.unseal(have); err != nil {
		return nil, err
	}
	names, err := os.ReadDir(s.o.receipts())
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		id, ok := cutSuffix(n.Name(), ".json")
		if !ok || !have[id] {
			if err := os.Remove(filepath.Join(s.o.receipts(), n.Name())); err != nil {
				return nil, err
			}
		}
	}
	dropped, err := s.target.sweep(have)
	if err != nil {
		return nil, err
	}
	dir := s.o.stagedFile("layers", "")
	names, err = os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		id, ok := cutSuffix(n.Name(), ".tar-split.gz")
		if !ok && !n.IsDir() || have[id] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, n.Name())); err != nil {
			return nil, err
		}
	}
	return dropped, nil
}

func cutSuffix(s, suffix string) (string, bool) {
	if len(s) > len(suffix) && s[len(s)-len(suffix):] == suffix {
		return s[:len(s)-len(suffix)], true
	}
	return s, false
}

// filled is what the workers did.
type filled struct {
	counts Counts
	staged []string
	damage []Damage
	failed []*layer // with damage or an error
	err    error    // the first that is not damage
}

// fillAll fills the layers, the largest first, several at once. Damage in one
// layer does not keep the others from being looked at; any other error stops.
func (s *stager) fillAll(ctx context.Context, todo []*layer) filled {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	queue := slices.Clone(todo)
	size := map[*layer]int64{}
	for _, l := range queue {
		if fi, err := os.Stat(l.list()); err == nil {
			size[l] = fi.Size()
		}
	}
	sort.SliceStable(queue, func(i, j int) bool { return size[queue[i]] > size[queue[j]] })
	jobs := make(chan *layer, len(queue))
	for _, l := range queue {
		jobs <- l
	}
	close(jobs)
	workers := s.o.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	var (
		out filled
		mu  sync.Mutex
		wg  sync.WaitGroup
	)
	for range min(workers, len(queue)) {
		wg.Go(func() {
			if s.o.IdleIO {
				host.IdleIO()
			}
			for l := range jobs {
				if ctx.Err() != nil {
					return
				}
				rc, err := s.layer(ctx, l)
				mu.Lock()
				var damaged *DamageError
				switch {
				case err == nil:
					out.counts.add(rc.Counts)
					out.damage = append(out.damage, rc.Damage...)
					out.staged = append(out.staged, l.ID)
					s.done.Add(1)
				case errors.As(err, &damaged):
					out.damage = append(out.damage, damaged.Damage...)
					out.failed = append(out.failed, l)
				default:
					if out.err == nil {
						out.err = err
					}
					out.failed = append(out.failed, l)
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if out.err == nil && ctx.Err() != nil {
		out.err = ctx.Err()
	}
	return out
}

// vanished looks which of the failed layers the source no longer has, or has
// come to record as a container's: their failure means nothing.
func (s *stager) vanished(ctx context.Context, failed []*layer) ([]string, error) {
	now, err := readSnapshot(ctx, s.o.Source)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range failed {
		if n := now.byID[l.ID]; n == nil || n.identity() != l.identity() || n.container && !s.o.Containers {
			out = append(out, l.ID)
		}
	}
	return out, nil
}

// report tells progress a few times a second until the returned function is
// called.
func (s *stager) report(todo []*layer) func() {
	if s.o.Progress == nil {
		return func() {}
	}
	var total int64
	for _, l := range todo {
		if fi, err := os.Stat(l.list()); err == nil {
			total += fi.Size()
		}
	}
	tell := func() {
		s.o.Progress(Progress{
			Phase: "layers", LayersDone: int(s.done.Load()), LayersTotal: len(todo), Entries: s.seen.Load(),
			Read: s.read.Load(), ReadTotal: total, BytesCopied: s.copied.Load(),
		})
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				tell()
				return
			case <-tick.C:
				tell()
			}
		}
	}()
	return func() { close(stop); <-ended }
}
