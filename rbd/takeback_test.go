package rbd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/host"
)

// TestMapCutOff: what a mapping that took too long has mapped all the same does not
// stay. The program rbd is a script here, which maps in a folder that stands for the
// kernel's, and hangs.
func TestMapCutOff(t *testing.T) {
	sys, bin := t.TempDir(), t.TempDir()
	script := `#!/bin/sh
d=` + sys + `/bus/rbd/devices/0
case "$*" in
*" map "*) mkdir -p $d; for f in pool:rbd name:img current_snap:- client_id:client1; do echo ${f#*:} >$d/${f%:*}; done; sleep 600 ;;
*" unmap "*/dev/rbd0*) rm -r $d ;;
*) echo '[]' ;;
esac
`
	if err := os.WriteFile(filepath.Join(bin, "rbd"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	h := &Host{Sys: sys, Run: &host.Runner{}, Link: &cephlink.Client{}}
	spec := Spec{Pool: "rbd", Image: "img"}
	devices := filepath.Join(sys, "bus/rbd/devices")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { // as a deadline would, in the middle of it
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(filepath.Join(devices, "0", "client_id")); err == nil {
				break
			}
		}
		cancel()
	}()
	if _, err := h.rbdMap(ctx, spec, MapOptions{Mapper: Krbd}); !errors.Is(err, context.Canceled) {
		t.Errorf("want it cut off: %v", err)
	}
	if left, err := os.ReadDir(devices); err != nil || len(left) > 0 {
		t.Errorf("left mapped: %v, %v", left, err)
	}
}
