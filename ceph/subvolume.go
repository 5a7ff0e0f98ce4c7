package ceph

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/storagectl/storagectl/internal/cephlink"
)

// Subvolume names a subvolume that the mgr's module volumes manages.
type Subvolume struct {
	FS    string `json:"fs"`
	Group string `json:"group,omitempty"`
	Name  string `json:"name"`
}

// String is the subvolume as [ParseSubvolume] reads it.
func (s Subvolume) String() string {
	if s.Group == "" {
		return s.FS + ":@" + s.Name
	}
	return s.FS + ":@" + s.Group + "/" + s.Name
}

// Usual is where the mgr keeps a subvolume; the folder of its data lies in it.
func (s Subvolume) Usual() Place {
	return Place{s.FS, path.Join("/volumes", cmp.Or(s.Group, "_nogroup"), s.Name)}
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
		return Place{}, fmt.Errorf("cannot find the subvolume %s: %w", s, err)
	}
	return Place{s.FS, p}, nil
}

// NewSubvolume is a subvolume that is to be made.
type NewSubvolume struct {
	Subvolume
	Quota int64 `json:"quota,omitempty"` // bytes; 0: none
	// NewGroup says that its group is not there and is to be made, too.
	NewGroup bool `json:"newGroup,omitempty"`
}

// MayMakeSubvolume looks whether the user may make subvolumes, and groups of them where
// that is asked (fault no-right), and whether the group is there (fault no-group). It
// changes nothing: it asks for what cannot be made, and looks at why not.
func MayMakeSubvolume(ctx context.Context, link *cephlink.Client, s NewSubvolume) error {
	if err := link.Call(ctx, "ceph.maysubvolume", s, nil); err != nil {
		return fmt.Errorf("cannot make the subvolume %s: %w", s.Subvolume, err)
	}
	return nil
}

// MakeSubvolume makes a subvolume, of root and with mode 0755, and returns its folder.
// One that is there is left as it is.
func MakeSubvolume(ctx context.Context, link *cephlink.Client, s NewSubvolume) (Place, error) {
	var p string
	if err := link.Call(ctx, "ceph.subvolume", s, &p); err != nil {
		return Place{}, fmt.Errorf("cannot make the subvolume %s: %w", s.Subvolume, err)
	}
	return Place{s.FS, p}, nil
}

// RemoveSubvolume removes a subvolume that is empty, and its group where NewGroup says
// so and no other subvolume is in it. What holds anything, or has a snapshot, stays
// (ENOTEMPTY); what is not there is no error. Of a subvolume, Ceph removes whatever is
// in it: it is looked into, and removed the moment after.
func RemoveSubvolume(ctx context.Context, link *cephlink.Client, s NewSubvolume) error {
	if err := link.Call(ctx, "ceph.unsubvolume", s, nil); err != nil {
		return fmt.Errorf("cannot remove the subvolume %s: %w", s.Subvolume, err)
	}
	return nil
}
