package convert

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containers/storage/pkg/archive"
	"github.com/containers/storage/pkg/chrootarchive"
	"github.com/containers/storage/pkg/unshare"
	"github.com/sirupsen/logrus"
)

// randomLayer makes a tar of random changes over few names, so that they meet:
// folders over files, links through links, deletions of what is recreated.
func randomLayer(r *rand.Rand, t testing.TB, files *[]string) []byte {
	name := func() string {
		p := string(rune('a' + r.IntN(4)))
		for r.IntN(2) == 0 && len(p) < 7 {
			p += "/" + string(rune('a'+r.IntN(4)))
		}
		return p
	}
	var items []item
	used := map[string]bool{}
	for range 1 + r.IntN(6) {
		n := name()
		var i item
		switch r.IntN(11) {
		case 0, 1, 2:
			i = dir(n).perm(0o700 + int64(r.IntN(64)))
		case 3, 4, 5:
			i = file(n, fmt.Sprint(r.IntN(1000)))
			*files = append(*files, n)
		case 6:
			i = symlink(n, name())
		case 7:
			i = symlink(n, "/"+name())
		case 8:
			if len(*files) == 0 {
				continue
			}
			i = hardlink(n, (*files)[r.IntN(len(*files))])
		case 9:
			i = gonePath(n)
		case 10:
			i = opaqueDir(n)
		}
		if !used[cleanName(i.name)] { // tar-split takes no path twice
			used[cleanName(i.name)] = true
			items = append(items, i)
		}
	}
	return makeTar(t, items...)
}

// Whatever containers/storage unpacks comes out the same, from the lists and
// from the trees.
func TestRandomLayers(t *testing.T) {
	logrus.SetOutput(io.Discard) // what cannot be unpacked is logged
	defer logrus.SetOutput(os.Stderr)
	f := newFixture(t)
	made, refused := 0, 0
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		top, files := "", []string(nil)
		for range 6 {
			f.n++
			id := fmt.Sprintf("%064x", f.n)
			blob := randomLayer(r, t, &files)
			if !unpacks(f, top, blob) {
				refused++
				continue
			}
			if _, _, err := f.store.PutLayer(id, top, nil, "", false, nil, bytes.NewReader(blob)); err != nil {
				t.Fatal(err)
			}
			made++
			top = id
			f.image(id)
		}
	}
	t.Logf("%d layers, %d tars could not be unpacked", made, refused)
	if made < 100 {
		t.Errorf("only %d layers were made", made)
	}
	for _, kind := range []string{"lists", "trees"} {
		if kind == "trees" {
			f.dropLists()
			must(t, os.RemoveAll(f.opts.Stage))
		}
		r := f.sync()
		t.Logf("from %s: %+v", kind, r.Counts)
		if kind == "lists" {
			f.prove()
			continue
		}
		p, err := Compare(context.Background(), f.opts, nil, CompareOptions{Bytes: true})
		must(t, err)
		for _, d := range p.Unexplained() {
			t.Errorf("from %s: %s", kind, d)
		}
	}
}

// unpacks tries a tar on a copy of its parent's tree. The store itself must not
// be given one that fails: tar-split goes on reading from a buffer that
// containers/storage has given back by then, and crashes.
func unpacks(f *fixture, parent string, blob []byte) bool {
	f.Helper()
	dir := filepath.Join(f.TempDir(), "tree")
	if parent == "" {
		must(f, os.Mkdir(dir, 0o755))
	} else if out, err := exec.Command("cp", "-a", filepath.Join(f.opts.Source.GraphRoot, "vfs/dir", parent), dir).CombinedOutput(); err != nil {
		f.Fatal(string(out), err)
	}
	_, err := chrootarchive.ApplyUncompressedLayer(dir, bytes.NewReader(blob), &archive.TarOptions{InUserNS: unshare.IsRootless()})
	return err == nil
}
