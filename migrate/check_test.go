package migrate

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/storagectl/storagectl/verify"
)

func TestGivenUp(t *testing.T) {
	before := verify.StorePart{Containers: []verify.Container{
		{ID: "kept", Names: []string{"a"}, Layer: "kept-layer"},
		{ID: "replaced", Names: []string{"b"}, Layer: "replaced-layer"},
		{ID: "lost", Names: []string{"c"}, Layer: "lost-layer"},
	}}
	after := verify.StorePart{Containers: []verify.Container{{ID: "kept", Names: []string{"a"}}, {ID: "new", Names: []string{"b"}}}}
	for _, c := range []struct {
		all  bool
		want []string
	}{
		{false, []string{"replaced", "replaced-layer"}},
		{true, []string{"kept", "kept-layer", "lost", "lost-layer", "replaced", "replaced-layer"}},
	} {
		if got := slices.Sorted(maps.Keys(givenUp(before, after, c.all))); !slices.Equal(got, c.want) {
			t.Errorf("all %v: %v, want %v", c.all, got, c.want)
		}
	}
}

func TestMountOf(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/sys", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	at, err := mountOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/":                                 "/",
		"/proc/sys/kernel":                  "/proc",
		"/proc/sys/no/such/store":           "/proc",
		filepath.Join(dir, "link/kernel/x"): "/proc",
		filepath.Join(dir, "not/there/yet"): at,
	} {
		if got, err := mountOf(path); err != nil || got != want {
			t.Errorf("%s: %q %v, want %q", path, got, err, want)
		}
	}
}
