package convert

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A copy on another filesystem is read back from its disk, once for each layer,
// and again when the layer was made anew.
func TestApart(t *testing.T) {
	f := newFixture(t)
	const mark = "what is in this file is searched for on the disk"
	base := f.layer("", dir("a"), file("a/f", strings.Repeat(mark+"\n", 500)))
	first := f.image(base, "localhost/first:1")
	f.image(f.layer(base, file("b", "of the second")), "localhost/second:1")
	stage := mount(t, "ext4", 64)
	f.opts.Stage = filepath.Join(stage, "s")
	f.sync()
	compare := func(c CompareOptions) []string {
		t.Helper()
		p, err := Compare(context.Background(), f.opts, nil, c)
		must(t, err)
		var fields []string
		for _, d := range p.Unexplained() {
			fields = append(fields, d.Field+" "+d.Path)
		}
		slices.Sort(fields)
		return slices.Compact(fields)
	}
	want := func(what string, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: differences %q, want %q", what, got, want)
		}
	}

	// The disk changes behind the filesystem, whose memory still has the truth.
	disk := backing(t, stage)
	content, err := os.ReadFile(disk)
	must(t, err)
	at := bytes.Index(content, []byte(mark))
	if at < 0 {
		t.Fatal("the copy is not on the disk")
	}
	patch(t, disk, int64(at), "WHAT")
	want("a disk that holds another content", compare(CompareOptions{}), "content a/f")
	patch(t, disk, int64(at), "what")
	want("the right content", compare(CompareOptions{}))
	p, err := Compare(context.Background(), f.opts, nil, CompareOptions{Known: []string{first}})
	must(t, err)
	if p.Layers != 0 || p.Trees != 1 {
		t.Errorf("%d diffs and %d trees compared, want none of what is proven, and the tree of the unknown image", p.Layers, p.Trees)
	}

	// Records are proven, too, and at each time.
	data := filepath.Join(f.opts.newRoot(), "overlay-images", first)
	es, err := os.ReadDir(data)
	must(t, err)
	patch(t, filepath.Join(data, es[0].Name()), 0, "#")
	if got := compare(CompareOptions{Known: []string{first}}); len(got) == 0 || !strings.HasPrefix(got[0], "content") {
		t.Errorf("changed data of an image: %q", got)
	}

	// What is made anew is compared anew, also of a known image.
	must(t, os.Remove(filepath.Join(f.opts.receipts(), base+".json")))
	must(t, os.RemoveAll(data))
	f.sync()
	list := filepath.Join(f.opts.newRoot(), "overlay-layers", base+".tar-split.gz")
	patch(t, list, 0, "#")
	patch(t, filepath.Join(f.opts.overlayHome(), base, "diff/a/f"), 0, "#")
	got := compare(CompareOptions{Known: []string{first}})
	for _, w := range []string{"content " + base + ".tar-split.gz", "content a/f"} {
		if !slices.Contains(got, w) {
			t.Errorf("differences %q, want %q among them", got, w)
		}
	}
}

// A rate holds for what is copied.
func TestApartRate(t *testing.T) {
	f := newFixture(t)
	f.image(f.layer("", file("f", strings.Repeat("x", 1<<20))), "localhost/large:1")
	f.opts.Stage, f.opts.BytesPerSecond, f.opts.IdleIO = filepath.Join(mount(t, "tmpfs", 64), "s"), 1<<20, true
	began := time.Now()
	f.sync()
	if took := time.Since(began); took < 800*time.Millisecond {
		t.Errorf("1 MiB at 1 MiB/s took %s", took)
	}
	f.prove()
}

// backing is the file that a loop mount is on.
func backing(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); fields[4] == dir {
			name, err := os.ReadFile("/sys/dev/block/" + fields[2] + "/loop/backing_file")
			must(t, err)
			return strings.TrimSpace(string(name))
		}
	}
	t.Fatalf("%s is no mount", dir)
	return ""
}

// patch overwrites some bytes of a file and leaves its times.
func patch(t *testing.T, path string, at int64, text string) {
	t.Helper()
	fi, err := os.Stat(path)
	must(t, err)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(text), at)
	must(t, err)
	must(t, f.Close())
	must(t, os.Chtimes(path, fi.ModTime(), fi.ModTime()))
}
