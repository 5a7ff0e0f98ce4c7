package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/storagectl/storagectl/migrate"
)

// TestRootsOwn: root uses no state directory that somebody else could change, nor one
// below such; a link is followed once.
func TestRootsOwn(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	folder := func(name string, mode os.FileMode, uid int) string {
		t.Helper()
		path := filepath.Join(top, name)
		err := os.MkdirAll(path, 0o700)
		if err == nil {
			err = os.Chmod(path, mode)
		}
		if err == nil && os.Getuid() == 0 {
			err = os.Chown(path, uid, -1)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	own := folder("own", 0o755, 0)
	link := filepath.Join(top, "link")
	if err := os.Symlink("own", link); err != nil {
		t.Fatal(err)
	}
	theirs := folder("theirs", 0o755, 65534)
	below := folder("theirs/below", 0o700, 0)
	for path, want := range map[string]string{
		own: own, filepath.Join(own, "not", "there"): filepath.Join(own, "not", "there"),
		link: own, filepath.Join(link, "new"): filepath.Join(own, "new"),
		theirs: "", filepath.Join(theirs, "new"): "", below: "", folder("open", 0o777, 0): "", filepath.Join(folder("tmp", os.ModeSticky|0o777, 0), "new"): "",
	} {
		if os.Getuid() != 0 { // a user's own is a user's own
			want = path
		}
		got, err := rootsOwn(path)
		var r *migrate.Refusal
		if got != want || want == "" && (!errors.As(err, &r) || r.ID != "state-dir") || want != "" && err != nil {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
}
