package convert

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// This file makes diffs of a mount program (fuse-overlayfs) into those of the
// kernel's overlay. Files are linked; what says that something below is hidden is
// translated: a file .wh.NAME, or a device 0:0, into a device 0:0, and a file
// .wh..wh..opq, or one of three attributes, into the kernel's attribute.

const (
	whPrefix  = ".wh."
	whOpaque  = ".wh..wh..opq"
	fuseAttrs = "user.fuseoverlayfs."
	// Where a folder that was renamed has its lower part.
	fuseOrigin = fuseAttrs + "origin"
)

// programs reports whether an attribute says something to a mount program or the
// kernel's overlay alone; the program shows none of these in its mounts.
func programs(attr string) bool {
	return strings.HasPrefix(attr, fuseAttrs) || strings.HasPrefix(attr, "user.overlay.") || strings.HasPrefix(attr, "trusted.overlay.")
}

// overrides reports whether an attribute holds the owner and mode that a mount
// program shows instead of the file's own.
func overrides(attr string) bool {
	return strings.HasPrefix(attr, "user.containers.override_") || strings.HasSuffix(attr, ".fuseoverlayfs.override_stat")
}

type translator struct {
	*filler
	below []string // the diffs under this one, the uppermost first
}

// fillTranslated makes a layer's diff of a mount program's. Where the layer has more
// than one, the others are made beside it.
func (s *stager) fillTranslated(ctx context.Context, l *layer, dest string) (Counts, []Damage, error) {
	dirs, below := l.dirs(), l.stack()
	counts, damage, err := s.translate(ctx, l, dirs[0], below[1:], dest)
	for i := 1; i < len(dirs) && err == nil; i++ {
		to := filepath.Join(s.o.overlayHome(), l.ID, filepath.Base(dirs[i]))
		if err = emptyDir(to); err != nil {
			break
		}
		var c Counts
		var d []Damage
		c, d, err = s.translate(ctx, l, dirs[i], below[i+1:], to)
		counts.add(c)
		damage = append(damage, d...)
	}
	return counts, damage, err
}

func (s *stager) translate(ctx context.Context, l *layer, from string, below []string, dest string) (Counts, []Damage, error) {
	method := Link
	if l.container {
		method = Reflink // written in place, so never shared by name
	}
	f, err := newFiller(ctx, from, dest, l.ID, method)
	if err != nil {
		return Counts{}, nil, err
	}
	f.seen, f.pace, f.leave, f.foreign = &s.seen, &s.pace, programs, true
	t := &translator{filler: f, below: below}
	err = t.folder("", false)
	if err == nil {
		err = f.rejoin()
	}
	if err != nil {
		f.close()
		return Counts{}, nil, err
	}
	if err := f.done(); err != nil {
		return Counts{}, nil, err
	}
	return s.verdict(f)
}

// folder translates the folder dir and all below it. Where it is covered, nothing
// of the layers below shows, and nothing has to be hidden.
func (t *translator) folder(dir string, covered bool) error {
	if err := t.enter(dir); err != nil {
		return err
	}
	opaque, err := t.folderAttrs(dir)
	if err != nil {
		return err
	}
	names, err := readDir(t.top().src)
	if err != nil {
		return t.fail("list", "", err)
	}
	hidden := map[string]bool{}
	for _, e := range names {
		opaque = opaque || e.name == whOpaque
		if what, ok := strings.CutPrefix(e.name, whPrefix); ok && e.name != whOpaque {
			hidden[what] = true
		}
	}
	covered = covered || opaque
	for _, e := range names {
		if strings.HasPrefix(e.name, whPrefix) {
			continue
		}
		if hidden[e.name] { // the program shows nothing there; the image's tar may have meant something else
			t.damage = append(t.damage, Damage{Kind: Unrepresentable, Layer: t.layerID, Path: join(dir, e.name), Detail: "it is hidden by a " + whPrefix + " file beside it"})
			continue
		}
		if err := t.enter(dir); err != nil {
			return err
		}
		if err := t.entry(dir, e.name, covered); err != nil {
			return err
		}
	}
	for name := range hidden {
		if err := t.hide(dir, name, covered); err != nil {
			return err
		}
	}
	if opaque {
		return t.setOpaque(dir)
	}
	return nil
}

// entry puts one entry, with what is below it.
func (t *translator) entry(dir, name string, covered bool) error {
	var st unix.Stat_t
	if err := unix.Fstatat(t.top().src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return t.fail("stat", name, err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return t.folder(join(dir, name), covered)
	case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0:
		return t.hide(dir, name, covered)
	}
	attrs, err := attrNames(func(b []byte) (int, error) { return unix.Llistxattr(fdPath(t.top().src, name), b) })
	if err != nil {
		return t.fail("list attributes of", name, err)
	}
	t.alone = false
	for _, a := range attrs {
		if overrides(a) {
			return t.overridden(join(dir, name), a)
		}
		t.alone = t.alone || programs(a)
	}
	_, _, err = t.put(name)
	t.alone = false
	return err
}

func (t *translator) overridden(p, attr string) error {
	return fmt.Errorf("%w: in layer %s %q has its owner and mode in the attribute %s (force_mask)", ErrUnconvertible, short(t.layerID), "/"+p, attr)
}

// folderAttrs reports whether the open folder hides what is below it.
func (t *translator) folderAttrs(dir string) (opaque bool, err error) {
	fd := t.top().src
	names, err := attrNames(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) })
	if err != nil {
		return false, t.fail("list attributes of", "", err)
	}
	for _, a := range names {
		if overrides(a) {
			return false, t.overridden(dir, a)
		}
		if !programs(a) {
			continue
		}
		value, err := readAttr(func(b []byte) (int, error) { return unix.Fgetxattr(fd, a, b) })
		if err != nil {
			return false, t.fail("read attributes of", "", err)
		}
		text := strings.TrimRight(string(value), "\x00")
		switch {
		case strings.HasSuffix(a, ".opaque"):
			opaque = opaque || text == "y"
		case a == fuseOrigin && path.Clean("/"+text) != "/"+dir, strings.HasSuffix(a, ".redirect"):
			return false, fmt.Errorf("%w: in layer %s the folder %q was renamed, and has its lower part by the attribute %s", ErrUnconvertible, short(t.layerID), "/"+dir, a)
		}
	}
	return opaque, nil
}

// hide makes a whiteout, where something below is to be hidden: where nothing is,
// the kernel would show the whiteout itself.
func (t *translator) hide(dir, name string, covered bool) error {
	if covered {
		return nil
	}
	shown, err := t.shownBelow(join(dir, name))
	if err != nil || !shown {
		return err
	}
	if err := t.enter(dir); err != nil {
		return err
	}
	if err := unix.Mknodat(t.top().dst, name, unix.S_IFCHR, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return t.fail("hide", name, err)
	}
	t.top().dirty = true
	t.counts.Whiteouts++
	return nil
}

// shownBelow reports whether the diffs under this one show something at p.
func (t *translator) shownBelow(p string) (bool, error) {
	for _, dir := range t.below {
		root, err := openDir(unix.AT_FDCWD, dir)
		if err != nil {
			return false, &pathError{"open", dir, err}
		}
		shown, over, err := shownIn(root, p)
		unix.Close(root)
		if err != nil || over {
			return shown, err
		}
	}
	return false, nil
}

// shownIn looks for p in one diff. It is over if what lies below this one does
// not count any more.
func shownIn(root int, p string) (shown, over bool, err error) {
	dir, err := openDir(root, ".")
	if err != nil {
		return false, false, err
	}
	defer func() { unix.Close(dir) }()
	for {
		opaque, err := isOpaque(dir)
		if err != nil {
			return false, false, err
		}
		over = over || opaque
		name, rest, more := strings.Cut(p, "/")
		var st unix.Stat_t
		if unix.Fstatat(dir, whPrefix+name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return false, true, nil
		}
		err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case errors.Is(err, unix.ENOENT):
			return false, over, nil
		case err != nil:
			return false, false, &pathError{"stat", p, err}
		case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0:
			return false, true, nil
		case !more:
			return true, true, nil
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return false, true, nil
		}
		sub, err := openDir(dir, name)
		if err != nil {
			return false, false, &pathError{"open", p, err}
		}
		unix.Close(dir)
		dir, p = sub, rest
	}
}

// isOpaque reports whether an open folder of a diff hides what is below it.
func isOpaque(dir int) (bool, error) {
	var st unix.Stat_t
	if unix.Fstatat(dir, whOpaque, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		return true, nil
	}
	for _, a := range []string{"trusted.overlay.opaque", "user.overlay.opaque", fuseAttrs + "opaque"} {
		value, err := readAttr(func(b []byte) (int, error) { return unix.Fgetxattr(dir, a, b) })
		if err == nil && len(value) > 0 && value[0] == 'y' {
			return true, nil
		}
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EOPNOTSUPP) {
			return false, fmt.Errorf("attribute %q: %w", a, err)
		}
	}
	return false, nil
}
