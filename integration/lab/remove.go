package lab

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// removeAll is os.RemoveAll for a tree in which folders may be immutable, as the
// mount points of stores are.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err == nil && flags&unix.STATX_ATTR_IMMUTABLE != 0 { // the same value as FS_IMMUTABLE_FL
			err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags&^unix.STATX_ATTR_IMMUTABLE))
		}
		return err
	})
	return errors.Join(err, os.RemoveAll(dir))
}
