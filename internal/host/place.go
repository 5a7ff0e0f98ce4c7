package host

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// FilesystemID tells the filesystem that a folder is on from any other, also after a
// boot and by whatever device it is reached then: by the UUID of an XFS, else by what
// statfs(2) tells, which most make of theirs.
func FilesystemID(dir *os.File) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("cannot tell the filesystem of %s: %w", dir.Name(), err)
	}
	var sf unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &sf); err != nil {
		return fail(err)
	}
	if sf.Type != unix.XFS_SUPER_MAGIC {
		return fmt.Sprintf("%08x%08x", uint32(sf.Fsid.Val[0]), uint32(sf.Fsid.Val[1])), nil
	}
	// There statfs(2) tells the device's number, which is another after the next boot.
	f, err := Readable(dir)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	g, err := geometryXFS(f)
	if err != nil {
		return fail(err)
	}
	return hex.EncodeToString(g.UUID[:]), nil
}

// Inside reports whether a folder is another, or lies in it: by its way up, and by
// where the two are on one filesystem, so that no bind mount hides it. Both are
// descriptors of [OpenDir].
func Inside(dir, outer *os.File) (bool, error) {
	fail := func(err error) (bool, error) {
		return false, fmt.Errorf("cannot tell where %s lies: %w", dir.Name(), err)
	}
	in, err := placeOf(dir)
	if err != nil {
		return fail(err)
	}
	out, err := placeOf(outer)
	if err != nil {
		return fail(err)
	}
	if in.dev == out.dev && within(in.path, out.path) {
		return true, nil
	}
	var want, st, above unix.Stat_t
	if err := errors.Join(unix.Fstat(int(outer.Fd()), &want), unix.Fstat(int(dir.Fd()), &st)); err != nil {
		return fail(err)
	}
	at := int(dir.Fd())
	for {
		if st.Dev == want.Dev && st.Ino == want.Ino {
			return true, nil
		}
		up, err := unix.Openat(at, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if at != int(dir.Fd()) {
			_ = unix.Close(at)
		}
		if err != nil {
			return fail(err)
		}
		if at = up; unix.Fstat(at, &above) != nil || above.Dev == st.Dev && above.Ino == st.Ino { // the top
			return false, unix.Close(at)
		}
		st = above
	}
}

// place is where a folder is on its filesystem.
type place struct {
	dev  uint64
	path string
}

func placeOf(dir *os.File) (place, error) {
	m, err := MountOf(dir)
	if err != nil {
		return place{}, err
	}
	rel, ok := strings.CutPrefix(filepath.Clean(dir.Name()), strings.TrimSuffix(m.Path, "/"))
	if !ok {
		return place{}, fmt.Errorf("it is mounted on %s", m.Path)
	}
	return place{m.Dev(), filepath.Join(m.Root, rel)}, nil
}
