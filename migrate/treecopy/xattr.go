package treecopy

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	selinux    = "security.selinux"
)

// xattr is one extended attribute.
type xattr struct {
	name  string
	value []byte
}

// copied says which attributes belong to a file's content. The rest (ceph.*,
// btrfs.*, system.nfs4_acl, …) are windows into the filesystem itself.
func copied(name string) bool {
	if strings.HasPrefix(name, "trusted.SGI_ACL_") {
		return false // XFS shows its ACLs a second time so
	}
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.") ||
		strings.HasPrefix(name, "security.") || name == aclAccess || name == aclDefault
}

// xattrsOf reads the attributes, sorted by name. The path is either that of an
// entry (see place), which is not followed, or of an open file (see itself).
func xattrsOf(path string, follow bool, buf []byte) ([]xattr, error) {
	listed, get := unix.Llistxattr, unix.Lgetxattr
	if follow {
		listed, get = unix.Listxattr, unix.Getxattr
	}
	n, err := listed(path, buf)
	if errors.Is(err, unix.EOPNOTSUPP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if !copied(name) {
			continue
		}
		n, err := get(path, name, buf)
		if errors.Is(err, unix.ENODATA) {
			continue // removed meanwhile; ctime tells
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", name, err)
		}
		all = append(all, xattr{name, slices.Clone(buf[:n])})
	}
	slices.SortFunc(all, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

// xattrsOfFile is xattrsOf for an open file, quick where there are none.
func xattrsOfFile(fd int, buf []byte) ([]xattr, error) {
	n, err := unix.Flistxattr(fd, buf)
	if err == unix.EOPNOTSUPP || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return xattrsOf(itself(fd), true, buf)
}

// hashXattrs is zero for none.
func hashXattrs(all []xattr, without string) (sum [16]byte) {
	h := sha256.New()
	some := false
	for _, x := range all {
		if x.name == without {
			continue
		}
		some = true
		h.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(x.name))))
		h.Write([]byte(x.name))
		h.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(x.value))))
		h.Write(x.value)
	}
	if some {
		copy(sum[:], h.Sum(nil))
	}
	return sum
}

// setXattrs gives the entry at the path (see xattrsOf) these attributes and no
// others, but for a label that the system itself puts on every file. With bare
// nothing needs to be taken away.
func setXattrs(path string, follow, bare bool, want []xattr, buf []byte) error {
	set, remove := unix.Lsetxattr, unix.Lremovexattr
	if follow {
		set, remove = unix.Setxattr, unix.Removexattr
	}
	var have []xattr
	if !bare {
		var err error
		if have, err = xattrsOf(path, follow, buf); err != nil {
			return err
		}
	}
	for _, h := range have {
		wanted := slices.ContainsFunc(want, func(w xattr) bool { return w.name == h.name })
		if wanted || h.name == selinux {
			continue
		}
		if err := remove(path, h.name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("attribute %s: %w", h.name, err)
		}
	}
	for _, w := range want {
		same := func(h xattr) bool { return h.name == w.name && slices.Equal(h.value, w.value) }
		if slices.ContainsFunc(have, same) {
			continue
		}
		if err := set(path, w.name, w.value, 0); err != nil {
			return fmt.Errorf("attribute %s: %w", w.name, err)
		}
	}
	return nil
}

// note puts the attributes into the claim.
func (e *entry) note(all []xattr) {
	e.xattrs = hashXattrs(all, "")
	if slices.ContainsFunc(all, func(x xattr) bool { return x.name == selinux }) {
		e.flags |= flagSELinux
	}
}
