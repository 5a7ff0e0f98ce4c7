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

// RemovePlace removes a folder of a CephFS that is empty; one that is not there
// is no error.
func RemovePlace(ctx context.Context, link *cephlink.Client, p Place) error {
	if err := link.Call(ctx, "ceph.unplace", p, nil); err != nil {
		return fmt.Errorf("cannot remove %s: %w", p, err)
	}
	return nil
}
