package convert

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/idtools"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func TestManyLayers(t *testing.T) {
	f := newFixture(t)
	top := ""
	for i := range 120 {
		top = f.layer(top, file(fmt.Sprintf("d%d/f%d", i%7, i), strings.Repeat("x", i)), gonePath(fmt.Sprintf("d%d/f%d", (i+4)%7, i-3)))
	}
	f.image(top, "localhost/deep:1")
	f.sync()
	f.prove()
}

func TestLayersWithoutList(t *testing.T) {
	f := newFixture(t)
	top := rich(f)
	f.image(top, "localhost/rich:1")
	f.dropLists()
	r := f.sync()
	if r.Walked != int64(r.Layers) {
		t.Errorf("walked %d of %d layers", r.Walked, r.Layers)
	}
	p, err := Compare(context.Background(), f.opts, nil, CompareOptions{Bytes: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range p.Unexplained() {
		t.Error(d)
	}
	if e := f.survey(); e.WithoutList != r.Layers {
		t.Errorf("survey: %+v", e)
	}
}

// dropLists takes the layers' lists away, as an old store may lack them.
func (f *fixture) dropLists() {
	f.Helper()
	lists, err := filepath.Glob(filepath.Join(f.opts.Source.GraphRoot, "vfs-layers", "*.tar-split.gz"))
	if err != nil || len(lists) == 0 {
		f.Fatal("no lists", err)
	}
	for _, l := range lists {
		if err := os.Remove(l); err != nil {
			f.Fatal(err)
		}
	}
}

func (f *fixture) survey() Estimate {
	f.Helper()
	e, err := Survey(context.Background(), f.opts)
	if err != nil {
		f.Fatal(err)
	}
	return e
}

// A list alone would not see that same-sized, same-aged content changed.
func TestWalkReadsContent(t *testing.T) {
	f := newFixture(t)
	a := f.layer("", file("f", "one"), file("g", "same"))
	b := f.layer(a, file("f", "two"))
	f.image(b)
	f.dropLists()
	f.sync()
	got, err := os.ReadFile(filepath.Join(f.opts.overlayHome(), b, "diff", "f"))
	if err != nil || string(got) != "two" {
		t.Errorf("diff holds %q, %v", got, err)
	}
	if exists(filepath.Join(f.opts.overlayHome(), b, "diff", "g")) {
		t.Error("an unchanged file is in the diff")
	}
}

func TestMappedLayer(t *testing.T) {
	f := newFixture(t)
	base := f.layer("", dir("d"), file("d/f", "x").owner(5), file("g", "y"), symlink("s", "g"))
	top := f.layer(base, file("d/new", "n"), gonePath("g"))
	img := f.image(top, "localhost/mapped:1")
	maps := []idtools.IDMap{{ContainerID: 0, HostID: 50000, Size: 1000}}
	c, err := f.store.CreateContainer("", nil, img, "", "", &storage.ContainerOptions{
		IDMappingOptions: storage.IDMappingOptions{UIDMap: maps, GIDMap: maps}})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.store.DeleteContainer(c.ID); err != nil {
		t.Fatal(err)
	}
	r := f.sync()
	if r.Layers != 3 {
		t.Fatalf("%d layers: the mapped layer is missing", r.Layers)
	}
	if r.Walked != 1 || r.Copied != 0 {
		t.Errorf("counts %+v", r.Counts)
	}
	f.prove()
}

func TestNamesDanglingManifestLists(t *testing.T) {
	f := newFixture(t)
	top := f.layer("", file("f", "x"))
	var names []string
	for i := range 40 {
		names = append(names, fmt.Sprintf("localhost/n%d:%d", i, i))
	}
	img := f.image(top, names...)
	f.image(f.layer(top, file("g", "y"))) // dangling
	if _, err := f.store.CreateImage("", nil, "", "scratch", nil); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"manifest-sha256:abc", "instances.json", "Weird KEY/with=signs"} {
		err := f.store.SetImageBigData(img, key, []byte(`{"key":"`+key+`"}`), func(b []byte) (digest.Digest, error) { return digest.FromBytes(b), nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.store.SetLayerBigData(top, "layer data", strings.NewReader("of a layer")); err != nil {
		t.Fatal(err)
	}
	f.sync()
	f.prove()
	if err := f.store.RemoveNames(img, names[:30]); err != nil {
		t.Fatal(err)
	}
	if ok, why, err := Staged(context.Background(), f.opts); ok || err != nil {
		t.Errorf("staged is %v %v %v after names changed", ok, why, err)
	}
	r := f.sync()
	if !r.Changed || len(r.NewLayers)+len(r.NewImages) > 0 {
		t.Errorf("names only: %+v", r)
	}
	f.prove()
	if e := f.survey(); e.Dangling != 2 || e.Images != 3 {
		t.Errorf("survey %+v", e)
	}
}

// Images come, go and are made again with the same layer ids.
func TestFollowsTheSource(t *testing.T) {
	f := newFixture(t)
	a := f.layer("", file("a", "a"))
	b := f.layer(a, file("b", "b"))
	img := f.image(b, "localhost/x:1")
	f.sync()
	if _, err := f.store.DeleteImage(img, true); err != nil {
		t.Fatal(err)
	}
	f.n = 0
	a = f.layer("", file("a", "another"))
	b = f.layer(a, file("c", "c"))
	f.image(b, "localhost/x:2")
	r := f.sync()
	if len(r.NewLayers) != 2 || len(r.DroppedLayers) != 2 {
		t.Errorf("report %+v", r)
	}
	f.prove()
	if left, _ := os.ReadDir(filepath.Join(f.opts.overlayHome(), "l")); len(left) != 2 {
		t.Errorf("%d short links for 2 layers", len(left))
	}
}

func TestAdditionalStore(t *testing.T) {
	shared := newFixture(t)
	base := shared.layer("", dir("d"), file("d/shared", "s"))
	shared.image(base, "localhost/shared:1")
	other := shared.layer("", file("unused", "u"))
	shared.image(other, "localhost/unused:1")
	// Elsewhere, as this process already holds the first place's locks.
	place := filepath.Join(t.TempDir(), "shared")
	if out, err := exec.Command("cp", "-a", shared.opts.Source.GraphRoot, place).CombinedOutput(); err != nil {
		t.Fatal(string(out), err)
	}
	f := newFixtureAt(t, t.TempDir(), t.TempDir(), place)
	f.n = 100
	top := f.layer(base, gonePath("d/shared"), file("own", "o"))
	f.image(top, "localhost/own:1")
	before := tree(t, place)
	r := f.sync()
	if r.Layers != 2 || r.Images != 1 {
		t.Errorf("report %+v", r)
	}
	f.prove()
	if after := tree(t, place); !slices.Equal(before, after) {
		t.Error("the additional store was changed")
	}
	e := f.survey()
	if len(e.ImageStores) != 1 || e.ImageStores[0].Images != 2 || e.ImageStores[0].Imported != 1 {
		t.Errorf("survey %+v", e.ImageStores)
	}
}

// tree lists every path of a folder with what a change would show: not ctime
// and link counts, which hard links move.
func tree(t testing.TB, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(filepath.Base(p), ".storagectl-") {
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		size := st.Size
		mtime := st.Mtim
		if p == root {
			size, mtime = 0, unix.Timespec{} // the stage is made in it
		}
		out = append(out, fmt.Sprintf("%q %o %d:%d %d %v %d", p, st.Mode, st.Uid, st.Gid, size, mtime, st.Ino))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestContainers(t *testing.T) {
	f := newFixture(t)
	top := rich(f)
	img := f.image(top, "localhost/rich:1")
	c, err := f.store.CreateContainer("", []string{"keeper"}, img, "", `{"image-name":"x"}`, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.store.SetContainerBigData(c.ID, "buildah.json", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	mnt, err := f.store.Mount(c.ID, "")
	if err != nil {
		t.Fatal(err)
	}
	must(t, os.WriteFile(filepath.Join(mnt, "etc/passwd"), []byte("ROOT2"), 0o644))
	must(t, os.Chtimes(filepath.Join(mnt, "etc/passwd"), someTime, someTime))
	must(t, os.WriteFile(filepath.Join(mnt, "written"), []byte("w"), 0o600))
	must(t, os.RemoveAll(filepath.Join(mnt, "usr/lib")))
	must(t, os.Remove(filepath.Join(mnt, "lib")))
	must(t, os.Link(filepath.Join(mnt, "attr"), filepath.Join(mnt, "attr2")))
	if _, err := f.store.Unmount(c.ID, true); err != nil {
		t.Fatal(err)
	}

	e := f.survey()
	if len(e.Containers) != 1 || !e.Containers[0].Buildah || e.ContainerLayers != 1 {
		t.Errorf("survey %+v", e.Containers)
	}
	if r := f.sync(); r.Layers != 3 || r.Containers != 0 {
		t.Errorf("without containers: %+v", r)
	}
	f.prove()

	if e.ContainerBytes != 0 {
		t.Errorf("%d bytes of containers that stay behind", e.ContainerBytes)
	}
	f.opts.Containers = true
	if e := f.survey(); e.ContainerBytes == 0 || e.ContainerBytes > 64<<10 {
		t.Errorf("containers have written %d bytes", e.ContainerBytes)
	}
	r := f.sync()
	if r.Layers != 4 || r.Containers != 1 || r.Copied+r.Reflinked == 0 {
		t.Errorf("with containers: %+v", r)
	}
	if r.Copied > 4 {
		t.Errorf("%d files copied where 4 changed", r.Copied)
	}
	f.prove()
	// What the container writes must not reach the vfs store, where a rollback
	// would find it.
	err = filepath.WalkDir(filepath.Join(f.opts.overlayHome(), c.LayerID, "diff"), func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fi, err := os.Lstat(p)
		if err != nil {
			return err
		}
		old, err := os.Lstat(strings.Replace(p, filepath.Join(f.opts.overlayHome(), c.LayerID, "diff"), filepath.Join(f.opts.Source.GraphRoot, "vfs/dir", c.LayerID), 1))
		if err == nil && os.SameFile(fi, old) {
			t.Errorf("%s is shared with the source", p)
		}
		return nil
	})
	must(t, err)
	f.opts.Containers = false
	f.sync()
	f.prove()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDamage(t *testing.T) {
	type hurt func(t *testing.T, f *fixture, base, top, img string)
	for name, c := range map[string]struct {
		kind DamageKind
		do   hurt
	}{
		"file gone": {MissingFile, func(t *testing.T, f *fixture, _, top, _ string) {
			must(t, os.Remove(filepath.Join(f.opts.Source.GraphRoot, "vfs/dir", top, "etc/own")))
		}},
		"folder gone": {MissingFile, func(t *testing.T, f *fixture, _, top, _ string) {
			must(t, os.RemoveAll(filepath.Join(f.opts.Source.GraphRoot, "vfs/dir", top, "etc")))
		}},
		"file cut": {WrongSize, func(t *testing.T, f *fixture, _, top, _ string) {
			must(t, os.Truncate(filepath.Join(f.opts.Source.GraphRoot, "vfs/dir", top, "etc/own"), 1))
		}},
		"layer folder gone": {MissingLayerFolder, func(t *testing.T, f *fixture, _, top, _ string) {
			must(t, os.RemoveAll(filepath.Join(f.opts.Source.GraphRoot, "vfs/dir", top)))
		}},
		"list cut": {BadList, func(t *testing.T, f *fixture, _, top, _ string) {
			must(t, os.Truncate(filepath.Join(f.opts.Source.GraphRoot, "vfs-layers", top+".tar-split.gz"), 40))
		}},
		"data gone": {MissingBigData, func(t *testing.T, f *fixture, _, _, img string) {
			must(t, os.Remove(filepath.Join(f.opts.Source.GraphRoot, "vfs-images", img, "manifest")))
		}},
		"data changed": {MissingBigData, func(t *testing.T, f *fixture, _, _, img string) {
			p := filepath.Join(f.opts.Source.GraphRoot, "vfs-images", img, bigDataFile("sha256:"+img))
			b, err := os.ReadFile(p)
			must(t, err)
			b[3] ^= 1
			must(t, os.WriteFile(p, b, 0o600))
		}},
		"parent's record gone": {MissingParent, func(t *testing.T, f *fixture, base, _, _ string) {
			p := filepath.Join(f.opts.Source.GraphRoot, "vfs-layers/layers.json")
			list, err := recordFile(p)
			must(t, err)
			must(t, os.WriteFile(p, joinRecords(list[1:]), 0o600))
		}},
		"device 0:0": {Unrepresentable, func(t *testing.T, f *fixture, _, top, _ string) {
			p := filepath.Join(f.opts.Source.GraphRoot, "vfs/dir", top, "etc/own")
			must(t, os.Remove(p))
			must(t, unix.Mknod(p, unix.S_IFCHR, 0))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			base := f.layer("", dir("etc"), file("etc/base", "b"))
			top := f.layer(base, dir("etc"), file("etc/own", "own"), file("whole", "w"))
			img := f.image(top, "localhost/hurt:1")
			c.do(t, f, base, top, img)
			_, err := Sync(context.Background(), f.opts)
			var damaged *DamageError
			if !errors.As(err, &damaged) {
				t.Fatalf("no damage error but %v", err)
			}
			if !slices.ContainsFunc(damaged.Damage, func(d Damage) bool { return d.Kind == c.kind }) {
				t.Fatalf("damage %v", damaged)
			}
			f.opts.KeepDamaged = true
			r := f.sync()
			if !slices.ContainsFunc(r.Damage, func(d Damage) bool { return d.Kind == c.kind }) {
				t.Errorf("carried damage is not reported: %v", r.Damage)
			}
			ok, why, err := Staged(context.Background(), f.opts)
			if !ok || err != nil {
				t.Errorf("staged: %v %v", why, err)
			}
			p, err := Compare(context.Background(), f.opts, nil, CompareOptions{Bytes: true})
			must(t, err)
			if d := p.Unexplained(); len(d) > 0 && c.kind != Unrepresentable {
				t.Errorf("differences: %v", d)
			}
			if again := f.sync(); again.Changed || len(again.Damage) != len(r.Damage) {
				t.Errorf("second sync: %+v, before %+v", again, r)
			}
			f.opts.KeepDamaged = false
			if _, err := Sync(context.Background(), f.opts); !errors.As(err, &damaged) {
				t.Errorf("staged damage is forgotten: %v", err)
			}
		})
	}
}
