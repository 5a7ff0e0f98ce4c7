package verify

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// tree is the root of an image's files. Paths below it come from images, which
// strangers made: each is resolved by the kernel with the tree as its root, so
// that no symlink leads out of it.
type tree struct {
	root *os.File
}

const typeMissing = "missing"

// openTree opens dir as a tree.
func openTree(dir string) (tree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return tree{}, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return tree{root: os.NewFile(uintptr(fd), dir)}, nil
}

func (t tree) close() error { return t.root.Close() }

// open opens path in the tree itself (O_PATH): nothing is read or waited for,
// whatever is there. A symlink at the end is not followed.
func (t tree) open(path string) (*os.File, error) {
	fd, err := unix.Openat2(int(t.root.Fd()), path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// reopen opens what f is for reading, without moving its access time where the
// kernel lets us.
func reopen(f *os.File, flags int) (*os.File, error) {
	proc := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	fd, err := unix.Open(proc, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME|flags, 0)
	if errors.Is(err, unix.EPERM) {
		fd, err = unix.Open(proc, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// absent is true of errors that say that nothing is at a path.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// entry describes what is at path, with the hash of up to limit bytes if it is
// a file and limit is not negative.
func (t tree) entry(image, path string, limit int64) (SampleEntry, error) {
	e := SampleEntry{Image: image, Path: path}
	f, err := t.open(path)
	if absent(err) {
		e.Type = typeMissing
		return e, nil
	}
	if err != nil {
		return e, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return e, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	e.Mode = fmt.Sprintf("%04o", st.Mode&0o7777)
	e.UID, e.GID = st.Uid, st.Gid
	if e.Xattrs, err = xattrs(f); err != nil {
		return e, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		// A merged folder's size and time are those of one of its layers and
		// say nothing.
		e.Type = "dir"
		return e, nil
	}
	e.MTime = st.Mtim.Nano()
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = "file", st.Size
		if limit >= 0 {
			e.Hashed, e.SHA256, err = hash(f, limit)
		}
	case unix.S_IFLNK:
		e.Type, e.Size = "symlink", st.Size
		e.Target, err = target(f)
	case unix.S_IFCHR:
		e.Type, e.Rdev = "char", st.Rdev
	case unix.S_IFBLK:
		e.Type, e.Rdev = "block", st.Rdev
	case unix.S_IFIFO:
		e.Type = "fifo"
	case unix.S_IFSOCK:
		e.Type = "socket"
	}
	return e, err
}

func hash(f *os.File, limit int64) (int64, string, error) {
	r, err := reopen(f, unix.O_NONBLOCK)
	if err != nil {
		return 0, "", err
	}
	defer r.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(r, limit))
	if err != nil {
		return 0, "", err
	}
	return n, hex.EncodeToString(h.Sum(nil)), nil
}

func target(f *os.File) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: f.Name(), Err: err}
	}
	s := string(buf[:n])
	if !utf8.ValidString(s) { // JSON would change it
		return fmt.Sprintf("%+q", s), nil
	}
	return s, nil
}

// xattrs lists the extended attributes that belong to the file: not those that
// overlayfs keeps for itself, nor the SELinux label, which a mount decides.
func xattrs(f *os.File) (map[string]string, error) {
	proc := fmt.Sprintf("/proc/self/fd/%d", f.Fd()) // fgetxattr takes no O_PATH
	buf := make([]byte, 64<<10)                     // XATTR_LIST_MAX
	n, err := unix.Listxattr(proc, buf)
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: f.Name(), Err: err}
	}
	var out map[string]string
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") ||
			name == "security.selinux" || name == "user.containers.override_stat" {
			continue
		}
		n, err := unix.Getxattr(proc, name, value)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + name, Path: f.Name(), Err: err}
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = hex.EncodeToString(value[:n])
	}
	return out, nil
}
