package host

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// One user gets through, and neither their group nor anybody else.
func TestLetThrough(t *testing.T) {
	top := mkdir(t, t.TempDir(), "run")
	mountAt(t, "tmpfs", top, "tmpfs", 0, "mode=755") // as /run is
	for dir := filepath.Dir(top); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755)) //nolint:gosec // the way to it is open to all
	}
	way := mkdir(t, top, "way")
	must(t, os.Chmod(way, 0o777), os.MkdirAll(filepath.Join(way, "store"), 0o755)) //nolint:gosec // likewise
	alone, err := LetThrough(way, 2000, 2000)
	if err != nil || !alone {
		t.Fatalf("%v %v", alone, err)
	}
	as := func(uid, gid, path string) bool {
		out, err := exec.Command("setpriv", "--reuid="+uid, "--regid="+gid, "--clear-groups", "ls", path).CombinedOutput()
		if err != nil && !strings.Contains(string(out), "denied") {
			t.Fatalf("%v: %s", err, out)
		}
		return err == nil
	}
	store := filepath.Join(way, "store")
	if !as("2000", "2000", store) || !as("2000", "7", store) {
		t.Error("the user does not get through")
	}
	if as("2000", "2000", way) || as("2001", "2000", store) || as("2001", "7", store) || as("2001", "0", store) {
		t.Error("others get through, or the user looks into it")
	}
	if who, err := Changeable(store); err != nil || who != "" && strings.HasPrefix(who, way) {
		t.Errorf("others can change %s: %v", who, err)
	}
}
