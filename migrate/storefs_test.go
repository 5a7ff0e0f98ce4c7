package migrate

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// storeOf makes a graphroot with a used vfs store and a staged overlay store.
func storeOf(t *testing.T) swap {
	t.Helper()
	return storeFrom(t, "vfs")
}

// storeFrom makes a graphroot with a used store on a driver and a staged overlay store.
func storeFrom(t *testing.T, from string) swap {
	t.Helper()
	root := t.TempDir()
	s := swap{GraphRoot: root, Folder: runFolder(root, "1"), From: from, To: "overlay"}
	layer := strings.Repeat("a", 64)
	for base, driver := range map[string]string{root: from, filepath.Join(s.Folder, "new"): "overlay"} {
		for _, kind := range []string{"images", "layers", "containers"} {
			write(t, filepath.Join(base, driver+"-"+kind, kind+".json"), `[{"id":"`+map[bool]string{true: "old", false: "new"}[base == root]+`"}]`)
		}
	}
	write(t, filepath.Join(root, from, "dir", layer, "file"), "old")
	write(t, filepath.Join(s.new("overlay"), layer, "diff/file"), "overlay")
	write(t, filepath.Join(root, "volumes/v/_data/x"), "mine")
	return s
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// tree lists all files below dir with their content, the run's folder left out
// but for what is asked.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		out = append(out, rel+"="+string(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSwapFromEveryState makes the cutover, and takes it back, from each state
// that a crash between two renames can leave.
func TestSwapFromEveryState(t *testing.T) {
	for _, from := range []string{"vfs", "overlay"} {
		t.Run(from, func(t *testing.T) { swapFromEveryState(t, from) })
	}
}

func swapFromEveryState(t *testing.T, from string) {
	type rename struct{ from, to string }
	moves := func(s swap) (ms []rename) {
		for _, n := range storeParts(s.From) {
			ms = append(ms, rename{s.live(n), s.old(n)})
		}
		for _, n := range storeParts(s.To) {
			ms = append(ms, rename{s.new(n), s.live(n)})
		}
		return ms
	}
	total := len(moves(swap{From: from, To: "overlay"}))
	whole := storeFrom(t, from)
	before := tree(t, whole.GraphRoot)
	if _, err := whole.do(); err != nil {
		t.Fatal(err)
	}
	after := tree(t, whole.GraphRoot)
	for n := range total + 1 {
		for _, way := range []string{"do", "undo"} {
			s := storeFrom(t, from)
			if err := os.MkdirAll(filepath.Join(s.Folder, "old"), 0o700); err != nil {
				t.Fatal(err)
			}
			for _, m := range moves(s)[:n] {
				if err := os.Rename(m.from, m.to); err != nil {
					t.Fatal(err)
				}
			}
			if in, err := s.in(); err != nil || in != (n == total) {
				t.Fatalf("%d renames: in=%v %v", n, in, err)
			}
			do, want := s.do, after
			if way == "undo" {
				do, want = s.undo, before
			}
			for range 2 { // and again, as if the crash came before the record
				if _, err := do(); err != nil {
					t.Fatalf("%d renames, %s: %v", n, way, err)
				}
				if got := tree(t, s.GraphRoot); !slices.Equal(got, want) {
					t.Fatalf("%d renames, %s:\n%v\nwant\n%v", n, way, got, want)
				}
			}
			if in, err := s.in(); err != nil || in != (way == "do") {
				t.Fatalf("%d renames, %s: in=%v %v", n, way, in, err)
			}
			if out, err := s.out(); err != nil || out != (way == "undo") {
				t.Fatalf("%d renames, %s: out=%v %v", n, way, out, err)
			}
		}
	}
}

// TestStrays shows what becomes of a store that podman made while its own was
// away, whichever way the run goes on: empty it is put aside, used it is kept
// whole where no step removes it, and the rightful stores are never taken for it.
func TestStrays(t *testing.T) {
	for _, used := range []bool{false, true} {
		for _, way := range []string{"do", "undo"} {
			s := storeOf(t)
			before := tree(t, s.GraphRoot)
			if _, err := s.do(); err != nil {
				t.Fatal(err)
			}
			after := tree(t, s.GraphRoot)
			recs := "[]"
			if used {
				recs = `[{"id":"new"}]`
				write(t, filepath.Join(s.GraphRoot, "vfs/dir", strings.Repeat("b", 64), "file"), "new")
			}
			for _, kind := range []string{"images", "layers", "containers"} {
				write(t, filepath.Join(s.GraphRoot, "vfs-"+kind, kind+".json"), recs)
			}
			if err := os.MkdirAll(filepath.Join(s.GraphRoot, "vfs/dir"), 0o755); err != nil {
				t.Fatal(err)
			}
			if in, err := s.in(); err != nil || in {
				t.Fatalf("in=%v %v", in, err)
			}
			do, want, look := s.do, after, s.in
			if way == "undo" {
				do, want, look = s.undo, before, s.out
			}
			strays, err := do()
			if err != nil || (strays != "") != used {
				t.Fatalf("used=%v %s: strays %q, %v", used, way, strays, err)
			}
			if ok, err := look(); err != nil || !ok {
				t.Fatalf("used=%v %s: not seen to be done: %v", used, way, err)
			}
			if used {
				kept := strings.Join(tree(t, s.strayFolder()), "\n")
				if strings.Count(kept, `[{"id":"new"}]`) != 3 || !strings.Contains(kept, "/file=new") {
					t.Fatalf("%s: not all of the stray is kept:\n%s", way, kept)
				}
			}
			got := slices.DeleteFunc(tree(t, s.GraphRoot), func(l string) bool { return strings.Contains(l, "stray/") })
			if !slices.Equal(got, want) {
				t.Fatalf("used=%v %s:\n%v\nwant\n%v", used, way, got, want)
			}
		}
	}
}

// TestSelfMount: the overlay driver mounts its home on itself, and a podman that
// was killed leaves that mount behind.
func TestSelfMount(t *testing.T) {
	s := storeOf(t)
	before := tree(t, s.GraphRoot)
	if _, err := s.do(); err != nil {
		t.Fatal(err)
	}
	home := s.live("overlay")
	if err := syscall.Mount(home, home, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(home, syscall.MNT_DETACH) })
	if _, err := s.undo(); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, s.GraphRoot); !slices.Equal(got, before) {
		t.Fatalf("%v\nwant\n%v", got, before)
	}
	part := s.live("vfs")
	if err := syscall.Mount("tmpfs", part, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(part, syscall.MNT_DETACH) })
	if _, err := s.do(); err == nil {
		t.Fatal("another filesystem's mount was detached")
	}
}

func TestClearRunStateLeavesTheRest(t *testing.T) {
	root := t.TempDir()
	aside := filepath.Join(root, ".storagectl-1")
	for _, f := range []string{"auth.json", "networks/x", "vfs-layers/mountpoints.json", "vfs-locks/1", "vfs-containers/c/userdata/x", "vfs-other", "overlay-layers/y"} {
		write(t, filepath.Join(root, f), "")
	}
	before := tree(t, root)
	run := runArgs{RunRoot: root, Driver: "vfs", Aside: aside}
	for range 2 {
		if err := clearRunState(run); err != nil {
			t.Fatal(err)
		}
		got := slices.DeleteFunc(tree(t, root), func(l string) bool { return strings.HasPrefix(l, ".storagectl-1/") })
		if want := []string{"auth.json=", "networks/x=", "overlay-layers/y=", "vfs-other="}; !slices.Equal(got, want) {
			t.Fatalf("left %v, want %v", got, want)
		}
		write(t, filepath.Join(root, "vfs-layers/mountpoints.json"), "made anew")
	}
	if err := restoreRunState(run); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, root); !slices.Equal(got, before) {
		t.Fatalf("restored %v, want %v", got, before)
	}
	if err := forgetRunState(aside); err != nil {
		t.Fatal(err)
	}
	if err := forgetRunState(root); err == nil {
		t.Fatal("removed a folder that is not a run's")
	}
}

func TestRemoveFolderOnlyOurs(t *testing.T) {
	dir := t.TempDir()
	if err := removeFolder(dir); err == nil {
		t.Fatal("removed a folder that is not a run's")
	}
	outside := filepath.Join(dir, "outside")
	write(t, filepath.Join(outside, "file"), "keep")
	folder := runFolder(dir, "1")
	write(t, filepath.Join(folder, "x"), "")
	if err := os.Symlink(outside, filepath.Join(folder, "link")); err != nil {
		t.Fatal(err)
	}
	if err := removeFolder(folder); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, dir); !slices.Equal(got, []string{"outside/file=keep"}) {
		t.Fatalf("left %v", got)
	}
}

func TestReclaimable(t *testing.T) {
	dir := t.TempDir()
	folder := runFolder(dir, "1")
	data := strings.Repeat("x", 100_000)
	write(t, filepath.Join(folder, "alone"), data)
	write(t, filepath.Join(folder, "pair1"), data)
	write(t, filepath.Join(dir, "live"), data)
	if err := errors.Join(os.Link(filepath.Join(folder, "pair1"), filepath.Join(folder, "pair2")),
		os.Link(filepath.Join(dir, "live"), filepath.Join(folder, "shared"))); err != nil {
		t.Fatal(err)
	}
	n, err := reclaimable(t.Context(), folder)
	if err != nil || n < 200_000 || n > 220_000 {
		t.Fatalf("%d %v, want the two files that only the folder has", n, err)
	}
}

func TestClassifyProcesses(t *testing.T) {
	for _, tc := range []struct {
		comm  string
		argv  string
		found bool
		pause bool
	}{
		{"podman", "podman system service", true, false},
		{"podman pause", "podman", true, true},
		{"catatonit", "catatonit -P", true, true},
		{"catatonit", "/dev/init -- sh", false, false},
		{"conmon", "/usr/bin/conmon --api-version 1", true, false},
		{"bash", "bash -c podman", false, false},
		{"podman", "", false, false}, // a zombie
	} {
		var argv [][]byte
		for _, w := range strings.Fields(tc.argv) {
			argv = append(argv, []byte(w))
		}
		p, ok := classify(1, tc.comm, argv)
		if ok != tc.found || p.Pause != tc.pause {
			t.Errorf("%s %q: found=%v pause=%v", tc.comm, tc.argv, ok, p.Pause)
		}
	}
}
