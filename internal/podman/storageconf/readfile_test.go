package storageconf

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestReadFile: what an owner puts in the place of a storage.conf neither holds
// the reader nor fills its memory.
func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	pipe, large, plain := filepath.Join(dir, "pipe"), filepath.Join(dir, "large"), filepath.Join(dir, "plain")
	if err := errors.Join(syscall.Mkfifo(pipe, 0o600), os.WriteFile(large, bytes.Repeat([]byte("#\n"), 1<<20), 0o600),
		os.WriteFile(plain, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := ReadFile(pipe); done <- err }()
	select {
	case err := <-done:
		if !errors.Is(err, ErrNotAFile) {
			t.Errorf("pipe: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("a pipe holds the reader")
	}
	for path, want := range map[string]error{large: ErrNotAFile, dir: ErrNotAFile, filepath.Join(dir, "none"): os.ErrNotExist} {
		if _, err := ReadFile(path); !errors.Is(err, want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if b, err := ReadFile(plain); err != nil || string(b) != "x" {
		t.Errorf("%q %v", b, err)
	}
}
