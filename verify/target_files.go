package verify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// file makes a file of the probe's and gives its path.
func (p probe) file(name string) (string, error) {
	path := filepath.Join(p.dir, name)
	return path, os.WriteFile(path, []byte(name), 0o644)
}

func called(name string, err error) error { return os.NewSyscallError(name, err) }

// dtype reads a folder as the kernel gives it: Go's own reading makes up for types
// that are not told.
func (p probe) dtype() error {
	dir := filepath.Join(p.dir, "dtype")
	err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(filepath.Join(dir, "d"), 0o755), os.Symlink("d", filepath.Join(dir, "l")))
	if err == nil {
		_, err = p.file("dtype/f")
	}
	if err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	want := map[string]byte{"d": unix.DT_DIR, "l": unix.DT_LNK, "f": unix.DT_REG}
	buf := make([]byte, 8192)
	for {
		n, err := unix.Getdents(int(f.Fd()), buf)
		if err != nil {
			return called("getdents", err)
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			// struct linux_dirent64: inode 8, offset 8, length 2, type 1, name.
			length := int(binary.NativeEndian.Uint16(b[16:]))
			name, _, _ := bytes.Cut(b[19:length], []byte{0})
			if t, ok := want[string(name)]; ok {
				if b[18] != t {
					return fmt.Errorf("a folder tells type %d instead of %d", b[18], t)
				}
				delete(want, string(name))
			}
			b = b[length:]
		}
	}
	if len(want) > 0 {
		return fmt.Errorf("a folder does not list all that is in it")
	}
	return nil
}

func (p probe) symlink() error {
	path := filepath.Join(p.dir, "symlink")
	const to = "/a/path/that leads/nowhere"
	if err := os.Symlink(to, path); err != nil {
		return err
	}
	if got, err := os.Readlink(path); err != nil || got != to {
		return but(err, "a link reads %q", got)
	}
	return nil
}

func (p probe) link() error {
	path, err := p.file("link")
	if err != nil {
		return err
	}
	if err := os.Link(path, path+"2"); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Nlink != 2 {
		return but(err, "a file with two names tells of %d", st.Nlink)
	}
	return nil
}

func (p probe) chown() error {
	path, err := p.file("chown")
	if err != nil || p.other < 0 {
		return err
	}
	if err := os.Lchown(path, p.other, p.other); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o755|os.ModeSetuid); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return called("lstat", err)
	}
	if int(st.Uid) != p.other || int(st.Gid) != p.other || st.Mode&0o7777 != 0o4755 {
		return fmt.Errorf("a file given to %d with mode 4755 is of %d:%d with mode %o", p.other, st.Uid, st.Gid, st.Mode&0o7777)
	}
	return nil
}

func (p probe) times() error {
	path, err := p.file("times")
	if err != nil {
		return err
	}
	want := time.Unix(1234567890, 123456789)
	if err := os.Chtimes(path, want, want); err != nil {
		return err
	}
	fi, err := os.Lstat(path)
	if err == nil && !fi.ModTime().Equal(want) {
		err = fmt.Errorf("%s became %s", want.UTC().Format(time.RFC3339Nano), fi.ModTime().UTC().Format(time.RFC3339Nano))
	}
	return err
}

// exec maps a file as a program's code is mapped, which noexec forbids however it
// came about.
func (p probe) exec() error {
	path, err := p.file("exec")
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 4, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	if err != nil {
		return called("mmap for running", err)
	}
	return called("munmap", unix.Munmap(b))
}

func (p probe) mmap() error {
	path, err := p.file("mmap")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 4, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return called("mmap for sharing", err)
	}
	copy(b, "MMAP")
	err = errors.Join(unix.Msync(b, unix.MS_SYNC), unix.Munmap(b))
	if err != nil {
		return called("msync", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "MMAP" {
		return but(err, "what was written by memory reads %q", got)
	}
	return nil
}

// locks: two descriptors must not both have one; podman's databases and
// containers/storage rely on it.
func (p probe) locks() error {
	path, err := p.file("locks")
	if err != nil {
		return err
	}
	var fds [2]int
	for i := range fds {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		fds[i] = int(f.Fd())
	}
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fds[0]), unix.F_OFD_SETLK, &l); err != nil {
		return called("fcntl", err)
	}
	l = unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fds[1]), unix.F_OFD_SETLK, &l); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
		return but(err, "fcntl gives the same lock twice")
	}
	if err := unix.Flock(fds[0], unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return called("flock", err)
	}
	return nil
}

func (p probe) xattr(name string) error {
	path, err := p.file("xattr-" + name)
	if err != nil {
		return err
	}
	dir := path + "-dir"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, path := range []string{path, dir} {
		if err := unix.Setxattr(path, name, []byte("y"), 0); err != nil {
			return called("setxattr", err)
		}
		got := make([]byte, 8)
		if n, err := unix.Getxattr(path, name, got); err != nil || string(got[:max(n, 0)]) != "y" {
			return but(err, "an attribute reads %q", got[:max(n, 0)])
		}
	}
	return nil
}

// acl sets an access control list for a user besides the owner, in the form of
// the kernel's posix_acl_xattr.h.
func (p probe) acl() error {
	path, err := p.file("acl")
	if err != nil {
		return err
	}
	var b bytes.Buffer
	const anyID = ^uint32(0)
	_ = binary.Write(&b, binary.LittleEndian, uint32(2)) // to memory: never fails
	for _, e := range []struct {
		Tag, Perm uint16
		ID        uint32
	}{{0x01, 6, anyID}, {0x02, 4, uint32(max(p.other, 0))}, {0x04, 4, anyID}, {0x10, 4, anyID}, {0x20, 4, anyID}} {
		_ = binary.Write(&b, binary.LittleEndian, e)
	}
	if err := unix.Setxattr(path, "system.posix_acl_access", b.Bytes(), 0); err != nil {
		return called("setxattr", err)
	}
	got := make([]byte, 256)
	n, err := unix.Getxattr(path, "system.posix_acl_access", got)
	if err != nil || !bytes.Equal(got[:max(n, 0)], b.Bytes()) {
		return but(err, "an access control list changes when it is set")
	}
	return nil
}

// capability gives a file CAP_NET_BIND_SERVICE, as images do, in version 2 of
// the kernel's capability.h; a user namespace makes version 3 of it by itself.
func (p probe) capability() error {
	path, err := p.file("capability")
	if err != nil {
		return err
	}
	b := make([]byte, 20)
	binary.LittleEndian.PutUint32(b, 0x02000001)
	binary.LittleEndian.PutUint32(b[4:], 1<<10)
	return called("setxattr", unix.Setxattr(path, "security.capability", b, 0))
}

func (p probe) mknod() error {
	path := filepath.Join(p.dir, "whiteout")
	if err := unix.Mknod(path, unix.S_IFCHR, 0); err != nil {
		return called("mknod", err)
	}
	return whiteout(path)
}

// whiteout reports whether a path is what overlay has for a deleted file.
func whiteout(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return called("lstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		return fmt.Errorf("instead of a whiteout there is mode %o, device %d", st.Mode, st.Rdev)
	}
	return nil
}

func (p probe) renameWhiteout() error {
	path, err := p.file("renamed")
	if err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, path+"2", unix.RENAME_WHITEOUT); err != nil {
		return called("renameat2", err)
	}
	return whiteout(path)
}

func (p probe) tmpfile() error {
	fd, err := unix.Open(p.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return called("open", err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("tmpfile")); err != nil {
		return called("write", err)
	}
	to := filepath.Join(p.dir, "tmpfile")
	return called("linkat", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW))
}
