package tell

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFull: on a disk that is full neither the audit nor the metrics are told, and
// what was there before is whole; once there is room again, both go on.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("full", dir, "tmpfs", 0, "size=64k,mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	a := Audit{Path: filepath.Join(dir, "audit.jsonl")}
	a.must(t, Entry{Run: "r", At: 1, Event: "begin"})
	if err := WriteMetrics(dir, "m.prom", Metrics{}.Registry()); err != nil {
		t.Fatal(err)
	}
	read := func() (b []byte) {
		t.Helper()
		for _, name := range []string{"audit.jsonl", "m.prom"} {
			f, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			b = append(b, f...)
		}
		return b
	}
	before := read()
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	// More than what is left of the last page.
	long := Entry{Run: "r", At: 2, Event: "stop", Error: string(bytes.Repeat([]byte("x"), 1<<13))}
	if _, err := a.Append(t.Context(), long); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("the audit: %v", err)
	}
	if err := WriteMetrics(dir, "m.prom", sampled().Registry()); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("the metrics: %v", err)
	}
	if !bytes.Equal(read(), before) {
		t.Error("what was there before is another")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	a.must(t, long)
	if c, err := a.Read(); err != nil || len(c.Entries) != 2 {
		t.Errorf("%d records, %v", len(c.Entries), err)
	}
	if err := WriteMetrics(dir, "m.prom", sampled().Registry()); err != nil {
		t.Error(err)
	}
}
