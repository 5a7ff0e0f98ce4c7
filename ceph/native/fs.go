//go:build cgo

package native

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/ceph/go-ceph/cephfs"
	"github.com/ceph/go-ceph/cephfs/admin"

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
		out.Free = fs.Bavail * uint64(fs.Frsize)
		if out.There = near == path; out.There {
			out.Entries, err = hasEntries(m, path)
		}
		return err
	})
	return out, err
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
		tmp := filepath.Join(filepath.Dir(path), ".storagectl-"+filepath.Base(path))
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
		if err := m.RemoveDir(path); err != nil && !isErrno(err, syscall.ENOENT) {
			return told("remove "+path, err)
		}
		return told("remove "+path, m.SyncFs())
	})
}

func subvolume(s *link.Session, v ceph.Subvolume) (string, error) {
	conn, err := s.Conn()
	if err != nil {
		return "", err
	}
	a := admin.NewFromConn(conn)
	if v.Group != "" {
		if err := a.CreateSubVolumeGroup(v.FS, v.Group, nil); err != nil {
			return "", told("make the group "+v.Group, err)
		}
	}
	opts := &admin.SubVolumeOptions{Uid: v.Owner.UID, Gid: v.Owner.GID, Mode: int(v.Owner.Mode & uint32(os.ModePerm))}
	if v.Size > 0 {
		opts.Size = admin.ByteCount(v.Size)
	}
	// The module leaves one that is there as it is.
	if err := a.CreateSubVolume(v.FS, v.Group, v.Name, opts); err != nil {
		return "", told("make it", err)
	}
	path, err := a.SubVolumePath(v.FS, v.Group, v.Name)
	return path, told("ask for its path", err)
}

// findSubvolume is the folder of a subvolume.
func findSubvolume(s *link.Session, v ceph.Subvolume) (string, error) {
	conn, err := s.Conn()
	if err != nil {
		return "", err
	}
	path, err := admin.NewFromConn(conn).SubVolumePath(v.FS, v.Group, v.Name)
	name, group := v.FS+" "+v.Name, ""
	if v.Group != "" {
		group = " --group_name " + v.Group
	}
	switch {
	case isErrno(err, syscall.ENOENT):
		return "", &cephlink.Fault{ID: "no-subvolume", Errno: int(syscall.ENOENT), Text: fmt.Sprintf("there is no subvolume %s in %s: %v", v.Name, v.FS, err),
			Hint: "ceph fs subvolume create " + name + group}
	case isErrno(err, syscall.EPERM), isErrno(err, syscall.EACCES):
		return "", &cephlink.Fault{ID: cephlink.NoRight, Errno: cephlink.Errno(err), Text: "the user may not ask the manager for a subvolume",
			Hint: "give the user mgr 'allow rw', or give the path: ceph fs subvolume getpath " + name + group}
	}
	return path, told("ask for its path", err)
}
