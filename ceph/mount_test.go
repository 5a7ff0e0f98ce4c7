package ceph

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/cephlink"
)

func TestLines(t *testing.T) {
	s := Source{
		Place: Place{"cephfs", "/a/b"}, Cluster: cephlink.Cluster{User: "client.app", Mons: []string{"10.0.0.1:6789", "[fd00::1]:6789"}, KeyFile: "/k"}, FSID: "f-s-id",
		Secret: "/etc/ceph/app.secret",
	}
	source, fstype, options, err := s.Line(NewSyntax)
	if err != nil || source != "app@f-s-id.cephfs=/a/b" || fstype != "ceph" ||
		!slices.Equal(options, []string{"secretfile=/etc/ceph/app.secret", "mon_addr=10.0.0.1:6789/[fd00::1]:6789"}) {
		t.Errorf("new: %q %q %q %v", source, fstype, options, err)
	}
	source, fstype, options, err = s.Line(OldSyntax)
	if err != nil || source != "10.0.0.1:6789,[fd00::1]:6789:/a/b" || fstype != "ceph" ||
		!slices.Equal(options, []string{"secretfile=/etc/ceph/app.secret", "name=app", "mds_namespace=cephfs"}) {
		t.Errorf("old: %q %q %q %v", source, fstype, options, err)
	}
	const want = "CEPH_ARGS=--conf /dev/null --id app -m 10.0.0.1:6789,[fd00::1]:6789 --keyfile /k --client_fs=cephfs "
	if _, _, _, environment, err := s.FuseUnit(); err != nil || !strings.HasPrefix(environment, want) {
		t.Errorf("ceph-fuse: %q, %v", environment, err)
	}
	s.Secret = "/etc/a,b"
	if _, _, _, err := s.Line(NewSyntax); err == nil {
		t.Error("a comma would end the option")
	}
	s = Source{Place: s.Place, Cluster: cephlink.Cluster{Mons: []string{"[v2:10.0.0.1:3300", "v1:10.0.0.1:6789]"}}}
	if _, _, _, err := s.Line(OldSyntax); err == nil {
		t.Error("the kernel takes no such monitor")
	}
	for _, p := range []string{"", "fs", "fs:", "fs:a", ":/a", "fs:/a/../b", "fs:/a/", "fs:/a b", "fs:/a,b", "f,s:/a"} {
		if got, err := ParsePlace(p); err == nil {
			t.Errorf("%q was taken as %+v", p, got)
		}
	}
	if p, err := ParsePlace("fs:/"); err != nil || p.Path != "/" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestSecret(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WriteSecret(path, " AQ== \n"); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	b, rerr := os.ReadFile(path)
	if err != nil || rerr != nil || fi.Mode().Perm() != 0o600 || string(b) != "AQ==\n" {
		t.Errorf("%v %q %v %v", fi.Mode(), b, err, rerr)
	}
	if err := WriteSecret(path, "a b"); err == nil {
		t.Error("this is no key")
	}
	key, err := KeyOf([]byte("[client.other]\n\tkey = X\n[client.app]\n\tcaps mon = \"allow r\"\n\tkey = AQ==\n"), "app")
	if err != nil || key != "AQ==" {
		t.Errorf("%q, %v", key, err)
	}
	if _, err := KeyOf(nil, "app"); err == nil {
		t.Error("no key there")
	}
}

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"16.2.15", "17.2.0", -1}, {"17.2.0", "17.2.0", 0}, {"20.2.0-123", "17.2.0", 1}, {"16.2.15", "16.2.9", 1}} {
		if got := compareVersions(c.a, c.b); got != c.want {
			t.Errorf("%s and %s: %d", c.a, c.b, got)
		}
	}
}

// What somebody mounts at a path of theirs is not root's to take away.
func TestWritten(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	if err := Written(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if is, err := mountedAt(dir); err != nil || is != "tmpfs" {
		t.Errorf("%q, %v", is, err)
	}
}
