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

// withFS mounts a filesystem inside of this process.
func withFS(s *link.Session, name string, do func(*cephfs.MountInfo) error) (err error) {
	conn, err := s.Conn()
	if err != nil {
		return err
	}
	m, err := cephfs.CreateFromRados(conn)
	if err != nil {
		return told("prepare a mount", err)
	}
	defer func() { err = errors.Join(err, m.Release()) }()
	if err := m.SetConfigOption("client_mount_timeout", "30"); err != nil {
		return told("prepare a mount", err)
	}
	// The path's owner is to be set by who is root here.
	if err := errors.Join(m.SetConfigOption("client_permissions", "false"), m.Init()); err != nil {
		return told("prepare a mount", err)
	}
	if err := m.SelectFilesystem(name); err != nil {
		return told("choose the filesystem "+name, err)
	}
	if err := m.Mount(); err != nil {
		if errors.Is(syscall.Errno(cephlink.Errno(err)), syscall.ENOENT) {
			return &cephlink.Fault{ID: "no-fs", Errno: int(syscall.ENOENT), Text: fmt.Sprintf("there is no filesystem %q", name), Hint: "ceph fs ls"}
		}
		return told("mount the filesystem "+name, err)
	}
	defer func() { err = errors.Join(err, m.Unmount()) }()
	return do(m)
}

func isErrno(err error, num syscall.Errno) bool {
	return errors.Is(syscall.Errno(cephlink.Errno(err)), num)
}

func makePlace(s *link.Session, p ceph.Place, owner ceph.Owner) (placed, error) {
	var out placed
	err := withFS(s, p.FS, func(m *cephfs.MountInfo) error {
		st, err := m.Statx(p.Path, cephfs.StatxBasicStats, cephfs.AtSymlinkNofollow)
		switch {
		case err == nil && st.Mode&syscall.S_IFMT != syscall.S_IFDIR:
			return &cephlink.Fault{Errno: int(syscall.ENOTDIR), Text: p.Path + " is there, and is not a folder"}
		case err == nil:
			out.Entries, err = hasEntries(m, p.Path)
			return err
		case !isErrno(err, syscall.ENOENT):
			return told("look at "+p.Path, err)
		}
		for _, dir := range parents(p.Path) {
			if err := m.MakeDir(dir, 0o755); err != nil && !isErrno(err, syscall.EEXIST) {
				return told("make "+dir, err)
			}
		}
		// Made aside, and moved to its name when it is as it must be: whoever finds
		// it there finds it whole.
		tmp := filepath.Join(filepath.Dir(p.Path), ".storagectl-"+filepath.Base(p.Path))
		if err := m.MakeDir(tmp, 0o700); err != nil && !isErrno(err, syscall.EEXIST) {
			return told("make "+p.Path, err)
		}
		if err := errors.Join(m.Chown(tmp, uint32(owner.UID), uint32(owner.GID)), m.Chmod(tmp, owner.Mode&uint32(fs.ModePerm))); err != nil {
			return told("give "+p.Path+" to its owner", err)
		}
		if err := errors.Join(m.Rename(tmp, p.Path), m.SyncFs()); err != nil {
			return told("make "+p.Path, err)
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
	return withFS(s, p.FS, func(m *cephfs.MountInfo) error {
		if err := m.RemoveDir(p.Path); err != nil && !isErrno(err, syscall.ENOENT) {
			return told("remove "+p.Path, err)
		}
		return told("remove "+p.Path, m.SyncFs())
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
