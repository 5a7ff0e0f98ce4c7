package host

import (
	"errors"

	"golang.org/x/sys/unix"
)

// RenameNew renames an entry of one folder to one of another, and never replaces what
// holds anything: where the new name is taken the error is EEXIST (fs.ErrExist). The
// folders are descriptors, or AT_FDCWD.
//
// CephFS, NFS and some programs behind FUSE know no rename that does not replace, and
// say EINVAL. There a folder is renamed after a look that its new name is free. Who
// takes that name in between is not replaced either: rename(2) puts a folder in the
// place of an empty folder alone. Anything but a folder stays where it is, with that
// EINVAL.
func RenameNew(fromDir int, from string, toDir int, to string) error {
	err := unix.Renameat2(fromDir, from, toDir, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) {
		return renameFree(fromDir, from, toDir, to)
	}
	return err
}

// renameFree is RenameNew of a folder without the kernel's word for it.
func renameFree(fromDir int, from string, toDir int, to string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fromDir, from, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.EINVAL
	}
	err := unix.Fstatat(toDir, to, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		return unix.EEXIST
	}
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	err = unix.Renameat(fromDir, from, toDir, to)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOTDIR) { // taken since the look
		return unix.EEXIST
	}
	return err
}
