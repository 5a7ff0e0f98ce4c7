package convert

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// entry is one name in a folder, as getdents64(2) tells it.
type entry struct {
	name string
	ino  uint64
	kind uint8 // DT_*
}

// readDir lists an open folder in the filesystem's order, without . and ..
func readDir(fd int) ([]entry, error) {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	var out []entry
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return out, nil
		}
		// struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name.
		for b := buf[:n]; len(b) > 19; {
			size := binary.NativeEndian.Uint16(b[16:])
			name := b[19:size]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			if s := string(name); s != "." && s != ".." {
				out = append(out, entry{name: s, ino: binary.NativeEndian.Uint64(b), kind: b[18]})
			}
			b = b[size:]
		}
	}
}

// readShown lists an open folder without what is listed and cannot be reached: the
// kernel's overlay lists a whiteout that hides nothing, as containers/storage makes
// them, where it has nothing to merge.
func readShown(fd int) ([]entry, error) {
	names, err := readDir(fd)
	return slices.DeleteFunc(names, func(e entry) bool {
		var st unix.Stat_t
		return e.kind == unix.DT_CHR && errors.Is(unix.Fstatat(fd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW), unix.ENOENT)
	}), err
}

// devIno reads the device and inode from a FileInfo of package os.
func devIno(fi fs.FileInfo) (dev, ino uint64) {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Dev), st.Ino //nolint:unconvert // of another type on other machines
	}
	return 0, 0
}

// exists reports whether a path is there, without following a last symlink.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
