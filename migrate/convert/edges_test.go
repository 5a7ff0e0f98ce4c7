package convert

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A layer may hide everything below it.
func TestOpaqueRoot(t *testing.T) {
	f := newFixture(t)
	a := f.layer("", dir("d"), file("d/old", "o"), file("f", "f"), dir("gone"), file("gone/x", "x"))
	b := f.layer(a, opaqueDir("."), dir("d"), file("d/new", "n"), file("g", "g"))
	f.image(b)
	f.sync()
	f.prove()
}

// A folder's default ACL is kept and is not inherited by what is put into it.
func TestDefaultACL(t *testing.T) {
	f := newFixture(t)
	a := f.layer("", dir("d"), dir("d/sub"), file("d/sub/f", "f"), file("d/g", "g"))
	f.image(a)
	// Version 2; user::rwx, user:7:rwx, group::r-x, mask::rwx, other::r-x.
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x07\x00\x07\x00\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"
	d := filepath.Join(f.opts.Source.GraphRoot, "vfs/dir", a, "d")
	must(t, unix.Setxattr(d, "system.posix_acl_default", []byte(acl), 0))
	f.sync()
	f.prove()
	if n, err := unix.Getxattr(filepath.Join(f.opts.overlayHome(), a, "diff/d"), "system.posix_acl_default", nil); err != nil || n != len(acl) {
		t.Errorf("the ACL is lost: %v", err)
	}
}

// What vfs loses when it copies a tree is not a difference of ours.
func TestLossOfVfsIsExplained(t *testing.T) {
	f := newFixture(t)
	a := f.layer("", file("f", "f").attr("trusted.of", "the image"), symlink("s", "f"), hardlink("s2", "s"))
	b := f.layer(a, file("g", "g"))
	f.image(b)
	f.sync()
	p := f.prove()
	fields := map[string]bool{}
	for _, d := range p.Differences {
		fields[d.Field] = true
	}
	if !fields["attributes"] {
		t.Errorf("differences %v", p.Differences)
	}
}

// Compare finds every kind of difference, in what was staged well.
func TestCompareSees(t *testing.T) {
	for field, hurt := range map[string]func(diff string) error{
		"missing": func(d string) error { return os.Remove(filepath.Join(d, "d/a")) },
		"extra":   func(d string) error { return os.WriteFile(filepath.Join(d, "d/more"), nil, 0o644) },
		"type": func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "d/a")), os.Mkdir(filepath.Join(d, "d/a"), 0o755))
		},
		"mode":    func(d string) error { return os.Chmod(filepath.Join(d, "d"), 0o711) },
		"owner":   func(d string) error { return os.Chown(filepath.Join(d, "d"), 3, 3) },
		"mtime":   func(d string) error { return os.Chtimes(filepath.Join(d, "d"), someTime, time.Unix(1, 0)) },
		"size":    func(d string) error { return replace(filepath.Join(d, "d/a"), "longer than before") },
		"content": func(d string) error { return replace(filepath.Join(d, "d/a"), "b") },
		"target": func(d string) error {
			p := filepath.Join(d, "d/s")
			return errors.Join(os.Remove(p), os.Symlink("b", p))
		},
		"attributes": func(d string) error { return unix.Setxattr(filepath.Join(d, "d"), "user.more", []byte("m"), 0) },
		"hard link":  func(d string) error { return replace(filepath.Join(d, "d/h"), "a") },
		"whiteout":   func(d string) error { return unix.Mknod(filepath.Join(d, "d/w"), unix.S_IFCHR, 0) },
	} {
		t.Run(field, func(t *testing.T) {
			f := newFixture(t)
			a := f.layer("", dir("d"), file("d/a", "a"), hardlink("d/h", "d/a"), symlink("d/s", "a"))
			f.image(f.layer(a, file("top", "t")))
			f.sync()
			f.prove()
			must(t, hurt(filepath.Join(f.opts.overlayHome(), a, "diff")))
			p, err := Compare(context.Background(), f.opts, nil, CompareOptions{})
			must(t, err)
			found := false
			for _, d := range p.Unexplained() {
				found = found || d.Field == field
			}
			if !found {
				t.Errorf("not seen; only %v", p.Differences)
			}
		})
	}
}

// A file that is missing from each copy of a folder gives each copy a time of
// its own. That is told apart from any other folder's time.
func TestTimesOfDamagedFolders(t *testing.T) {
	f := newFixture(t)
	a := f.layer("", dir("d"), file("d/a", "a"), file("d/b", "b"), dir("e"), file("e/a", "a"))
	b := f.layer(a, file("top", "t"))
	f.image(b)
	for i, l := range []string{a, b} {
		d := filepath.Join(f.opts.Source.GraphRoot, "vfs/dir", l, "d")
		must(t, os.Remove(filepath.Join(d, "a")))
		must(t, os.Chtimes(d, someTime, time.Unix(int64(i), 0)))
	}
	f.opts.KeepDamaged = true
	f.sync()
	p := f.prove()
	if !slices.ContainsFunc(p.Differences, func(d Difference) bool { return d.Path == "d" && d.Field == "mtime" }) {
		t.Errorf("the folder's time is not told: %v", p.Differences)
	}
	must(t, os.Chtimes(filepath.Join(f.opts.overlayHome(), a, "diff/e"), someTime, time.Unix(7, 0)))
	p, err := Compare(context.Background(), f.opts, nil, CompareOptions{})
	must(t, err)
	if d := p.Unexplained(); len(d) != 1 || d[0].Path != "e" || d[0].Field != "mtime" {
		t.Errorf("want the time of e alone, got %v", d)
	}
}

// However many differences are explained, one that is not stays in sight.
func TestExplainedDoNotCrowdOut(t *testing.T) {
	var one, all Proof
	for range maxDifferences + 10 {
		one.difference(Difference{Explained: "somehow"})
	}
	one.difference(Difference{Path: "lost"})
	all.add(&one)
	if d := all.Unexplained(); len(d) != 1 || d[0].Path != "lost" || one.More != 10 || all.More != 10 || len(all.Differences) != maxDifferences+1 {
		t.Errorf("unexplained %v, more %d and %d", d, one.More, all.More)
	}
}

// replace puts another file in a file's place, with its times.
func replace(path, data string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	return errors.Join(os.Remove(path), os.WriteFile(path, []byte(data), fi.Mode()), os.Chtimes(path, fi.ModTime(), fi.ModTime()))
}

// A copy keeps holes and all that a write or a chown would drop.
func TestCopyKeepsEverything(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	p := filepath.Join(from, "sparse")
	must(t, os.WriteFile(p, []byte("start"), 0o600))
	must(t, os.Truncate(p, 64<<20))
	file, err := os.OpenFile(p, os.O_WRONLY, 0)
	must(t, err)
	_, err = file.WriteAt([]byte("middle"), 40<<20)
	must(t, errors.Join(err, file.Close()))
	must(t, os.Chown(p, 12, 13))
	must(t, os.Chmod(p, 0o755|fs.ModeSetuid))
	must(t, unix.Setxattr(p, "user.k", []byte(strings.Repeat("v", 1000)), 0))
	must(t, unix.Setxattr(p, "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(t, os.Chtimes(p, someTime, time.Unix(1500000000, 987654321)))
	must(t, unix.Mkfifo(filepath.Join(from, "fifo"), 0o640))
	must(t, os.Symlink("no such thing", filepath.Join(from, "link")))
	must(t, copyTree(context.Background(), from, filepath.Join(to, "copy")))
	for _, name := range []string{"sparse", "fifo", "link"} {
		var a, b unix.Stat_t
		must(t, unix.Lstat(filepath.Join(from, name), &a))
		must(t, unix.Lstat(filepath.Join(to, "copy", name), &b))
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Size != b.Size || a.Mtim != b.Mtim || a.Ino == b.Ino || b.Blocks > a.Blocks {
			t.Errorf("%s: %+v became %+v", name, a, b)
		}
		x, err := allAttrs(filepath.Join(from, name))
		must(t, err)
		y, err := allAttrs(filepath.Join(to, "copy", name))
		must(t, err)
		if len(x) != len(y) || x["user.k"] != y["user.k"] || x["security.capability"] != y["security.capability"] {
			t.Errorf("%s: attributes %q became %q", name, x, y)
		}
	}
}
