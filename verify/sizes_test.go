package verify

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestLayerSizes: a file counts for each layer that has it, and once in each; what is
// not there is left out.
func TestLayerSizes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(path string, n int) string {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, slices.Repeat([]byte("x"), n), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const mb = 1 << 20
	big := write("vfs/dir/a/big", 4*mb)
	write("vfs/dir/b/sub/small", mb)
	for _, name := range []string{"vfs/dir/a/twice", "vfs/dir/b/linked"} {
		if err := os.Link(big, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write("overlay/a/diff/one", 2*mb)
	write("overlay/a/work/no", 8*mb)
	for driver, want := range map[string]map[string]int64{"vfs": {"a": 4 * mb, "b": 5 * mb}, "overlay": {"a": 2 * mb}} {
		got, err := LayerSizes(t.Context(), StoreRef{GraphRoot: dir, Driver: driver}, []string{"a", "b", "gone"})
		if err != nil {
			t.Fatal(err)
		}
		// Folders take some blocks, too.
		for id, n := range got {
			got[id] = n &^ (mb/4 - 1)
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", driver, got, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := LayerSizes(ctx, StoreRef{GraphRoot: dir, Driver: "vfs"}, []string{"a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
