package runbooks

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
)

const small = "name = \"small\"\n[[task]]\nid = \"a\"\nrun = \"exec\"\nargv = [\"true\"]\n"

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestLoad: by name and by path; a file hides an embedded one, and is called as it
// says.
func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "small.toml"), small)
	write(t, filepath.Join(dir, "other.toml"), small)
	write(t, filepath.Join(dir, "vfs-to-overlay.toml"), strings.Replace(small, "small", "vfs-to-overlay", 1))
	for _, name := range []string{"small", path} {
		if b, err := Load(name, dir); err != nil || b.Name != "small" || b.Origin != path || b.Text != small {
			t.Errorf("%s: %+v, %v", name, b, err)
		}
	}
	if b, err := Load("vfs-to-overlay", dir); err != nil || b.Origin == Embedded {
		t.Errorf("%v", err)
	}
	if _, err := Load("other", dir); err == nil || !strings.Contains(err.Error(), `line 1, column 1: it is called "small" there`) {
		t.Errorf("%v", err)
	}
	var missing *NotFoundError
	if _, err := Load("smal", dir); !errors.As(err, &missing) || missing.Near != "small" {
		t.Errorf("%v", err)
	}
	if _, err := Load(filepath.Join(dir, "none.toml"), dir); !errors.As(err, &missing) {
		t.Errorf("%v", err)
	}
	all, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(f Found) bool { return f.Name == "vfs-to-overlay" })
	k := slices.IndexFunc(all, func(f Found) bool { return f.Name == "other" })
	if i < 0 || all[i].Origin == Embedded || k < 0 || all[k].Err == nil {
		t.Errorf("%+v", all)
	}
}

// TestTrusted: for root, no file that others can change, nor one in such a folder.
func TestTrusted(t *testing.T) {
	for name, spoil := range map[string]func(dir, file string) error{
		"":         func(string, string) error { return nil },
		"group":    func(_, f string) error { return os.Chmod(f, 0o664) },
		"all":      func(_, f string) error { return os.Chmod(f, 0o646) },
		"owner":    func(_, f string) error { return os.Chown(f, 1, 0) },
		"folder":   func(d, _ string) error { return os.Chmod(d, 0o775) },
		"folder's": func(d, _ string) error { return os.Chown(d, 1, 0) },
	} {
		if os.Geteuid() != 0 && (name == "owner" || name == "folder's") {
			continue // only root can give something away
		}
		dir := filepath.Join(t.TempDir(), "d")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		file := write(t, filepath.Join(dir, "small.toml"), small)
		if err := spoil(dir, file); err != nil {
			t.Fatal(err)
		}
		_, err := Load(file)
		var e *host.UntrustedError
		if refused := os.Geteuid() == 0 && name != ""; refused != errors.As(err, &e) || !refused && err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestChanged: a file that is not any more what a run was begun with.
func TestChanged(t *testing.T) {
	t.Parallel()
	path := write(t, filepath.Join(t.TempDir(), "small.toml"), small)
	b, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	in := NewInputs(b, Plan{}, false)
	if err := in.Changed(); err != nil {
		t.Fatal(err)
	}
	write(t, path, strings.Replace(small, `"true"`, `"false"`, 1)+"# more\n")
	var changed *ChangedError
	if err := in.Changed(); !errors.As(err, &changed) || !errors.Is(err, engine.ErrPlanChanged) {
		t.Fatal(err)
	}
	if want := []string{`-   5 argv = ["true"]`, `+   5 argv = ["false"]`, `+   6 # more`}; !slices.Equal(changed.Diff, want) {
		t.Errorf("%q", changed.Diff)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := in.Changed(); !errors.As(err, &changed) || !strings.Contains(err.Error(), "no longer there") {
		t.Error(err)
	}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		old, now string
		want     []string
	}{
		{"a\nb\nc", "a\nb\nc", nil},
		{"a\nb\nc", "a\nc", []string{"-   2 b"}},
		{"a\nc", "a\nb\nc", []string{"+   2 b"}},
		{"a\nb\nc\nd", "x\nb\ny\nd", []string{"-   1 a", "+   1 x", "-   3 c", "+   3 y"}},
		{"", "a", []string{"-   1 ", "+   1 a"}},
	} {
		if got := diff(c.old, c.now); !slices.Equal(got, c.want) {
			t.Errorf("%q %q: %q", c.old, c.now, got)
		}
	}
}
