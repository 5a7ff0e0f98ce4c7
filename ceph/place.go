package ceph

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/storagectl/storagectl/internal/cephlink"
)

// Place is a folder of a CephFS.
type Place struct {
	FS   string `json:"fs"`
	Path string `json:"path"` // absolute in the filesystem
}

// ParsePlace reads FS:/PATH.
func ParsePlace(s string) (Place, error) {
	fs, p, ok := strings.Cut(s, ":")
	if !ok || fs == "" || !strings.HasPrefix(p, "/") || path.Clean(p) != p || strings.ContainsAny(s, "\x00\n,=@ \t\\") {
		return Place{}, fmt.Errorf("cannot take %q as a place in CephFS: want FS:/PATH", s)
	}
	return Place{fs, p}, nil
}

func (p Place) String() string { return p.FS + ":" + p.Path }

// PlaceLook is what is known of a folder of a CephFS.
type PlaceLook struct {
	There   bool   `json:"there"`
	Entries bool   `json:"entries"` // it holds something
	Free    uint64 `json:"free"`    // bytes, by the pool and by quotas
}

// LookPlace looks at a folder of a CephFS, which need not be there. It changes
// nothing.
func LookPlace(ctx context.Context, link *cephlink.Client, p Place) (PlaceLook, error) {
	var l PlaceLook
	if err := link.Call(ctx, "ceph.lookplace", p, &l); err != nil {
		return PlaceLook{}, fmt.Errorf("cannot look at %s: %w", p, err)
	}
	return l, nil
}

// Owner is whom a place is made for.
type Owner struct {
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
	Mode uint32 `json:"mode"` // permission bits
}

// MakePlace makes a folder of a CephFS where it is not there, with the folders
// above it (of root, mode 0755), and gives it its owner and mode. made tells
// whether it was not there before; a folder that was there keeps its owner and
// mode, and entries tells whether anything is in it.
func MakePlace(ctx context.Context, link *cephlink.Client, p Place, owner Owner) (made, entries bool, err error) {
	var out struct{ Made, Entries bool }
	err = link.Call(ctx, "ceph.place", struct {
		Place Place `json:"place"`
		Owner Owner `json:"owner"`
	}{p, owner}, &out)
	if err != nil {
		return false, false, fmt.Errorf("cannot make %s: %w", p, err)
	}
	return out.Made, out.Entries, nil
}

// Subvolume names a subvolume that the mgr's module volumes manages.
type Subvolume struct {
	FS    string `json:"fs"`
	Group string `json:"group,omitempty"`
	Name  string `json:"name"`
	Size  int64  `json:"size,omitempty"` // quota in bytes; 0: none
	Owner Owner  `json:"owner"`
}

// ParseSubvolume reads FS:@GROUP/NAME, or FS:@NAME of one that is in no group.
func ParseSubvolume(s string) (Subvolume, error) {
	fs, name, ok := strings.Cut(s, ":@")
	group, sub, grouped := strings.Cut(name, "/")
	if !grouped {
		group, sub = "", name
	}
	usual := func(word string) bool {
		return strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == "" && !strings.HasPrefix(word, "-")
	}
	if !ok || fs == "" || sub == "" || grouped && group == "" || !usual(fs) || !usual(sub) || !usual(group) {
		return Subvolume{}, fmt.Errorf("cannot take %q as a subvolume of CephFS: want FS:@GROUP/NAME or FS:@NAME", s)
	}
	return Subvolume{FS: fs, Group: group, Name: sub}, nil
}

// FindSubvolume gives the folder of a subvolume, which must be there (fault
// no-subvolume). It changes nothing. The user needs the mgr cap for it ("allow rw").
func FindSubvolume(ctx context.Context, link *cephlink.Client, s Subvolume) (Place, error) {
	var p string
	if err := link.Call(ctx, "ceph.findsubvolume", s, &p); err != nil {
		return Place{}, fmt.Errorf("cannot find the subvolume %s of %s: %w", s.Name, s.FS, err)
	}
	return Place{s.FS, p}, nil
}

// MakeSubvolume makes a subvolume where it is not there, and returns its folder.
// The user needs the mgr cap for it ("allow rw").
func MakeSubvolume(ctx context.Context, link *cephlink.Client, s Subvolume) (Place, error) {
	var p string
	if err := link.Call(ctx, "ceph.subvolume", s, &p); err != nil {
		return Place{}, fmt.Errorf("cannot make the subvolume %s of %s: %w", s.Name, s.FS, err)
	}
	return Place{s.FS, p}, nil
}

// RemovePlace removes a folder of a CephFS that is empty; one that is not there
// is no error.
func RemovePlace(ctx context.Context, link *cephlink.Client, p Place) error {
	if err := link.Call(ctx, "ceph.unplace", p, nil); err != nil {
		return fmt.Errorf("cannot remove %s: %w", p, err)
	}
	return nil
}
