package ceph

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/cephlink"
)

// TestSubvolume: made once, found again, and removed only when nothing is in it; who may
// not make one is told so, and nothing is made by asking.
func TestSubvolume(t *testing.T) {
	link := cluster.Link(t, cluster.Admin())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	there := func() string {
		return cluster.Ceph(t, "fs", "subvolumegroup", "ls", "cephfs") + cluster.Ceph(t, "fs", "subvolume", "ls", "cephfs")
	}
	before := there()
	s := NewSubvolume{Subvolume: Subvolume{FS: "cephfs", Group: "stores", Name: "node1"}, Quota: 1 << 30}
	for user, caps := range map[string][]string{"asks": {"mon", "allow r", "mgr", "allow r"}, "finds": {"mon", "allow r", "mgr", `allow command "fs subvolume getpath"`}} {
		other := cluster.Link(t, cephlink.Cluster{Conf: cluster.Conf, User: user, Keyring: cluster.User(t, user, caps...)})
		if err := MayMakeSubvolume(ctx, other, s); cephlink.IDOf(err) != cephlink.NoRight || !strings.Contains(cephlink.HintOf(err), "mgr 'allow rw'") {
			t.Errorf("%s: %v", user, err)
		}
	}
	if err := MayMakeSubvolume(ctx, link, s); cephlink.IDOf(err) != "no-group" || !strings.Contains(cephlink.HintOf(err), "subvolumegroup create cephfs stores") {
		t.Errorf("in no group: %v", err)
	}
	s.NewGroup = true
	if err := MayMakeSubvolume(ctx, link, s); err != nil {
		t.Error(err)
	}
	if after := there(); after != before {
		t.Errorf("asking made %s of %s", after, before)
	}
	one, err := MakeSubvolume(ctx, link, s)
	if err != nil {
		t.Fatal(err)
	}
	two, err := MakeSubvolume(ctx, link, s)
	if err != nil || one != two || !strings.HasPrefix(one.Path, s.Usual().Path+"/") {
		t.Errorf("%+v and %+v, %v", one, two, err)
	}
	if found, err := FindSubvolume(ctx, link, s.Subvolume); err != nil || found != one {
		t.Errorf("found %+v, %v", found, err)
	}
	p := Place{one.FS, one.Path + "/storage-x"}
	if l, err := LookPlace(ctx, link, p); err != nil || l.There || l.Free > 1<<30 {
		t.Errorf("%+v, %v", l, err)
	}
	gone := Subvolume{FS: "cephfs", Group: "stores", Name: "gone"}
	if found, err := FindSubvolume(ctx, link, gone); cephlink.IDOf(err) != "no-subvolume" || !strings.Contains(cephlink.HintOf(err), "create cephfs gone --group_name stores") {
		t.Errorf("found %+v, %v", found, err)
	}
	if _, _, err := MakePlace(ctx, link, p, Owner{UID: 2000, GID: 2000, Mode: 0o700}); err != nil {
		t.Fatal(err)
	}
	if err := RemoveSubvolume(ctx, link, s); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("one in use was removed: %v", err)
	}
	if l, err := LookPlace(ctx, link, p); err != nil || !l.There {
		t.Errorf("%+v, %v", l, err)
	}
	if err := RemovePlace(ctx, link, p); err != nil {
		t.Fatal(err)
	}
	another := s
	another.Name = "node2"
	if _, err := MakeSubvolume(ctx, link, another); err != nil {
		t.Fatal(err)
	}
	if err := RemoveSubvolume(ctx, link, s); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("a group in use was removed: %v", err)
	}
	if found, err := FindSubvolume(ctx, link, s.Subvolume); cephlink.IDOf(err) != "no-subvolume" {
		t.Errorf("found %+v, %v", found, err)
	}
	if err := errors.Join(RemoveSubvolume(ctx, link, another), RemoveSubvolume(ctx, link, s)); err != nil {
		t.Error(err)
	}
	if after := there(); after != before {
		t.Errorf("left are %s, were %s", after, before)
	}
}

func TestParseSubvolume(t *testing.T) {
	for text, want := range map[string]Subvolume{"fs:@group/sub": {FS: "fs", Group: "group", Name: "sub"}, "fs:@sub": {FS: "fs", Name: "sub"},
		"fs:/x": {}, "fs:@": {}, "fs:@/sub": {}, "fs:@a/b/c": {}, ":@a": {}, "fs:@a b": {}, "fs:@-x": {}} {
		if got, err := ParseSubvolume(text); got != want || (err == nil) != (want.Name != "") {
			t.Errorf("%s: %+v %v", text, got, err)
		}
	}
}
