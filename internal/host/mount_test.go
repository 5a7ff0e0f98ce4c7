package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const large = 400 << 20 // mkfs.xfs wants 300 MB; the files are sparse

// ways gives the mounting verbs, as every kernel has them and as old ones do.
func ways() map[string]func(FSMount, *os.File) (Mount, error) {
	return map[string]func(FSMount, *os.File) (Mount, error){"new": MountFS, "old": mountOn}
}

func TestMountFS(t *testing.T) {
	for name, mount := range ways() {
		for _, kind := range []string{"xfs", "ext4"} {
			t.Run(name+" "+kind, func(t *testing.T) {
				dev, _ := loopDevice(t, large)
				command(t, "mkfs."+kind, "-q", dev)
				at := mkdir(t, t.TempDir(), "a b")
				m, err := mount(FSMount{Source: dev, Type: kind, Flags: unix.MS_NOATIME | unix.MS_NODEV}, openDir(t, at))
				if err != nil {
					t.Fatal(err)
				}
				if m.Path != at || m.Source != dev || m.Type != kind || !m.Has("noatime") || !m.Has("nodev") || m.Has("ro") {
					t.Errorf("%+v", m)
				}
				must(t, os.WriteFile(filepath.Join(at, "x"), []byte("x"), 0o600))
				if got := mountedAt(t, at); !slices.Equal(got, []string{dev}) {
					t.Errorf("%q", got)
				}
				must(t, Unmount(t.Context(), at))
				if got := mountedAt(t, at); got != nil {
					t.Errorf("%q", got)
				}
				m, err = mount(FSMount{Source: dev, Type: kind, Flags: unix.MS_RDONLY}, openDir(t, at))
				if err != nil || !m.Has("ro") {
					t.Errorf("%+v %v", m, err)
				}
				if err := os.WriteFile(filepath.Join(at, "y"), nil, 0o600); !errors.Is(err, unix.EROFS) {
					t.Errorf("written: %v", err)
				}
				must(t, Unmount(t.Context(), at))
			})
		}
	}
}

func TestMountFSTellsWhy(t *testing.T) {
	dev, _ := loopDevice(t, large)
	command(t, "mkfs.xfs", "-q", dev)
	at := openDir(t, t.TempDir())
	for _, fs := range []FSMount{
		{Source: dev, Type: "ext4"}, {Source: dev, Type: "xfs", Data: "no-such-option"}, {Source: dev, Type: "no-such-type"},
		{Source: "/dev/none", Type: "xfs"},
	} {
		for name, mount := range ways() {
			if _, err := mount(fs, at); err == nil {
				t.Errorf("%s: mounted %+v", name, fs)
			}
		}
	}
	if _, err := MountFS(FSMount{Source: dev, Type: "xfs", Data: "no-such-option"}, at); !strings.Contains(fmt.Sprint(err), "no-such-option") {
		t.Errorf("%v", err)
	}
	if got := mountedAt(t, at.Name()); got != nil {
		t.Errorf("%q", got)
	}
}

func TestBindDir(t *testing.T) {
	old := func(source, target *os.File) (Mount, error) {
		return mountOn(FSMount{Source: fdPath(source), Flags: unix.MS_BIND}, target)
	}
	for name, bind := range map[string]func(_, _ *os.File) (Mount, error){"new": BindDir, "old": old} {
		t.Run(name, func(t *testing.T) {
			dir, at := t.TempDir(), t.TempDir()
			mountAt(t, "whole", dir, "tmpfs", 0, "size=1m")
			sub := mkdir(t, dir, "stores", "one")
			must(t, os.WriteFile(filepath.Join(sub, "file"), nil, 0o600))
			mountAt(t, "not bound", mkdir(t, sub, "inner"), "tmpfs", 0, "size=1m")
			m, err := bind(openDir(t, sub), openDir(t, at))
			if err != nil || m.Source != "whole" || m.Root != "/stores/one" || m.Path != at {
				t.Fatalf("%+v %v", m, err)
			}
			if _, err := os.Lstat(filepath.Join(at, "file")); err != nil {
				t.Error(err)
			}
			if got := mountedAt(t, filepath.Join(at, "inner")); got != nil {
				t.Errorf("%q", got)
			}
			must(t, Unmount(t.Context(), at))
		})
	}
}

// The folder that was opened is moved away before the mount: what is mounted there
// would not be at the path that everybody else goes by.
func TestMountIsTakenBackWhereTheFolderMoved(t *testing.T) {
	for name, mount := range ways() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			at, away := mkdir(t, dir, "at"), filepath.Join(dir, "away")
			f := openDir(t, at)
			must(t, os.Rename(at, away), os.Mkdir(at, 0o755))
			if m, err := mount(FSMount{Source: "moved", Type: "tmpfs"}, f); err == nil {
				t.Errorf("%+v", m)
			}
			if a, b := mountedAt(t, at), mountedAt(t, away); a != nil || b != nil {
				t.Errorf("%q %q", a, b)
			}
		})
	}
}

// A user who owns the folder above swaps it for a link to a place of root's all
// the time, while root mounts: nothing ever lands there.
func TestMountAgainstSwaps(t *testing.T) {
	for name, mount := range ways() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			victim := mkdir(t, dir, "victim", "storage")
			home := mkdir(t, dir, "home")
			mkdir(t, home, "containers", "storage")
			must(t, os.Symlink(filepath.Join(dir, "victim"), filepath.Join(home, "link")))
			path := filepath.Join(home, "containers", "storage")
			stop, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				for {
					select {
					case <-stop:
						return
					default:
						_ = unix.Renameat2(unix.AT_FDCWD, home+"/link", unix.AT_FDCWD, home+"/containers", unix.RENAME_EXCHANGE)
					}
				}
			}()
			stopped := sync.OnceFunc(func() { close(stop); <-done })
			defer stopped()
			seen, ok, refused := 0, 0, 0
			begin := time.Now()
			for time.Since(begin) < time.Second || (ok == 0 || refused == 0) && time.Since(begin) < time.Minute {
				var m Mount
				f, err := OpenDir(path)
				if err == nil {
					m, err = mount(FSMount{Source: "swapped", Type: "tmpfs"}, f)
					f.Close()
				}
				if err == nil {
					ok++
					if m.Path != path && m.Path != home+"/link/storage" {
						t.Fatalf("mounted at %s", m.Path)
					}
				} else {
					refused++
				}
				table, err := Mounts()
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range table {
					if strings.HasPrefix(m.Path, filepath.Dir(victim)) {
						t.Fatalf("mounted at %s", m.Path)
					}
					if m.Source == "swapped" {
						seen++
						// Taken away whatever the name leads to by now.
						for _, at := range []string{home + "/containers/storage", home + "/link/storage"} {
							_ = Unmount(t.Context(), at)
						}
					}
				}
			}
			stopped()
			if ok == 0 || refused == 0 {
				t.Errorf("%d mounts, %d refusals: the test shows nothing", ok, refused)
			}
			t.Logf("%d mounts, %d refusals, %d seen", ok, refused, seen)
			for range 1000 { // what is left of the race
				if Unmount(context.Background(), home+"/containers/storage") != nil && Unmount(context.Background(), home+"/link/storage") != nil {
					break
				}
			}
		})
	}
}

func TestPrivateDir(t *testing.T) {
	dir := mkdir(t, t.TempDir(), "run")
	must(t, os.Chmod(dir, 0o700))
	path, err := PrivateDir(filepath.Join(dir, "storagectl"), "r1")
	if err != nil || path != filepath.Join(dir, "storagectl", "r1") {
		t.Fatalf("%q %v", path, err)
	}
	if again, err := PrivateDir(filepath.Join(dir, "storagectl"), "r1"); err != nil || again != path {
		t.Errorf("%q %v", again, err)
	}
	must(t, os.Chown(filepath.Join(dir, "storagectl"), 2000, 2000))
	for _, name := range []string{"r1", "..", "a/b", ""} {
		if p, err := PrivateDir(filepath.Join(dir, "storagectl"), name); err == nil {
			t.Errorf("%q: %s", name, p)
		}
	}
}

func TestUnderneathAndImmutable(t *testing.T) {
	parents := map[string]string{"here": t.TempDir(), "xfs": t.TempDir()}
	dev, _ := loopDevice(t, large)
	command(t, "mkfs.xfs", "-q", dev)
	mountAt(t, dev, parents["xfs"], "xfs", 0, "")
	for name, parent := range parents {
		for how, look := range map[string]func(string) (*os.File, error){"new": Underneath, "old": func(path string) (*os.File, error) {
			d := openDir(t, filepath.Dir(path))
			tree, err := bareCopy(d)
			if err != nil {
				return nil, err
			}
			defer tree.Close()
			return OpenBelow(tree, filepath.Base(path))
		}} {
			t.Run(name+" "+how, func(t *testing.T) {
				at := mkdir(t, parent, "at-"+how)
				t.Cleanup(func() {
					_ = unix.Unmount(at, unix.MNT_DETACH)
					_ = SetImmutable(openDir(t, at), false)
				})
				var want unix.Stat_t
				must(t, unix.Stat(at, &want))
				mountAt(t, "over", at, "tmpfs", 0, "size=1m")
				under, err := look(at)
				if err != nil {
					t.Fatal(err)
				}
				defer under.Close()
				var got unix.Stat_t
				must(t, unix.Fstat(int(under.Fd()), &got))
				if got.Ino != want.Ino || got.Dev != want.Dev {
					t.Errorf("%d:%d, want %d:%d", got.Dev, got.Ino, want.Dev, want.Ino)
				}
				must(t, SetImmutable(under, true), SetImmutable(under, true))
				if is, err := Immutable(under); err != nil || !is {
					t.Errorf("%v %v", is, err)
				}
				must(t, os.WriteFile(filepath.Join(at, "on top"), nil, 0o600)) // what covers it is not
				must(t, Unmount(t.Context(), at))
				if err := os.WriteFile(filepath.Join(at, "beneath"), nil, 0o600); !errors.Is(err, unix.EPERM) {
					t.Errorf("written beneath: %v", err)
				}
				if err := os.Rename(at, at+"2"); !errors.Is(err, unix.EPERM) {
					t.Errorf("renamed: %v", err)
				}
				mountAt(t, "again", at, "tmpfs", 0, "size=1m") // it can be mounted on
				must(t, Unmount(t.Context(), at), SetImmutable(under, false))
				must(t, os.WriteFile(filepath.Join(at, "beneath"), nil, 0o600))
				if err := SetImmutable(under, true); !errors.Is(err, unix.ENOTEMPTY) {
					t.Errorf("%v", err)
				}
				if is, err := Immutable(under); err != nil || is {
					t.Errorf("%v %v", is, err)
				}
			})
		}
	}
	if names, err := filepath.Glob("/run/storagectl-look-*"); err != nil || names != nil {
		t.Errorf("left behind: %q %v", names, err)
	}
	if _, err := Immutable(openDir(t, "/proc/sys")); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}
