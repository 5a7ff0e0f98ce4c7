// Package images makes container images and stores of them for the tests,
// without a registry: archives in pure Go, the same bytes at each call, and a
// cached store of each Debian release with all that is hard to convert.
package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// An Entry is one entry of a layer's tar.
type Entry struct {
	Path   string
	Type   byte // tar.TypeReg when 0 and the path has no trailing slash
	Mode   int64
	UID    int
	GID    int
	Data   []byte
	Link   string
	Xattrs map[string]string
	Major  int64
	Minor  int64
}

// A Layer writes one layer; it is called more than once and must write the same
// entries each time.
type Layer func(tw *tar.Writer) error

// Entries is the layer of the given entries.
func Entries(entries ...Entry) Layer {
	return func(tw *tar.Writer) error {
		for _, e := range entries {
			if err := e.write(tw); err != nil {
				return err
			}
		}
		return nil
	}
}

func (e Entry) write(tw *tar.Writer) error {
	h := &tar.Header{
		Name: e.Path, Typeflag: e.Type, Mode: e.Mode, Uid: e.UID, Gid: e.GID,
		Linkname: e.Link, Size: int64(len(e.Data)), ModTime: time.Unix(1_600_000_000, 0),
		Devmajor: e.Major, Devminor: e.Minor, Format: tar.FormatPAX,
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
		if e.Path[len(e.Path)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
	}
	if h.Mode == 0 && h.Typeflag != tar.TypeSymlink {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	for k, v := range e.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+k] = v
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(e.Data)
	return err
}

// An Image is what WriteDocker and WriteOCI put into an archive.
type Image struct {
	Names  []string // none: a dangling image
	Layers []Layer
	Cmd    []string
	Env    []string
	Labels map[string]string
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func writeLayer(w io.Writer, l Layer) error {
	tw := tar.NewWriter(w)
	if err := l(tw); err != nil {
		return err
	}
	return tw.Close()
}

// config is an image configuration that is valid for Docker and OCI.
func (img Image) config(diffIDs []string) ([]byte, error) {
	type history struct {
		Created   string `json:"created"`
		CreatedBy string `json:"created_by"`
	}
	var hist []history
	for i := range diffIDs {
		hist = append(hist, history{"2020-09-13T12:26:40Z", fmt.Sprintf("step %d", i)})
	}
	return json.Marshal(map[string]any{
		"created": "2020-09-13T12:26:40Z", "architecture": "amd64", "os": "linux",
		"config":  map[string]any{"Cmd": img.Cmd, "Env": img.Env, "Labels": img.Labels},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": diffIDs},
		"history": hist,
	})
}

func addFile(tw *tar.Writer, name string, data []byte) error {
	return Entry{Path: name, Data: data}.write(tw)
}

// countingHash measures a layer before it is written: a tar header comes first
// and needs the size.
type countingHash struct {
	n int64
	h interface {
		io.Writer
		Sum([]byte) []byte
	}
}

func (c *countingHash) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.h.Write(p)
}

// WriteDocker writes a docker-archive, as `docker save` does, with uncompressed
// layers. Layers are streamed: memory does not grow with their size.
func WriteDocker(w io.Writer, imgs ...Image) error {
	tw := tar.NewWriter(w)
	type item struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var manifest []item
	written := map[string]bool{}
	for _, img := range imgs {
		var it item
		var diffIDs []string
		for _, l := range img.Layers {
			c := &countingHash{h: sha256.New()}
			if err := writeLayer(c, l); err != nil {
				return err
			}
			sum := hex.EncodeToString(c.h.Sum(nil))
			diffIDs = append(diffIDs, "sha256:"+sum)
			it.Layers = append(it.Layers, sum+".tar")
			if written[sum] {
				continue
			}
			written[sum] = true
			h := &tar.Header{Name: sum + ".tar", Typeflag: tar.TypeReg, Mode: 0o644, Size: c.n}
			if err := tw.WriteHeader(h); err != nil {
				return err
			}
			if err := writeLayer(tw, l); err != nil {
				return err
			}
		}
		config, err := img.config(diffIDs)
		if err != nil {
			return err
		}
		it.Config, it.RepoTags = digest(config)+".json", img.Names
		if !written[it.Config] {
			written[it.Config] = true
			if err := addFile(tw, it.Config, config); err != nil {
				return err
			}
		}
		manifest = append(manifest, it)
	}
	b, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	if err := addFile(tw, "manifest.json", b); err != nil {
		return err
	}
	return tw.Close()
}

// WriteOCI writes an oci-archive of one image with gzipped layers, so that the
// store keeps compressed digests and sizes beside the uncompressed ones.
func WriteOCI(w io.Writer, img Image) error {
	tw := tar.NewWriter(w)
	blob := func(b []byte) (string, error) {
		d := digest(b)
		return "sha256:" + d, addFile(tw, "blobs/sha256/"+d, b)
	}
	type descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	if err := addFile(tw, "oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	var layers []descriptor
	var diffIDs []string
	for _, l := range img.Layers {
		var plain, packed bytes.Buffer
		if err := writeLayer(&plain, l); err != nil {
			return err
		}
		diffIDs = append(diffIDs, "sha256:"+digest(plain.Bytes()))
		zw := gzip.NewWriter(&packed)
		if _, err := zw.Write(plain.Bytes()); err != nil {
			return err
		}
		if err := zw.Close(); err != nil {
			return err
		}
		d, err := blob(packed.Bytes())
		if err != nil {
			return err
		}
		layers = append(layers, descriptor{"application/vnd.oci.image.layer.v1.tar+gzip", d, packed.Len(), nil})
	}
	config, err := img.config(diffIDs)
	if err != nil {
		return err
	}
	d, err := blob(config)
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": descriptor{"application/vnd.oci.image.config.v1+json", d, len(config), nil}, "layers": layers,
		"annotations": map[string]string{"org.example.lab": "kept"},
	})
	if err != nil {
		return err
	}
	if d, err = blob(manifest); err != nil {
		return err
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{{
		"application/vnd.oci.image.manifest.v1+json", d, len(manifest),
		map[string]string{"org.opencontainers.image.ref.name": img.Names[0]},
	}}})
	if err != nil {
		return err
	}
	if err := addFile(tw, "index.json", index); err != nil {
		return err
	}
	return tw.Close()
}
