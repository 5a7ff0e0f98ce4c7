package main

import (
	"bytes"
	"runtime"
	"strings"
	"testing"
)

// The peak is the command's own, and not that of the process that measures.
func TestSmall(t *testing.T) {
	ours := bytes.Repeat([]byte{1}, 100<<20)
	usage, err := small(t.Context(), []string{"sh", "-c", "exit 0"})
	if err != nil || usage.Maxrss<<10 > 10<<20 {
		t.Errorf("a peak of %d KiB (%v)", usage.Maxrss, err)
	}
	runtime.KeepAlive(ours)
	usage, err = small(t.Context(), []string{"dd", "if=/dev/zero", "of=/dev/null", "bs=50M", "count=1"})
	if err != nil || usage.Maxrss<<10 < 50<<20 || usage.Maxrss<<10 > 60<<20 {
		t.Errorf("a peak of %d KiB (%v)", usage.Maxrss, err)
	}
	if _, err := small(t.Context(), []string{"sh", "-c", "echo why >&2; exit 3"}); err == nil || !strings.Contains(err.Error(), "ended with 3") || !strings.Contains(err.Error(), "why") {
		t.Errorf("%v", err)
	}
}
