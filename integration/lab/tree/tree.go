// Package tree lists a folder in full: types, modes, owners, contents, extended
// attributes, hard links. It shares nothing with the code that it judges.
package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Options says what of an entry is of interest.
type Options struct {
	DirTimes bool // modification times of folders, too
	Nlink    bool // link counts
}

// Walk calls each for every entry of a folder, the folder itself included as
// ".", in lexical order. The text holds all that is known of the entry and is
// equal for equal entries.
func Walk(root string, opts Options, each func(path, text string)) error {
	first := map[[2]uint64]string{} // inode to the first of its names
	return filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		text, err := describe(path, rel, opts, first)
		if err != nil {
			return fmt.Errorf("cannot describe %s: %w", path, err)
		}
		each(rel, text)
		return nil
	})
}

func describe(path, rel string, opts Options, first map[[2]uint64]string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	var b strings.Builder
	kind := st.Mode & unix.S_IFMT
	name := map[uint32]string{
		unix.S_IFREG: "file", unix.S_IFDIR: "dir", unix.S_IFLNK: "symlink", unix.S_IFIFO: "fifo",
		unix.S_IFSOCK: "socket", unix.S_IFCHR: "char", unix.S_IFBLK: "block",
	}[kind]
	fmt.Fprintf(&b, "%s %04o %d:%d", name, st.Mode&0o7777, st.Uid, st.Gid)
	if kind != unix.S_IFDIR || opts.DirTimes {
		fmt.Fprintf(&b, " mtime=%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	switch kind {
	case unix.S_IFREG:
		sum, err := hash(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " size=%d sha256=%s", st.Size, sum)
	case unix.S_IFLNK:
		to, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " to=%q", to)
	case unix.S_IFCHR, unix.S_IFBLK:
		fmt.Fprintf(&b, " dev=%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		if opts.Nlink {
			fmt.Fprintf(&b, " nlink=%d", st.Nlink)
		}
		id := [2]uint64{st.Dev, st.Ino}
		if before, ok := first[id]; ok {
			fmt.Fprintf(&b, " same=%q", before)
		} else {
			first[id] = rel
		}
	}
	attrs, err := xattrs(path)
	if err != nil {
		return "", err
	}
	b.WriteString(attrs)
	return b.String(), nil
}

func hash(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), errors.Join(err, f.Close())
}

func xattrs(path string) (string, error) {
	size, err := unix.Llistxattr(path, nil)
	if err != nil || size == 0 {
		return "", ignoreUnsupported(err)
	}
	buf := make([]byte, size)
	size, err = unix.Llistxattr(path, buf)
	if err != nil {
		return "", err
	}
	var names []string
	for name := range bytes.SplitSeq(buf[:size], []byte{0}) {
		if len(name) > 0 {
			names = append(names, string(name))
		}
	}
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		value := make([]byte, 64<<10) // the kernel's largest value
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " %s=%x", name, value[:n])
	}
	return b.String(), nil
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
