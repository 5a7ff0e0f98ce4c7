//go:build cgo

package native

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"syscall"

	"github.com/ceph/go-ceph/cephfs"
	"github.com/ceph/go-ceph/cephfs/admin"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/cephlink"
	link "github.com/storagectl/storagectl/internal/cephlink/native"
)

// Subvolumes are the manager's: its module volumes is asked, as the command ceph does.
func volumes(s *link.Session) (*admin.FSAdmin, error) {
	conn, err := s.Conn()
	if err != nil {
		return nil, err
	}
	return admin.NewFromConn(conn), nil
}

// findSubvolume is the folder of a subvolume.
func findSubvolume(s *link.Session, v ceph.Subvolume) (string, error) {
	a, err := volumes(s)
	if err != nil {
		return "", err
	}
	path, err := a.SubVolumePath(v.FS, v.Group, v.Name)
	switch {
	case isErrno(err, syscall.ENOENT):
		return "", &cephlink.Fault{ID: "no-subvolume", Errno: int(syscall.ENOENT), Text: fmt.Sprintf("there is no subvolume %s in %s: %v", v.Name, v.FS, err),
			Hint: "ceph fs subvolume create " + words(v) + "; or say --make-subvolume"}
	case denied(err):
		return "", &cephlink.Fault{ID: cephlink.NoRight, Errno: cephlink.Errno(err), Text: "the user may not ask the manager for a subvolume",
			Hint: "give the user mgr 'allow rw', or give the path: ceph fs subvolume getpath " + words(v)}
	}
	return path, told("ask for its path", err)
}

// words name a subvolume on ceph's command line.
func words(v ceph.Subvolume) string {
	if v.Group == "" {
		return v.FS + " " + v.Name
	}
	return v.FS + " " + v.Name + " --group_name " + v.Group
}

func denied(err error) bool { return isErrno(err, syscall.EPERM) || isErrno(err, syscall.EACCES) }

// mayMakeSubvolume asks the manager to make a subvolume in a group that is not there,
// and a group in a filesystem that is not there: it looks first whether the user may.
func mayMakeSubvolume(s *link.Session, v ceph.NewSubvolume) error {
	a, err := volumes(s)
	if err != nil {
		return err
	}
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails
	none := "storagectl-probe-" + hex.EncodeToString(b)
	err = a.CreateSubVolume(v.FS, none, none, nil)
	if v.NewGroup && isErrno(err, syscall.ENOENT) {
		err = a.CreateSubVolumeGroup(none, v.Group, nil)
	}
	switch {
	case denied(err):
		return &cephlink.Fault{ID: cephlink.NoRight, Errno: cephlink.Errno(err), Text: "the user may not have the manager make a subvolume",
			Hint: "give the user mgr 'allow rw' beside its other caps (ceph auth get tells them, ceph auth caps sets all at once), or: ceph fs subvolume create " + words(v.Subvolume)}
	case err == nil:
		return fmt.Errorf("the manager made a subvolume %s of %s in a group that is not there", none, v.FS)
	case !isErrno(err, syscall.ENOENT):
		return told("ask the manager whether the user may make it", err)
	}
	if v.Group == "" || v.NewGroup {
		return nil
	}
	if _, err = a.SubVolumeGroupPath(v.FS, v.Group); isErrno(err, syscall.ENOENT) {
		return &cephlink.Fault{ID: "no-group", Errno: int(syscall.ENOENT), Text: fmt.Sprintf("there is no group of subvolumes %s in %s", v.Group, v.FS),
			Hint: fmt.Sprintf("ceph fs subvolumegroup create %s %s; or say --make-group", v.FS, v.Group)}
	}
	return told("look for its group", err)
}

func makeSubvolume(s *link.Session, v ceph.NewSubvolume) (string, error) {
	a, err := volumes(s)
	if err != nil {
		return "", err
	}
	if v.NewGroup {
		if err := a.CreateSubVolumeGroup(v.FS, v.Group, nil); err != nil {
			return "", told("make the group "+v.Group, err)
		}
	}
	opts := &admin.SubVolumeOptions{Mode: 0o755}
	if v.Quota > 0 {
		opts.Size = admin.ByteCount(v.Quota)
	}
	// The module leaves one that is there as it is.
	if err := a.CreateSubVolume(v.FS, v.Group, v.Name, opts); err != nil {
		return "", told("make it", err)
	}
	path, err := a.SubVolumePath(v.FS, v.Group, v.Name)
	return path, told("ask for its path", err)
}

func removeSubvolume(s *link.Session, v ceph.NewSubvolume) error {
	a, err := volumes(s)
	if err != nil {
		return err
	}
	path, err := findSubvolume(s, v.Subvolume)
	switch {
	case isErrno(err, syscall.ENOENT):
	case err != nil:
		return err
	default:
		err = withFS(s, ceph.Place{FS: v.FS, Path: path}, func(m *cephfs.MountInfo, path string) error {
			if used, err := hasEntries(m, path); err != nil {
				return err
			} else if used {
				return &cephlink.Fault{Errno: int(syscall.ENOTEMPTY), Text: "it is not empty"}
			}
			// With a snapshot the module says ENOTEMPTY.
			return told("remove it", a.RemoveSubVolume(v.FS, v.Group, v.Name))
		})
		if err != nil {
			return err
		}
	}
	if !v.NewGroup {
		return nil
	}
	if err := a.RemoveSubVolumeGroup(v.FS, v.Group); err != nil && !isErrno(err, syscall.ENOENT) {
		return told("remove the group "+v.Group, err)
	}
	return nil
}
