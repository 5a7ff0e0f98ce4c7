package convert

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// filler puts entries of one layer's whole tree (the source, a vfs folder)
// into that layer's diff folder. It works relative to open folders: both trees
// are walked down together, and the folders on the way are made in the diff
// with the source's owner, mode, attributes and times. Every name that it puts
// has the source's truth, so putting a name twice changes nothing.
//
// It never follows a symlink of the source except inside the source's root.
type filler struct {
	ctx    context.Context
	levels []level // the open folders, the root first
	path   string  // of the innermost open folder, without symlinks, "" is the root
	listed string  // the path as listed that led there
	fresh  bool    // listed is valid

	dstRoot string // for the root's times
	method  Method // Link, until a file tells that it cannot
	alone   bool   // the next file is not to be linked
	linkOK  bool

	groups map[uint64]*group // inodes with several names
	copies map[uint64]string // copied inodes with several names -> their first name in the diff

	split []uint64 // inodes of which some names were linked before the others had to be copied

	leave   func(attr string) bool // attributes of folders that overlay keeps for itself
	foreign bool                   // those of files, too, and it is no damage to leave them
	counts  Counts
	damage  []Damage
	layerID string
	seen    *atomic.Int64 // entries, for progress
	pace    *host.Pace
	tick    int
}

// level is one folder that is open in both trees.
type level struct {
	name     string
	src, dst int
	st       unix.Stat_t // of the source
	isNew    bool        // made by us: owner, mode and attributes are set when it is left
	dirty    bool        // names were added: times are set when it is left
}

// group counts the names of one inode that were put.
type group struct{ nlink, names uint64 }

var (
	errNotDir = errors.New("not a directory")
	errIsDir  = errors.New("is a directory")
)

const dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// openDir opens a folder without moving its access time where that is allowed.
func openDir(at int, name string) (int, error) {
	fd, err := unix.Openat(at, name, dirFlags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		fd, err = unix.Openat(at, name, dirFlags, 0)
	}
	return fd, err
}

// newFiller opens both roots. Files are linked or copied as method says; id
// names the layer in damage.
func newFiller(ctx context.Context, src, dst, id string, method Method) (*filler, error) {
	f := &filler{
		ctx: ctx, dstRoot: dst, method: method, linkOK: method == Link, layerID: id,
		groups: map[uint64]*group{}, copies: map[uint64]string{},
		leave: overlays, fresh: true, seen: new(atomic.Int64), pace: &host.Pace{},
	}
	root := level{isNew: true}
	var err error
	if root.src, err = openDir(unix.AT_FDCWD, src); err != nil {
		return nil, &pathError{"open", src, err}
	}
	if root.dst, err = openDir(unix.AT_FDCWD, dst); err != nil {
		unix.Close(root.src)
		return nil, &pathError{"open", dst, err}
	}
	f.levels = append(f.levels, root)
	if err := unix.Fstat(root.src, &f.levels[0].st); err != nil {
		f.close()
		return nil, &pathError{"stat", src, err}
	}
	return f, nil
}

// pathError is fs.PathError with the layer-relative path quoted: names in
// layers may hold any byte.
type pathError struct {
	op, path string
	err      error
}

func (e *pathError) Error() string { return fmt.Sprintf("%s %q: %v", e.op, e.path, e.err) }
func (e *pathError) Unwrap() error { return e.err }

func (f *filler) fail(op, name string, err error) error {
	return &pathError{op, join(f.path, name), err}
}

func (f *filler) top() *level { return &f.levels[len(f.levels)-1] }

// gone reports that a path does not lead anywhere in the source.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, errNotDir) || errors.Is(err, unix.ELOOP)
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func split(p string) (dir, base string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}

// enter makes dir the open folder, in the diff too. A symlink on the way is
// resolved inside the source's root and put into the diff: overlay shows one
// tree, but containers/storage reads a layer's files by the listed names from
// the diff alone when it streams the layer (podman push, save).
func (f *filler) enter(dir string) error {
	if f.fresh && dir == f.listed {
		return nil
	}
	f.fresh = false
	rest, depth := dir, 0
	for depth+1 < len(f.levels) && rest != "" {
		name := f.levels[depth+1].name
		if rest == name {
			rest = ""
		} else if len(rest) > len(name) && rest[len(name)] == '/' && rest[:len(name)] == name {
			rest = rest[len(name)+1:]
		} else {
			break
		}
		depth++
	}
	if err := f.popTo(depth); err != nil {
		return err
	}
	for hops := 0; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			if err := f.popTo(max(len(f.levels)-2, 0)); err != nil {
				return err
			}
			continue
		}
		err := f.push(name)
		if err == nil {
			continue
		}
		if !errors.Is(err, errNotDir) {
			return err
		}
		target, lerr := readlinkat(f.top().src, name)
		if lerr != nil {
			return err
		}
		if hops++; hops > 40 {
			return f.fail("resolve", name, unix.ELOOP)
		}
		if _, _, err := f.put(name); err != nil {
			return err
		}
		if strings.HasPrefix(target, "/") {
			if err := f.popTo(0); err != nil {
				return err
			}
		}
		rest = target + "/" + rest
	}
	f.listed, f.fresh = dir, true
	return nil
}

func readlinkat(at int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(at, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// push opens the folder name in both trees and makes it in the diff.
func (f *filler) push(name string) error {
	up := f.top()
	l := level{name: name}
	var err error
	if l.src, err = openDir(up.src, name); err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return f.fail("open", name, errNotDir)
		}
		return f.fail("open", name, err)
	}
	if err = unix.Fstat(l.src, &l.st); err != nil {
		unix.Close(l.src)
		return f.fail("stat", name, err)
	}
	err = unix.Mkdirat(up.dst, name, 0o700)
	switch {
	case err == nil:
		l.isNew, up.dirty = true, true
		f.counts.Dirs++
	case !errors.Is(err, unix.EEXIST):
		unix.Close(l.src)
		return f.fail("make folder", name, err)
	}
	if l.dst, err = unix.Openat(up.dst, name, dirFlags, 0); err != nil {
		unix.Close(l.src)
		return f.fail("open staged", name, err)
	}
	f.levels = append(f.levels, l)
	f.path = join(f.path, name)
	return nil
}

// popTo leaves the innermost folders until depth folders below the root are
// open.
func (f *filler) popTo(depth int) error {
	for len(f.levels)-1 > depth {
		i := len(f.levels) - 1
		err := f.finish(i)
		unix.Close(f.levels[i].src)
		unix.Close(f.levels[i].dst)
		f.levels = f.levels[:i]
		f.path, _ = split(f.path)
		if err != nil {
			return err
		}
	}
	return nil
}

// finish gives a folder the source's metadata: only when it is left, so that
// neither its times are moved nor its default ACL inherited by what is put in.
func (f *filler) finish(i int) error {
	l := &f.levels[i]
	if l.isNew {
		// Making the folder may have taken its group from a setgid parent.
		if err := unix.Fchown(l.dst, int(l.st.Uid), int(l.st.Gid)); err != nil {
			return f.fail("change owner of", "", err)
		}
		if err := unix.Fchmod(l.dst, l.st.Mode&0o7777); err != nil {
			return f.fail("change mode of", "", err)
		}
		kept, err := copyAttrs(l.src, l.dst, f.leave)
		if err != nil {
			return f.fail("copy attributes of", "", err)
		}
		if kept && !f.foreign {
			f.damage = append(f.damage, Damage{Kind: Unrepresentable, Layer: f.layerID, Path: f.path, Detail: "a folder with " + overlayAttr("") + " attributes"})
		}
	}
	if l.isNew || l.dirty {
		at, name := unix.AT_FDCWD, f.dstRoot
		if i > 0 {
			at, name = f.levels[i-1].dst, l.name
		}
		if err := unix.UtimesNanoAt(at, name, times(&l.st), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return f.fail("set times of", "", err)
		}
	}
	l.isNew, l.dirty = false, false
	return nil
}

func times(st *unix.Stat_t) []unix.Timespec { return []unix.Timespec{st.Atim, st.Mtim} }

// done leaves all folders, the root included, and closes them.
func (f *filler) done() error {
	err := f.popTo(0)
	if err == nil {
		err = f.finish(0)
	}
	f.close()
	return err
}

func (f *filler) close() {
	for _, l := range f.levels {
		unix.Close(l.src)
		unix.Close(l.dst)
	}
	f.levels = nil
}
