package convert

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/idtools"
)

// layer is one layer record of the source and where its parts lie.
type layer struct {
	storage.Layer
	raw       json.RawMessage
	base      string   // graphroot, or the additional image store it comes from
	driver    string   // of the source
	lowers    []string // on overlay: the diffs below the layer's, the uppermost first
	container bool     // a container's writable layer
	volatile  bool     // recorded in the volatile file
}

type image struct {
	storage.Image
	raw json.RawMessage
}

type container struct {
	storage.Container
	raw      json.RawMessage
	volatile bool
}

// snapshot is the source's records at one moment. Layers still being made
// (flag "incomplete") are left out, as containers/storage would drop them.
type snapshot struct {
	layers     []*layer // parents before children
	byID       map[string]*layer
	images     []*image
	containers []*container
	imported   map[string]int // additional store -> layers taken from it
	damage     []Damage       // records that point nowhere
}

// dir is the layer's folder: the whole tree on vfs, the diff on overlay.
func (l *layer) dir() string {
	if l.driver == overlay {
		return filepath.Join(l.base, overlay, l.ID, "diff")
	}
	return filepath.Join(l.base, vfs, "dir", l.ID)
}

func (l *layer) list() string {
	return filepath.Join(l.base, l.driver+"-layers", l.ID+".tar-split.gz")
}
func (l *layer) bigData() string { return filepath.Join(l.base, l.driver+"-layers", l.ID) }

// folder is the source's folder of records of one kind: images, layers, containers.
func (s Store) folder(base, kind string) string { return filepath.Join(base, s.Driver+"-"+kind) }

// identity names what the layer's tree is. Names, flags and metadata may
// change without the tree changing, so they are not part of it.
func (l *layer) identity() string {
	key, err := json.Marshal([]any{l.ID, l.Parent, l.Created, l.UncompressedDigest, l.CompressedDigest, l.UIDMap, l.GIDMap})
	if err != nil {
		return "" // cannot be: strings, times and integers always marshal
	}
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:])
}

// remapped reports whether the layer's owners are shifted against its
// parent's. containers/storage makes such a layer by chown over a whole tree,
// so its list of files says nothing about what differs.
func (l *layer) remapped(parent *layer) bool {
	var pu, pg []idtools.IDMap
	if parent != nil {
		pu, pg = parent.UIDMap, parent.GIDMap
	}
	same := func(a, b []idtools.IDMap) bool {
		return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b)
	}
	return !same(l.UIDMap, pu) || !same(l.GIDMap, pg)
}

// recordFile reads one JSON list. An absent file is an empty list.
func recordFile(path string) ([]json.RawMessage, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return list, nil
}

// stamp identifies one state of the record files: every writer replaces them
// by rename, so a new inode is a new state.
func stamp(paths []string) string {
	var b bytes.Buffer
	for _, p := range paths {
		fi, err := os.Stat(p)
		if err != nil {
			fmt.Fprintf(&b, "%s -;", p)
			continue
		}
		_, ino := devIno(fi)
		fmt.Fprintf(&b, "%s %d %d %d;", p, ino, fi.Size(), fi.ModTime().UnixNano())
	}
	return b.String()
}

// readSnapshot reads the source's records without taking its locks. A lock
// would not be missed: writers replace each file whole, and the files are read
// again until none was replaced meanwhile, which gives one consistent state.
// A lock would hurt: podman holds the layers' lock while it unpacks a layer,
// which can last minutes, and would wait for us while we read.
func readSnapshot(ctx context.Context, src Store) (*snapshot, error) {
	files := recordPaths(src)
	deadline := time.Now().Add(30 * time.Second)
	for {
		before := stamp(files)
		snap, err := readOnce(src)
		if stamp(files) == before {
			if err != nil {
				return nil, fmt.Errorf("cannot read the store's records: %w", err)
			}
			return snap, nil
		}
		if time.Now().After(deadline) {
			return nil, errors.New("cannot read the store's records: they kept changing for 30 s")
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// readChecked reads the records and looks for damage that shows without reading
// any tree. What an image misses because it is being removed at this moment is
// no damage: the records have changed by then, and are read anew.
func readChecked(ctx context.Context, o *Options) (*snapshot, []Damage, error) {
	files := recordPaths(o.Source)
	for try := 0; ; try++ {
		before := stamp(files)
		snap, err := readSnapshot(ctx, o.Source)
		if err != nil {
			return nil, nil, err
		}
		damage := snap.checkStructure(o.Source, o.Containers)
		if len(damage) == 0 || stamp(files) == before || try == 20 {
			return snap, damage, nil
		}
	}
}

func recordPaths(src Store) []string {
	var files []string
	for _, base := range append([]string{src.GraphRoot}, src.ImageStores...) {
		files = append(files,
			filepath.Join(src.folder(base, "layers"), "layers.json"),
			filepath.Join(src.folder(base, "layers"), "volatile-layers.json"),
			filepath.Join(src.folder(base, "images"), "images.json"))
	}
	return append(files,
		filepath.Join(src.folder(src.GraphRoot, "containers"), "containers.json"),
		filepath.Join(src.folder(src.GraphRoot, "containers"), "volatile-containers.json"))
}

func readLayers(src Store, base, file string, volatile bool) ([]*layer, error) {
	list, err := recordFile(filepath.Join(src.folder(base, "layers"), file))
	if err != nil {
		return nil, err
	}
	var out []*layer
	for _, raw := range list {
		l := &layer{raw: raw, base: base, driver: src.Driver, volatile: volatile}
		if err := json.Unmarshal(raw, &l.Layer); err != nil {
			return nil, fmt.Errorf("reading a record of %s: %w", file, err)
		}
		if incomplete, ok := l.Flags["incomplete"].(bool); ok && incomplete {
			continue
		}
		if src.Driver == overlay {
			l.lowers = lowersOf(src, base, l.ID)
		}
		out = append(out, l)
	}
	return out, nil
}

func readImages(src Store, base string) ([]*image, error) {
	list, err := recordFile(filepath.Join(src.folder(base, "images"), "images.json"))
	if err != nil {
		return nil, err
	}
	var out []*image
	for _, raw := range list {
		i := &image{raw: raw}
		if err := json.Unmarshal(raw, &i.Image); err != nil {
			return nil, fmt.Errorf("reading a record of images.json: %w", err)
		}
		out = append(out, i)
	}
	return out, nil
}

func readOnce(src Store) (*snapshot, error) {
	s := &snapshot{byID: map[string]*layer{}, imported: map[string]int{}}
	var local []*layer
	for _, f := range []string{"layers.json", "volatile-layers.json"} {
		ls, err := readLayers(src, src.GraphRoot, f, f != "layers.json")
		if err != nil {
			return nil, err
		}
		local = append(local, ls...)
	}
	elsewhere := map[string]*layer{}
	for _, base := range src.ImageStores {
		ls, err := readLayers(src, base, "layers.json", false)
		if err != nil {
			return nil, err
		}
		for _, l := range ls {
			if elsewhere[l.ID] == nil {
				elsewhere[l.ID] = l
			}
		}
	}
	var err error
	if s.images, err = readImages(src, src.GraphRoot); err != nil {
		return nil, err
	}
	for _, f := range []string{"containers.json", "volatile-containers.json"} {
		list, err := recordFile(filepath.Join(src.folder(src.GraphRoot, "containers"), f))
		if err != nil {
			return nil, err
		}
		for _, raw := range list {
			c := &container{raw: raw, volatile: f != "containers.json"}
			if err := json.Unmarshal(raw, &c.Container); err != nil {
				return nil, fmt.Errorf("reading a record of %s: %w", f, err)
			}
			s.containers = append(s.containers, c)
		}
	}
	s.link(local, elsewhere)
	return s, nil
}

// link orders the layers and takes in those of additional stores that local
// records stand on: an overlay store has no use for a vfs store beside it.
func (s *snapshot) link(local []*layer, elsewhere map[string]*layer) {
	for _, l := range local {
		s.byID[l.ID] = l
	}
	for _, c := range s.containers {
		if l := s.byID[c.LayerID]; l != nil {
			l.container = true
		}
	}
	var add func(l *layer)
	placed := map[string]bool{}
	lookup := func(id string) *layer {
		if l := s.byID[id]; l != nil {
			return l
		}
		if l := elsewhere[id]; l != nil {
			s.byID[id] = l
			s.imported[l.base]++
			return l
		}
		return nil
	}
	add = func(l *layer) {
		if placed[l.ID] {
			return
		}
		placed[l.ID] = true
		if l.Parent != "" {
			if p := lookup(l.Parent); p != nil {
				add(p)
			} else {
				s.damage = append(s.damage, Damage{Kind: MissingParent, Layer: l.ID, Detail: "parent " + l.Parent + " has no record"})
			}
		}
		if below := s.byID[l.under()]; below != nil {
			add(below)
		}
		s.layers = append(s.layers, l)
	}
	for _, l := range local {
		add(l)
	}
	for _, i := range s.images {
		for n, id := range append([]string{i.TopLayer}, i.MappedTopLayers...) {
			if id == "" {
				continue
			}
			l := lookup(id)
			if l != nil {
				add(l)
			} else if n == 0 {
				s.damage = append(s.damage, Damage{Kind: MissingLayer, Image: i.ID, Detail: "top layer " + id + " has no record"})
			}
		}
	}
}

// wanted lists the layers that the staged store has to hold.
func (s *snapshot) wanted(containers bool) []*layer {
	var out []*layer
	for _, l := range s.layers {
		if !l.container || containers {
			out = append(out, l)
		}
	}
	return out
}

// parent returns l's parent, nil when it has none or its record is missing.
func (s *snapshot) parent(l *layer) *layer { return s.byID[l.Parent] }

func isManifestKey(key string) bool {
	return len(key) >= 8 && key[:8] == "manifest"
}

// bigDataFile maps a big data key to its file name the way containers/storage
// does (makeBigDataBaseName in its store.go): plain when all but perhaps the
// last character are of [a-z0-9.], else "=" and base64.
func bigDataFile(key string) string {
	for i, r := range key {
		plain := r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z'
		if !plain {
			if i+len(string(r)) < len(key) {
				return "=" + base64.StdEncoding.EncodeToString([]byte(key))
			}
			break
		}
	}
	return key
}
