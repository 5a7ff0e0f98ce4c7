package treecopy

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cut takes the filesystem away as a power cut does: nothing that is not yet
// durable, the log included, gets to the disk any more. Then it is mounted anew.
func cut(t testing.TB, image, dir string) {
	t.Helper()
	const goingDown, noLogFlush = 0x8004587d, 2 // XFS_IOC_GOINGDOWN, which ext4 has, too
	f := open(t, dir)
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), goingDown, noLogFlush))
	f.Close()
	unmount(t, dir)
	mount(t, image, dir)
}

// TestPowerCut: the destination loses power at any moment and comes back with
// what was durable, while the index keeps all that was written to it. No claim of
// the index may then be false, and the next call goes on and ends equal.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	s := seed(t)
	for i, kind := range []string{"xfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			r := rand.New(rand.NewPCG(s, uint64(i)))
			p := mountPair(t, "", kind, 1<<30)
			g := newGarden(t, p.src, s)
			g.change(1200)
			forest(t, filepath.Join(p.src, "forest"), 60, 30)
			big(t, filepath.Join(p.src, "large"), 60<<20, 3)
			claims := 0
			for range 8 {
				if r.IntN(4) == 0 { // from the beginning
					must(t, os.RemoveAll(p.idx))
					emptied(t, p.dst)
				}
				settle()
				cmd := p.child("power")
				cmd.Stderr = os.Stderr
				must(t, cmd.Start())
				ended := make(chan struct{})
				go func() {
					_ = cmd.Wait()
					close(ended)
				}()
				grown(p.idx, r.Int64N(500<<10), ended)
				_ = cmd.Process.Kill()
				<-ended
				cut(t, p.dst+".img", p.dst)
				claims += p.claimsHold()
				if r.IntN(2) == 0 {
					g.change(60)
				}
			}
			if t.Logf("%d claims were looked at", claims); claims < 1000 {
				t.Error("too few to prove anything")
			}
			settle()
			p.copy(Options{Strict: true})
			cut(t, p.dst+".img", p.dst)
			_ = os.Remove(filepath.Join(p.dst, "lost+found"))
			equal(t, p.src, p.dst)
			p.verified()
		})
	}
}

// TestSourcePowerCut: the source loses power beside a pass, and with it changes
// that the pass has seen. What looks again as it did before must not be taken
// for copied if the destination no longer has it so. (But for overwrites in place:
// of these the filesystem may keep the data and lose the ctime; see doc.go.)
func TestSourcePowerCut(t *testing.T) {
	t.Parallel()
	s := seed(t)
	p := mountPair(t, "xfs", "", 1<<30)
	g := newGarden(t, p.src, s)
	g.noOverwrites = true
	forest(t, filepath.Join(p.src, "forest"), 40, 20)
	g.change(300)
	settle()
	p.copy(Options{})
	for range 8 {
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
		time.Sleep(30 * time.Millisecond)
		_, err := p.try(t.Context(), Options{})
		close(stop)
		<-done
		must(t, err)
		cut(t, p.src+".img", p.src)
		settle()
		p.copy(Options{Strict: true})
		equal(t, p.src, p.dst)
		p.verified()
	}
}

// grown waits until the file has grown so much, or who writes it has ended; for half
// a minute at most.
func grown(path string, by int64, ended <-chan struct{}) {
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	for start, end := size(), time.Now().Add(30*time.Second); size() < start+by && time.Now().Before(end); {
		select {
		case <-ended:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func emptied(t testing.TB, dir string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range all {
		must(t, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
}
