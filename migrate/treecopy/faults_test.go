package treecopy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTornIndex: an index that ends at any byte claims nothing false, and the next
// call ends with both equal.
func TestTornIndex(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	forest(t, filepath.Join(p.src, "f"), 2, 2)
	must(t, os.Link(filepath.Join(p.src, "f/d0/0/0"), filepath.Join(p.src, "linked")))
	settle()
	p.copy(Options{})
	write(t, filepath.Join(p.src, "f/d0/0/1"), "changed")
	must(t, os.RemoveAll(filepath.Join(p.src, "f/d1")))
	write(t, filepath.Join(p.src, "new"), "new")
	settle()
	p.copy(Options{Strict: true})
	whole, err := os.ReadFile(p.idx)
	must(t, err)
	for n := range len(whole) {
		for _, tail := range []string{"", "garbage that was never written"} {
			if tail != "" && n%20 != 0 {
				continue
			}
			must(t, os.WriteFile(p.idx, append(whole[:n:n], tail...), 0o600))
			_, err := p.try(t.Context(), Options{Workers: 2})
			if err != nil && n < frameOverhead+headerSize {
				continue // not even the header: refused, as there is no telling whose it is
			}
			must(t, err)
			equal(t, p.src, p.dst)
		}
	}
	// Damage in the middle loses the claims behind it, no more.
	for n := frameOverhead + headerSize; n < len(whole); n += 23 {
		b := append([]byte(nil), whole...)
		b[n] ^= 0x55
		must(t, os.WriteFile(p.idx, b, 0o600))
		if _, err := p.try(t.Context(), Options{}); err != nil {
			t.Fatalf("byte %d: %v", n, err)
		}
		equal(t, p.src, p.dst)
	}
}

// TestQuietEdits: changes that tools which go by size and mtime do not see.
func TestQuietEdits(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	file, mapped := filepath.Join(p.src, "file"), filepath.Join(p.src, "mapped")
	write(t, file, "before")
	write(t, mapped, strings.Repeat("m", 8192))
	fd, err := unix.Open(mapped, unix.O_RDWR, 0)
	must(t, err)
	mem, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	settle()
	mem[0] = 'A' // the page is dirty from here on
	p.copy(Options{})
	info, err := os.Stat(file)
	must(t, err)
	write(t, file, "after!")
	must(t, os.Chtimes(file, info.ModTime(), info.ModTime()))
	mem[0] = 'B'
	settle()
	p.copy(Options{Strict: true})
	equal(t, p.src, p.dst)
	must(t, unix.Munmap(mem), unix.Close(fd))
}

// TestMovedAwayAndBack: a folder that was removed from the destination comes back
// with the very inodes and times that an old claim was about.
func TestMovedAwayAndBack(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	aside := filepath.Join(filepath.Dir(p.src), "aside")
	forest(t, filepath.Join(p.src, "f"), 20, 3)
	must(t, os.Link(filepath.Join(p.src, "f/d1/1/0"), filepath.Join(p.src, "f/d1/1/link")))
	settle()
	for range 2 {
		p.copy(Options{})
		must(t, os.Rename(filepath.Join(p.src, "f/d1"), aside))
		settle()
		p.copy(Options{})
		equal(t, p.src, p.dst)
		must(t, os.Rename(aside, filepath.Join(p.src, "f/d1")))
		settle()
		p.copy(Options{})
		equal(t, p.src, p.dst)
	}
	// And where somebody else removed it from the destination, root and all.
	must(t, os.RemoveAll(filepath.Join(p.dst, "f")))
	p.copy(Options{Strict: true})
	equal(t, p.src, p.dst)
	p.verified()
}

// TestStrict: a pass two during which something changes is refused; pass one is not.
func TestStrict(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	forest(t, filepath.Join(p.src, "f"), 20, 20)
	settle()
	p.copy(Options{})
	for _, change := range []func(){
		func() { write(t, filepath.Join(p.src, "f/d3/3/3"), fmt.Sprint(time.Now())) },
		func() { must(t, os.Remove(filepath.Join(p.src, "f/d3/3/4"))) },
		func() { must(t, os.Mkdir(filepath.Join(p.src, "f/d3/3/new"), 0o700)) },
	} {
		settle()
		calls := 0 // the second for "f" comes when the pass has begun
		o := Options{Strict: true, Workers: 1, Skip: func(rel string) bool {
			if rel == "f" {
				if calls++; calls == 2 {
					change()
				}
			}
			return false
		}}
		if _, err := p.try(t.Context(), o); !errors.Is(err, ErrChanged) {
			t.Fatal(err)
		}
		settle()
		p.copy(Options{Strict: true})
		equal(t, p.src, p.dst)
	}
}

// TestJustBefore: what changed right before a strict pass did not change during it,
// also where the kernel stamps it by its finest clock: what was looked at since its
// last change, from Linux 6.13 on.
func TestJustBefore(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			p := mountPair(t, kind, "", 320<<20)
			file := filepath.Join(p.src, "file")
			for i := range 30 {
				write(t, file, fmt.Sprint(i))
				if i%2 == 1 {
					_, err := os.Stat(file)
					must(t, err)
					write(t, file, fmt.Sprint(i, "again"))
				}
				p.copy(Options{Strict: true})
			}
			equal(t, p.src, p.dst)
		})
	}
}

// TestCaughtUp: what changed before the wait is older than the moment that it gives,
// what changes after it is not.
func TestCaughtUp(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	file := filepath.Join(p.src, "file")
	changed := func(content string) stamp {
		t.Helper()
		write(t, file, content)
		var s unix.Stat_t
		must(t, unix.Stat(file, &s)) // the next change is stamped finely
		return stampOf(s.Ctim)
	}
	for i := range 100 {
		before := changed(fmt.Sprint(i))
		began, err := caughtUp(t.Context())
		must(t, err)
		if after := changed(fmt.Sprint(i, "after")); !before.before(began) || after.before(began) {
			t.Fatalf("changed at %v, began at %v, changed at %v", before, began, after)
		}
	}
}

// TestFutureTimes: files whose ctime lies ahead, from a clock that was wrong, are
// no change. (ctime cannot be set: the pass is given a past that lies further back.)
func TestFutureTimes(t *testing.T) {
	t.Parallel()
	c := &copier{began: stamp{sec: time.Now().Unix() - 10}}
	for ahead, want := range map[int64]bool{-20: false, -10: true, -1: true, 0: true, 60: false, 1e9: false} {
		if got := c.changing(stamp{sec: time.Now().Unix() + ahead}); got != want {
			t.Errorf("%d s ahead: %v", ahead, got)
		}
	}
}

// TestLateSize: ceph-fuse tells late how much lies below a folder. That is no change.
func TestLateSize(t *testing.T) {
	t.Parallel()
	for mode, want := range map[uint32]bool{unix.S_IFDIR: true, unix.S_IFREG: false, unix.S_IFLNK: false} {
		was, now := unix.Stat_t{Mode: mode, Size: 1}, unix.Stat_t{Mode: mode, Size: 2}
		e := entryOf("", &was)
		if got := sameStat(&was, &now); got != want {
			t.Errorf("mode %o: the two looks: %v", mode, got)
		}
		if got := e.same(&now); got != want {
			t.Errorf("mode %o: the claim: %v", mode, got)
		}
	}
}

// TestFull: a destination that fills up is a clean error; with more room the copy
// goes on.
func TestFull(t *testing.T) {
	t.Parallel()
	for kind, room := range map[string]int{"xfs": 300 << 20, "ext4": 64 << 20} {
		t.Run(kind, func(t *testing.T) {
			p := mountPair(t, "", kind, int64(room))
			forest(t, filepath.Join(p.src, "f"), 100, 30)
			holes(t, filepath.Join(p.src, "sparse"), 1<<30, 0)
			before := listing(t, p.src, "sparse")
			big(t, filepath.Join(p.src, "large"), room*4/10, 1)
			big(t, filepath.Join(p.src, "large2"), room*6/10, 2)
			settle()
			for range 2 {
				_, err := p.try(t.Context(), Options{checkpoint: 20 * time.Millisecond})
				if !errors.Is(err, unix.ENOSPC) {
					t.Fatal(err)
				}
				p.claimsHold()
			}
			must(t, os.Remove(filepath.Join(p.src, "large2")))
			settle()
			p.copy(Options{Strict: true})
			equal(t, p.src, p.dst, "sparse")
			p.verified()
			must(t, os.Remove(filepath.Join(p.src, "large")))
			for path, line := range listing(t, p.src, "sparse") {
				if path != "." && before[path] != line {
					t.Errorf("the source was touched: %s", path)
				}
			}
		})
	}
}

// TestCancelled: a copy that is cut short goes on where it was, in the middle of a
// large file, too.
func TestCancelled(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	big(t, filepath.Join(p.src, "large"), 200<<20, 1)
	settle()
	ctx, cancel := context.WithCancel(t.Context())
	o := Options{BytesPerSecond: 40 << 20, Workers: 2, checkpoint: 10 * time.Millisecond}
	o.Progress = func(n Progress) {
		if n.Copied > 120<<20 {
			cancel()
		}
	}
	if _, err := p.try(ctx, o); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	p.claimsHold()
	r := p.copy(Options{})
	if r.ResumedBytes < 32<<20 || r.ResumedBytes+r.CopiedBytes != 200<<20 {
		t.Errorf("%+v", r)
	}
	equal(t, p.src, p.dst)
	p.verified()
}

// TestRate: the limit holds.
func TestRate(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	big(t, filepath.Join(p.src, "large"), 30<<20, 1)
	forest(t, filepath.Join(p.src, "f"), 30, 30)
	r := p.copy(Options{BytesPerSecond: 20 << 20, IdleIO: true})
	if rate := float64(r.CopiedBytes) / r.Seconds; rate > 23<<20 || r.CopiedBytes < 30<<20 {
		t.Errorf("%.1f MiB/s: %+v", rate/(1<<20), r)
	}
}

// TestSwapped: somebody exchanges folders and files for links out of the tree, in
// both trees, all the while. Nothing outside may be read or written.
func TestSwapped(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	outside := filepath.Join(filepath.Dir(p.src), "outside")
	forest(t, filepath.Join(p.src, "f"), 40, 10)
	must(t, os.MkdirAll(filepath.Join(outside, "d1/1"), 0o755))
	for _, name := range []string{"d1/1/0", "d1/1/secret", "0", "1", "2", "3", "secret"} {
		write(t, filepath.Join(outside, name), "SECRET")
	}
	before := listing(t, outside)
	stop := make(chan struct{})
	var attackers sync.WaitGroup
	p.copy(Options{})
	var attacks []func()
	for _, root := range []string{p.src, p.dst} {
		for _, path := range []string{"f", "f/d1", "f/d1/1", "f/d1/1/0", "f/d2/2"} {
			aside := filepath.Join(filepath.Dir(root), "aside-"+strings.ReplaceAll(root+path, "/", "_"))
			must(t, os.Symlink(outside, aside))
			dir := open(t, filepath.Join(root, filepath.Dir(path)))
			attacks = append(attacks, func() {
				for {
					_ = unix.Renameat2(int(dir.Fd()), filepath.Base(path), unix.AT_FDCWD, aside, unix.RENAME_EXCHANGE)
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
	}
	for _, attack := range attacks {
		attackers.Go(attack)
	}
	for range 30 {
		_, _ = p.try(t.Context(), Options{})
		_, _ = p.verify(VerifyOptions{})
	}
	close(stop)
	attackers.Wait()
	after := listing(t, outside)
	for path, line := range before {
		if after[path] != line {
			t.Errorf("outside %s: %s is now %s", path, line, after[path])
		}
	}
	if len(after) != len(before) {
		t.Errorf("outside there are %d entries, not %d", len(after), len(before))
	}
	must(t, filepath.WalkDir(p.dst, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if b, err := os.ReadFile(path); err == nil && string(b) == "SECRET" {
				t.Errorf("%s was read from outside", path)
			}
		}
		return nil
	}))
}
