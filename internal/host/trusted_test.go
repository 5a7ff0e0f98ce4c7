package host

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestTrusted: what others can change, put a link to, or replace in its folder, is not
// trusted; where it is only read, a folder of all with the bit sticky and a link to what is
// trusted will do.
func TestTrusted(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil         func(dir, file string) error
		trusted, read bool
	}{
		"as it is": {func(string, string) error { return nil }, true, true},
		"group":    {func(_, f string) error { return os.Chmod(f, 0o664) }, false, false},
		"all":      {func(_, f string) error { return os.Chmod(f, 0o646) }, false, false},
		"folder":   {func(d, _ string) error { return os.Chmod(d, 0o775) }, false, false},
		"sticky":   {func(d, _ string) error { return os.Chmod(d, 0o777|os.ModeSticky) }, false, os.Getuid() == 0},
		"link":     {func(_, f string) error { return errors.Join(os.Rename(f, f+".real"), os.Symlink(f+".real", f)) }, false, true},
		"link above": {func(d, _ string) error {
			return errors.Join(os.Rename(d, d+".real"), os.Symlink(d+".real", d))
		}, false, true},
		"link to another's": {func(d, f string) error {
			return errors.Join(os.Mkdir(d+"/open", 0o755), os.Rename(f, d+"/open/f"), os.Symlink("open/f", f), os.Chmod(d+"/open", 0o777))
		}, false, false},
	} {
		dir := filepath.Join(t.TempDir(), "d")
		file := filepath.Join(dir, "f")
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(file, []byte("x"), 0o644), c.spoil(dir, file)); err != nil {
			t.Fatal(err)
		}
		var why *UntrustedError
		if err := Trusted(file); (err == nil) != c.trusted || err != nil && !errors.As(err, &why) {
			t.Errorf("%s: %v, trusted: %v", name, err, c.trusted)
		}
		if b, err := ReadTrusted(file); (err == nil) != c.read || err == nil && string(b) != "x" || err != nil && !errors.As(err, &why) {
			t.Errorf("%s: %q, %v, read: %v", name, b, err, c.read)
		}
	}
	if err := Trusted(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
