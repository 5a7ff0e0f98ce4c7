package verify

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// ManifestSchema is the number of the format that [Manifest.Encode] writes. It
// changes when a field changes its meaning; added fields do not change it.
const ManifestSchema = 1

// Manifest is what a store holds, for comparing before with after. The format
// on disk is described in docs/manifest.md.
type Manifest struct {
	// Owner is the user whose store it is, where whoever took it said so. It is not
	// compared.
	Owner  string     `json:"owner,omitempty"`
	Store  StorePart  `json:"store"`
	Podman PodmanPart `json:"podman"`
}

// StorePart is what the store's own records say. Every list is sorted by id.
type StorePart struct {
	// GraphRoot and Driver say which store was read. They are not compared.
	GraphRoot string `json:"graph_root"`
	Driver    string `json:"driver"`
	// Layers holds each layer that an image or a container needs, once. A
	// layer that nothing needs (a pull that was cut off) is left out.
	Layers     []Layer     `json:"layers"`
	Images     []Image     `json:"images"`
	Containers []Container `json:"containers"`
}

// Layer is one layer record of the store.
type Layer struct {
	ID       string   `json:"id"`
	Parent   string   `json:"parent,omitempty"`
	Names    []string `json:"names,omitempty"`
	Metadata string   `json:"metadata,omitempty"`
	// DiffDigest and DiffSize (bytes) are of the uncompressed tar stream,
	// CompressedDigest and CompressedSize (bytes) of the blob it came as.
	// They are empty and 0 where the store does not know.
	DiffDigest       string    `json:"diff_digest,omitempty"`
	DiffSize         int64     `json:"diff_size,omitempty"`
	CompressedDigest string    `json:"compressed_digest,omitempty"`
	CompressedSize   int64     `json:"compressed_size,omitempty"`
	TOCDigest        string    `json:"toc_digest,omitempty"`
	Compression      int       `json:"compression,omitempty"`
	Created          time.Time `json:"created,omitzero"`
	MountLabel       string    `json:"mount_label,omitempty"`
	UIDMap           []IDMap   `json:"uid_map,omitempty"`
	GIDMap           []IDMap   `json:"gid_map,omitempty"`
	BigData          []string  `json:"big_data,omitempty"`
	// Writable is true of a container's own layer.
	Writable bool `json:"writable,omitempty"`
	// Tree is true when the driver's folder of the layer exists, TarSplit when
	// the record of its tar headers does.
	Tree     bool `json:"tree"`
	TarSplit bool `json:"tar_split"`
	// ReadOnlyStore is the additional image store that holds the layer; empty
	// for the store itself.
	ReadOnlyStore string `json:"read_only_store,omitempty"`
}

// IDMap is one range of an ID mapping.
type IDMap struct {
	ContainerID int `json:"container_id"`
	HostID      int `json:"host_id"`
	Size        int `json:"size"`
}

// Image is one image record of the store.
type Image struct {
	ID           string    `json:"id"`
	Names        []string  `json:"names,omitempty"`
	NamesHistory []string  `json:"names_history,omitempty"`
	Digests      []string  `json:"digests,omitempty"`
	Created      time.Time `json:"created,omitzero"`
	Metadata     string    `json:"metadata,omitempty"`
	// Chain is the ids of the image's layers, top layer first. A layer that
	// the chain names and the store does not have ends it.
	Chain []string `json:"chain,omitempty"`
	// MappedTops is the top layers' ids of the image's ID-mapped copies.
	MappedTops []string  `json:"mapped_tops,omitempty"`
	BigData    []BigData `json:"big_data,omitempty"`
	// ReadOnlyStore is as in Layer.
	ReadOnlyStore string `json:"read_only_store,omitempty"`
}

// BigData is a named piece of data that belongs to an image or a container.
type BigData struct {
	Name   string `json:"name"`
	Digest string `json:"digest,omitempty"`
	// Size is the size of the file on disk in bytes, -1 when it is missing.
	Size int64 `json:"size"`
}

// Container is one storage container record: podman's, and those of other
// tools such as buildah.
type Container struct {
	ID       string    `json:"id"`
	Names    []string  `json:"names,omitempty"`
	Image    string    `json:"image,omitempty"`
	Layer    string    `json:"layer"`
	Metadata string    `json:"metadata,omitempty"`
	Created  time.Time `json:"created,omitzero"`
	UIDMap   []IDMap   `json:"uid_map,omitempty"`
	GIDMap   []IDMap   `json:"gid_map,omitempty"`
	BigData  []BigData `json:"big_data,omitempty"`
	// UserData is the names of the regular files and folders at the top of
	// the container's userdata folder.
	UserData []string `json:"user_data,omitempty"`
	// Volatile is true of a container whose record may be lost in a crash
	// (podman run --rm).
	Volatile bool `json:"volatile,omitempty"`
}

// PodmanPart is what podman says, sorted by kind and id.
type PodmanPart struct {
	// Version and Driver are not compared.
	Version string   `json:"version"`
	Driver  string   `json:"driver"`
	Objects []Object `json:"objects"`
}

// Object is a thing that podman knows, with those fields of its own
// description that stay the same while nobody changes the object.
type Object struct {
	Kind   string         `json:"kind"` // image, container, pod, volume, secret, network
	ID     string         `json:"id"`
	Name   string         `json:"name,omitempty"`
	Fields map[string]any `json:"fields,omitempty"`
}

// record is one line of an encoded manifest: a kind and one of the fields.
type record struct {
	Kind      string     `json:"record"`
	Header    *header    `json:"header,omitempty"`
	Layer     *Layer     `json:"layer,omitempty"`
	Image     *Image     `json:"image,omitempty"`
	Container *Container `json:"container,omitempty"`
	Podman    *Object    `json:"podman,omitempty"`
}

type header struct {
	Schema        int    `json:"schema"`
	Owner         string `json:"owner,omitempty"`
	GraphRoot     string `json:"graph_root"`
	Driver        string `json:"driver"`
	PodmanVersion string `json:"podman_version,omitempty"`
	PodmanDriver  string `json:"podman_driver,omitempty"`
	Records       int    `json:"records"` // lines that follow
}

// Encode writes m as JSON lines. Equal manifests give equal bytes.
func (m Manifest) Encode(w io.Writer) error {
	m.sort()
	bw := bufio.NewWriter(w)
	enc := json.NewEncoder(bw)
	enc.SetEscapeHTML(false)
	s, p := m.Store, m.Podman
	lines := make([]record, 0, 1+len(s.Layers)+len(s.Images)+len(s.Containers)+len(p.Objects))
	lines = append(lines, record{Kind: "header", Header: &header{
		Schema: ManifestSchema, Owner: m.Owner, GraphRoot: s.GraphRoot, Driver: s.Driver,
		PodmanVersion: p.Version, PodmanDriver: p.Driver,
		Records: cap(lines) - 1,
	}})
	for i := range s.Layers {
		lines = append(lines, record{Kind: "layer", Layer: &s.Layers[i]})
	}
	for i := range s.Images {
		lines = append(lines, record{Kind: "image", Image: &s.Images[i]})
	}
	for i := range s.Containers {
		lines = append(lines, record{Kind: "container", Container: &s.Containers[i]})
	}
	for i := range p.Objects {
		lines = append(lines, record{Kind: "podman", Podman: &p.Objects[i]})
	}
	for _, l := range lines {
		if err := enc.Encode(l); err != nil {
			return fmt.Errorf("cannot write manifest: %w", err)
		}
	}
	if err := bw.Flush(); err != nil {
		return fmt.Errorf("cannot write manifest: %w", err)
	}
	return nil
}

// DecodeManifest reads what [Manifest.Encode] wrote. A manifest that is cut
// short, of another schema or damaged is an error that names the line.
func DecodeManifest(r io.Reader) (Manifest, error) {
	var m Manifest
	var head *header
	br := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := br.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(bytes.TrimSpace(line)) == 0 {
			switch {
			case head == nil:
				return Manifest{}, errors.New("cannot read manifest: it is empty")
			case head.Records != n-2:
				return Manifest{}, fmt.Errorf("cannot read manifest: %d records, the header says %d", n-2, head.Records)
			}
			return m, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return Manifest{}, fmt.Errorf("cannot read manifest: %w", err)
		}
		var rec record
		if err := json.Unmarshal(line, &rec); err != nil {
			return Manifest{}, fmt.Errorf("cannot read manifest: line %d: %w", n, err)
		}
		switch {
		case n == 1 && rec.Header != nil:
			head = rec.Header
			if head.Schema != ManifestSchema {
				return Manifest{}, fmt.Errorf("cannot read manifest: schema %d, this program knows %d", head.Schema, ManifestSchema)
			}
			m.Owner = head.Owner
			m.Store.GraphRoot, m.Store.Driver = head.GraphRoot, head.Driver
			m.Podman.Version, m.Podman.Driver = head.PodmanVersion, head.PodmanDriver
		case n > 1 && rec.Layer != nil:
			m.Store.Layers = append(m.Store.Layers, *rec.Layer)
		case n > 1 && rec.Image != nil:
			m.Store.Images = append(m.Store.Images, *rec.Image)
		case n > 1 && rec.Container != nil:
			m.Store.Containers = append(m.Store.Containers, *rec.Container)
		case n > 1 && rec.Podman != nil:
			m.Podman.Objects = append(m.Podman.Objects, *rec.Podman)
		default:
			return Manifest{}, fmt.Errorf("cannot read manifest: line %d: unexpected record %q", n, rec.Kind)
		}
	}
}

func (m *Manifest) sort() {
	sortBy(m.Store.Layers, func(l Layer) string { return l.ID })
	sortBy(m.Store.Images, func(i Image) string { return i.ID })
	sortBy(m.Store.Containers, func(c Container) string { return c.ID })
	sortBy(m.Podman.Objects, Object.key)
}

func (o Object) key() string { return o.Kind + "\x00" + o.ID }

func sortBy[T any](s []T, key func(T) string) {
	slices.SortStableFunc(s, func(a, b T) int {
		ka, kb := key(a), key(b)
		switch {
		case ka < kb:
			return -1
		case ka > kb:
			return 1
		}
		return 0
	})
}
