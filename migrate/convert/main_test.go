package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/reexec"
	"github.com/containers/storage/types"
	"github.com/opencontainers/go-digest"
)

func TestMain(m *testing.M) {
	if reexec.Init() { // containers/storage runs itself anew to unpack and to mount
		return
	}
	if runChild() {
		return
	}
	os.Exit(m.Run())
}

// item is one tar entry; the zero type is a regular file with data.
type item struct {
	name  string
	kind  byte
	data  string
	link  string
	mode  int64
	uid   int
	mtime time.Time
	attrs map[string]string
	major int64
	minor int64
}

var someTime = time.Unix(1600000000, 0)

func dir(name string) item        { return item{name: name + "/", kind: tar.TypeDir, mode: 0o755} }
func file(name, data string) item { return item{name: name, data: data} }
func gonePath(name string) item {
	return item{name: filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name))}
}
func opaqueDir(name string) item     { return item{name: filepath.Join(name, ".wh..wh..opq")} }
func symlink(name, to string) item   { return item{name: name, kind: tar.TypeSymlink, link: to} }
func hardlink(name, to string) item  { return item{name: name, kind: tar.TypeLink, link: to} }
func fifo(name string) item          { return item{name: name, kind: tar.TypeFifo} }
func device(name string) item        { return item{name: name, kind: tar.TypeChar, major: 1, minor: 3} }
func (i item) perm(mode int64) item  { i.mode = mode; return i }
func (i item) owner(uid int) item    { i.uid = uid; return i }
func (i item) at(t time.Time) item   { i.mtime = t; return i }
func (i item) attr(k, v string) item { i.attrs = map[string]string{k: v}; return i }

func makeTar(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		h := &tar.Header{Name: i.name, Typeflag: i.kind, Linkname: i.link, Mode: i.mode, Uid: i.uid, Gid: i.uid,
			ModTime: i.mtime, Devmajor: i.major, Devminor: i.minor, Format: tar.FormatPAX}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(i.data))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.ModTime.IsZero() {
			h.ModTime = someTime
		}
		for k, v := range i.attrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(i.data)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// fixture is a vfs store made by containers/storage.
type fixture struct {
	testing.TB
	store storage.Store
	opts  Options
	n     int
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	return newFixtureAt(t, t.TempDir(), t.TempDir())
}

func newFixtureAt(t testing.TB, root, run string, stores ...string) *fixture {
	t.Helper()
	var options []string
	for _, s := range stores {
		options = append(options, "vfs.imagestore="+s)
	}
	f := &fixture{TB: t, opts: Options{
		Source: Store{GraphRoot: root, RunRoot: run, Driver: "vfs", ImageStores: stores},
		Stage:  filepath.Join(root, ".storagectl-test"),
	}}
	f.open(options...)
	return f
}

// newOverlay is a fixture whose store is on overlay, mounted by the kernel or by a
// program.
func newOverlay(t testing.TB, program, to string) *fixture {
	t.Helper()
	if os.Getenv("STORAGECTL_CONVERT_OWNER") != "" { // its process that unpacks does not see by itself that it may make no devices
		t.Setenv("_CONTAINERS_USERNS_CONFIGURED", "done")
	}
	root := t.TempDir()
	f := &fixture{TB: t, opts: Options{
		Source: Store{GraphRoot: root, RunRoot: t.TempDir(), Driver: "overlay", Program: program},
		Stage:  filepath.Join(root, ".storagectl-test"), To: to,
	}}
	options := []string{"overlay.skip_mount_home=true"} // it would stay mounted
	if program != "" {
		options = append(options, "overlay.mount_program="+program)
	}
	f.open(options...)
	return f
}

func (f *fixture) open(options ...string) {
	f.Helper()
	src := f.opts.Source
	s, err := storage.GetStore(types.StoreOptions{GraphRoot: src.GraphRoot, RunRoot: src.RunRoot, GraphDriverName: src.Driver, GraphDriverOptions: options})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Free() })
	f.store = s
}

// layer adds a layer made from a tar.
func (f *fixture) layer(parent string, items ...item) string {
	f.Helper()
	return f.layerFrom(parent, makeTar(f, items...))
}

func (f *fixture) layerFrom(parent string, blob []byte) string {
	f.Helper()
	f.n++
	id := fmt.Sprintf("%064x", f.n)
	l, _, err := f.store.PutLayer(id, parent, nil, "", false, nil, bytes.NewReader(blob))
	if err != nil {
		f.Fatal(err)
	}
	return l.ID
}

// image adds an image on a layer, with a manifest and a configuration.
func (f *fixture) image(top string, names ...string) string {
	f.Helper()
	f.n++
	id := fmt.Sprintf("%064x", 0xabc000+f.n)
	i, err := f.store.CreateImage(id, names, top, "", &storage.ImageOptions{CreationDate: someTime})
	if err != nil {
		f.Fatal(err)
	}
	for key, data := range map[string]string{"manifest": `{"for":"` + id + `"}`, "sha256:" + id: `{"config":"` + id + `"}`} {
		err := f.store.SetImageBigData(id, key, []byte(data), func(b []byte) (digest.Digest, error) { return digest.FromBytes(b), nil })
		if err != nil {
			f.Fatal(err)
		}
	}
	return i.ID
}

func (f *fixture) sync() Report {
	f.Helper()
	r, err := Sync(context.Background(), f.opts)
	if err != nil {
		f.Fatal(err)
	}
	return r
}

// prove compares the whole staged store with the source and its records with
// what containers/storage reads from it.
func (f *fixture) prove() Proof {
	f.Helper()
	ok, why, err := Staged(context.Background(), f.opts)
	if err != nil || !ok {
		f.Fatalf("not staged: %v %v", why, err)
	}
	p, err := Compare(context.Background(), f.opts, nil, CompareOptions{Bytes: true})
	if err != nil {
		f.Fatal(err)
	}
	for _, d := range p.Unexplained() {
		f.Error(d)
	}
	f.sameRecords()
	return p
}

// sameRecords opens the staged store in a copy of its place, as podman will,
// and compares images and layers field by field and every layer's stream.
func (f *fixture) sameRecords() {
	f.Helper()
	root := filepath.Join(f.opts.Stage, "new")
	var options []string
	if f.opts.to() == overlay {
		options = []string{"overlay.skip_mount_home=true"}
	}
	s, err := storage.GetStore(types.StoreOptions{GraphRoot: root, RunRoot: f.TempDir(), GraphDriverName: f.opts.to(), GraphDriverOptions: options})
	if err != nil {
		f.Fatal(err)
	}
	defer s.Free()
	defer os.Remove(filepath.Join(root, "overlay", mountProgramFlag))
	old, err := f.store.Layers()
	if err != nil {
		f.Fatal(err)
	}
	cs, err := f.store.Containers()
	if err != nil {
		f.Fatal(err)
	}
	old = slices.DeleteFunc(old, func(l storage.Layer) bool {
		return l.ReadOnly || !f.opts.Containers && slices.ContainsFunc(cs, func(c storage.Container) bool { return c.LayerID == l.ID })
	})
	for _, l := range old {
		n, err := s.Layer(l.ID)
		if err != nil {
			f.Errorf("layer %s: %v", short(l.ID), err)
			continue
		}
		if a, b := fmt.Sprintf("%+v", l), fmt.Sprintf("%+v", *n); a != b {
			f.Errorf("layer record differs:\n vfs     %s\n overlay %s", a, b)
		}
		if a, b := f.stream(f.store, l.ID), f.stream(s, l.ID); a != b {
			f.Errorf("stream of layer %s: vfs %s, overlay %s", short(l.ID), a, b)
		}
	}
	images, err := f.store.Images()
	if err != nil {
		f.Fatal(err)
	}
	for _, i := range images {
		if i.ReadOnly {
			continue
		}
		n, err := s.Image(i.ID)
		if err != nil {
			f.Errorf("image %s: %v", short(i.ID), err)
			continue
		}
		if a, b := fmt.Sprintf("%+v", i), fmt.Sprintf("%+v", *n); a != b {
			f.Errorf("image record differs:\n vfs     %s\n overlay %s", a, b)
		}
		for _, key := range i.BigDataNames {
			a, errA := f.store.ImageBigData(i.ID, key)
			b, errB := s.ImageBigData(i.ID, key)
			if errA != nil || errB != nil || !bytes.Equal(a, b) {
				f.Errorf("data %q of image %s differs: %v %v", key, short(i.ID), errA, errB)
			}
		}
	}
	if _, err := s.Shutdown(true); err != nil {
		f.Error(err)
	}
}

// stream digests a layer as podman push and save would send it, or tells why
// it cannot be sent; a layer without a list is streamed by comparing trees,
// which gives another order, so only that it works is told.
func (f *fixture) stream(s storage.Store, id string) string {
	f.Helper()
	l, err := s.Layer(id)
	if err != nil {
		return "no layer"
	}
	uncompressed := storageUncompressed()
	r, err := s.Diff("", id, uncompressed)
	if err != nil {
		return "cannot be read"
	}
	defer r.Close()
	d, err := digest.FromReader(r)
	if err != nil {
		return "cannot be read"
	}
	if l.UncompressedDigest == "" {
		return "read"
	}
	return d.String()
}
