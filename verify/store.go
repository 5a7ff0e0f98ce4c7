package verify

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/idtools"
)

// StoreRef says where a store is.
type StoreRef struct {
	GraphRoot string `json:"graph_root"`
	RunRoot   string `json:"run_root"`
	Driver    string `json:"driver"` // vfs or overlay
	// Options are the driver's, as storage.conf has them ("overlay.mount_program=…").
	Options []string `json:"options,omitempty"`
	// ImageStores are the graphroots of additional, read-only image stores.
	ImageStores []string `json:"image_stores,omitempty"`
}

// StoreManifest lists what the store holds, from its JSON records. It writes
// nothing and takes no lock: podman holds the layer lock for as long as it
// unpacks a layer, and a manifest must not wait for that. Instead, since
// containers/storage replaces its record files by rename, they are read until
// none has changed from the first to the last read. The cost is that of the
// records, whatever the images weigh.
//
// A store that does not exist, or was never used, is an error: fs.ErrNotExist
// or one that says which part is missing.
func StoreManifest(ctx context.Context, ref StoreRef) (StorePart, error) {
	rec, err := readRecords(ctx, ref)
	if err != nil {
		return StorePart{}, fmt.Errorf("cannot list store %s: %w", ref.GraphRoot, err)
	}
	return rec.part(), nil
}

// layerRecord is a layer and where it was read.
type layerRecord struct {
	storage.Layer
	root     string // graphroot
	readOnly bool
}

type imageRecord struct {
	storage.Image
	root     string
	readOnly bool
}

// records is the content of the JSON files of a store and of its additional
// image stores, the store's own first.
type records struct {
	ref        StoreRef
	layers     map[string]layerRecord
	images     []imageRecord
	containers []storage.Container
	volatile   map[string]bool // containers of the volatile file
}

// recordTries bounds how often changed files are read anew. A store that
// changes faster than this is being worked on; a manifest of it says nothing.
const recordTries = 200

func readRecords(ctx context.Context, ref StoreRef) (records, error) {
	if ref.GraphRoot == "" || ref.Driver == "" {
		return records{}, errors.New("graphroot and driver must be given")
	}
	if _, err := os.Stat(ref.dir(ref.GraphRoot, "layers")); err != nil {
		return records{}, err
	}
	for range recordTries {
		if err := ctx.Err(); err != nil {
			return records{}, err
		}
		before, err := ref.identities()
		if err != nil {
			return records{}, err
		}
		rec, err := ref.readOnce()
		if err != nil {
			return records{}, err
		}
		after, err := ref.identities()
		if err != nil {
			return records{}, err
		}
		if slices.Equal(before, after) {
			return rec, nil
		}
	}
	return records{}, fmt.Errorf("the records changed during each of %d reads", recordTries)
}

// dir is the folder of one kind of record: <root>/<driver>-<kind>.
func (r StoreRef) dir(root, kind string) string {
	return filepath.Join(root, r.Driver+"-"+kind)
}

// tree is the folder that holds the files of a layer.
func (r StoreRef) tree(root, id string) string {
	if r.Driver == "vfs" {
		return filepath.Join(root, "vfs", "dir", id)
	}
	return filepath.Join(root, r.Driver, id, "diff")
}

// files lists the record files. With transient_store the volatile files are in
// the runroot (containers/storage, newLayerStore and newContainerStore).
func (r StoreRef) files() []string {
	var f []string
	for _, root := range append([]string{r.GraphRoot}, r.ImageStores...) {
		f = append(f,
			filepath.Join(r.dir(root, "layers"), "layers.json"),
			filepath.Join(r.dir(root, "layers"), "volatile-layers.json"),
			filepath.Join(r.dir(root, "images"), "images.json"))
	}
	f = append(f,
		filepath.Join(r.dir(r.GraphRoot, "containers"), "containers.json"),
		filepath.Join(r.dir(r.GraphRoot, "containers"), "volatile-containers.json"))
	if r.RunRoot != "" {
		f = append(f,
			filepath.Join(r.dir(r.RunRoot, "layers"), "volatile-layers.json"),
			filepath.Join(r.dir(r.RunRoot, "containers"), "volatile-containers.json"))
	}
	return f
}

// identity tells one state of a file from another.
type identity struct {
	inode uint64
	size  int64
	mtime time.Time
}

func (r StoreRef) identities() ([]identity, error) {
	var ids []identity
	for _, p := range r.files() {
		info, err := os.Stat(p)
		if errors.Is(err, fs.ErrNotExist) {
			ids = append(ids, identity{})
			continue
		}
		if err != nil {
			return nil, err
		}
		ids = append(ids, identity{inode: inodeOf(info), size: info.Size(), mtime: info.ModTime()})
	}
	return ids, nil
}

func (r StoreRef) readOnce() (records, error) {
	rec := records{ref: r, layers: map[string]layerRecord{}, volatile: map[string]bool{}}
	addLayers := func(path, root string, readOnly bool) error {
		var layers []storage.Layer
		if err := readJSON(path, &layers); err != nil {
			return err
		}
		for _, l := range layers {
			// containers/storage looks in its own store first, and the first
			// of two records with one id counts.
			if _, known := rec.layers[l.ID]; !known {
				rec.layers[l.ID] = layerRecord{Layer: l, root: root, readOnly: readOnly}
			}
		}
		return nil
	}
	for i, root := range append([]string{r.GraphRoot}, r.ImageStores...) {
		paths := []string{filepath.Join(r.dir(root, "layers"), "layers.json"), filepath.Join(r.dir(root, "layers"), "volatile-layers.json")}
		if i == 0 && r.RunRoot != "" {
			paths = append(paths, filepath.Join(r.dir(r.RunRoot, "layers"), "volatile-layers.json"))
		}
		for _, p := range paths {
			if err := addLayers(p, root, i > 0); err != nil {
				return records{}, err
			}
		}
		var images []storage.Image
		if err := readJSON(filepath.Join(r.dir(root, "images"), "images.json"), &images); err != nil {
			return records{}, err
		}
		for _, img := range images {
			rec.images = append(rec.images, imageRecord{Image: img, root: root, readOnly: i > 0})
		}
	}
	sources := []string{filepath.Join(r.dir(r.GraphRoot, "containers"), "containers.json"), filepath.Join(r.dir(r.GraphRoot, "containers"), "volatile-containers.json")}
	if r.RunRoot != "" {
		sources = append(sources, filepath.Join(r.dir(r.RunRoot, "containers"), "volatile-containers.json"))
	}
	for i, p := range sources {
		var containers []storage.Container
		if err := readJSON(p, &containers); err != nil {
			return records{}, err
		}
		for _, c := range containers {
			rec.containers = append(rec.containers, c)
			rec.volatile[c.ID] = i > 0
		}
	}
	return rec, nil
}

// readJSON reads a record file into v; a missing or empty file leaves v as it
// is, as containers/storage takes it.
func readJSON(path string, v any) error {
	f, err := openQuietly(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil || len(data) == 0 {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// chain is the ids from top down to the base. A layer that is missing, or
// seen before (a damaged record that goes in a circle), ends it.
func (rec records) chain(top string) []string {
	var ids []string
	seen := map[string]bool{}
	for id := top; id != "" && !seen[id]; {
		seen[id] = true
		ids = append(ids, id)
		id = rec.layers[id].Parent
	}
	return ids
}

func (rec records) part() StorePart {
	p := StorePart{GraphRoot: rec.ref.GraphRoot, Driver: rec.ref.Driver}
	needed := map[string]bool{} // value: writable
	need := func(top string, writable bool) {
		for i, id := range rec.chain(top) {
			if _, known := rec.layers[id]; known {
				needed[id] = needed[id] || (writable && i == 0)
			}
		}
	}
	known := map[string]bool{}
	for _, img := range rec.images {
		if known[img.ID] { // in several stores: the first counts
			continue
		}
		known[img.ID] = true
		need(img.TopLayer, false)
		for _, top := range img.MappedTopLayers {
			need(top, false)
		}
		p.Images = append(p.Images, rec.image(img))
	}
	for _, c := range rec.containers {
		need(c.LayerID, true)
		p.Containers = append(p.Containers, rec.container(c))
	}
	for id, writable := range needed {
		p.Layers = append(p.Layers, rec.layer(rec.layers[id], writable))
	}
	m := Manifest{Store: p}
	m.sort()
	return m.Store
}

func (rec records) layer(l layerRecord, writable bool) Layer {
	out := Layer{
		ID: l.ID, Parent: l.Parent, Names: sorted(l.Names), Metadata: l.Metadata,
		DiffDigest: string(l.UncompressedDigest), DiffSize: l.UncompressedSize,
		CompressedDigest: string(l.CompressedDigest), CompressedSize: l.CompressedSize,
		TOCDigest: string(l.TOCDigest), Compression: int(l.CompressionType),
		Created: l.Created.UTC(), MountLabel: l.MountLabel,
		UIDMap: idMap(l.UIDMap), GIDMap: idMap(l.GIDMap), BigData: sorted(l.BigDataNames),
		Writable: writable,
		Tree:     exists(rec.ref.tree(l.root, l.ID)),
		TarSplit: exists(filepath.Join(rec.ref.dir(l.root, "layers"), l.ID+".tar-split.gz")),
	}
	if l.readOnly {
		out.ReadOnlyStore = l.root
	}
	return out
}

func (rec records) image(img imageRecord) Image {
	out := Image{
		ID: img.ID, Names: sorted(img.Names), NamesHistory: img.NamesHistory,
		Created: img.Created.UTC(), Metadata: img.Metadata,
		MappedTops: sorted(img.MappedTopLayers), Chain: rec.chain(img.TopLayer),
	}
	digests := map[string]bool{}
	if img.Digest != "" {
		digests[string(img.Digest)] = true
	}
	for _, name := range sorted(img.BigDataNames) {
		d := string(img.BigDataDigests[name])
		// An image can be found by the digest of each of its manifests
		// (containers/storage, Image.recomputeDigests).
		if d != "" && strings.HasPrefix(name, storage.ImageDigestManifestBigDataNamePrefix) {
			digests[d] = true
		}
		path := filepath.Join(rec.ref.dir(img.root, "images"), img.ID, bigDataFile(name))
		out.BigData = append(out.BigData, BigData{Name: name, Digest: d, Size: sizeOf(path)})
	}
	for d := range digests {
		out.Digests = append(out.Digests, d)
	}
	slices.Sort(out.Digests)
	if img.readOnly {
		out.ReadOnlyStore = img.root
	}
	return out
}

func (rec records) container(c storage.Container) Container {
	out := Container{
		ID: c.ID, Names: sorted(c.Names), Image: c.ImageID, Layer: c.LayerID, Metadata: c.Metadata,
		Created: c.Created.UTC(), UIDMap: idMap(c.UIDMap), GIDMap: idMap(c.GIDMap),
		Volatile: rec.volatile[c.ID],
	}
	dir := filepath.Join(rec.ref.dir(rec.ref.GraphRoot, "containers"), c.ID)
	for _, name := range sorted(c.BigDataNames) {
		out.BigData = append(out.BigData, BigData{Name: name, Digest: string(c.BigDataDigests[name]), Size: sizeOf(filepath.Join(dir, bigDataFile(name)))})
	}
	// Sockets and fifos there belong to a running conmon and go with it.
	entries, err := os.ReadDir(filepath.Join(dir, "userdata"))
	if err == nil {
		for _, e := range entries {
			if e.Type().IsRegular() || e.IsDir() {
				out.UserData = append(out.UserData, e.Name())
			}
		}
	}
	return out
}

// bigDataFile is the file name that containers/storage gives a piece of big
// data: the name itself if it has only a-z, 0-9 and dots, else "=" and base64.
func bigDataFile(name string) string {
	for _, c := range []byte(name) {
		if c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return "=" + base64.StdEncoding.EncodeToString([]byte(name))
		}
	}
	return name
}

func idMap(m []idtools.IDMap) []IDMap {
	var out []IDMap
	for _, r := range m {
		out = append(out, IDMap{ContainerID: r.ContainerID, HostID: r.HostID, Size: r.Size})
	}
	return out
}

func sorted(s []string) []string {
	out := slices.Clone(s)
	slices.Sort(out)
	return out
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func sizeOf(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return -1
	}
	return info.Size()
}
