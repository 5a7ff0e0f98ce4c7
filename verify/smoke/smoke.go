// Package smoke carries the image that smoke tests run: one small static
// program, built by "go generate" and embedded, in a docker-archive made in
// memory. So no registry is needed.
package smoke

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
)

//go:generate env CGO_ENABLED=0 GOFLAGS=-buildvcs=false go build -trimpath -ldflags "-s -w -buildid=" -o bin/smoke ./prog

// bin holds the built program beside a placeholder that keeps a fresh clone
// compiling.
//
//go:embed all:bin
var bin embed.FS

// Repository is the name of the smoke image without its tag.
const Repository = "localhost/storagectl-smoke"

// Label marks everything that a smoke test makes, so that leftovers can be found.
const Label = "io.storagectl.smoke"

// Program is the path of the program in the image, and OutFile the file that
// the program writes.
const (
	Program = "/storagectl-smoke/run"
	OutFile = "/storagectl-smoke.out"
)

// ErrNotBuilt says that this binary was built without the smoke program.
var ErrNotBuilt = errors.New("this binary was built without the tiny image of the test (build it with: make build)")

// ProgramBytes is the embedded program, or ErrNotBuilt.
func ProgramBytes() ([]byte, error) { return program(bin) }

func program(fsys fs.FS) ([]byte, error) {
	b, err := fs.ReadFile(fsys, "bin/smoke")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotBuilt
	}
	return b, err
}

// Image is the smoke image: its name, which has a digest of its content in it,
// and a docker-archive that "podman load" takes. The same program gives the
// same bytes.
func Image() (name string, archive []byte, err error) {
	prog, err := ProgramBytes()
	if err != nil {
		return "", nil, err
	}
	// Two layers, of which the upper replaces a file of the lower and deletes
	// another, so that the container sees a merged tree.
	dir := file{name: "storagectl-smoke/", mode: 0o755}
	lower, err := archiveOf([]file{dir,
		{name: "storagectl-smoke/deleted", mode: 0o644, data: []byte("lower")},
		{name: "storagectl-smoke/kept", mode: 0o644, data: []byte("lower")},
		{name: "storagectl-smoke/replaced", mode: 0o644, data: []byte("lower")},
		{name: "storagectl-smoke/run", mode: 0o755, data: prog},
	})
	if err != nil {
		return "", nil, err
	}
	upper, err := archiveOf([]file{dir,
		{name: "storagectl-smoke/.wh.deleted", mode: 0o644},
		{name: "storagectl-smoke/replaced", mode: 0o644, data: []byte("upper")},
	})
	if err != nil {
		return "", nil, err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"created":      "1970-01-01T00:00:00Z",
		"config":       map[string]any{"Entrypoint": []string{Program}, "Labels": map[string]string{Label: "image"}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + sum(lower), "sha256:" + sum(upper)}},
		"history":      []map[string]any{{"created_by": "storagectl lower"}, {"created_by": "storagectl upper"}},
	})
	if err != nil {
		return "", nil, err
	}
	name = Repository + ":" + sum(config)[:12]
	manifest, err := json.Marshal([]map[string]any{{
		"Config":   sum(config) + ".json",
		"RepoTags": []string{name},
		"Layers":   []string{sum(lower) + ".tar", sum(upper) + ".tar"},
	}})
	if err != nil {
		return "", nil, err
	}
	archive, err = archiveOf([]file{
		{name: "manifest.json", mode: 0o644, data: manifest},
		{name: sum(config) + ".json", mode: 0o644, data: config},
		{name: sum(lower) + ".tar", mode: 0o644, data: lower},
		{name: sum(upper) + ".tar", mode: 0o644, data: upper},
	})
	return name, archive, err
}

// ProgramArchive is a tar stream that puts the program at [Program] when it is
// unpacked in a container's root.
func ProgramArchive() ([]byte, error) {
	prog, err := ProgramBytes()
	if err != nil {
		return nil, err
	}
	return archiveOf([]file{
		{name: "storagectl-smoke/", mode: 0o755},
		{name: "storagectl-smoke/run", mode: 0o755, data: prog},
	})
}

// file is an entry of a tar; one whose name ends in a slash is a folder.
type file struct {
	name string
	mode int64
	data []byte
}

func archiveOf(files []file) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg}
		if f.name[len(f.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("cannot make smoke image: %w", err)
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, fmt.Errorf("cannot make smoke image: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("cannot make smoke image: %w", err)
	}
	return buf.Bytes(), nil
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}
