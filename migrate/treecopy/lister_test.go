package treecopy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// listing describes each entry of a tree, by path: independent of the package, it
// goes by path names and reads whole files.
func listing(t testing.TB, root string, skip ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	firstName := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if slices.Contains(skip, rel) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		s := info.Sys().(*syscall.Stat_t)
		if info.Mode()&os.ModeSocket != 0 {
			return nil
		}
		line := fmt.Sprintf("%o %d:%d %d.%09d", s.Mode, s.Uid, s.Gid, s.Mtim.Sec, s.Mtim.Nsec)
		switch s.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size %d %x", s.Size, sha256.Sum256(b))
		case syscall.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case syscall.S_IFCHR, syscall.S_IFBLK:
			line += fmt.Sprintf(" dev %d:%d", unix.Major(s.Rdev), unix.Minor(s.Rdev))
		}
		if s.Nlink > 1 && s.Mode&syscall.S_IFMT != syscall.S_IFDIR {
			// WalkDir goes in the order of names: the first name is the same on both sides.
			if _, ok := firstName[s.Ino]; !ok {
				firstName[s.Ino] = rel
			}
			line += fmt.Sprintf(" links %d first %q", s.Nlink, firstName[s.Ino])
		}
		all[rel] = line + attributes(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func attributes(t testing.TB, path string) string {
	t.Helper()
	buf := make([]byte, 65536)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatal(path, err)
	}
	names := strings.Split(string(bytes.TrimRight(buf[:n], "\x00")), "\x00")
	slices.Sort(names)
	line := ""
	for _, name := range names {
		if name == "" || strings.HasPrefix(name, "trusted.SGI_ACL_") { // XFS's other view of an ACL
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			t.Fatal(path, name, err)
		}
		line += fmt.Sprintf(" %s=%x", name, buf[:n])
	}
	return line
}

// equal fails unless both trees are the same in everything the lister sees.
func equal(t testing.TB, a, b string, skip ...string) {
	t.Helper()
	la, lb := listing(t, a, skip...), listing(t, b, skip...)
	bad := 0
	for path, line := range la {
		if lb[path] != line {
			if bad++; bad <= 10 {
				t.Errorf("%q:\n  source      %s\n  destination %s", path, line, lb[path])
			}
		}
	}
	for path := range lb {
		if _, ok := la[path]; !ok {
			if bad++; bad <= 10 {
				t.Errorf("%q is only in the destination", path)
			}
		}
	}
	if bad > 0 {
		t.Fatalf("%d differences", bad)
	}
}
