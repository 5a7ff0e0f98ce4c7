package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containers/storage"
	"github.com/containers/storage/types"
	"github.com/opencontainers/go-digest"
)

// ids of the test store's things.
func id(kind string, n int) string { return digest.FromString(fmt.Sprint(kind, n)).Encoded() }

// testStore is a store with three images, of which two share a layer, made the
// same way with each driver.
func testStore(t *testing.T, driver string) StoreRef {
	t.Helper()
	dir := t.TempDir()
	ref := StoreRef{GraphRoot: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"), Driver: driver}
	fillStore(t, ref)
	return ref
}

// addImage puts one more layer on top and makes an image of it.
func addImage(t *testing.T, ref StoreRef, n int, entries ...entry) {
	t.Helper()
	st := openStore(t, ref)
	defer st.Shutdown(true)
	if _, _, err := st.PutLayer(id("layer", n), id("layer", 2), nil, "", false, nil, bytes.NewReader(tarOf(t, entries...))); err != nil {
		t.Fatal(err)
	}
	if _, err := st.CreateImage(id("image", n), nil, id("layer", n), "", nil); err != nil {
		t.Fatal(err)
	}
}

func openStore(t *testing.T, ref StoreRef) storage.Store {
	t.Helper()
	options := slices.Clone(ref.Options)
	for _, s := range ref.ImageStores {
		options = append(options, ref.Driver+".imagestore="+s)
	}
	if ref.Driver == "overlay" {
		options = append(options, "overlay.skip_mount_home=true")
	}
	// Under a name of its own: containers/storage takes the locks of one path
	// either for writing or for reading in a process.
	alias := filepath.Join(t.TempDir(), "alias")
	if err := errors.Join(os.MkdirAll(ref.GraphRoot, 0o700), os.Symlink(ref.GraphRoot, alias)); err != nil {
		t.Fatal(err)
	}
	ref.GraphRoot = alias
	st, err := storage.GetStore(types.StoreOptions{GraphRoot: ref.GraphRoot, RunRoot: ref.RunRoot, GraphDriverName: ref.Driver, GraphDriverOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

var testTime = time.Date(2024, 1, 2, 3, 4, 5, 6000, time.UTC)

func fillStore(t *testing.T, ref StoreRef) {
	t.Helper()
	st := openStore(t, ref)
	defer st.Shutdown(true)
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	layers := [][]entry{
		{
			{name: "bin/", mode: 0o755}, {name: "bin/su", mode: 0o4755, data: "su"},
			{name: "bin/ping", mode: 0o755, data: "ping", xattrs: map[string]string{"security.capability": capability}},
			{name: "bin/sh", mode: 0o777, link: "/bin/su"}, {name: "bin/two", hard: "bin/ping"},
			{name: "lib", mode: 0o777, link: "usr/lib"}, {name: "usr/", mode: 0o755}, {name: "usr/lib/", mode: 0o755},
			{name: "usr/lib/so", mode: 0o644, data: strings.Repeat("so", 9000), uid: 7},
			{name: "away", mode: 0o777, link: "/../../../../../../etc"},
			{name: "gone", mode: 0o644, data: "x"}, {name: "pipe", mode: 0o600, fifo: true},
			{name: "odd\xff", mode: 0o644, data: "odd"},
		},
		{{name: ".wh.gone", mode: 0o644}, {name: "usr/lib/more", mode: 0o644, data: "more"}, {name: "etc/", mode: 0o750}, {name: "etc/x", mode: 0o2640, data: "x"}},
		{{name: "bin/su", mode: 0o4711, data: "newer su"}},
	}
	parent := ""
	for i, entries := range layers {
		_, _, err := st.PutLayer(id("layer", i), parent, nil, "", false, &storage.LayerOptions{UncompressedDigest: ""}, bytes.NewReader(tarOf(t, entries...)))
		if err != nil {
			t.Fatal(err)
		}
		parent = id("layer", i)
	}
	for i, top := range []int{0, 1, 2} {
		manifest := []byte(fmt.Sprintf(`{"manifest":%d}`, i))
		opts := &storage.ImageOptions{CreationDate: testTime, Digest: digest.FromBytes(manifest), Metadata: "meta", NamesHistory: []string{"old"},
			BigData: []storage.ImageBigDataOption{{Key: "manifest", Data: manifest, Digest: digest.FromBytes(manifest)}, {Key: "sha256:Config", Data: []byte("c"), Digest: digest.FromString("c")}}}
		names := []string{fmt.Sprintf("localhost/z%d:1", i), fmt.Sprintf("localhost/a%d:1", i)}
		if i == 1 {
			names = nil // dangling
		}
		if _, err := st.CreateImage(id("image", i), names, id("layer", top), "", opts); err != nil {
			t.Fatal(err)
		}
	}
	c, err := st.CreateContainer(id("container", 0), []string{"work"}, id("image", 2), id("rw", 0), "cmeta", nil)
	if err != nil {
		t.Fatal(err)
	}
	userdata, err := st.ContainerDirectory(c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(userdata, "config.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A layer that no image has.
	if _, _, err := st.PutLayer(id("orphan", 0), "", nil, "", false, nil, bytes.NewReader(tarOf(t))); err != nil {
		t.Fatal(err)
	}
}

// snapshot describes each entry below dir by what a reader could change, the
// access times of files too if atime is set.
func snapshot(t *testing.T, dir string, atime bool) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		s := fmt.Sprint(st.Ino, st.Mode, st.Size, st.Mtim, st.Ctim, st.Nlink)
		if atime && info.Mode().IsRegular() {
			s += fmt.Sprint(st.Atim)
		}
		out[path] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func same(t *testing.T, before, after map[string]string) {
	t.Helper()
	for p, s := range before {
		if after[p] != s {
			t.Errorf("%s was %s, is %s", p, s, after[p])
		}
	}
	for p := range after {
		if _, known := before[p]; !known {
			t.Errorf("%s is new", p)
		}
	}
}

func manifestOf(t *testing.T, ref StoreRef) Manifest {
	t.Helper()
	p, err := StoreManifest(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return Manifest{Store: p}
}

func TestStoreManifest(t *testing.T) {
	for _, driver := range []string{"vfs", "overlay"} {
		t.Run(driver, func(t *testing.T) {
			ref := testStore(t, driver)
			before := snapshot(t, ref.GraphRoot, true)
			run := snapshot(t, ref.RunRoot, true)
			m := manifestOf(t, ref)
			same(t, before, snapshot(t, ref.GraphRoot, true))
			same(t, run, snapshot(t, ref.RunRoot, true))
			s := m.Store
			if len(s.Images) != 3 || len(s.Containers) != 1 || len(s.Layers) != 4 {
				t.Fatalf("%d images, %d containers, %d layers", len(s.Images), len(s.Containers), len(s.Layers))
			}
			img := s.Images[slices.IndexFunc(s.Images, func(i Image) bool { return i.ID == id("image", 2) })]
			if !slices.Equal(img.Names, []string{"localhost/a2:1", "localhost/z2:1"}) ||
				!slices.Equal(img.Chain, []string{id("layer", 2), id("layer", 1), id("layer", 0)}) ||
				!slices.Equal(img.Digests, []string{digest.FromString(`{"manifest":2}`).String()}) ||
				!img.Created.Equal(testTime) || img.Metadata != "meta" || len(img.NamesHistory) == 0 {
				t.Errorf("image %+v", img)
			}
			if len(img.BigData) != 2 || img.BigData[0].Size != 14 || img.BigData[1].Size != 1 || img.BigData[1].Digest != digest.FromString("c").String() {
				t.Errorf("big data %+v", img.BigData)
			}
			for _, l := range s.Layers {
				if !l.Tree || l.Writable != (l.ID == id("rw", 0)) || l.TarSplit == l.Writable || (l.DiffDigest == "") != l.Writable {
					t.Errorf("layer %+v", l)
				}
			}
			c := s.Containers[0]
			if c.Layer != id("rw", 0) || c.Image != id("image", 2) || !slices.Equal(c.UserData, []string{"config.json"}) || c.Metadata != "cmeta" {
				t.Errorf("container %+v", c)
			}
		})
	}
}

// The same content gives the same manifest on both drivers, but for the times
// at which the test made each.
func TestManifestIsTheSameOnBothDrivers(t *testing.T) {
	vfs, overlay := manifestOf(t, testStore(t, "vfs")), manifestOf(t, testStore(t, "overlay"))
	for _, d := range Diff(vfs, overlay) {
		if d.Field != "created" {
			t.Error(d)
		}
	}
}

func TestStoreManifestSeesDamage(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, ref StoreRef) error
		want   string
	}{
		{"layer folder", func(t *testing.T, ref StoreRef) error { return os.RemoveAll(ref.tree(ref.GraphRoot, id("layer", 1))) }, "tree"},
		{"tar-split", func(t *testing.T, ref StoreRef) error {
			return os.Remove(filepath.Join(ref.dir(ref.GraphRoot, "layers"), id("layer", 1)+".tar-split.gz"))
		}, "tar_split"},
		{"big data", func(t *testing.T, ref StoreRef) error {
			return os.Remove(filepath.Join(ref.dir(ref.GraphRoot, "images"), id("image", 0), "manifest"))
		}, "big_data"},
		{"userdata", func(t *testing.T, ref StoreRef) error {
			return os.Remove(filepath.Join(ref.dir(ref.GraphRoot, "containers"), id("container", 0), "userdata", "config.json"))
		}, "user_data/config.json"},
		{"tag", func(t *testing.T, ref StoreRef) error {
			st := openStore(t, ref)
			defer st.Shutdown(true)
			return st.RemoveNames(id("image", 0), []string{"localhost/a0:1"})
		}, "names"},
		{"image", func(t *testing.T, ref StoreRef) error {
			st := openStore(t, ref)
			defer st.Shutdown(true)
			_, err := st.DeleteImage(id("image", 1), true)
			return err
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			ref := testStore(t, "vfs")
			before := manifestOf(t, ref)
			if err := c.damage(t, ref); err != nil {
				t.Fatal(err)
			}
			d := Diff(before, manifestOf(t, ref))
			if !slices.ContainsFunc(d, func(d Difference) bool { return d.Field == c.want && !d.Added() }) {
				t.Errorf("differences %v", d)
			}
			if back := Diff(manifestOf(t, ref), before); c.name == "layer folder" && len(back) != 0 {
				t.Errorf("a folder that came back is reported: %v", back)
			}
		})
	}
}

func TestReadOnlyImageStores(t *testing.T) {
	lower := testStore(t, "vfs")
	dir := t.TempDir()
	ref := StoreRef{GraphRoot: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"), Driver: "vfs", ImageStores: []string{lower.GraphRoot}}
	st := openStore(t, ref)
	defer st.Shutdown(true)
	if _, _, err := st.PutLayer(id("own", 0), id("layer", 2), nil, "", false, nil, bytes.NewReader(tarOf(t, entry{name: "mine", mode: 0o644}))); err != nil {
		t.Fatal(err)
	}
	if _, err := st.CreateImage(id("own image", 0), nil, id("own", 0), "", nil); err != nil {
		t.Fatal(err)
	}
	s := manifestOf(t, ref).Store
	for _, img := range s.Images {
		own := img.ID == id("own image", 0)
		if own == (img.ReadOnlyStore != "") {
			t.Errorf("image %+v", img)
		}
		if own && len(img.Chain) != 4 {
			t.Errorf("chain %v", img.Chain)
		}
	}
	if len(s.Images) != 4 || len(s.Containers) != 0 {
		t.Errorf("%d images, %d containers", len(s.Images), len(s.Containers))
	}
}

func TestStoreManifestErrors(t *testing.T) {
	if _, err := StoreManifest(t.Context(), StoreRef{GraphRoot: t.TempDir(), Driver: "vfs"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no store: %v", err)
	}
	ref := testStore(t, "vfs")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := StoreManifest(ctx, ref); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	path := filepath.Join(ref.dir(ref.GraphRoot, "images"), "images.json")
	if err := os.WriteFile(path, []byte(`[{"id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := StoreManifest(t.Context(), ref); err == nil || !strings.Contains(err.Error(), "images.json") {
		t.Errorf("cut record file: %v", err)
	}
}

// A manifest of a store that is written to all the time is one of a moment:
// no image lacks its layers.
func TestStoreManifestBesideWriter(t *testing.T) {
	ref := testStore(t, "overlay")
	st := openStore(t, ref)
	defer st.Shutdown(true)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			_, _, err := st.PutLayer(id("busy", n), id("layer", 2), nil, "", false, nil, bytes.NewReader(tarOf(t, entry{name: "f", mode: 0o644})))
			if err == nil {
				_, err = st.CreateImage(id("busy image", n), nil, id("busy", n), "", nil)
			}
			if err == nil {
				_, err = st.DeleteImage(id("busy image", n), true)
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	for range 300 {
		for _, img := range manifestOf(t, ref).Store.Images {
			if img.ID != id("image", 0) && img.ID != id("image", 1) && len(img.Chain) < 3 {
				t.Errorf("image %+v", img)
			}
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
