package doctor

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/storagectl/storagectl/internal/podman"
)

// TestMountProgramFlag: podman writes the file into every rootless store on overlay,
// and means something by it only where it says true.
func TestMountProgramFlag(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	flag := filepath.Join(root, "overlay", mountProgramFlag)
	if err := os.Mkdir(filepath.Dir(flag), 0o700); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{"true": true, "false": false, "": false} {
		if err := os.WriteFile(flag, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := seeStore(storeArgs{GraphRoot: root}); err != nil || s.HasMountProgram != want {
			t.Errorf("%q: %v, %v", text, s.HasMountProgram, err)
		}
	}
}

// TestDriverMends: what a mount program has made is converted, not read by the kernel
// as it is; on a filesystem that cannot hold the kernel's overlay it is moved first.
func TestDriverMends(t *testing.T) {
	t.Parallel()
	fuse := infoSeen{}
	fuse.Store.GraphDriverName = "overlay"
	fuse.Store.GraphOptions = map[string]any{"overlay.mount_program": map[string]any{"Executable": "/usr/bin/fuse-overlayfs"}}
	for fsType, want := range map[string]string{
		"ext4": "storagectl migrate --to overlay --user hashi --dry-run",
		"ceph": "move it to a filesystem that holds the kernel's overlay (storagectl relocate --user hashi); then storagectl migrate --to overlay --user hashi --dry-run",
	} {
		h := &Host{Owner: podman.Owner{Name: "hashi", UID: 2000}, store: func() (storeSeen, error) { return storeSeen{FSType: fsType}, nil }}
		f := lookDriver(t.Context(), h, fuse)
		if f.Outcome != Warning || len(f.Mend) != 1 || f.Mend[0] != want {
			t.Errorf("%s: %+v, want %q", fsType, f, want)
		}
	}
}

// TestLeftoverMends: what a run's folder is kept for decides what ends it, and nothing
// that deletes is offered for a run that is at work.
func TestLeftoverMends(t *testing.T) {
	t.Parallel()
	h := &Host{Runs: []string{"0001-migrate-aaaa", "0002-migrate-bbbb", "0003-migrate-cccc"}, Next: map[string][]string{
		"0001-migrate-aaaa": {"storagectl commit 0001-migrate-aaaa", "storagectl rollback 0001-migrate-aaaa"},
		"0002-migrate-bbbb": {"storagectl status 0002-migrate-bbbb"},
		"0003-migrate-cccc": nil,
	}}
	for folder, want := range map[string]string{
		"/s/.storagectl-0001-migrate-aaaa":       "storagectl commit 0001-migrate-aaaa  # or storagectl rollback 0001-migrate-aaaa",
		"/s/.storagectl-0002-migrate-bbbb":       "storagectl status 0002-migrate-bbbb",
		"/s/.storagectl-0003-migrate-cccc":       "storagectl status 0003-migrate-cccc  # rolled back: what was made after its cutover is kept; if nobody wants that, rm -rf /s/.storagectl-0003-migrate-cccc",
		"/s/.storagectl-0001-migrate-aaaa-stray": "podman --root /s/.storagectl-0001-migrate-aaaa-stray images  # made while the store was away; no command removes it",
	} {
		if got := h.leftoverMends([]string{folder}); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", folder, got, want)
		}
	}
}
