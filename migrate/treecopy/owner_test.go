package treecopy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// asOwner runs a child as root of a user namespace: 0 is 1000 outside, 1 and up
// are 100000 and up. So 65534, as which an id without mapping shows, is itself
// mapped: it is a container's "nobody".
func (p *pair) asOwner(extra ...string) (code int, out string) {
	p.t.Helper()
	for d := filepath.Dir(p.src); d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		must(p.t, os.Chmod(d, 0o755))
	}
	index := filepath.Join(filepath.Dir(p.src), "owned")
	must(p.t, os.MkdirAll(index, 0o755), os.Chown(index, 1000, 1000))
	p.idx = filepath.Join(index, "index")
	cmd := p.child("copy", extra...)
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: maps, GidMappings: maps,
		GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{}, Pdeathsig: syscall.SIGKILL,
	}
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(b)
}

// owned makes a tree as a rootless store is, seen from outside.
func owned(t testing.TB) *pair {
	p := newPair(t)
	at := func(name string) string { return filepath.Join(p.src, name) }
	must(t, os.Chown(p.dst, 1000, 1000), os.Chown(p.src, 1000, 1000))
	forest(t, at("f"), 5, 5)
	must(t, os.Mkdir(at("opaque"), 0o700))
	for name, id := range map[string]int{"root": 1000, "one": 100000, "nobody": 165533, "last": 165535} {
		write(t, at(name), name)
		must(t, os.Symlink(name, at(name+"-link")), unix.Mknod(at(name+"-whiteout"), unix.S_IFCHR, 0), os.Link(at(name), at(name+"-hard")))
		for _, n := range []string{"", "-link", "-whiteout"} {
			must(t, os.Lchown(at(name+n), id, id))
		}
	}
	must(t, filepath.WalkDir(at("f"), func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, 1000, 100005))
	}))
	must(t, os.Chown(at("opaque"), 1000, 1000), unix.Setxattr(at("opaque"), "user.overlay.opaque", []byte("y"), 0))
	write(t, at("closed"), "c")
	must(t, os.Chown(at("closed"), 100007, 165533), unix.Chmod(at("closed"), 0o4000))
	// A capability that holds in the owner's namespace (revision 3, root is 1000).
	capability := make([]byte, 24)
	copy(capability, []byte{1, 0, 0, 3, 0, 4})
	binary.LittleEndian.PutUint32(capability[20:], 1000)
	write(t, at("capable"), "c")
	must(t, os.Chown(at("capable"), 1000, 1000), unix.Setxattr(at("capable"), "security.capability", capability, 0))
	acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 7, 0, 0xa7, 0x86, 1, 0,
		4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}
	write(t, at("acl"), "a")
	must(t, os.Chown(at("acl"), 1000, 1000), unix.Setxattr(at("acl"), "system.posix_acl_access", acl, 0))
	settle()
	return p
}

// TestOwner: root of the owner's user namespace copies a rootless store whole.
func TestOwner(t *testing.T) {
	t.Parallel()
	for _, extra := range [][]string{nil, {"uncovered"}} {
		p := owned(t)
		if code, out := p.asOwner(extra...); code != 0 {
			t.Fatal(code, out)
		}
		equal(t, p.src, p.dst)
	}
}

// TestOwnerRefuses: what cannot be kept is an error that names the file.
func TestOwnerRefuses(t *testing.T) {
	t.Parallel()
	const unmapped, denied = 3, 4
	for name, c := range map[string]struct {
		code int
		make func(path string) error
	}{
		"uid of root":    {unmapped, func(p string) error { return os.Chown(p, 0, 1000) }},
		"gid of root":    {unmapped, func(p string) error { return errors.Join(os.Chown(p, 1000, 0), os.Chmod(p, 0o666)) }},
		"another user":   {unmapped, func(p string) error { return os.Chown(p, 1001, 1001) }},
		"real 65534":     {unmapped, func(p string) error { return os.Chown(p, 1000, 65534) }},
		"link of root":   {unmapped, func(p string) error { return errors.Join(os.Remove(p), os.Symlink("x", p)) }},
		"gid of a link":  {unmapped, func(p string) error { return errors.Join(os.Remove(p), os.Symlink("x", p), os.Lchown(p, 1000, 0)) }},
		"folder of root": {unmapped, func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o755)) }},
		"whiteout, root": {unmapped, func(p string) error { return errors.Join(os.Remove(p), unix.Mknod(p, unix.S_IFCHR, 0)) }},
		"device": {denied, func(p string) error {
			return errors.Join(os.Remove(p), unix.Mknod(p, unix.S_IFCHR, int(unix.Mkdev(1, 3))), os.Chown(p, 1000, 1000))
		}},
	} {
		p := owned(t)
		path := filepath.Join(p.src, "the file")
		write(t, path, "x")
		must(t, c.make(path))
		code, out := p.asOwner()
		if code != c.code || !strings.Contains(out, `"the file"`) {
			t.Errorf("%s: exit %d, want %d: %s", name, code, c.code, out)
		}
	}
}

// TestMounts: other mounts in the tree are refused, or not seen.
func TestMounts(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"tmpfs", "bind", "file"} {
		p := newPair(t)
		write(t, filepath.Join(p.src, "file"), "below the mount")
		write(t, filepath.Join(filepath.Dir(p.src), "other"), "another file")
		forest(t, filepath.Join(p.src, "f"), 2, 2)
		at := filepath.Join(p.src, "f/d1")
		switch kind {
		case "tmpfs":
			must(t, unix.Mount("tmpfs", at, "tmpfs", 0, ""))
			write(t, filepath.Join(at, "over"), "not in the tree")
		case "bind":
			must(t, unix.Mount(filepath.Join(p.src, "f/d0"), at, "", unix.MS_BIND, ""))
		case "file":
			at = filepath.Join(p.src, "file")
			must(t, unix.Mount(filepath.Join(filepath.Dir(p.src), "other"), at, "", unix.MS_BIND, ""))
		}
		settle()
		if _, err := p.try(t.Context(), Options{}); !errors.Is(err, ErrMount) || !strings.Contains(fmt.Sprint(err), at[len(p.src)+1:]) {
			t.Errorf("%s: %v", kind, err)
		}
		src, err := Uncovered(open(t, p.src))
		must(t, err)
		defer src.Close()
		dst := open(t, p.dst)
		_, err = Copy(t.Context(), src, dst, Options{Index: p.idx, Strict: true})
		must(t, err)
		unmount(t, at)
		equal(t, p.src, p.dst)
	}
}

// TestSkip: what is left out is neither read, nor touched, nor removed.
func TestSkip(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	skip := func(rel string) bool {
		return strings.HasPrefix(rel, ".storagectl-") || rel == "lost+found" || rel == "f/d1/keep"
	}
	forest(t, filepath.Join(p.src, "f"), 3, 3)
	must(t, os.Mkdir(filepath.Join(p.src, ".storagectl-1"), 0o700), os.Mkdir(filepath.Join(p.dst, "lost+found"), 0o700))
	write(t, filepath.Join(p.src, ".storagectl-1/x"), "x")
	write(t, filepath.Join(p.dst, "lost+found/y"), "y")
	settle()
	p.copy(Options{Skip: skip})
	equal(t, p.src, p.dst, ".storagectl-1", "lost+found")
	if _, err := p.verify(VerifyOptions{Skip: skip}); err != nil {
		t.Error(err)
	}
	write(t, filepath.Join(p.dst, "f/d1/keep"), "kept")
	must(t, os.RemoveAll(filepath.Join(p.src, "f")))
	settle()
	p.copy(Options{Skip: skip})
	for _, name := range []string{"f/d1/keep", "lost+found/y"} {
		if _, err := os.Stat(filepath.Join(p.dst, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(p.dst, "f/d0")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestForeign: a destination that holds something, and an index of other trees,
// are refused before anything is changed.
func TestForeign(t *testing.T) {
	t.Parallel()
	p, q := newPair(t), newPair(t)
	write(t, filepath.Join(p.dst, "precious"), "x")
	if _, err := p.try(t.Context(), Options{}); !errors.Is(err, ErrNotEmpty) {
		t.Error(err)
	}
	q.copy(Options{})
	p.idx = q.idx
	if _, err := p.try(t.Context(), Options{}); !errors.Is(err, ErrOtherTree) {
		t.Error(err)
	}
	if _, err := p.verify(VerifyOptions{}); !errors.Is(err, ErrOtherTree) {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(p.dst, "precious")); err != nil || string(b) != "x" {
		t.Error(string(b), err)
	}
}

// TestFilesystems: from one kind of filesystem to another, and within one that
// shares blocks.
func TestFilesystems(t *testing.T) {
	t.Parallel()
	for _, c := range [][2]string{{"ext4", "xfs"}, {"xfs", "ext4"}, {"xfs", "xfs"}} {
		p := mountPair(t, c[0], c[1], 900<<20)
		if c[0] == c[1] {
			p.src, p.dst = filepath.Join(p.dst, "src"), filepath.Join(p.dst, "dst")
			must(t, os.Mkdir(p.src, 0o755), os.Mkdir(p.dst, 0o755))
		}
		kinds(t, p.src)
		p.copy(Options{})
		equal(t, p.src, p.dst)
		p.verified()
		for _, name := range []string{"sparse-small", "sparse-large", "all-hole"} {
			if s, d := used(t, filepath.Join(p.src, name)), used(t, filepath.Join(p.dst, name)); d > s+64<<10 {
				t.Errorf("%v: %s grew from %d to %d bytes on disk", c, name, s, d)
			}
		}
		p.copy(Options{Strict: true})
		equal(t, p.src, p.dst)
		if c[0] == c[1] && !strings.Contains(run(t, "filefrag", "-v", filepath.Join(p.dst, "large")), "shared") {
			t.Error("blocks are not shared")
		}
	}
}

// TestLargeFolder: a folder that is handled in shards grows and shrinks.
func TestLargeFolder(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	name := func(i int) string { return filepath.Join(p.src, fmt.Sprintf("d/name-%d", i)) }
	must(t, os.Mkdir(filepath.Join(p.src, "d"), 0o755))
	for _, part := range [][2]int{{0, 100}, {100, 9000}, {9000, 20000}} {
		for i := part[0]; i < part[1]; i++ {
			if i%50 == 3 {
				must(t, os.Mkdir(name(i), 0o755))
			} else {
				write(t, name(i), fmt.Sprint(i))
			}
		}
		settle()
		p.copy(Options{Strict: true})
		equal(t, p.src, p.dst)
		write(t, name(7), fmt.Sprint(part))
		settle()
		if r := p.copy(Options{Strict: true}); r.Copied != 1 {
			t.Errorf("%+v", r)
		}
		equal(t, p.src, p.dst)
	}
	for i := 50; i < 19990; i++ {
		must(t, os.RemoveAll(name(i)))
	}
	settle()
	p.copy(Options{Strict: true})
	equal(t, p.src, p.dst)
	p.verified()
}
