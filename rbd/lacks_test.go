package rbd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/internal/host"
)

// TestLacks: whatever the mapper, a program that it needs is missed by name, with the
// package that has it.
func TestLacks(t *testing.T) {
	dir, sys := t.TempDir(), t.TempDir()
	t.Setenv("PATH", dir)
	h := &Host{Run: &host.Runner{}, Sys: sys}
	lacks := func(m Mapper, what, hint string) {
		t.Helper()
		if w, h := h.Lacks(t.Context(), m); !strings.Contains(w, what) || !strings.Contains(h, hint) || (what == "") != (w == "") {
			t.Errorf("%s: %q, %q", m, w, h)
		}
	}
	install := func(path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []Mapper{Krbd, NBD, Fuse} {
		lacks(m, "no rbd here", "ceph-common")
	}
	install(filepath.Join(dir, "rbd"))
	lacks(NBD, "no rbd-nbd here", "apt install rbd-nbd")
	lacks(Fuse, "", "")
	install(filepath.Join(sys, "bus/rbd"))
	lacks(Krbd, "", "")
}
