package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMountUnitFiles(t *testing.T) {
	e := FstabEntry{Source: "/run/storagectl/dev/rbd/p/i", Path: "/home/u/a b-100%/", Type: "xfs"}
	units, err := MountUnitFiles(e, FstabHow{Network: true, Requires: []string{"a.service"}, After: []string{"rbdmap.service"}, More: []string{"nouuid"}}, "r1")
	if err != nil || len(units) != 2 {
		t.Fatalf("%+v %v", units, err)
	}
	const mount = "# storagectl r1\n[Unit]\nRequires=a.service\nAfter=a.service\nAfter=rbdmap.service\n\n[Mount]\nWhat=/run/storagectl/dev/rbd/p/i\n" +
		"Where=/home/u/a b-100%%\nType=xfs\nOptions=noatime,_netdev,nouuid,x-storagectl.run=r1\n"
	if u := units[0]; string(u.Text) != mount || u.Name != `home-u-a\x20b\x2d100\x25.mount` || u.WantedBy != "" {
		t.Errorf("%s %s %q", u.Name, u.WantedBy, u.Text)
	}
	const auto = "# storagectl r1\n[Unit]\n\n[Automount]\nWhere=/home/u/a b-100%%\n"
	if u := units[1]; string(u.Text) != auto || u.Name != `home-u-a\x20b\x2d100\x25.automount` || u.WantedBy != "local-fs.target" {
		t.Errorf("%s %s %q", u.Name, u.WantedBy, u.Text)
	}
	units, err = MountUnitFiles(e, FstabHow{Environment: "A=--b 5% c"}, "r1")
	if err != nil || !strings.HasSuffix(string(units[0].Text), "\nEnvironment=\"A=--b 5%% c\"\n") {
		t.Errorf("%q %v", units, err)
	}
	if units, err = MountUnitFiles(e, FstabHow{Wait: time.Minute}, "r1"); err != nil || !strings.HasSuffix(string(units[0].Text), "\nTimeoutSec=60s\n") {
		t.Errorf("%q %v", units, err)
	}
	if d := DeviceDropIn("/dev/rbd/p/i-1", "r1", time.Minute); d.Unit != `dev-rbd-p-i\x2d1.device` || string(d.Text) != "# storagectl r1\n[Unit]\nJobRunningTimeoutSec=60s\n" {
		t.Errorf("%+v", d)
	}
	if units, err := MountUnitFiles(e, FstabHow{Environment: "A=\"b"}, "r1"); err == nil {
		t.Errorf("%+v", units)
	}
	units, err = MountUnitFiles(e, FstabHow{Network: true, Boot: true}, "r1")
	if err != nil || len(units) != 1 || units[0].WantedBy != "remote-fs.target" {
		t.Errorf("%+v %v", units, err)
	}
	for _, path := range []string{"relative", "", "/a\nb", `/a\`, "/a ", "/\t"} {
		e := e
		e.Path = path
		if units, err := MountUnitFiles(e, FstabHow{}, "r1"); err == nil {
			t.Errorf("%q: %+v", path, units)
		}
	}
	if units, err := MountUnitFiles(e, FstabHow{}, "r 1"); err == nil {
		t.Errorf("%+v", units)
	}
}

func TestUnitFile(t *testing.T) {
	root := mkdir(t, t.TempDir(), "system")
	u := UnitFile{Name: "srv.automount", Text: []byte("# storagectl r1\n[Automount]\nWhere=/srv\n"), WantedBy: "local-fs.target"}
	has := func(want bool) {
		t.Helper()
		if got, err := HasUnitFile(root, u); err != nil || got != want {
			t.Errorf("%v, want %v (%v)", got, want, err)
		}
	}
	file, link := filepath.Join(root, "srv.automount"), filepath.Join(root, "local-fs.target.wants", "srv.automount")
	has(false)
	must(t, RemoveUnitFile(root, u), WriteUnitFile(root, u), WriteUnitFile(root, u))
	has(true)
	if to, err := os.Readlink(link); err != nil || to != file {
		t.Errorf("%q %v", to, err)
	}
	must(t, os.Remove(link))
	has(false)
	must(t, WriteUnitFile(root, u))
	has(true)
	other := u
	other.Text = []byte("# storagectl r2\n[Automount]\nWhere=/srv\n")
	var taken *UnitTakenError
	if err := WriteUnitFile(root, other); !errors.As(err, &taken) {
		t.Errorf("%v", err)
	}
	if err := RemoveUnitFile(root, other); !errors.As(err, &taken) {
		t.Errorf("%v", err)
	}
	has(true)
	must(t, RemoveUnitFile(root, u), RemoveUnitFile(root, u))
	has(false)
	for _, path := range []string{file, link} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := WriteUnitFile(root, UnitFile{Name: "../x.mount", Text: u.Text}); err == nil {
		t.Error("written outside")
	}
}
