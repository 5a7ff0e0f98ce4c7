package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/idtools"
)

const fuseProgram = "/usr/bin/fuse-overlayfs"

// alone runs the test in a process of its own: containers/storage decides once for a
// process how it makes diffs, and otherwise for a mount program. It reports whether
// this is the process in which the test is to be done.
func alone(t *testing.T) bool {
	t.Helper()
	const mark = "STORAGECTL_CONVERT_ALONE"
	if os.Getenv(mark) != "" {
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), mark+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// used is a store with an image of every kind of change, and a container that has
// changed, hidden and replaced what is in it.
func used(f *fixture, top string) (container string) {
	f.Helper()
	img := f.image(top, "localhost/plain:1", "localhost/plain:latest")
	f.image(f.layer(top)) // an empty layer
	c, err := f.store.CreateContainer("", []string{"keeper"}, img, "", `{"image-name":"x"}`, nil)
	must(f, err)
	mnt, err := f.store.Mount(c.ID, "")
	must(f, err)
	must(f, os.WriteFile(filepath.Join(mnt, "etc/passwd"), []byte("ROOT2"), 0o644))
	must(f, os.WriteFile(filepath.Join(mnt, "written"), []byte("w"), 0o600))
	must(f, os.RemoveAll(filepath.Join(mnt, "usr/lib")))
	must(f, os.Mkdir(filepath.Join(mnt, "usr/lib"), 0o700)) // it hides what was there
	must(f, os.WriteFile(filepath.Join(mnt, "usr/lib/own"), []byte("o"), 0o600))
	must(f, os.Remove(filepath.Join(mnt, "attr")))
	must(f, os.Link(filepath.Join(mnt, "written"), filepath.Join(mnt, "again")))
	must(f, os.Rename(filepath.Join(mnt, "swap-file"), filepath.Join(mnt, "moved")))
	if _, err := f.store.Unmount(c.ID, true); err != nil {
		f.Fatal(err)
	}
	return c.LayerID
}

// plain is rich without what not every driver can unpack, or shows alike: a name that
// is hidden and there in one layer.
func plain(f *fixture) (top string) {
	base := f.layer("",
		dir("etc"), file("etc/passwd", "root"), file("etc/gone", "x"), dir("usr"), dir("usr/lib"), file("usr/lib/libc.so", strings.Repeat("c", 9000)),
		symlink("lib", "usr/lib"), dir("var"), dir("var/cache"), file("var/cache/a", "a"), dir("opq"), file("opq/old", "o"),
		dir("home"), dir("home/user").perm(0o700).owner(1000), file("home/user/own", "o").owner(1000),
		file("bin/su", "#!su").perm(0o4755), file("bin/ping", "ping").attr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		file("attr", "v").attr("user.color", "green"), fifo("pipe"), device("null"),
		file("h1", "group"), hardlink("h2", "h1"), file("swap-file", "was file"), dir("swap-dir"), file("swap-dir/inner", "i"),
		file("odd\nname", "newline"), file("na\xffme", "not utf-8"), file(strings.Repeat("l", 200), "long"))
	middle := f.layer(base,
		dir("etc"), gonePath("etc/gone"), file("etc/passwd", "root2"), gonePath("var/cache"), gonePath("nothing-there"),
		dir("opq"), file("opq/new", "n"), opaqueDir("opq"), dir("home"), opaqueDir("home"), file("home/fresh", "f"), gonePath("home/user"))
	return f.layer(middle, dir("var/cache"), file("var/cache/c", "c"), gonePath("bin/su"), file("bin/ls", "ls"), file("a/b/c/d/deep", "no parents listed"))
}

// TestToVfs: each layer and container becomes a tree of its own, with all that the
// kernel's overlay shows; a second Sync has nothing to do but the containers.
func TestToVfs(t *testing.T) {
	f := newOverlay(t, "", vfs)
	c := used(f, plain(f))
	e := f.survey()
	r := f.sync()
	if r.Linked > 4 || r.Copied == 0 || // the names of a file that has several
		r.Layers != 4 {
		t.Errorf("%+v", r)
	}
	if e.Method != Copy || e.BytesNeeded < r.Bytes || e.InodesNeeded < r.Copied+r.Dirs {
		t.Errorf("estimated %+v, did %+v", e, r)
	}
	if p := f.prove(); p.SameBytes == 0 || p.Trees+p.Layers != 4 {
		t.Errorf("%+v", p)
	}
	if again := f.sync(); again.Changed {
		t.Errorf("second sync was not idle: %+v", again)
	}
	f.opts.Containers = true
	if r := f.sync(); r.Layers != 5 || len(r.NewLayers) != 1 {
		t.Errorf("with the container: %+v", r)
	}
	f.prove()
	if ids, err := ChangedContainers(context.Background(), f.opts); err != nil || len(ids) > 0 {
		t.Errorf("changed: %v %v", ids, err)
	}
	f.sameView()
	path := filepath.Join(vfsDirs(f.opts.vfsHome()), c, "written")
	must(t, os.WriteFile(path, []byte("x"), 0o600))
	if ids, err := ChangedContainers(context.Background(), f.opts); err != nil || len(ids) != 1 {
		t.Errorf("changed: %v %v", ids, err)
	}
}

// TestViewOnFuse: a view is there when it is said to be, also where the stage itself is
// on FUSE, as ceph-fuse is.
func TestViewOnFuse(t *testing.T) {
	if !alone(t) {
		return
	}
	f := newOverlay(t, fuseProgram, vfs)
	top := plain(f)
	f.image(top, "localhost/plain:1")
	on := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "on"} {
		must(t, os.Mkdir(filepath.Join(on, d), 0o700))
	}
	cmd := exec.CommandContext(t.Context(), fuseProgram, "-o", fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", on, on, on), filepath.Join(on, "on"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(on, "on"), unix.MNT_DETACH)) })
	f.opts.Stage = filepath.Join(on, "on", "s")
	snap, _, err := readChecked(t.Context(), &f.opts)
	must(t, err)
	for range 3 {
		v, err := f.opts.view(t.Context(), snap.byID[top])
		must(t, err)
		if _, err := os.Stat(filepath.Join(v.dir, "etc/passwd")); err != nil {
			t.Error(err)
		}
		must(t, v.close())
	}
}

// TestMappedToVfs: a container with ids of its own, in a user namespace, where its layer
// has them in its files.
func TestMappedToVfs(t *testing.T) {
	f := newOverlay(t, "", vfs)
	img := f.image(plain(f), "localhost/plain:1")
	maps := []idtools.IDMap{{ContainerID: 0, HostID: 1, Size: 2000}}
	c, err := f.store.CreateContainer("", []string{"mapped"}, img, "", "", &storage.ContainerOptions{
		IDMappingOptions: storage.IDMappingOptions{UIDMap: maps, GIDMap: maps}})
	must(t, err)
	mnt, err := f.store.Mount(c.ID, "")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(mnt, "written"), []byte("w"), 0o600))
	_, err = f.store.Unmount(c.ID, true)
	must(t, err)
	f.opts.Containers = true
	e := f.survey().Containers[0]
	if os.Getenv("STORAGECTL_CONVERT_OWNER") == "" { // root's kernel maps them when it mounts
		if !e.Mapped || !e.Shifted {
			t.Errorf("%+v", e)
		}
		return
	}
	if !e.Mapped || e.Shifted {
		t.Errorf("%+v", e)
	}
	f.sync()
	p, err := Compare(context.Background(), f.opts, nil, CompareOptions{})
	must(t, err)
	for _, d := range p.Unexplained() {
		t.Error(d)
	}
	f.sameView()
}

// TestMappedUnfuse: the same, of a mount program, where it does not map the ids itself.
func TestMappedUnfuse(t *testing.T) {
	if !alone(t) {
		return
	}
	f := newOverlay(t, fuseProgram, overlay)
	base := f.layer("", dir("d"), file("d/f", "x").owner(5), file("g", "y"), dir("o"), file("o/old", "o")) // the program cannot change the owner of pipes
	img := f.image(f.layer(base, gonePath("g"), file("d/new", "n"), dir("o"), opaqueDir("o"), file("o/new", "n")), "localhost/mapped:1")
	maps := []idtools.IDMap{{ContainerID: 0, HostID: 1, Size: 5}, {ContainerID: 5, HostID: 10, Size: 2000}}
	c, err := f.store.CreateContainer("", []string{"mapped"}, img, "", "", &storage.ContainerOptions{
		IDMappingOptions: storage.IDMappingOptions{UIDMap: maps, GIDMap: maps}})
	must(t, err)
	mnt, err := f.store.Mount(c.ID, "")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(mnt, "written"), []byte("w"), 0o600))
	_, err = f.store.Unmount(c.ID, true)
	must(t, err)
	f.opts.Containers = true
	if e := f.survey().Containers[0]; !e.Mapped || e.Shifted {
		t.Errorf("%+v", e)
	}
	if os.Getenv("STORAGECTL_CONVERT_OWNER") == "" {
		return // root's kernel would map them once more
	}
	f.sync()
	p, err := Compare(context.Background(), f.opts, nil, CompareOptions{})
	must(t, err)
	for _, d := range p.Unexplained() {
		t.Error(d)
	}
	f.sameView()
	if again := f.sync(); len(again.NewLayers) > 1 {
		t.Errorf("a second time: %+v", again)
	}
}

// TestUnfuse: diffs of a mount program become the kernel's, by links; the source is
// not changed but for the link counts of its files.
func TestUnfuse(t *testing.T) {
	if !alone(t) {
		return
	}
	f := newOverlay(t, fuseProgram, overlay)
	c := used(f, plain(f))
	marks := f.marks()
	if !strings.Contains(marks, ".wh.") {
		t.Fatal("the store has no marks of the program's")
	}
	f.opts.Containers = true
	r := f.sync()
	if r.Linked == 0 || r.Whiteouts < 4 || r.Opaque < 2 {
		t.Errorf("%+v", r)
	}
	f.prove()
	if now := f.marks(); now != marks {
		t.Errorf("the source was\n%s\nand is\n%s", marks, now)
	}
	f.sameView()
	// A container's files are its own.
	a, err := os.Stat(filepath.Join(f.opts.Source.GraphRoot, "overlay", c, "diff/written"))
	must(t, err)
	b, err := os.Stat(filepath.Join(f.opts.overlayHome(), c, "diff/written"))
	must(t, err)
	if os.SameFile(a, b) {
		t.Error("a container's file is shared")
	}
	out, err := exec.Command("find", f.opts.overlayHome(), "-name", ".wh.*").CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("marks of the program's are left: %s %v", out, err)
	}
}

// TestFuseToVfs: the same store becomes one of whole trees.
func TestFuseToVfs(t *testing.T) {
	if !alone(t) {
		return
	}
	f := newOverlay(t, fuseProgram, vfs)
	used(f, plain(f))
	f.opts.Containers = true
	f.sync()
	f.prove()
	f.sameView()
	if out, err := exec.Command("pgrep", "-P", fmt.Sprint(os.Getpid()), "fuse-overlayfs").Output(); err == nil {
		t.Errorf("a program of a mount is left: %s", out)
	}
}

// TestUnconvertible: what has no equal in the kernel's overlay is refused by name.
func TestUnconvertible(t *testing.T) {
	if !alone(t) {
		return
	}
	f := newOverlay(t, fuseProgram, overlay)
	top := plain(f)
	f.image(top)
	for _, c := range []struct{ attr, value, path string }{
		{"user.containers.override_stat", "0:0:0755", "bin/ls"},
		{"user.fuseoverlayfs.override_stat", "0:0:0755", "a/b"},
		{"user.fuseoverlayfs.origin", "elsewhere", "a/b"},
	} {
		path := filepath.Join(f.opts.Source.GraphRoot, "overlay", top, "diff", c.path)
		must(t, unix.Setxattr(path, c.attr, []byte(c.value), 0))
		if _, err := Sync(context.Background(), f.opts); !errors.Is(err, ErrUnconvertible) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s: %v", c.attr, err)
		}
		must(t, unix.Removexattr(path, c.attr))
	}
	must(t, os.WriteFile(filepath.Join(f.opts.Source.GraphRoot, "overlay", top, "diff/.wh.a"), nil, 0o600))
	var damaged *DamageError
	if _, err := Sync(context.Background(), f.opts); !errors.As(err, &damaged) || damaged.Damage[0].Kind != Unrepresentable {
		t.Errorf("a name that is hidden and there: %v", err)
	}
}

// TestThereAndBack: random layers that became diffs become the trees that they were.
func TestThereAndBack(t *testing.T) {
	logrus.SetOutput(io.Discard)
	defer logrus.SetOutput(os.Stderr)
	f := newFixture(t)
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 7))
		top, files := "", []string(nil)
		for range 5 {
			f.n++
			id := fmt.Sprintf("%064x", f.n)
			blob := randomLayer(r, t, &files)
			if !unpacks(f, top, blob) {
				continue
			}
			_, _, err := f.store.PutLayer(id, top, nil, "", false, nil, bytes.NewReader(blob))
			must(t, err)
			top = id
			f.image(id)
		}
	}
	f.image(rich(f))
	there := f.sync()
	back := Options{Source: Store{GraphRoot: filepath.Join(f.opts.Stage, "new"), RunRoot: t.TempDir(), Driver: "overlay"},
		Stage: filepath.Join(t.TempDir(), ".storagectl-back"), To: vfs}
	r, err := Sync(context.Background(), back)
	must(t, err)
	if r.Layers != there.Layers || r.Layers < 30 {
		t.Errorf("%d layers of %d", r.Layers, there.Layers)
	}
	p, err := Compare(context.Background(), back, nil, CompareOptions{})
	must(t, err)
	for _, d := range p.Unexplained() {
		t.Error(d)
	}
	trees := func(root string) string {
		out, err := exec.Command("sh", "-c", `cd "$1" && find . -mindepth 1 -printf '%P %y %m %U %G %n %T@ %l\n' | sort && find . -type f -exec sha256sum {} + | sort`,
			"sh", filepath.Join(root, "vfs/dir")).Output()
		must(t, err)
		return string(out)
	}
	must(t, os.RemoveAll(f.opts.Stage)) // with the other names of the files
	if a, b := trees(f.opts.Source.GraphRoot), trees(filepath.Join(back.Stage, "new")); a != b {
		al, bl := strings.Split(a, "\n"), strings.Split(b, "\n")
		for i := range al {
			if i < len(bl) && al[i] != bl[i] {
				t.Fatalf("%d: was %q, is %q", i, al[i], bl[i])
			}
		}
		t.Fatalf("%d lines, were %d", len(bl), len(al))
	}
}

// marks lists the source's diffs but for what linking changes.
func (f *fixture) marks() string {
	f.Helper()
	out, err := exec.Command("find", filepath.Join(f.opts.Source.GraphRoot, "overlay"), "-path", "*/diff/*", "-printf", "%P %y %m %U %G %s %T@ %l\n").Output()
	must(f, err)
	return string(out)
}

// sameView compares what containers/storage itself shows of each image and container
// in the source and in the staged store.
func (f *fixture) sameView() {
	f.Helper()
	staged := &fixture{TB: f.TB, opts: Options{Source: Store{GraphRoot: filepath.Join(f.opts.Stage, "new"), RunRoot: f.TempDir(), Driver: f.opts.to()}}}
	if f.opts.to() == overlay {
		staged.open("overlay.skip_mount_home=true")
	} else {
		staged.open()
	}
	cs, err := f.store.Containers()
	must(f, err)
	for _, c := range cs {
		if a, b := shown(f, c), shown(staged, c); a != b {
			f.Errorf("container %v was\n%s\nand is\n%s", c.Names, a, b)
		}
	}
}

func shown(f *fixture, c storage.Container) string {
	f.Helper()
	mnt, err := f.store.Mount(c.ID, "")
	must(f, err)
	out, err := exec.Command("sh", "-c", `cd "$1" && find . -printf '%P %y %m %U %G %T@ %l\n' | sort && find . -type f -exec sha256sum {} + | sort`, "sh", mnt).Output()
	must(f, err)
	if _, err := f.store.Unmount(c.ID, true); err != nil {
		f.Fatal(err)
	}
	return string(out)
}
