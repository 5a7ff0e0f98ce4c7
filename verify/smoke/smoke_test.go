package smoke

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestImage(t *testing.T) {
	name, archive, err := Image()
	if err != nil {
		t.Fatalf("%v; for tests: go generate ./verify/...", err)
	}
	again, other, err := Image()
	if err != nil || again != name || !bytes.Equal(archive, other) {
		t.Errorf("not the same twice: %s, %s, %v", name, again, err)
	}
	if !strings.HasPrefix(name, Repository+":") {
		t.Errorf("name %s", name)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	var m []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files["manifest.json"], &m); err != nil {
		t.Fatal(err)
	}
	var config struct {
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(files[m[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(m[0].RepoTags, []string{name}) || len(m[0].Layers) != 2 {
		t.Errorf("%+v", m)
	}
	for i, l := range m[0].Layers {
		if "sha256:"+sum(files[l]) != config.Rootfs.DiffIDs[i] {
			t.Errorf("layer %d is not what the config says", i)
		}
	}
}

// The program runs in an empty image, so nothing may be loaded at start.
func TestProgramIsStatic(t *testing.T) {
	prog, err := ProgramBytes()
	if err != nil {
		t.Fatalf("%v; for tests: go generate ./verify/...", err)
	}
	f, err := elf.NewFile(bytes.NewReader(prog))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("program is dynamic: %v", p.Type)
		}
	}
	if len(prog) > 3<<20 {
		t.Errorf("program has %d bytes", len(prog))
	}
}

func TestNotBuilt(t *testing.T) {
	fresh := fstest.MapFS{"bin/README": {Data: []byte("placeholder")}}
	if _, err := program(fresh); !errors.Is(err, ErrNotBuilt) {
		t.Error(err)
	}
}
