package treecopy

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDamage: each way in which a destination can differ is found and named, and
// the next copy heals it.
func TestDamage(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	kinds(t, p.src)
	p.copy(Options{})
	at := func(name string) string { return filepath.Join(p.dst, name) }
	flip := func(name string, off int64) error {
		f, err := os.OpenFile(at(name), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		b := make([]byte, 1)
		_, e1 := f.ReadAt(b, off)
		b[0] ^= 1
		_, e2 := f.WriteAt(b, off)
		return errors.Join(e1, e2, os.Chtimes(at(name), info.ModTime(), info.ModTime()))
	}
	remake := func(name string, fn func() error) error { return errors.Join(os.Remove(at(name)), fn()) }
	for path, damage := range map[string]func() error{
		"medium":       func() error { return flip("medium", 700_000) },
		"large":        func() error { return flip("large", 17<<20) },
		"sparse-large": func() error { return flip("sparse-large", 25<<20) },
		"a/file":       func() error { return flip("a/file", 0) },
		"setuid":       func() error { return unix.Chmod(at("setuid"), 0o755) },
		"acl":          func() error { return unix.Removexattr(at("acl"), aclAccess) },
		"capable":      func() error { return unix.Removexattr(at("capable"), "security.capability") },
		"unreadable":   func() error { return os.Chown(at("unreadable"), 3, 3) },
		"a/b/nothing":  func() error { return os.Remove(at("a/b/nothing")) },
		"empty/more":   func() error { return os.WriteFile(at("empty/more"), nil, 0o600) },
		"empty":        func() error { return os.Remove(at("empty")) },
		"closed":       func() error { return os.Chmod(at("closed"), 0o700) },
		"closed/in":    func() error { return os.Chtimes(at("closed/in"), time.Now(), time.Now()) },
		"dangling":     func() error { return remake("dangling", func() error { return os.Symlink("x", at("dangling")) }) },
		"device": func() error {
			return remake("device", func() error { return unix.Mknod(at("device"), unix.S_IFBLK|0o640, 1) })
		},
		"fifo": func() error { return remake("fifo", func() error { return os.Mkdir(at("fifo"), 0o700) }) },
		"zz-same": func() error {
			return remake("zz-same", func() error { return os.WriteFile(at("zz-same"), []byte("content"), 0o644) })
		},
		"a":                  func() error { return unix.Setxattr(at("a"), "user.new", []byte("x"), 0) },
		"sticky":             func() error { return errors.Join(os.RemoveAll(at("sticky")), os.WriteFile(at("sticky"), nil, 0o600)) },
		"inherits/child":     func() error { return os.Rename(at("inherits/child"), at("moved")) },
		"odd \xff\n\x01name": func() error { return os.Truncate(at("odd \xff\n\x01name"), 2) },
		"a/b/c/deep":         func() error { return os.Truncate(at("a/b/c/deep"), 400) },
		"whiteout":           func() error { return unix.Lremovexattr(at("whiteout"), "trusted.on-a-device") },
	} {
		must(t, damage())
		r, err := p.verify(VerifyOptions{})
		if !errors.Is(err, ErrDiffers) {
			t.Fatalf("%q: %v", path, err)
		}
		found := false
		for _, d := range r.Examples {
			// Of a file with several names the first is told that is read.
			found = found || d.Path == path || path == "a/file" && d.What == "content"
		}
		if !found {
			t.Errorf("%q is not among %v", path, r.Examples)
		}
		p.copy(Options{Strict: true})
		equal(t, p.src, p.dst)
		p.verified()
	}
}

// TestLastOnly: only what the last pass wrote is read.
func TestLastOnly(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	forest(t, filepath.Join(p.src, "f"), 20, 10)
	settle()
	r1 := p.copy(Options{})
	v, err := p.verify(VerifyOptions{LastOnly: true})
	must(t, err)
	if v.Files != r1.Files || v.Bytes != r1.CopiedBytes {
		t.Errorf("%+v", v)
	}
	write(t, filepath.Join(p.src, "f/d3/3/3"), "changed")
	write(t, filepath.Join(p.src, "f/d4/4/new"), "new")
	must(t, os.Remove(filepath.Join(p.src, "f/d5/5/5")))
	settle()
	p.copy(Options{Strict: true})
	v, err = p.verify(VerifyOptions{LastOnly: true})
	must(t, err)
	if v.Files != 2 || v.Bytes != 10 {
		t.Errorf("%+v", v)
	}
	p.copy(Options{Strict: true})
	if v, err = p.verify(VerifyOptions{LastOnly: true}); err != nil || v.Files != 0 {
		t.Errorf("%+v %v", v, err)
	}
	p.verified()
}

// TestIncomplete: there is nothing to verify before a copy came to its end.
func TestIncomplete(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	write(t, filepath.Join(p.src, "file"), "x")
	if _, err := p.verify(VerifyOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	p.copy(Options{})
	x, _, err := openIndex(p.idx, false)
	must(t, err)
	if _, err := p.try(t.Context(), Options{}); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	must(t, x.beginPass(2))
	x.close()
	if _, err := p.verify(VerifyOptions{}); !errors.Is(err, ErrIncomplete) {
		t.Error(err)
	}
}

// TestReadsTheDisk: Verify does not believe the page cache. The image below a
// mounted filesystem is changed behind its back.
func TestReadsTheDisk(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"xfs", "ext4"} {
		p := mountPair(t, "", kind, 400<<20)
		marker := bytes.Repeat([]byte("a marker that is found in the image "), 400)
		write(t, filepath.Join(p.src, "small"), string(marker))
		big(t, filepath.Join(p.src, "large"), 40<<20, 1)
		settle()
		p.copy(Options{})
		p.verified()
		equal(t, p.src, p.dst) // all is in the page cache now
		image, err := os.OpenFile(p.dst+".img", os.O_RDWR, 0)
		must(t, err)
		off := find(t, image, marker[:4096])
		_, err = image.WriteAt([]byte("A"), off+20)
		must(t, err, image.Sync(), image.Close())
		if b, err := os.ReadFile(filepath.Join(p.dst, "small")); err != nil || !bytes.Equal(b, marker) {
			t.Fatalf("the page cache does not have the file: the test proves nothing (%v)", err)
		}
		r, err := p.verify(VerifyOptions{})
		if !errors.Is(err, ErrDiffers) || r.Differing != 1 || r.Examples[0] != (Difference{"small", "content"}) {
			t.Errorf("%+v: %v", r, err)
		}
		p.copy(Options{Strict: true})
		equal(t, p.src, p.dst)
		p.verified()
	}
}

func find(t testing.TB, f *os.File, what []byte) int64 {
	t.Helper()
	buf := make([]byte, 4<<20)
	for off := int64(0); ; off += int64(len(buf)) {
		n, err := f.ReadAt(buf, off)
		if i := bytes.Index(buf[:n], what); i >= 0 {
			return off + int64(i)
		}
		if err != nil {
			t.Fatal("not found in the image")
		}
	}
}
