package migrate

import (
	"path/filepath"
	"testing"

	"github.com/storagectl/storagectl/verify"
)

// TestLeaveOut: only what lies in an additional image store alone is left out of
// the comparison. An image or layer that the graphroot has as well is compared.
func TestLeaveOut(t *testing.T) {
	dir := t.TempDir()
	ref := verify.StoreRef{GraphRoot: filepath.Join(dir, "root"), ImageStores: []string{filepath.Join(dir, "more")}, Driver: "vfs"}
	write(t, filepath.Join(ref.GraphRoot, "vfs-layers/layers.json"), `[{"id":"l1"}]`)
	write(t, filepath.Join(ref.GraphRoot, "vfs-images/images.json"), `[{"id":"i1","names":["local:1"],"layer":"l1"}]`)
	write(t, filepath.Join(ref.ImageStores[0], "vfs-layers/layers.json"), `[{"id":"l1"},{"id":"l2"}]`)
	write(t, filepath.Join(ref.ImageStores[0], "vfs-images/images.json"), `[{"id":"i1","names":["local:1"],"layer":"l1"},{"id":"i2","layer":"l2"}]`)
	part, err := verify.StoreManifest(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	before := verify.Manifest{Store: part}
	// The new store has lost its own, and sees one of that id in the additional store.
	write(t, filepath.Join(ref.ImageStores[0], "overlay-layers/layers.json"), `[{"id":"l1"}]`)
	write(t, filepath.Join(ref.ImageStores[0], "overlay-images/images.json"), `[{"id":"i1","names":["local:1"],"layer":"l1"}]`)
	write(t, filepath.Join(ref.GraphRoot, "overlay-layers/layers.json"), `[]`)
	ref.Driver = "overlay"
	if part, err = verify.StoreManifest(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	after := verify.Manifest{Store: part}
	before.Podman.Objects = []verify.Object{{Kind: "image", ID: "i1"}, {Kind: "image", ID: "i2"}}
	leaveOut(&before, &after)
	if is := before.Store.Images; len(is) != 1 || is[0].ID != "i1" {
		t.Errorf("images that are compared: %+v", is)
	}
	if ls := before.Store.Layers; len(ls) != 1 || ls[0].ID != "l1" {
		t.Errorf("layers that are compared: %+v", ls)
	}
	if os := before.Podman.Objects; len(os) != 1 || os[0].ID != "i1" {
		t.Errorf("podman's images that are compared: %+v", os)
	}
	lost := false
	for _, d := range verify.Diff(before, after) {
		lost = lost || d.Kind == "image" && d.ID == "i1" && !d.Added()
	}
	if !lost {
		t.Error("the loss of the graphroot's own image is not seen")
	}
}
