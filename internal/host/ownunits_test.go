package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestOwnUnits(t *testing.T) {
	dir := t.TempDir()
	u := Unit{Name: "storagectl-x.timer", Text: []byte("[Timer]\n")}
	if _, err := OwnUnit(dir, u.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	for range 2 {
		must(t, WriteUnit(dir, u))
	}
	if b, err := OwnUnit(dir, u.Name); err != nil || string(b) != string(u.Text) {
		t.Errorf("%q %v", b, err)
	}
	if fi, err := os.Stat(filepath.Join(dir, u.Name)); err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("%v %v", fi, err)
	}

	// Neither another's file, nor what a link leads to, is written or removed.
	must(t, os.WriteFile(filepath.Join(dir, "storagectl-theirs.timer"), []byte("[Timer]\nOnBootSec=1\n"), 0o644),
		os.Symlink("/dev/null", filepath.Join(dir, "storagectl-masked.timer")))
	for _, name := range []string{"storagectl-theirs.timer", "storagectl-masked.timer"} {
		var foreign *ForeignUnitError
		if err := WriteUnit(dir, Unit{Name: name}); !errors.As(err, &foreign) {
			t.Errorf("%s is written: %v", name, err)
		}
		if err := RemoveUnit(dir, name); !errors.As(err, &foreign) {
			t.Errorf("%s is removed: %v", name, err)
		}
	}
	if names, err := OwnUnits(dir, "storagectl-"); err != nil || !slices.Equal(names, []string{u.Name}) {
		t.Errorf("%q %v", names, err)
	}
	for range 2 {
		must(t, RemoveUnit(dir, u.Name))
	}
	for _, name := range []string{"", "..", "a/b", "../x.timer"} {
		if err := WriteUnit(dir, Unit{Name: name}); err == nil {
			t.Errorf("%q is taken for a unit's name", name)
		}
	}
}
