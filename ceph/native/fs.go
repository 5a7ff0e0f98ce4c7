//go:build cgo

package native

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/ceph/go-ceph/cephfs"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/cephlink"
	link "github.com/storagectl/storagectl/internal/cephlink/native"
)

type placed struct{ Made, Entries bool }

// withFS mounts a filesystem inside of this process, and tells what a place's path
// is there: who may use only a part of it cannot mount its root.
func withFS(s *link.Session, p ceph.Place, do func(m *cephfs.MountInfo, path string) error) (err error) {
	m, path := (*cephfs.MountInfo)(nil), p.Path
	m, err = mountFS(s, p.FS, "/")
	if top := filepath.Dir(path); top != "/" && (isErrno(err, syscall.EPERM) || isErrno(err, syscall.EACCES)) {
		m, err = mountFS(s, p.FS, top)
		path = "/" + filepath.Base(path)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Unmount(), m.Release()) }()
	return do(m, path)
}

func mountFS(s *link.Session, name, top string) (_ *cephfs.MountInfo, err error) {
	conn, err := s.Conn()
	if err != nil {
		return nil, err
	}
	m, err := cephfs.CreateFromRados(conn)
	if err != nil {
		return nil, told("prepare a mount", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Release())
		}
	}()
	if err := m.SetConfigOption("client_mount_timeout", "30"); err != nil {
		return nil, told("prepare a mount", err)
	}
	// The path's owner is to be set by who is root here.
	if err := errors.Join(m.SetConfigOption("client_permissions", "false"), m.Init()); err != nil {
		return nil, told("prepare a mount", err)
	}
	if err := m.SelectFilesystem(name); err != nil {
		return nil, told("choose the filesystem "+name, err)
	}
	err = m.MountWithRoot(top)
	if isErrno(err, syscall.ENOENT) && top == "/" {
		return nil, &cephlink.Fault{ID: "no-fs", Errno: int(syscall.ENOENT), Text: fmt.Sprintf("there is no filesystem %q", name), Hint: "ceph fs ls"}
	}
	if err != nil {
		return nil, told(fmt.Sprintf("mount %s:%s", name, top), err)
	}
	return m, nil
}

func isErrno(err error, num syscall.Errno) bool {
	return errors.Is(syscall.Errno(cephlink.Errno(err)), num)
}

// lookPlace looks at a folder, or at the nearest one above it that is there.
func lookPlace(s *link.Session, p ceph.Place) (ceph.PlaceLook, error) {
	var out ceph.PlaceLook
	err := withFS(s, p, func(m *cephfs.MountInfo, path string) error {
		near := path
		for ; ; near = filepath.Dir(near) {
			st, err := m.Statx(near, cephfs.StatxBasicStats, cephfs.AtSymlinkNofollow)
			if isErrno(err, syscall.ENOENT) && near != "/" {
				continue
			}
			if err == nil && st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
				return notFolder(near)
			}
			if err != nil {
				return told("look at "+near, err)
			}
			break
		}
		fs, err := m.StatFS(near)
		if err != nil {
			return told("ask for the room in "+near, err)
		}
		out.Free = quotas(m, near, fs.Bavail*uint64(fs.Frsize))
		if out.There = near == path; out.There {
			out.Entries, err = hasEntries(m, path)
		}
		return err
	})
	return out, err
}

// quotas is what is free in a folder by its quota and those of the folders above it, as
// far as they can be seen: what statfs(2) tells of the mount knows only that of its top.
func quotas(m *cephfs.MountInfo, dir string, free uint64) uint64 {
	number := func(dir, name string) uint64 {
		b, err := m.GetXattr(dir, name)
		n, err2 := strconv.ParseUint(string(b), 10, 64)
		if err != nil || err2 != nil {
			return 0
		}
		return n
	}
	for ; ; dir = filepath.Dir(dir) {
		if most := number(dir, "ceph.quota.max_bytes"); most > 0 {
			free = min(free, most-min(most, number(dir, "ceph.dir.rbytes")))
		}
		if dir == "/" {
			return free
		}
	}
}

func notFolder(path string) error {
	return &cephlink.Fault{Errno: int(syscall.ENOTDIR), Text: path + " is there, and is not a folder"}
}

func makePlace(s *link.Session, p ceph.Place, owner ceph.Owner) (placed, error) {
	var out placed
	err := withFS(s, p, func(m *cephfs.MountInfo, path string) error {
		st, err := m.Statx(path, cephfs.StatxBasicStats, cephfs.AtSymlinkNofollow)
		switch {
		case err == nil && st.Mode&syscall.S_IFMT != syscall.S_IFDIR:
			return notFolder(path)
		case err == nil:
			out.Entries, err = hasEntries(m, path)
			return err
		case !isErrno(err, syscall.ENOENT):
			return told("look at "+path, err)
		}
		for _, dir := range parents(path) {
			if err := m.MakeDir(dir, 0o755); err != nil && !isErrno(err, syscall.EEXIST) {
				return told("make "+dir, err)
			}
		}
		// Made aside, and moved to its name when it is as it must be: whoever finds
		// it there finds it whole.
		tmp := half(path)
		if err := m.MakeDir(tmp, 0o700); err != nil && !isErrno(err, syscall.EEXIST) {
			return told("make "+path, err)
		}
		if err := errors.Join(m.Chown(tmp, uint32(owner.UID), uint32(owner.GID)), m.Chmod(tmp, owner.Mode&uint32(fs.ModePerm))); err != nil {
			return told("give "+path+" to its owner", err)
		}
		if err := errors.Join(m.Rename(tmp, path), m.SyncFs()); err != nil {
			return told("make "+path, err)
		}
		out.Made = true
		return nil
	})
	return out, err
}

// half is where a place is until it is as it must be.
func half(path string) string {
	return filepath.Join(filepath.Dir(path), ".storagectl-"+filepath.Base(path))
}

func hasEntries(m *cephfs.MountInfo, path string) (bool, error) {
	d, err := m.OpenDir(path)
	if err != nil {
		return false, told("look into "+path, err)
	}
	defer func() { _ = d.Close() }()
	for {
		e, err := d.ReadDir()
		if err != nil {
			return false, told("look into "+path, err)
		}
		if e == nil {
			return false, nil
		}
		if n := e.Name(); n != "." && n != ".." {
			return true, nil
		}
	}
}

func removePlace(s *link.Session, p ceph.Place) error {
	return withFS(s, p, func(m *cephfs.MountInfo, path string) error {
		for _, dir := range []string{half(path), path} {
			if err := m.RemoveDir(dir); err != nil && !isErrno(err, syscall.ENOENT) {
				return told("remove "+dir, err)
			}
		}
		return told("remove "+path, m.SyncFs())
	})
}
