package treecopy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a source, a destination and an index.
type pair struct {
	t             testing.TB
	src, dst, idx string
}

// newPair is on an ext4 of its own, in memory: to sync it does not wait for what
// others write to this machine's disk.
func newPair(t testing.TB) *pair {
	t.Helper()
	memory := t.TempDir()
	must(t, unix.Mount("tmpfs", memory, "tmpfs", 0, ""))
	t.Cleanup(func() { unmount(t, memory) })
	d := filepath.Join(memory, "fs")
	mounted(t, "ext4", d, 4<<30)
	p := &pair{t, filepath.Join(d, "src"), filepath.Join(d, "dst"), filepath.Join(d, "index")}
	for _, dir := range []string{p.src, p.dst} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// try copies and gives the error.
func (p *pair) try(ctx context.Context, o Options) (Report, error) {
	p.t.Helper()
	src, dst := open(p.t, p.src), open(p.t, p.dst)
	defer src.Close()
	defer dst.Close()
	if o.Index == "" {
		o.Index = p.idx
	}
	return Copy(ctx, src, dst, o)
}

func (p *pair) copy(o Options) Report {
	p.t.Helper()
	r, err := p.try(p.t.Context(), o)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

func (p *pair) verify(o VerifyOptions) (VerifyReport, error) {
	p.t.Helper()
	dst := open(p.t, p.dst)
	defer dst.Close()
	if o.Index == "" {
		o.Index = p.idx
	}
	return Verify(p.t.Context(), dst, o)
}

func (p *pair) verified() VerifyReport {
	p.t.Helper()
	r, err := p.verify(VerifyOptions{})
	if err != nil {
		p.t.Fatal(err, r.Examples)
	}
	return r
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// settle waits until what was written is older than what is written next.
func settle() { _, _ = caughtUp(context.Background()) }

func write(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

// kinds makes one of each kind of thing that a store can hold.
func kinds(t testing.TB, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at("a/b/c"), 0o755), os.Mkdir(at("empty"), 0o700), os.Mkdir(at("closed"), 0o000))
	write(t, at("a/file"), "content")
	write(t, at("a/b/nothing"), "")
	write(t, at("a/b/c/deep"), "deep")
	write(t, at("closed/in"), "in")
	write(t, at("odd \xff\n\x01name"), "odd")
	write(t, at(strings.Repeat("n", 255)), "long")
	write(t, at("unreadable"), "x")
	must(t, os.Chmod(at("unreadable"), 0))
	write(t, at("setuid"), "s")
	must(t, os.Chown(at("setuid"), 12, 34), unix.Chmod(at("setuid"), 0o6755))
	must(t, unix.Mkdir(at("sticky"), 0o755), os.Chown(at("sticky"), 1000, 2000), unix.Chmod(at("sticky"), 0o3777))
	write(t, at("sticky/below-setgid"), "s")
	must(t, os.Symlink("a/file", at("link")), os.Symlink("/nowhere/"+strings.Repeat("l", 900), at("dangling")))
	must(t, os.Lchown(at("link"), 77, 88))
	must(t, os.Link(at("a/file"), at("a/b/c/same-file")), os.Link(at("a/file"), at("zz-same")))
	must(t, os.Link(at("link"), at("a/same-link")))
	must(t, unix.Mknod(at("whiteout"), unix.S_IFCHR, 0), os.Link(at("whiteout"), at("a/whiteout2")))
	must(t, unix.Mknod(at("device"), unix.S_IFBLK|0o640, int(unix.Mkdev(259, 70000))), os.Chown(at("device"), 0, 6))
	must(t, unix.Mkfifo(at("fifo"), 0o622), unix.Chmod(at("fifo"), 0o666))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err, unix.Bind(fd, &unix.SockaddrUnix{Name: at("socket")}), unix.Close(fd))
	for name, attrs := range map[string][]string{
		"a/file":   {"user.x", "trusted.overlay.origin", "user.overlay.opaque"},
		"a":        {"trusted.overlay.opaque", "user.dir"},
		"link":     {"trusted.on-a-link"},
		"whiteout": {"trusted.on-a-device"},
	} {
		for _, a := range attrs {
			must(t, unix.Lsetxattr(at(name), a, []byte(strings.Repeat("y", len(a))), 0))
		}
	}
	must(t, unix.Setxattr(at("a/file"), "user.empty", nil, 0))
	// CAP_NET_BIND_SERVICE, permitted and effective.
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	write(t, at("capable"), "c")
	must(t, os.Chown(at("capable"), 5, 5), unix.Setxattr(at("capable"), "security.capability", capability, 0))
	// user::rw- user:7:rwx group::r-- mask::rwx other::---
	acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 7, 0, 7, 0, 0, 0,
		4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}
	write(t, at("acl"), "a")
	must(t, unix.Setxattr(at("acl"), "system.posix_acl_access", acl, 0), os.Mkdir(at("inherits"), 0o755))
	write(t, at("inherits/before"), "b")
	must(t, os.Mkdir(at("inherits/child"), 0o755), unix.Setxattr(at("inherits"), "system.posix_acl_default", acl, 0))
	write(t, at("inherits/after"), "a")
	holes(t, at("sparse-small"), 1<<20, 300_000)
	holes(t, at("sparse-large"), 40<<20, 100, 17<<20, 30<<20)
	holes(t, at("all-hole"), 20<<20)
	big(t, at("large"), 18<<20+17, 1)
	big(t, at("medium"), 700_001, 2)
	old := time.Unix(-5, 123456789)
	for _, name := range []string{"a/file", "a/b", "empty", "a", "."} {
		must(t, os.Chtimes(at(name), old, old))
	}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, at("link"), []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 3, Nsec: 4}}, unix.AT_SYMLINK_NOFOLLOW))
	settle()
}

func holes(t testing.TB, path string, size int64, data ...int64) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for _, off := range data {
		_, err := f.WriteAt([]byte("some data here"), off)
		must(t, err)
	}
	must(t, f.Truncate(size))
}

func big(t testing.TB, path string, size int, seed byte) {
	t.Helper()
	b := make([]byte, size)
	x := uint32(seed) + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	must(t, os.WriteFile(path, b, 0o644))
}

func used(t testing.TB, path string) int64 {
	t.Helper()
	var s unix.Stat_t
	must(t, unix.Stat(path, &s))
	return s.Blocks * 512
}

// TestKinds: everything that a store can hold arrives as it was, and a second pass
// finds nothing to do.
func TestKinds(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	kinds(t, p.src)
	r := p.copy(Options{})
	equal(t, p.src, p.dst)
	if r.Sockets != 1 || r.Links != 4 || r.Unsettled != 0 || r.Pass != 1 {
		t.Errorf("%+v", r)
	}
	for _, name := range []string{"sparse-small", "sparse-large", "all-hole"} {
		if s, d := used(t, filepath.Join(p.src, name)), used(t, filepath.Join(p.dst, name)); d > s+64<<10 {
			t.Errorf("%s grew from %d to %d bytes on disk", name, s, d)
		}
	}
	v := p.verified()
	if v.Files != r.Files || v.Folders != r.Folders {
		t.Errorf("verified %+v of %+v", v, r)
	}
	again := p.copy(Options{Strict: true})
	if again.Copied != 0 || again.Files != r.Files || again.Pass != 2 || again.Bytes != r.Bytes {
		t.Errorf("%+v after %+v", again, r)
	}
	equal(t, p.src, p.dst)
	p.verified()
	scan, err := Scan(t.Context(), open(t, p.src), nil, 0)
	must(t, err)
	if scan.Files != r.Files || scan.Folders != r.Folders || scan.Bytes != r.Bytes {
		t.Errorf("scan %+v, copy %+v", scan, r)
	}
}
