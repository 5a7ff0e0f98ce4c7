package host

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const table = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 22 0:21 / /proc rw - proc proc rw
40 22 0:40 / /srv/store rw,relatime shared:7 - autofs systemd-1 rw,fd=35,direct
41 40 8:1 /sub /srv/store rw,noatime shared:8 master:2 - xfs /dev/disk/with\040blank ro,noquota
42 41 0:50 / /srv/store/overlay/abc/merged rw - overlay overlay rw
50 22 8:2 / /srv/old rw - ext4 /dev/sdb rw
51 22 8:3 / /srv rw - ext4 /dev/hides rw
60 51 8:4 / /srv/tab\011new\012line\134back rw - ext4 /dev/odd rw
61 51 0:60 / /srv/auto rw - autofs systemd-1 rw
`

func TestMountTable(t *testing.T) {
	all, err := ParseMounts(strings.NewReader(table))
	if err != nil {
		t.Fatal(err)
	}
	visible := MountTable(append(append([]Mount{}, all[:6]...), all[7:]...)) // without the one that covers /srv
	for i := range visible {
		if visible[i].Parent == 51 {
			visible[i].Parent = 22
		}
	}
	want := Mount{ID: 41, Parent: 40, Major: 8, Minor: 1, Root: "/sub", Path: "/srv/store", Type: "xfs", Source: "/dev/disk/with blank",
		Options: "rw,noatime", FSOptions: "ro,noquota", Propagation: "shared:8 master:2"}
	if !reflect.DeepEqual(visible[3], want) {
		t.Errorf("%+v", visible[3])
	}
	if want.Dev() != unix.Mkdev(8, 1) || !want.Has("ro") || !want.Has("noatime") || want.Has("no") {
		t.Errorf("%+v", want)
	}
	for path, id := range map[string]int{
		"/": 22, "/srv": 22, "/srv/": 22, "/srv/store": 41, "/srv/store/": 41, "/srv/store2": 22, "/srv/store/x": 41,
		"/srv/store/overlay/abc/merged/etc": 42, "/srv/old/x": 50, "/proc/1": 30, "/srv/tab\tnew\nline\\back/x": 60,
	} {
		if m, ok := visible.Over(path); !ok || m.ID != id {
			t.Errorf("%s is in %+v, want %d", path, m, id)
		}
	}
	ids := func(ms []Mount) (all []int) {
		for _, m := range ms {
			all = append(all, m.ID)
		}
		return all
	}
	if got := ids(visible.Stack("/srv/store/")); !reflect.DeepEqual(got, []int{41, 40}) {
		t.Errorf("%v", got)
	}
	if got := ids(visible.Below("/srv/store")); !reflect.DeepEqual(got, []int{42}) {
		t.Errorf("%v", got)
	}
	if m, ok := visible.At("/srv/store"); !ok || m.ID != 41 {
		t.Errorf("%v %+v", ok, m)
	}
	for _, path := range []string{"/srv/auto", "/srv/none", "/srv/store/overlay"} {
		if m, ok := visible.At(path); ok {
			t.Errorf("%s: %+v", path, m)
		}
	}
	// A mount over /srv hides those that were made beneath before.
	if m, ok := all.Over("/srv/store/x"); !ok || m.ID != 51 {
		t.Errorf("%+v", m)
	}
	if m, ok := all.At("/srv/old"); ok {
		t.Errorf("%+v", m)
	}
	if _, ok := (MountTable{}).Over("/"); ok {
		t.Error("a mount in an empty table")
	}
	if _, err := ParseMounts(strings.NewReader("1 2 3\n")); err == nil {
		t.Error("a broken table was read")
	}
	loop := MountTable{{ID: 1, Parent: 2, Path: "/"}, {ID: 2, Parent: 1, Path: "/"}}
	loop.Over("/x") // ends
}

func TestMountsAreSeen(t *testing.T) {
	dir := mkdir(t, t.TempDir(), "with blank\tand\nnewline\\ and ü")
	mountAt(t, "lower one", dir, "tmpfs", 0, "size=1m")
	inner := mkdir(t, dir, "inner")
	mountAt(t, "upper", inner, "tmpfs", 0, "size=1m")
	f := openDir(t, inner)
	m, err := MountOf(f)
	if err != nil || m.Source != "upper" || m.Path != inner {
		t.Errorf("%+v %v", m, err)
	}
	var st unix.Stat_t
	must(t, unix.Stat(inner, &st))
	if st.Dev != m.Dev() {
		t.Errorf("device %d is %d", m.Dev(), st.Dev)
	}
	mountAt(t, "cover", dir, "tmpfs", 0, "size=1m")
	if got := mountedAt(t, dir); !reflect.DeepEqual(got, []string{"cover", "lower one"}) {
		t.Errorf("%q", got)
	}
	if got := mountedAt(t, inner); got != nil {
		t.Errorf("%q is hidden", got)
	}
	other, err := MountsOf(1)
	if err != nil || len(other) == 0 {
		t.Fatal(err)
	}
	if got := other.Stack(dir); got != nil {
		t.Errorf("init sees %+v", got)
	}
	if _, err := MountsOf(1 << 30); err == nil {
		t.Error("a process that is not there has mounts")
	}
}

func TestOpenDirFollowsNoLinks(t *testing.T) {
	dir := t.TempDir()
	real := mkdir(t, dir, "real", "sub")
	must(t, os.Symlink("real", filepath.Join(dir, "link")), os.Symlink("sub", filepath.Join(dir, "real", "last")), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	walk := func(path string) (*os.File, error) { // as on a kernel without openat2
		fd, err := walkTo(unix.AT_FDCWD, filepath.Clean(path), unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_DIRECTORY)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), path), nil
	}
	for name, open := range map[string]func(string) (*os.File, error){"openat2": OpenDir, "walk": walk} {
		for path, ok := range map[string]bool{
			"/": true, dir: true, real: true, real + "/": true, dir + "/real/../real/sub": true,
			dir + "/link": false, dir + "/link/sub": false, dir + "/real/last": false, dir + "/file": false, dir + "/none": false, "/proc/self/cwd": false,
		} {
			f, err := open(path)
			if (err == nil) != ok {
				t.Errorf("%s: %s: %v", name, path, err)
			}
			if err == nil {
				f.Close()
			}
		}
	}
	// A link itself, where folders are not asked for, and none on the way.
	for path, ok := range map[string]bool{"/link": true, "/link/sub": false, "/file": true} {
		fd, err := walkTo(unix.AT_FDCWD, dir+path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW)
		_ = unix.Close(fd)
		f, err2 := peek(dir + path)
		if (err == nil) != ok || (err2 == nil) != ok {
			t.Errorf("%s: %v, %v", path, err, err2)
		}
		if err2 == nil {
			f.Close()
		}
	}
	d := openDir(t, dir)
	for rel, ok := range map[string]bool{"real/sub": true, ".": true, "link": false, "../x": false, "/etc": false, "real/../../..": false} {
		f, err := OpenBelow(d, rel)
		if (err == nil) != ok {
			t.Errorf("%s: %v", rel, err)
		}
		if err == nil {
			f.Close()
		}
	}
	if _, err := OpenDir("relative"); err == nil {
		t.Error("opened a relative path")
	}
}

func TestChangeable(t *testing.T) {
	dir := t.TempDir() // under /tmp, which is sticky
	if !strings.HasPrefix(dir, "/tmp/") {
		t.Setenv("TMPDIR", "/tmp")
		dir = t.TempDir()
	}
	roots := mkdir(t, dir, "roots", "sub")
	users := mkdir(t, dir, "users", "sub")
	open := mkdir(t, dir, "open", "sub")
	must(t, os.Chown(filepath.Dir(users), 2000, 2000), os.Chmod(filepath.Dir(open), 0o775), os.Symlink("roots", filepath.Join(dir, "link")))
	sticky := mkdir(t, dir, "sticky", "sub")
	must(t, os.Chmod(filepath.Dir(sticky), 0o777|os.ModeSticky), os.Mkdir(dir+"/sticky/theirs", 0o755), os.Chown(dir+"/sticky/theirs", 2000, 2000))
	for path, want := range map[string]string{
		"/": "", "/etc/fstab": "", roots: "", roots + "/new/ones": "", users: users, dir + "/users": "", open: open, users + "/deep/er": users,
		sticky: "", dir + "/sticky/theirs/x": dir + "/sticky/theirs", dir + "/sticky/new": dir + "/sticky/new",
	} {
		if got, err := Changeable(path); err != nil || got != want {
			t.Errorf("%s: %q, want %q (%v)", path, got, want, err)
		}
	}
	if got, err := Changeable(dir + "/link/sub"); err == nil {
		t.Errorf("through a link: %q", got)
	}
}
