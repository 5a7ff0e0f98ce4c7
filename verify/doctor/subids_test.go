package doctor

import (
	"os"
	"path/filepath"
	"testing"
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
