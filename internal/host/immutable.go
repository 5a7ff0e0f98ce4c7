package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Underneath opens the folder that the mounts at a path cover, as a descriptor
// that names it (O_PATH); the folder at the path itself where nothing is mounted.
// Links are not followed.
func Underneath(path string) (*os.File, error) {
	path = filepath.Clean(path)
	parent, err := OpenDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	// A copy of the parent's mount without the mounts in it.
	tree, err := openTree(parent)
	if errors.Is(err, unix.ENOSYS) {
		tree, err = bareCopy(parent)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look beneath %s: %w", path, err)
	}
	defer tree.Close()
	fd, err := unix.Openat(int(tree.Fd()), filepath.Base(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot look beneath %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// bareCopy is [openTree] for Linux before 5.2. The mount lives in nobody's sight
// as long as the descriptor does.
func bareCopy(dir *os.File) (*os.File, error) {
	at, err := os.MkdirTemp("/run", "storagectl-look-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(at) }()
	if err := unix.Mount(fdPath(dir), at, "", unix.MS_BIND, ""); err != nil {
		return nil, err
	}
	fd, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err2 := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err == nil && err2 != nil {
		err = errors.Join(err2, unix.Close(fd))
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir.Name()), nil
}

// Immutable reports whether a folder has the immutable flag (chattr +i). Where
// its filesystem has no such flag the error is [errors.ErrUnsupported].
func Immutable(dir *os.File) (bool, error) {
	f, flags, err := inodeFlags(dir)
	if err != nil {
		return false, err
	}
	f.Close()
	return flags&unix.STATX_ATTR_IMMUTABLE != 0, nil
}

// SetImmutable sets the immutable flag of a folder, so that nobody, root
// neither, makes anything in it while it waits for its mount; or takes the flag
// away. A folder that is not empty is refused: ENOTEMPTY. It returns when the
// flag is seen to be right. See [Immutable] for filesystems without it.
func SetImmutable(dir *os.File, on bool) error {
	f, flags, err := inodeFlags(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	want := flags &^ unix.STATX_ATTR_IMMUTABLE
	if on {
		want |= unix.STATX_ATTR_IMMUTABLE
	}
	if want == flags {
		return nil
	}
	if on {
		if err := empty(f); err != nil {
			return err
		}
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(want)); err != nil {
		return fmt.Errorf("cannot change the immutable flag of %s: %w", dir.Name(), unsupported(err))
	}
	if is, err := Immutable(dir); err != nil || is != on {
		return fmt.Errorf("cannot change the immutable flag of %s: it is %v afterwards: %w", dir.Name(), is, err)
	}
	if on {
		// Made between the look and the flag?
		if err := empty(f); err != nil {
			return errors.Join(err, SetImmutable(dir, false))
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("cannot sync %s: %w", dir.Name(), err)
	}
	return nil
}

func empty(dir *os.File) error {
	if _, err := dir.Seek(0, 0); err != nil {
		return fmt.Errorf("cannot list %s: %w", dir.Name(), err)
	}
	names, err := dir.Readdirnames(1)
	if len(names) > 0 {
		return fmt.Errorf("cannot make %s immutable: it holds %s: %w", dir.Name(), names[0], unix.ENOTEMPTY)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("cannot list %s: %w", dir.Name(), err)
	}
	return nil
}

// inodeFlags gives the flags of ioctl_iflags(2), with a descriptor that can be
// used to set them. FS_IMMUTABLE_FL has the same value as STATX_ATTR_IMMUTABLE.
func inodeFlags(dir *os.File) (*os.File, uint32, error) {
	f, err := Readable(dir)
	if err != nil {
		return nil, 0, err
	}
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("cannot see the flags of %s: %w", dir.Name(), unsupported(err))
	}
	return f, flags, nil
}

// unsupported tells apart, for errors.Is, that a filesystem lacks a thing.
func unsupported(err error) error {
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%w (%w)", errors.ErrUnsupported, err)
	}
	return err
}
