package treecopy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A path longer than PATH_MAX is opened in pieces of this many bytes.
const pathPiece = 3500

// openIn opens the path below the folder root: no symbolic link on the way is
// followed, no other mount entered, nothing above root reached. "" is root.
func openIn(root int, path string, flags uint64, mode uint32) (int, error) {
	if path == "" {
		path = "."
	}
	at := root
	for len(path) > pathPiece {
		cut := strings.LastIndexByte(path[:pathPiece], '/')
		fd, err := openOne(at, path[:cut], unix.O_PATH|unix.O_DIRECTORY, 0)
		if at != root {
			unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		at, path = fd, path[cut+1:]
	}
	fd, err := openOne(at, path, flags, mode)
	if at != root {
		unix.Close(at)
	}
	return fd, err
}

func openOne(at int, path string, flags uint64, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(at, path, &how)
		// EAGAIN: something was renamed on the way; the kernel asks for another try.
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) && tries < 1000 {
			continue
		}
		return fd, err
	}
}

const (
	openFolder = unix.O_RDONLY | unix.O_DIRECTORY
	// O_NONBLOCK: what was a file when listed may be a fifo by now.
	openRead = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
)

// place names an entry of an open folder for calls that take only a path. The
// last component is never followed by the calls that are made with it (l…).
func place(dir int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
}

func itself(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// list calls fn for each entry of the open folder but "." and "..". The name is
// valid during the call only.
func list(fd int, buf []byte, fn func(name []byte, ino uint64, kind uint8)) error {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return err
	}
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		// struct linux_dirent64: u64 ino, s64 off, u16 reclen, u8 type, name.
		for b := buf[:n]; len(b) > 19; {
			length := int(binary.NativeEndian.Uint16(b[16:]))
			name := b[19:length]
			if end := bytes.IndexByte(name, 0); end >= 0 {
				name = name[:end]
			}
			if s := string(name); s != "." && s != ".." {
				fn(name, binary.NativeEndian.Uint64(b), b[18])
			}
			b = b[length:]
		}
	}
}

func fstat(fd int) (unix.Stat_t, error) {
	var s unix.Stat_t
	err := unix.Fstat(fd, &s)
	return s, err
}

func lstat(dir int, name string) (unix.Stat_t, error) {
	var s unix.Stat_t
	err := unix.Fstatat(dir, name, &s, unix.AT_SYMLINK_NOFOLLOW)
	return s, err
}

func syncfs(fd int) error {
	for {
		if err := unix.Syncfs(fd); err != unix.EINTR {
			return err
		}
	}
}

// pread fills the buffer as far as the file goes.
func pread(fd int, b []byte, off int64) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Pread(fd, b[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			break
		}
		done += n
	}
	return done, nil
}

func pwrite(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// gone: the name no longer leads to what was there when it was listed.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) ||
		errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}

// Uncovered opens the folder anew through a private mount of its one filesystem,
// in which no other mount is seen: what lies below mount points is. Device files
// and programs on it cannot be opened or run.
// It needs CAP_SYS_ADMIN over the mount namespace; EINVAL says that mounts lie
// below that belong to a parent user namespace and may not be uncovered.
func Uncovered(dir *os.File) (*os.File, error) {
	tree, err := unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}
	// Kernels before 5.12 have no mount_setattr: the mount is then as open as the original.
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil && err != unix.ENOSYS {
		return nil, os.NewSyscallError("mount_setattr", err)
	}
	// The mount lives as long as something in it is open.
	fd, err := unix.Openat(tree, ".", openFolder|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	return os.NewFile(uintptr(fd), dir.Name()), nil
}
