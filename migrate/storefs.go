package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
)

// This file is the part of the job that touches the store's folders. It runs in
// the owner worker only, with the owner's rights.

// storeParts are the folders of a driver in a graphroot.
func storeParts(driver string) []string {
	return []string{driver + "-images", driver + "-containers", driver + "-layers", driver}
}

// runFolder is the folder of a run inside the store: new/ is the staged store,
// old/ the store that was.
func runFolder(graphRoot, run string) string { return filepath.Join(graphRoot, ".storagectl-"+run) }

// storeLook is what the worker sees of a graphroot without changing it.
type storeLook struct {
	RealPath   string   `json:"realPath"` // "" if it is not there
	Symlink    bool     `json:"symlink"`  // the last element is a symbolic link
	Mountpoint bool     `json:"mountpoint"`
	MountedOn  string   `json:"mountedOn"` // the mount point that it lies on, or would
	FSType     string   `json:"fsType"`    // of statfs, in words where known
	FreeBytes  uint64   `json:"freeBytes"`
	FreeInodes uint64   `json:"freeInodes"`
	ReadOnly   bool     `json:"readOnly"`
	Drivers    []string `json:"drivers,omitempty"`  // drivers with folders here
	Leftover   []string `json:"leftover,omitempty"` // folders of runs
	Mounts     []string `json:"mounts,omitempty"`   // mount points below it
	Foreign    []string `json:"foreign,omitempty"`  // what is not podman's
	Marked     bool     `json:"marked,omitempty"`   // the store's own mark says that a program mounts its overlays
}

// fsName is what people call a filesystem, by its magic number (linux/magic.h).
func fsName(magic int64) string {
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs",
		unix.FUSE_SUPER_MAGIC: "fuse", 0x00c36400: "ceph", 0xf2f52010: "f2fs", 0x2fc12fc1: "zfs",
	}
	if n, ok := names[magic]; ok {
		return n
	}
	return fmt.Sprintf("unknown (%#x)", magic)
}

func lookAtStore(graphRoot string) (storeLook, error) {
	var l storeLook
	var err error
	if l.MountedOn, err = mountOf(graphRoot); err != nil {
		return l, err
	}
	fi, err := os.Lstat(graphRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, err
	}
	l.Symlink = fi.Mode()&fs.ModeSymlink != 0
	if l.RealPath, err = filepath.EvalSymlinks(graphRoot); err != nil {
		return l, err
	}
	if l.Mountpoint, err = isMountpoint(l.RealPath); err != nil {
		return l, err
	}
	var sf unix.Statfs_t
	if err := unix.Statfs(l.RealPath, &sf); err != nil {
		return l, err
	}
	l.FSType = fsName(sf.Type)
	l.FreeBytes, l.FreeInodes = sf.Bavail*uint64(sf.Bsize), sf.Ffree
	l.ReadOnly = sf.Flags&unix.ST_RDONLY != 0
	mounts, err := mountsBelow(l.RealPath)
	if err != nil {
		return l, err
	}
	l.Mounts = slices.DeleteFunc(mounts, func(m string) bool { return m == l.RealPath })
	es, err := os.ReadDir(l.RealPath)
	if err != nil {
		return l, err
	}
	for _, e := range es {
		name := e.Name()
		if d, ok := strings.CutSuffix(name, "-layers"); ok && e.IsDir() {
			l.Drivers = append(l.Drivers, d)
		}
		if strings.HasPrefix(name, ".storagectl-") {
			l.Leftover = append(l.Leftover, name)
		} else if !podmans(name) {
			l.Foreign = append(l.Foreign, name)
		}
	}
	l.Marked, err = marked(l.RealPath)
	return l, err
}

// ofDriver reports whether a storage driver makes an entry of this name.
func ofDriver(name string) bool {
	driver, _, _ := strings.Cut(name, "-")
	return slices.Contains([]string{"vfs", "overlay", "btrfs", "zfs", "aufs", "devicemapper", "overlay2"}, driver)
}

// podmans reports whether podman or containers/storage makes an entry of this
// name in a graphroot.
func podmans(name string) bool {
	if ofDriver(name) {
		return true
	}
	switch name {
	case "libpod", "volumes", "secrets", "networks", "artifacts", "cache", "mounts", "tmp", "quadlets",
		"storage.lock", "userns.lock", "defaultNetworkBackend", "lost+found", host.MarkerName:
		return true
	}
	return strings.HasPrefix(name, "db.sql") || strings.HasPrefix(name, "podman")
}

// isMountpoint asks the kernel, not the device number: a bind mount of the same
// filesystem is a mount, too.
func isMountpoint(path string) (bool, error) {
	var stx unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &stx); err != nil {
		return false, fmt.Errorf("cannot look at %s: %w", path, err)
	}
	if stx.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 { // before Linux 5.8
		var a, b unix.Stat_t
		if err := errors.Join(unix.Lstat(path, &a), unix.Lstat(filepath.Dir(path), &b)); err != nil {
			return false, fmt.Errorf("cannot look at %s: %w", path, err)
		}
		return a.Dev != b.Dev, nil
	}
	return stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// lockStore takes an exclusive flock on the graphroot itself: it needs no file
// in the store, and it holds between runs of different state directories. A
// worker of a run that was just killed lets go within moments, so this waits.
func lockStore(ctx context.Context, graphRoot string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	d, err := os.Open(graphRoot)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the store: %w", err)
	}
	for {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return d, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("cannot lock the store: %w", err), d.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("cannot lock the store: %w", engine.ErrLocked), d.Close())
		case <-time.After(100 * time.Millisecond): // flock has no event to wait for that a deadline could end
		}
	}
}

// dropEmpty removes the folders of a driver that hold nothing: podman 5's system
// reset makes them anew on its way out, and two drivers' folders must never be
// visible in one graphroot.
func dropEmpty(graphRoot, driver string) error {
	for _, n := range storeParts(driver) {
		p := filepath.Join(graphRoot, n)
		if used, err := partUsed(p); err != nil || used {
			return err
		}
		if err := os.RemoveAll(p); err != nil {
			return fmt.Errorf("cannot remove an empty store's folder: %w", err)
		}
	}
	return nil
}

// removeFolder deletes a run's folder and all in it. It refuses while anything
// is mounted there.
func removeFolder(folder string) error {
	if !strings.HasPrefix(filepath.Base(folder), ".storagectl-") {
		return fmt.Errorf("cannot remove %s: it is not a run's folder", folder)
	}
	if mounted, err := oldMounts(folder); err != nil {
		return err
	} else if len(mounted) > 0 {
		return fmt.Errorf("cannot remove %s: %s is mounted in it", folder, strings.Join(mounted, ", "))
	}
	if err := os.RemoveAll(folder); err != nil {
		return fmt.Errorf("cannot remove the run's folder: %w", err)
	}
	return syncDirs(filepath.Dir(folder))
}

// oldMounts lists what is mounted in a run's folder, but for the mounts of an
// overlay driver's home on itself, which it takes away in this mount namespace.
func oldMounts(folder string) ([]string, error) {
	for _, dir := range []string{"new", "old"} {
		overlay := filepath.Join(folder, dir, "overlay")
		if there, err := exists(overlay); err != nil {
			return nil, err
		} else if there {
			if err := detachSelf(overlay); err != nil {
				return nil, err
			}
		}
	}
	return mountsBelow(folder)
}

// databaseAside moves a database, with the files that SQLite keeps beside one,
// into a folder of its own in saved.
func databaseAside(path, saved string) error {
	dir := filepath.Join(saved, "since")
	for i := 2; ; i++ { // there may be one of an earlier time
		if there, err := exists(filepath.Join(dir, filepath.Base(path))); err != nil {
			return err
		} else if !there {
			break
		}
		dir = filepath.Join(saved, fmt.Sprintf("since.%d", i))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot keep podman's database: %w", err)
	}
	for _, suffix := range []string{"-wal", "-shm", "-journal", ""} { // the database itself last: it is what a retry finds
		there, err := exists(path + suffix)
		if err != nil {
			return err
		}
		if there {
			if err := move(path+suffix, filepath.Join(dir, filepath.Base(path)+suffix)); err != nil {
				return err
			}
		}
	}
	return syncDirs(dir, filepath.Dir(path))
}

// mountsBelow lists mount points at or under path, in this mount namespace.
func mountsBelow(path string) ([]string, error) {
	table, err := host.Mounts()
	if err != nil {
		return nil, err
	}
	var hits []string
	for _, m := range table {
		if m.Path == path || strings.HasPrefix(m.Path, path+"/") {
			hits = append(hits, m.Path)
		}
	}
	slices.Sort(hits)
	return hits, nil
}

// reclaimable is how many bytes the removal of folder frees: the blocks of the
// files whose every link lies inside it.
func reclaimable(ctx context.Context, folder string) (uint64, error) {
	type id struct{ dev, ino uint64 }
	seen := map[id]uint64{}
	var bytes uint64
	err := filepath.WalkDir(folder, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR || st.Nlink == 1 {
			bytes += uint64(st.Blocks) * 512
			return nil
		}
		k := id{st.Dev, st.Ino}
		if seen[k]++; seen[k] == uint64(st.Nlink) { //nolint:unconvert // uint32 on arm64
			bytes += uint64(st.Blocks) * 512
			delete(seen, k)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("cannot measure %s: %w", folder, err)
	}
	return bytes, nil
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot look at %s: %w", path, err)
	}
	return true, nil
}

func syncDirs(dirs ...string) error {
	for _, dir := range dirs {
		d, err := os.Open(dir)
		if err != nil {
			return fmt.Errorf("cannot sync %s: %w", dir, err)
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return fmt.Errorf("cannot sync %s: %w", dir, err)
		}
	}
	return nil
}
