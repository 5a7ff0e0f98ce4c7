package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/internal/podman"
)

// A range that somebody got since the change was thought of is not given twice.
func TestFreeRange(t *testing.T) {
	c := Change{Kind: changeSubIDs, User: "hashi", After: "165536-231071"}
	for text, free := range map[string]bool{
		"":                                     true,
		"alice:100000:65536\n":                 true,
		"alice:231072:65536\n":                 true,
		"hashi:165536:65536\n":                 true, // its own, of a try that was cut off
		"alice:165536:65536\n":                 false,
		"# more\nalice:231071:1\n":             false,
		"alice:100000:65536\nbob:100000:65537": false,
	} {
		path := filepath.Join(t.TempDir(), "subuid")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.free(path); (err == nil) != free {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := c.free(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Error(err)
	}
	if err := (Change{After: "many"}).free(os.DevNull); err == nil {
		t.Error("no range was taken for one")
	}
}

// TestLikeOther: who is missing in one of the two files gets there what the other
// has, unless somebody has that.
func TestLikeOther(t *testing.T) {
	t.Parallel()
	other := []podman.IDRange{{Start: 100000, Count: 65536}}
	for want, taken := range map[string][]idRange{
		"100000-165535": {{"bob", 165536, 65536}},
		"300000-365535": {{"bob", 165535, 1}},
	} {
		if got := likeOther(other, taken, "300000-365535"); got != want {
			t.Errorf("%v: %s, want %s", taken, got, want)
		}
	}
}

// TestCgroupMends: systemd cannot delegate what it has not got.
func TestCgroupMends(t *testing.T) {
	t.Parallel()
	if m := cgroupMends([]string{"cpu", "pids"}, []string{"memory"}); len(m) != 1 || !strings.Contains(m[0], "kernel's command line") {
		t.Error(m)
	}
	if m := strings.Join(cgroupMends([]string{"cpu", "memory", "pids"}, []string{"memory"}), " "); !strings.Contains(m, "Delegate=cpu cpuset io memory pids") {
		t.Error(m)
	}
}
