package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
)

func sampleOf(t *testing.T, ref StoreRef, opts SampleOptions) Sample {
	t.Helper()
	s, err := TakeSample(t.Context(), ref, t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func find(s Sample, image, path string) SampleEntry {
	for _, e := range s.Entries {
		if e.Image == image && e.Path == path {
			return e
		}
	}
	return SampleEntry{}
}

func TestSample(t *testing.T) {
	vfs, overlay := testStore(t, "vfs"), testStore(t, "overlay")
	s := sampleOf(t, vfs, SampleOptions{Seed: "1"})
	top := id("image", 2)
	for path, want := range map[string]func(e SampleEntry) bool{
		"bin/su":       func(e SampleEntry) bool { return e.Mode == "4711" && e.Size == 8 && e.SHA256 != "" },
		"bin/ping":     func(e SampleEntry) bool { return e.Xattrs["security.capability"] != "" },
		"bin/sh":       func(e SampleEntry) bool { return e.Target == "/bin/su" },
		"bin/two":      func(e SampleEntry) bool { return e.Hashed == 4 },
		"away":         func(e SampleEntry) bool { return e.Type == "symlink" },
		"pipe":         func(e SampleEntry) bool { return e.Type == "fifo" },
		"usr/lib/so":   func(e SampleEntry) bool { return e.UID == 7 && e.Hashed == 18000 },
		"usr/lib/more": func(e SampleEntry) bool { return e.Type == "file" },
	} {
		if e := find(s, top, path); !want(e) {
			t.Errorf("%s: %+v", path, e)
		}
	}
	if e := find(s, top, "gone"); e.Path != "" {
		t.Errorf("a deleted file was chosen: %+v", e)
	}
	scratch := t.TempDir()
	before, run := snapshot(t, overlay.GraphRoot, false), snapshot(t, overlay.RunRoot, false)
	again, err := s.Again(t.Context(), overlay, scratch)
	if err != nil {
		t.Fatal(err)
	}
	same(t, before, snapshot(t, overlay.GraphRoot, false))
	same(t, run, snapshot(t, overlay.RunRoot, false))
	if d := DiffSamples(s, again); len(d) != 0 {
		t.Errorf("differences between drivers: %v", d)
	}
	if !bytes.Equal(encode(t, s.Entries), encode(t, again.Entries)) {
		t.Error("the samples are not the same")
	}
	left, err := os.ReadDir(scratch)
	if err != nil || len(left) != 0 {
		t.Errorf("scratch holds %v, %v", left, err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Dir(scratch)))
	if err != nil || len(mounts) != 0 {
		t.Errorf("mounted: %v, %v", mounts, err)
	}
	// A sample taken from overlay is as good.
	s2 := sampleOf(t, overlay, SampleOptions{Seed: "1"})
	if d := DiffSamples(s, s2); len(d) != 0 {
		t.Errorf("differences: %v", d)
	}
}

// Unpacked through podman's own path, a layer with a file below a symlinked
// folder puts a real folder over the symlink on overlay, and not on vfs: a
// conversion that goes that way must not pass.
func TestSampleSeesFolderOverSymlink(t *testing.T) {
	vfs, overlay := testStore(t, "vfs"), testStore(t, "overlay")
	for _, ref := range []StoreRef{vfs, overlay} {
		addImage(t, ref, 3, entry{name: "lib/through", mode: 0o644, data: "x"})
	}
	s := sampleOf(t, vfs, SampleOptions{})
	again, err := s.Again(t.Context(), overlay, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d := DiffSamples(s, again)
	if !slices.ContainsFunc(d, func(d Difference) bool { return d.Field == "type" && strings.HasSuffix(d.ID, ":/lib") }) {
		t.Errorf("differences %v", d)
	}
}

// Symlinks in an image are followed inside it, and never out of it.
func TestSampleStaysInside(t *testing.T) {
	ref := testStore(t, "vfs")
	s := Sample{Entries: []SampleEntry{
		{Image: id("image", 2), Path: "lib/more", SHA256: "x", Hashed: 10},
		{Image: id("image", 2), Path: "away/x", SHA256: "x", Hashed: 10},
		{Image: id("image", 2), Path: "away/passwd", SHA256: "x", Hashed: 10},
	}}
	again, err := s.Again(t.Context(), ref, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if e := find(again, id("image", 2), "lib/more"); e.Size != 4 {
		t.Errorf("%+v", e)
	}
	if e := find(again, id("image", 2), "away/x"); e.Size != 1 || e.Mode != "2640" {
		t.Errorf("%+v", e)
	}
	if e := find(again, id("image", 2), "away/passwd"); e.Type != typeMissing {
		t.Errorf("%+v", e)
	}
}

// As many layers as podman builds have at most: their paths are more than one
// page, which is what a mount takes.
func TestSampleOfDeepImage(t *testing.T) {
	ref := testStore(t, "overlay")
	st := openStore(t, ref)
	parent := id("layer", 2)
	for i := range 120 {
		l := id("deep", i)
		if _, _, err := st.PutLayer(l, parent, nil, "", false, nil, bytes.NewReader(tarOf(t, entry{name: fmt.Sprintf("f%d", i), mode: 0o644, data: "x"}))); err != nil {
			t.Fatal(err)
		}
		parent = l
	}
	if _, err := st.CreateImage(id("deep image", 0), nil, parent, "", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Shutdown(true); err != nil {
		t.Fatal(err)
	}
	s := sampleOf(t, ref, SampleOptions{Images: []string{id("deep image", 0)}})
	if len(s.Entries) < 20 {
		t.Errorf("%+v", s)
	}
}

func TestSampleLeavesVFSAlone(t *testing.T) {
	ref := testStore(t, "vfs")
	before := snapshot(t, ref.GraphRoot, true)
	sampleOf(t, ref, SampleOptions{})
	same(t, before, snapshot(t, ref.GraphRoot, true))
}

func TestSampleIsDeterministicAndBounded(t *testing.T) {
	ref := testStore(t, "vfs")
	a, b := sampleOf(t, ref, SampleOptions{Seed: "x"}), sampleOf(t, ref, SampleOptions{Seed: "x"})
	if !bytes.Equal(encode(t, a), encode(t, b)) {
		t.Error("one seed gave two samples")
	}
	small := sampleOf(t, ref, SampleOptions{Seed: "x", MaxFiles: 5, MaxBytes: 10, MaxImages: 2})
	if len(small.Entries) > 5 || small.Bytes() > 10 {
		t.Errorf("%d entries, %d bytes", len(small.Entries), small.Bytes())
	}
	one := sampleOf(t, ref, SampleOptions{Images: []string{id("image", 1)}})
	if slices.ContainsFunc(one.Entries, func(e SampleEntry) bool { return e.Image != id("image", 1) }) || len(one.Entries) == 0 {
		t.Errorf("%+v", one)
	}
	// Without header lists, and with a damaged one, the walk still finds some.
	for i := range 3 {
		list := filepath.Join(ref.dir(ref.GraphRoot, "layers"), id("layer", i)+".tar-split.gz")
		if err := errors.Join(os.Remove(list), os.WriteFile(list, []byte("junk"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if s := sampleOf(t, ref, SampleOptions{}); len(s.Entries) < 6 {
		t.Errorf("%d entries", len(s.Entries))
	}
}

// Every kind of change to a file is seen.
func TestSampleSeesChanges(t *testing.T) {
	for _, c := range []struct {
		name, path, field string
		change            func(path string) error
	}{
		{"content", "bin/su", "sha256", func(p string) error {
			info, err := os.Stat(p)
			if err != nil {
				return err
			}
			if err := os.WriteFile(p, []byte("NEWER SU"), 0); err != nil {
				return err
			}
			return os.Chtimes(p, info.ModTime(), info.ModTime())
		}},
		{"setuid", "bin/su", "mode", func(p string) error { return os.Chmod(p, 0o711) }},
		{"owner", "usr/lib/so", "uid", func(p string) error { return os.Lchown(p, 8, 0) }},
		{"link", "bin/sh", "target", func(p string) error { return errors.Join(os.Remove(p), os.Symlink("other", p)) }},
		{"capability", "bin/ping", "xattrs", func(p string) error { return os.Lchown(p, 0, 0) }},
		{"kind", "pipe", "type", func(p string) error { return errors.Join(os.Remove(p), os.WriteFile(p, nil, 0o600)) }},
		{"gone", "bin/su", "", os.Remove},
		{"whole parent", "etc/x", "", func(p string) error { return os.RemoveAll(filepath.Dir(p)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ref := testStore(t, "vfs")
			s := sampleOf(t, ref, SampleOptions{})
			if err := c.change(filepath.Join(ref.tree(ref.GraphRoot, id("layer", 2)), c.path)); err != nil {
				t.Fatal(err)
			}
			again, err := s.Again(t.Context(), ref, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			d := DiffSamples(s, again)
			if !slices.ContainsFunc(d, func(d Difference) bool { return d.Field == c.field && strings.HasSuffix(d.ID, ":/"+c.path) }) {
				t.Errorf("differences %v", d)
			}
		})
	}
}

func TestSampleOfVanishedImage(t *testing.T) {
	ref := testStore(t, "overlay")
	s := sampleOf(t, ref, SampleOptions{})
	st := openStore(t, ref)
	if _, err := st.DeleteImage(id("image", 0), true); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Shutdown(true); err != nil {
		t.Fatal(err)
	}
	again, err := s.Again(t.Context(), ref, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range again.Entries {
		if (e.Type == typeMissing) != (e.Image == id("image", 0)) {
			t.Errorf("%+v", e)
		}
	}
	if len(again.Entries) != len(s.Entries) {
		t.Errorf("%d entries, were %d", len(again.Entries), len(s.Entries))
	}
}

func TestSampleHeedsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := TakeSample(ctx, testStore(t, "overlay"), t.TempDir(), SampleOptions{}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}
