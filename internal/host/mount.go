package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// FSMount is a filesystem to mount. Flags are those of mount(2): MS_RDONLY,
// MS_NOATIME, MS_NODEV, MS_NOSUID, MS_NOEXEC and no others.
type FSMount struct {
	Source, Type string
	Flags        uintptr
	Data         string // options of the filesystem, by commas
}

// PrivateDir makes sure that there is a folder of mode 0700 that only root can
// reach, to mount something at, and gives its path. The parent is made, too, and
// must be root's alone.
func PrivateDir(parent, name string) (string, error) {
	if !filepath.IsLocal(name) || name != filepath.Base(name) {
		return "", fmt.Errorf("cannot make a private folder: %q is no name", name)
	}
	path := filepath.Join(parent, name)
	for _, dir := range []string{parent, path} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", fmt.Errorf("cannot make a private folder: %w", err)
		}
	}
	who, err := Changeable(path)
	if err == nil && who != "" {
		err = fmt.Errorf("others than root can change %s", who)
	}
	if err != nil {
		return "", fmt.Errorf("cannot make a private folder: %w", err)
	}
	return path, nil
}

// Changeable gives the outermost part of a path that others than root can
// replace, "" if there is none. Only where there is none does the path lead to
// the same place every time, also for those who follow links: mount(8), systemd.
// A symbolic link in it is an error (ELOOP); what is not there is not judged.
func Changeable(path string) (string, error) {
	dir, rest := "/", strings.TrimPrefix(filepath.Clean(path), "/")
	for rest != "" {
		var in, st unix.Stat_t
		if err := unix.Lstat(dir, &in); err != nil {
			return "", fmt.Errorf("cannot look at %s: %w", dir, err)
		}
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		next := filepath.Join(dir, name)
		err := unix.Lstat(next, &st)
		there := !errors.Is(err, unix.ENOENT)
		if there && err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			err = unix.ELOOP
		}
		if there && err != nil {
			return "", fmt.Errorf("cannot look at %s: %w", next, err)
		}
		// In a sticky folder everybody keeps hands off what is root's.
		safe := in.Mode&0o022 == 0 || there && in.Mode&unix.S_ISVTX != 0 && st.Uid == 0
		if in.Uid != 0 || !safe {
			return next, nil
		}
		if !there {
			return "", nil
		}
		dir = next
	}
	return "", nil
}

// MountFS mounts a filesystem on the folder that a descriptor of [OpenDir]
// names, wherever links may lead by now, and gives the mount as it is seen
// there. If the folder has been moved away from the path that it was opened by,
// the mount is taken back and that is the error.
func MountFS(fs FSMount, target *os.File) (Mount, error) {
	tree, err := newTree(fs)
	var m Mount
	switch {
	case err == nil:
		defer tree.Close()
		m, err = attach(tree, target)
	case errors.Is(err, unix.ENOSYS):
		m, err = mountOn(fs, target)
	}
	if err != nil {
		return Mount{}, fmt.Errorf("cannot mount %s at %s: %w", fs.Source, target.Name(), err)
	}
	return m, nil
}

// BindDir makes the folder source, but no mounts below it, visible at target,
// too. Both are descriptors of [OpenDir]; see [MountFS].
func BindDir(source, target *os.File) (Mount, error) {
	tree, err := openTree(source)
	var m Mount
	switch {
	case err == nil:
		defer tree.Close()
		m, err = attach(tree, target)
	case errors.Is(err, unix.ENOSYS):
		m, err = mountOn(FSMount{Source: fdPath(source), Flags: unix.MS_BIND}, target)
	}
	if err != nil {
		return Mount{}, fmt.Errorf("cannot bind %s to %s: %w", source.Name(), target.Name(), err)
	}
	return m, nil
}

// newTree makes a mount that is attached nowhere; ENOSYS before Linux 5.2.
func newTree(fs FSMount) (*os.File, error) {
	fd, err := unix.Fsopen(fs.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	told := func(err error) error { // the kernel's own words, which say more than the number
		var text []string
		buf := make([]byte, 4096)
		for {
			n, err := unix.Read(fd, buf)
			if err != nil || n == 0 {
				break
			}
			text = append(text, strings.TrimSpace(string(buf[:n])))
		}
		if len(text) == 0 {
			return err
		}
		return fmt.Errorf("%w (%s)", err, strings.Join(text, "; "))
	}
	if err := unix.FsconfigSetString(fd, "source", fs.Source); err != nil {
		return nil, told(err)
	}
	options := strings.FieldsFunc(fs.Data, func(r rune) bool { return r == ',' })
	attrs := 0
	for _, f := range []struct {
		flag uintptr
		attr int
	}{
		{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}, {unix.MS_NOATIME, unix.MOUNT_ATTR_NOATIME},
		{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV}, {unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID}, {unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
	} {
		if fs.Flags&f.flag != 0 {
			attrs |= f.attr
		}
	}
	if fs.Flags&unix.MS_RDONLY != 0 {
		options = append(options, "ro")
	}
	for _, o := range options {
		key, value, has := strings.Cut(o, "=")
		if has {
			err = unix.FsconfigSetString(fd, key, value)
		} else {
			err = unix.FsconfigSetFlag(fd, key)
		}
		if err != nil {
			return nil, told(err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, told(err)
	}
	tree, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, told(err)
	}
	return os.NewFile(uintptr(tree), fs.Source), nil
}

// openTree makes a mount of a folder that is attached nowhere.
func openTree(dir *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir.Name()), nil
}

// attach puts a mount that is attached nowhere on the folder of a descriptor.
func attach(tree, target *os.File) (Mount, error) {
	err := unix.MoveMount(int(tree.Fd()), "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return Mount{}, err
	}
	m, err := MountOf(tree)
	return m, landed(m, err, tree, target)
}

// landed judges a mount that was just made on target, and takes it back through
// its root if it is not where it belongs.
func landed(m Mount, err error, root, target *os.File) error {
	if err == nil && m.Path != filepath.Clean(target.Name()) {
		err = fmt.Errorf("the folder has been moved to %s meanwhile", m.Path)
	}
	if err != nil {
		// Nobody has begun to use it; and our own descriptor makes it busy.
		err = errors.Join(err, unix.Unmount(fdPath(root), unix.MNT_DETACH))
	}
	return err
}

// mountOn is [MountFS] and [BindDir] for Linux before 5.2. The path by way of
// the descriptor leads to its folder, whatever has become of the name.
func mountOn(fs FSMount, target *os.File) (Mount, error) {
	before, err := Mounts()
	if err != nil {
		return Mount{}, err
	}
	under, err := mountID(target)
	if err != nil {
		return Mount{}, err
	}
	if err := unix.Mount(fs.Source, fdPath(target), fs.Type, fs.Flags, fs.Data); err != nil {
		return Mount{}, err
	}
	after, err := Mounts()
	if err != nil {
		return Mount{}, fmt.Errorf("it is mounted, but where: %w", err)
	}
	fresh := slices.DeleteFunc(after, func(m Mount) bool {
		return m.Parent != under || slices.ContainsFunc(before, func(b Mount) bool { return b.ID == m.ID })
	})
	if len(fresh) > 1 { // others mount things, too
		at, _ := os.Readlink(fdPath(target))
		fresh = slices.DeleteFunc(fresh, func(m Mount) bool { return m.Path != at })
	}
	if len(fresh) != 1 {
		return Mount{}, errors.New("it is mounted, but not seen")
	}
	m := fresh[0]
	root, err := peek(m.Path)
	if err != nil {
		return Mount{}, fmt.Errorf("it is mounted at %s: %w", m.Path, err)
	}
	defer root.Close()
	id, err := mountID(root)
	if err == nil && id != m.ID {
		return Mount{}, fmt.Errorf("it is mounted at %s, but hidden there", m.Path)
	}
	return m, landed(m, err, root, target)
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// BusyError says that a mount cannot be taken away because it is in use.
type BusyError struct {
	Path    string
	Holders []Holder // as far as they can be found
	Mounts  []Mount  // that lie below it
}

// busy looks who uses the filesystem with a device number that is mounted at path.
func busy(path string, dev uint64) *BusyError {
	e := &BusyError{Path: path, Holders: Holders(dev)}
	if t, err := Mounts(); err == nil {
		e.Mounts = t.Below(path)
	}
	return e
}

func (e *BusyError) Error() string {
	const most = 8
	var who []string
	for _, h := range e.Holders {
		who = append(who, h.String())
	}
	for _, m := range e.Mounts {
		who = append(who, "the mount at "+m.Path)
	}
	if n := len(who) - most; n > 0 {
		who = append(who[:most], fmt.Sprintf("and %d more", n))
	}
	if who == nil {
		who = []string{"nobody that can be seen"}
	}
	return fmt.Sprintf("cannot unmount %s: it is used by %s", e.Path, strings.Join(who, ", "))
}

const busyFor = 10 * time.Second

// Unmount takes away the topmost mount at a path, and returns when it is seen
// to be gone from this mount namespace. No link is followed. One that is in use
// is tried again until ctx ends, or 10 s have passed; the error is a
// [*BusyError] then. An automount is left alone: its unit has to be stopped.
func Unmount(ctx context.Context, path string) error {
	path = filepath.Clean(path)
	t, err := Mounts()
	if err != nil {
		return err
	}
	at := t.Stack(path)
	if len(at) == 0 || path == "/" {
		return fmt.Errorf("cannot unmount %s: nothing is mounted there", path)
	}
	if at[0].Type == "autofs" {
		return fmt.Errorf("cannot unmount %s: it is an automount", path)
	}
	parent, err := OpenDir(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("cannot unmount %s: %w", path, err)
	}
	defer parent.Close()
	// The folder by its descriptor, and of the last name no link is followed.
	by := fdPath(parent) + "/" + filepath.Base(path)
	deadline, cancel := context.WithTimeout(ctx, busyFor)
	defer cancel()
	for {
		if err = unix.Unmount(by, unix.UMOUNT_NOFOLLOW); !errors.Is(err, unix.EBUSY) {
			break
		}
		select { // nothing tells when a mount ceases to be in use
		case <-time.After(100 * time.Millisecond):
			continue
		case <-deadline.Done():
			return busy(path, at[0].Dev())
		}
	}
	if err != nil {
		return fmt.Errorf("cannot unmount %s: %w", path, err)
	}
	if t, err = Mounts(); err != nil {
		return err
	}
	if slices.ContainsFunc(t, func(m Mount) bool { return m.ID == at[0].ID }) {
		return fmt.Errorf("cannot unmount %s: another mount was there, and %s is still", path, at[0].Source)
	}
	return nil
}
