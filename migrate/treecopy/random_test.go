package treecopy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// garden grows a random tree and changes it.
type garden struct {
	t    testing.TB
	root string
	r    *rand.Rand
	n    int

	noOverwrites bool
}

func newGarden(t testing.TB, root string, seed uint64) *garden {
	return &garden{t: t, root: root, r: rand.New(rand.NewPCG(seed, 1))}
}

// some returns paths of a kind; of folders the root is one.
func (g *garden) some(folders bool) []string {
	var all []string
	_ = filepath.WalkDir(g.root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() == folders {
			all = append(all, path)
		}
		return nil
	})
	return all
}

func pick[T any](r *rand.Rand, all []T) T { return all[r.IntN(len(all))] }

// change does n random things; errors do not matter, as several may be at it.
func (g *garden) change(n int) {
	folders, files := g.some(true), g.some(false)
	for range n {
		g.n++
		dir := pick(g.r, folders)
		fresh := filepath.Join(dir, fmt.Sprintf("n%d-%d", g.n, g.r.IntN(1000)))
		file := fresh
		if len(files) > 0 {
			file = pick(g.r, files)
		}
		switch g.r.IntN(16) {
		case 0, 1, 2:
			_ = os.WriteFile(fresh, make([]byte, g.r.IntN(100_000)), 0o600)
			files = append(files, fresh)
		case 3:
			_ = os.Mkdir(fresh, 0o751)
			folders = append(folders, fresh)
		case 4:
			_ = os.Link(file, fresh)
			files = append(files, fresh)
		case 5:
			_ = os.Remove(file)
		case 6: // as an editor that wants nobody to notice
			if info, err := os.Lstat(file); err == nil && info.Mode().IsRegular() && !g.noOverwrites {
				if f, err := os.OpenFile(file, os.O_RDWR|unix.O_NOFOLLOW, 0); err == nil {
					_, _ = f.WriteAt([]byte{byte(g.n), byte(g.n >> 8)}, info.Size()/2)
					_ = f.Truncate(info.Size())
					f.Close()
					_ = os.Chtimes(file, info.ModTime(), info.ModTime())
				}
			}
		case 7:
			_ = os.Rename(file, fresh)
			files = append(files, fresh)
		case 8:
			if dir != g.root {
				_ = os.Rename(dir, fresh)
			}
		case 9:
			if dir != g.root && g.r.IntN(3) == 0 {
				_ = os.RemoveAll(dir)
			}
		case 10:
			_ = unix.Lsetxattr(file, "trusted.n", []byte(fmt.Sprint(g.n)), 0)
			_ = unix.Lsetxattr(dir, "user.n", []byte(fmt.Sprint(g.n)), 0)
		case 11:
			_ = os.Lchown(file, g.n, g.n+1)
			_ = os.Chmod(dir, os.FileMode(g.r.IntN(0o1000)))
		case 12:
			_ = os.Symlink(strings.Repeat("x", g.r.IntN(200)), fresh)
			_ = unix.Mknod(fresh+"w", unix.S_IFCHR, 0)
			files = append(files, fresh, fresh+"w")
		case 13:
			if f, err := os.OpenFile(fresh, os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o644); err == nil {
				_ = f.Truncate(int64(g.r.IntN(40 << 20)))
				_, _ = f.WriteAt([]byte("data"), int64(g.r.IntN(20<<20)))
				f.Close()
			}
		case 14: // a file where a folder was, and the reverse
			_ = os.Remove(file)
			_ = os.Mkdir(file, 0o755)
			if dir != g.root {
				_ = os.RemoveAll(dir)
				_ = os.WriteFile(dir, []byte("now a file"), 0o644)
			}
		case 15:
			if f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0); err == nil {
				_, _ = f.WriteString("appended")
				f.Close()
			}
		}
	}
}

// forest makes so many folders of so many small files.
func forest(t testing.TB, dir string, folders, files int) {
	t.Helper()
	for i := range folders {
		d := filepath.Join(dir, fmt.Sprintf("d%d/%d", i%10, i))
		must(t, os.MkdirAll(d, 0o755))
		for j := range files {
			write(t, filepath.Join(d, fmt.Sprint(j)), strings.Repeat(fmt.Sprint(i, j), 1000))
		}
	}
}

// TestRandomPasses: whatever is done to a tree between passes, the next pass makes
// both equal.
func TestRandomPasses(t *testing.T) {
	t.Parallel()
	s := seed(t)
	for i := range uint64(4) {
		p := newPair(t)
		g := newGarden(t, p.src, s+i)
		for pass := range 8 {
			g.change(g.r.IntN(150) + 1)
			settle()
			p.copy(Options{Strict: true, Workers: 1 + g.r.IntN(8)})
			equal(t, p.src, p.dst)
			if pass%3 == 2 {
				p.verified()
			}
		}
	}
}

// TestBusySource: the source changes all the time during pass one; a quiet pass
// two makes both equal, and finds nothing amiss.
func TestBusySource(t *testing.T) {
	t.Parallel()
	s := seed(t)
	for i := range uint64(4) {
		p := newPair(t)
		g := newGarden(t, p.src, s+i)
		g.change(1500)
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case <-stop:
					return
				default:
					g.change(20)
				}
			}
		}()
		var err error
		for range 3 { // several passes beside it are no harm
			_, e := p.try(t.Context(), Options{})
			err = errors.Join(err, e)
		}
		close(stop)
		<-done
		must(t, err)
		settle()
		p.copy(Options{Strict: true})
		equal(t, p.src, p.dst)
		p.verified()
	}
}

// TestKilled: after kill -9 at any moment the next call goes on, and in the end
// both are equal; between the kills the source changes.
func TestKilled(t *testing.T) {
	t.Parallel()
	s := seed(t)
	p := newPair(t)
	g := newGarden(t, p.src, s)
	g.change(1500)
	forest(t, filepath.Join(p.src, "forest"), 60, 30)
	big(t, filepath.Join(p.src, "large"), 90<<20, 3)
	for range 25 {
		settle()
		cmd := p.child("copy")
		must(t, cmd.Start())
		time.Sleep(time.Duration(g.r.IntN(400)) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		p.claimsHold()
		if g.r.IntN(2) == 0 {
			g.change(60)
		}
	}
	settle()
	p.copy(Options{Strict: true})
	equal(t, p.src, p.dst)
	p.verified()
}
