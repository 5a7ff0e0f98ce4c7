package convert

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// written is how many bytes the files take that a container's layer has and its
// image's has not, or has otherwise by size or time. It is 0 for other layers,
// and for one that is not there. A file that goes meanwhile is not counted.
func written(ctx context.Context, l, parent *layer) (int64, error) {
	if !l.container || !exists(l.dir()) {
		return 0, nil
	}
	top, err := openDir(unix.AT_FDCWD, l.dir())
	if err != nil {
		return 0, &pathError{"open", l.dir(), err}
	}
	defer unix.Close(top)
	below := -1
	if parent != nil && exists(parent.dir()) {
		if below, err = openDir(unix.AT_FDCWD, parent.dir()); err != nil {
			return 0, &pathError{"open", parent.dir(), err}
		}
		defer unix.Close(below)
	}
	return writtenIn(ctx, top, below)
}

// writtenIn looks through one folder; below is -1 where the image has none.
func writtenIn(ctx context.Context, top, below int) (sum int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	names, err := readDir(top)
	if err != nil {
		return 0, err
	}
	for _, e := range names {
		var a, b unix.Stat_t
		if err := unix.Fstatat(top, e.name, &a, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return 0, &pathError{"stat", e.name, err}
		}
		there := below >= 0 && unix.Fstatat(below, e.name, &b, unix.AT_SYMLINK_NOFOLLOW) == nil
		if a.Mode&unix.S_IFMT != unix.S_IFDIR {
			if !there || a.Size != b.Size || a.Mtim != b.Mtim {
				sum += a.Blocks * 512
			}
			continue
		}
		n, err := writtenBelow(ctx, top, below, e.name, there && b.Mode&unix.S_IFMT == unix.S_IFDIR)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

func writtenBelow(ctx context.Context, top, below int, name string, there bool) (int64, error) {
	a, err := openDir(top, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return 0, nil
	}
	if err != nil {
		return 0, &pathError{"open", name, err}
	}
	defer unix.Close(a)
	b := -1
	if there {
		if b, err = openDir(below, name); err != nil {
			return 0, &pathError{"open", name, err}
		}
		defer unix.Close(b)
	}
	return writtenIn(ctx, a, b)
}
