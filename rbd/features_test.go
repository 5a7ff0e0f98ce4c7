package rbd

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestFeatures(t *testing.T) {
	for _, good := range [][]string{nil, {"layering"}, {"object-map", "fast-diff", "journaling"}} {
		if err := CheckFeatures(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range [][]string{{""}, {"data-pool"}, {"layering", "fast-diff"}, {"Layering"}} {
		if CheckFeatures(bad) == nil {
			t.Errorf("%q", bad)
		}
	}
	h := &Host{Sys: t.TempDir()}
	all := []string{"layering", "exclusive-lock", "journaling", "data-pool"}
	if lacks := h.KernelLacks(all); lacks != nil {
		t.Errorf("a kernel that does not tell: %q", lacks)
	}
	path := filepath.Join(h.Sys, "bus/rbd/supported_features")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("0x1bf\n"), 0o644); err != nil { // Linux 6.1
		t.Fatal(err)
	}
	if lacks := h.KernelLacks(all); !slices.Equal(lacks, []string{"journaling"}) {
		t.Errorf("%q", lacks)
	}
}
