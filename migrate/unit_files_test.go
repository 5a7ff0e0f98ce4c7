package migrate

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnitFiles: only a pid file of the store's own containers is moved, and what
// was written comes back byte for byte.
func TestUnitFiles(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	w, dir := &worker{uid: 7}, filepath.Join(home, ".config/systemd/user")
	for _, d := range []string{"web.service.d", "container-.service.d"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	id := strings.Repeat("0a", 32)
	unit := func(line string) string { return "[Service]\nType=forking\n" + line + "\nRestart=always\n" }
	files := map[string]struct {
		line string
		mine bool
	}{
		"web.service":   {"PIDFile=/run/user/7/containers/vfs-containers/" + id + "/userdata/conmon.pid", true},
		"short.service": {"\tPIDFile = %t/containers/vfs-containers/" + id + "/userdata/conmon.pid \r", true},
		"other.service": {"PIDFile=/run/user/8/containers/vfs-containers/" + id + "/userdata/conmon.pid", false},
		"told.service":  {"# PIDFile=/run/user/7/containers/vfs-containers/" + id + "/userdata/conmon.pid", false},
		"new.service":   {"PIDFile=%t/web.pid", false},
		"noid.service":  {"PIDFile=/run/user/7/containers/vfs-containers/x/userdata/conmon.pid", false},
		// A drop-in of one service's; that of many names no container.
		"web.service.d/pid.conf":          {"PIDFile=%t/containers/vfs-containers/" + id + "/userdata/conmon.pid", true},
		"container-.service.d/pid.conf":   {"PIDFile=%t/containers/vfs-containers/" + id + "/userdata/conmon.pid", false},
		"web.service.d/pid.conf.disabled": {"PIDFile=%t/containers/vfs-containers/" + id + "/userdata/conmon.pid", false},
		"web.service.no":                  {"PIDFile=/run/user/7/containers/vfs-containers/" + id + "/userdata/conmon.pid", false},
	}
	mine := 0
	for name, f := range files {
		if f.mine {
			mine++
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(unit(f.line)), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(dir, "web.service.no"), filepath.Join(dir, "link.service")); err != nil {
		t.Fatal(err)
	}
	// None of these is read, nor waited for.
	huge := filepath.Join(dir, "huge.service")
	if err := errors.Join(os.WriteFile(huge, nil, 0o600), os.Truncate(huge, 1<<40), unix.Mkfifo(filepath.Join(dir, "fifo.service"), 0o600)); err != nil {
		t.Fatal(err)
	}
	args := unitArgs{RunRoot: "/run/user/7/containers", Driver: "vfs", To: "overlay"}
	paths, err := w.unitFiles(t.Context(), args, nil)
	if err != nil || len(paths) != mine {
		t.Fatalf("found are %v, %v", paths, err)
	}
	odd := unitMove{unitArgs: args, Paths: []string{huge, filepath.Join(dir, "fifo.service"), filepath.Join(dir, "link.service")}}
	if moved, err := w.moveUnitFiles(t.Context(), odd, nil); err != nil || len(moved) != 0 {
		t.Fatalf("moved %v, %v", moved, err)
	}
	for range 2 { // a second time changes nothing more
		was, err := w.moveUnitFiles(t.Context(), unitMove{unitArgs: args, Paths: paths, Look: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.moveUnitFiles(t.Context(), unitMove{unitArgs: args, Paths: paths}, nil); err != nil {
			t.Fatal(err)
		}
		for name, f := range files {
			want := unit(f.line)
			if f.mine {
				want = strings.Replace(want, "/vfs-containers/", "/overlay-containers/", 1)
			}
			now, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || string(now) != want {
				t.Errorf("%s is %q, %v", name, now, err)
			}
		}
		if len(was) != mine {
			t.Errorf("told of %d files", len(was))
		}
	}

	// One was edited meanwhile, one removed: the way back keeps to that.
	known := []UnitFact{}
	for _, p := range paths {
		now, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		known = append(known, UnitFact{Path: p, Before: []byte(unit(files[strings.TrimPrefix(p, dir+"/")].line)), After: now})
	}
	edited := strings.Replace(string(known[0].After), "always", "no", 1)
	if err := os.WriteFile(known[0].Path, []byte(edited), 0o640); err != nil {
		t.Fatal(err)
	}
	back := unitMove{unitArgs: unitArgs{RunRoot: args.RunRoot, Driver: "overlay", To: "vfs"}, Paths: append(paths, filepath.Join(dir, "gone.service")), Known: known}
	for range 2 {
		if _, err := w.moveUnitFiles(t.Context(), back, nil); err != nil {
			t.Fatal(err)
		}
		for i, k := range known {
			want := string(k.Before)
			if i == 0 {
				want = strings.Replace(want, "always", "no", 1)
			}
			now, err := os.ReadFile(k.Path)
			if err != nil || string(now) != want {
				t.Errorf("%s came back as %q, %v", k.Path, now, err)
			}
			if fi, err := os.Stat(k.Path); err != nil || fi.Mode().Perm() != 0o640 {
				t.Errorf("%s has the mode %v, %v", k.Path, fi.Mode(), err)
			}
		}
	}
}
