package migrate

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
)

// Only a run that is not known may be taken for nobody's; one that cannot be read is
// no committed one.
func TestCommitted(t *testing.T) {
	d := engine.Dir{Path: t.TempDir()}
	in := Inputs{Request: Request{Relocate: &Relocation{}}, Store: Store{GraphRoot: "/srv/store"}, Target: &Target{}}
	id, finish := begun(t, d, in)
	finish()
	for run, want := range map[string]bool{"": true, "0007-relocate-beef": true, id: false} {
		if done, err := committed(d, run); err != nil || done != want {
			t.Errorf("%q: %v %v", run, done, err)
		}
	}
	if err := os.WriteFile(filepath.Join(d.RunPath(id), "journal"), []byte("{}\nx\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if done, err := committed(d, id); err == nil {
		t.Errorf("damaged: %v", done)
	}
}

func TestOwnerOf(t *testing.T) {
	dir, err := host.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if uid, err := ownerOf(dir); err != nil || uid != uint32(os.Getuid()) {
		t.Errorf("%d %v", uid, err)
	}
}
