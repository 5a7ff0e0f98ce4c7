package host

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// LetThrough closes a folder of root's to all but one user, who may pass through it and
// not look into it: by an access control list. Where the filesystem has none the user's
// primary group may pass, too, and alone is false.
func LetThrough(path string, uid, gid uint32) (alone bool, err error) {
	fail := func(err error) (bool, error) {
		return false, fmt.Errorf("cannot open the way through %s: %w", path, err)
	}
	dir, err := OpenDir(path)
	if err != nil {
		return fail(err)
	}
	defer dir.Close()
	d, err := Readable(dir)
	if err != nil {
		return fail(err)
	}
	defer d.Close()
	if err := errors.Join(d.Chown(0, 0), d.Chmod(0o700)); err != nil {
		return fail(err)
	}
	err = unix.Fsetxattr(int(d.Fd()), "system.posix_acl_access", passACL(uid), 0)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return fail(err)
	}
	if err := errors.Join(d.Chown(0, int(gid)), d.Chmod(0o710)); err != nil {
		return fail(err)
	}
	return false, nil
}

// passACL is the list in which root has all rights, a user the right to pass, and nobody
// else any (acl(5), linux/posix_acl_xattr.h).
func passACL(uid uint32) []byte {
	const (
		version                         = 2
		owner, user, group, mask, other = 0x01, 0x02, 0x04, 0x10, 0x20
		all, pass                       = 7, 1
		nobody                          = ^uint32(0) // no id in this entry
	)
	b := binary.LittleEndian.AppendUint32(nil, version)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{owner, all, nobody}, {user, pass, uid}, {group, 0, nobody}, {mask, pass, nobody}, {other, 0, nobody}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}
