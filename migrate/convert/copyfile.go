package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containers/storage/pkg/archive"
	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// overlayAttr is the name of an attribute that overlay keeps for itself:
// trusted.overlay.* for root, user.overlay.* inside a user namespace.
func overlayAttr(name string) string { return archive.GetOverlayXattrName(name) }

// overlays reports whether overlay keeps an attribute for itself.
func overlays(attr string) bool { return strings.HasPrefix(attr, overlayAttr("")) }

// copier copies one entry with its metadata. Holes stay holes.
type copier struct {
	ctx    context.Context
	pace   *host.Pace
	clone  bool                   // try a reflink first; false after the filesystem refused
	leave  func(attr string) bool // attributes that are not copied; nil: all are
	cloned bool                   // the data is shared
	bytes  int64
}

func (c *copier) copy(srcDir, dstDir int, name string, st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.regular(srcDir, dstDir, name, st)
	case unix.S_IFLNK:
		target, err := readlinkat(srcDir, name)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, dstDir, name); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(dstDir, name, st.Mode&(unix.S_IFMT|0o777), int(st.Rdev)); err != nil {
			return err
		}
	}
	if err := unix.Fchownat(dstDir, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(dstDir, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	if err := copyAttrsAt(srcDir, dstDir, name, c.leave); err != nil {
		return err
	}
	return unix.UtimesNanoAt(dstDir, name, times(st), unix.AT_SYMLINK_NOFOLLOW)
}

func (c *copier) regular(srcDir, dstDir int, name string, st *unix.Stat_t) error {
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	src, err := unix.Openat(srcDir, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		src, err = unix.Openat(srcDir, name, flags, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := unix.Openat(dstDir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	if c.clone {
		switch err := unix.IoctlFileClone(dst, src); {
		case err == nil:
			c.cloned = true
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EIO):
			return err
		default:
			c.clone = false
		}
	}
	if !c.cloned {
		if err := c.data(src, dst, st.Size); err != nil {
			return err
		}
	}
	// In this order: chown drops setuid and capabilities, a write drops them too.
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	if _, err := copyAttrs(src, dst, c.leave); err != nil {
		return err
	}
	return unix.UtimesNanoAt(dstDir, name, times(st), unix.AT_SYMLINK_NOFOLLOW)
}

// data copies the file's data segments and leaves its holes.
func (c *copier) data(src, dst int, size int64) error {
	if err := unix.Ftruncate(dst, size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		start, err := unix.Seek(src, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			start = off // a filesystem without holes
		}
		end, err := unix.Seek(src, start, unix.SEEK_HOLE)
		if err != nil || end > size {
			end = size
		}
		if err := c.segment(src, dst, start, end); err != nil {
			return err
		}
		off = end
	}
	return nil
}

func (c *copier) segment(src, dst int, off, end int64) error {
	var buf []byte
	for off < end {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		var n int
		var err error
		if buf == nil {
			in, out := off, off
			n, err = unix.CopyFileRange(src, &in, dst, &out, int(min(end-off, 1<<20)), 0)
			if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
				buf = make([]byte, 256<<10)
				continue
			}
		} else {
			n, err = unix.Pread(src, buf[:min(int64(len(buf)), end-off)], off)
			for w := 0; err == nil && w < n; {
				var m int
				m, err = unix.Pwrite(dst, buf[w:n], off+int64(w))
				w += m
			}
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		off += int64(n)
		c.bytes += int64(n)
		if err := c.pace.Take(c.ctx, int64(n)); err != nil {
			return err
		}
	}
	return nil
}

// readAttr reads one value with a call that answers like getxattr(2).
func readAttr(get func(buf []byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 256)
	n, err := get(buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 64<<10) // XATTR_SIZE_MAX, the most Linux keeps
		n, err = get(buf)
	}
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// attrNames splits what listxattr(2) answers. A filesystem without attributes
// has none.
func attrNames(list func(buf []byte) (int, error)) ([]string, error) {
	n, err := list(nil)
	if errors.Is(err, unix.EOPNOTSUPP) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	buf, err := readAttr(list)
	if err != nil || len(buf) == 0 {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(buf), "\x00"), "\x00"), nil
}

// copyAttrs copies the extended attributes between open files. Those that leave
// (if not nil) names are left out, and it tells that there were such. A security
// label that the policy does not let us set is left to the policy.
func copyAttrs(src, dst int, leave func(string) bool) (left bool, err error) {
	names, err := attrNames(func(b []byte) (int, error) { return unix.Flistxattr(src, b) })
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if leave != nil && leave(name) {
			left = true
			continue
		}
		value, err := readAttr(func(b []byte) (int, error) { return unix.Fgetxattr(src, name, b) })
		if err != nil {
			return left, err
		}
		if err := unix.Fsetxattr(dst, name, value, 0); err != nil && name != "security.selinux" {
			return left, fmt.Errorf("attribute %q: %w", name, err)
		}
	}
	return left, nil
}

// fdPath names an entry that must not be opened (a symlink, a device).
func fdPath(dir int, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", dir, name) }

func copyAttrsAt(srcDir, dstDir int, name string, leave func(string) bool) error {
	src, dst := fdPath(srcDir, name), fdPath(dstDir, name)
	names, err := attrNames(func(b []byte) (int, error) { return unix.Llistxattr(src, b) })
	if err != nil {
		return err
	}
	for _, key := range names {
		if leave != nil && leave(key) {
			continue
		}
		value, err := readAttr(func(b []byte) (int, error) { return unix.Lgetxattr(src, key, b) })
		if err != nil {
			return err
		}
		if err := unix.Lsetxattr(dst, key, value, 0); err != nil && key != "security.selinux" {
			return fmt.Errorf("attribute %q: %w", key, err)
		}
	}
	return nil
}
