package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenDir opens a folder by an absolute path as a descriptor that names it and
// reads nothing (O_PATH). No component may be a symbolic link: the error is
// ELOOP or ENOTDIR then. An automount at the path or on the way is triggered.
func OpenDir(path string) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("cannot open %s: it is not absolute", path)
	}
	return openPath(unix.AT_FDCWD, filepath.Clean(path), path, unix.O_DIRECTORY)
}

// OpenBelow opens a folder by a path relative to dir, as [OpenDir] does. The
// path must not lead out of dir, by ".." neither.
func OpenBelow(dir *os.File, rel string) (*os.File, error) {
	if !filepath.IsLocal(rel) {
		return nil, fmt.Errorf("cannot open %s in %s: it leads out", rel, dir.Name())
	}
	return openPath(int(dir.Fd()), filepath.Clean(rel), filepath.Join(dir.Name(), rel), unix.O_DIRECTORY)
}

// peek opens what is at a path without triggering an automount there; folders
// and others alike.
func peek(path string) (*os.File, error) {
	return openPath(unix.AT_FDCWD, filepath.Clean(path), path, 0)
}

func openPath(at int, path, name string, flags int) (*os.File, error) {
	flags |= unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW
	how := unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	if at != unix.AT_FDCWD {
		how.Resolve |= unix.RESOLVE_BENEATH
	}
	var fd int
	var err error
	for range 100 {
		// A rename anywhere can make a walk beneath a folder uncertain: EAGAIN.
		if fd, err = unix.Openat2(at, path, &how); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		fd, err = walkTo(at, path, flags) // Linux before 5.6, or a filter of system calls that does not know it
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open %s without following links: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// walkTo is openat2 by hand: each component is opened by its name in the
// folder before it, and none on the way may be a link. The path is clean.
func walkTo(at int, path string, flags int) (int, error) {
	const step = unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_DIRECTORY
	start := "."
	if strings.HasPrefix(path, "/") {
		start, path = "/", path[1:]
	}
	fd, err := unix.Openat(at, start, step, 0)
	if err != nil || path == "" || path == "." {
		return fd, err
	}
	names := strings.Split(path, "/")
	for i, name := range names {
		how := step
		if i == len(names)-1 {
			how = flags
		}
		next, err := unix.Openat(fd, name, how, 0)
		_ = unix.Close(fd)
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}

// Readable opens the folder that a descriptor of [OpenDir] names for reading.
func Readable(dir *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", dir.Name(), err)
	}
	return os.NewFile(uintptr(fd), dir.Name()), nil
}
