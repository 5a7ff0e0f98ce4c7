package host

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMarker(t *testing.T) {
	path := t.TempDir()
	dir, file := openDir(t, path), filepath.Join(path, MarkerName)
	if _, err := ReadMarker(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	want := Marker{Host: "node7", Run: "r1", Store: "/srv/store", Owner: "hashi", Made: time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)}
	must(t, RemoveMarker(dir), WriteMarker(dir, Marker{}), WriteMarker(dir, want))
	if got, err := ReadMarker(dir); err != nil || got != want {
		t.Errorf("%+v %v", got, err)
	}
	if fi, err := os.Lstat(file); err != nil || fi.Mode() != 0o644 {
		t.Errorf("%v %v", fi, err)
	}
	// What the owner of the folder may put there instead.
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte(`{"host":"secret"}`), 0o600))
	for name, put := range map[string]func() error{
		"link":   func() error { return os.Symlink(secret, file) },
		"fifo":   func() error { return unix.Mkfifo(file, 0o600) },
		"folder": func() error { return os.Mkdir(file, 0o700) },
		"large":  func() error { return errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<30)) },
		"torn":   func() error { return os.WriteFile(file, []byte(`{"host":`), 0o600) },
	} {
		must(t, os.RemoveAll(file), put())
		if m, err := ReadMarker(dir); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %+v %v", name, m, err)
		}
	}
	must(t, os.RemoveAll(file), os.Symlink(secret, file), os.Symlink(secret, file+".new"), WriteMarker(dir, want))
	if b, err := os.ReadFile(secret); err != nil || string(b) != `{"host":"secret"}` {
		t.Errorf("%q %v", b, err)
	}
	if got, err := ReadMarker(dir); err != nil || got != want {
		t.Errorf("%+v %v", got, err)
	}
	must(t, RemoveMarker(dir))
	if es, err := os.ReadDir(path); err != nil || len(es) != 0 {
		t.Errorf("%v %v", es, err)
	}
}

func TestGlanceOld(t *testing.T) {
	dev, _ := loopDevice(t, large)
	command(t, "mkfs.ext4", "-q", dev)
	root, drop, err := glanceOld(FSMount{Source: dev, Type: "ext4", Flags: unix.MS_RDONLY})
	must(t, err)
	names, err := root.Readdirnames(9)
	if err != nil || len(names) != 1 || names[0] != "lost+found" {
		t.Errorf("%q %v", names, err)
	}
	drop()
	if d, err := LookDevice(dev); err != nil || d.InUse {
		t.Errorf("%+v %v", d, err)
	}
	if _, _, err := glanceOld(FSMount{Source: dev, Type: "xfs", Flags: unix.MS_RDONLY}); err == nil {
		t.Error("mounted")
	}
	if left, err := filepath.Glob("/run/storagectl-look-*"); err != nil || left != nil {
		t.Errorf("left behind: %q %v", left, err)
	}
}

func TestClaimMarker(t *testing.T) {
	path := t.TempDir()
	dir := openDir(t, path)
	must(t, ClaimMarker(dir, Marker{Run: "r1"}))
	if err := ClaimMarker(dir, Marker{Run: "r2"}); !errors.Is(err, os.ErrExist) {
		t.Errorf("%v", err)
	}
	if got, err := ReadMarker(dir); err != nil || got.Run != "r1" {
		t.Errorf("%+v %v", got, err)
	}
	if es, err := os.ReadDir(path); err != nil || len(es) != 1 {
		t.Errorf("%v %v", es, err)
	}
}
