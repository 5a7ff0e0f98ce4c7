package verify

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containers/storage"
)

// TestCheck: containers/storage finds nothing in a store that is whole, names the
// image and the layer of what is not, and nothing in the store is changed.
func TestCheck(t *testing.T) {
	for _, driver := range []string{"vfs", "overlay"} {
		t.Run(driver, func(t *testing.T) {
			ref := testStore(t, driver)
			addImage(t, ref, 9, entry{name: "more", mode: 0o644, data: "x"})
			check := func() []string {
				t.Helper()
				before := snapshot(t, ref.GraphRoot, false)
				scratch := t.TempDir()
				r, err := Check(t.Context(), ref, scratch)
				if err != nil || r.Images == 0 || r.Layers == 0 {
					t.Fatalf("%+v, %v", r, err)
				}
				same(t, before, snapshot(t, ref.GraphRoot, false))
				if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
					t.Errorf("left: %v, %v", left, err)
				}
				return r.Damage
			}
			if d := check(); len(d) > 0 {
				t.Errorf("a store that is whole: %q", d)
			}
			manifest := filepath.Join(ref.dir(ref.GraphRoot, "images"), id("image", 0), "manifest")
			if err := os.Truncate(manifest, 1); err != nil {
				t.Fatal(err)
			}
			if d := check(); len(d) != 1 || !strings.HasPrefix(d[0], "image localhost/z0:1: ") || !strings.Contains(d[0], "size") {
				t.Errorf("a manifest that is cut: %q", d)
			}
			if err := os.Remove(manifest); err != nil {
				t.Fatal(err)
			}
			if d := check(); len(d) != 1 || !strings.Contains(d[0], "manifest") {
				t.Errorf("a manifest that is gone: %q", d)
			}
			// A layer in the middle loses its record.
			path := filepath.Join(ref.dir(ref.GraphRoot, "layers"), "layers.json")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var layers, rest []storage.Layer
			if err := json.Unmarshal(b, &layers); err != nil {
				t.Fatal(err)
			}
			for _, l := range layers {
				if l.ID != id("layer", 2) {
					rest = append(rest, l)
				}
			}
			if b, err = json.Marshal(rest); err != nil || len(rest) != len(layers)-1 {
				t.Fatal(len(rest), len(layers), err)
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			text := strings.Join(check(), "\n")
			if !strings.Contains(text, "image localhost/z2:1: layer "+id("layer", 2)+": ") || !strings.Contains(text, "image "+id("image", 9)[:12]+": layer "+id("layer", 2)+": ") {
				t.Errorf("a layer without a record: %s", text)
			}
		})
	}
}
