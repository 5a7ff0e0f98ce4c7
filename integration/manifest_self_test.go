package integration

import (
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestManifest proves that the judge can see: what it reads of an unchanged
// store is the same twice, and a single changed byte, mode or name shows.
func TestManifest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	before := w.manifest()
	tree := w.store()
	if len(before) < 100 {
		t.Fatalf("the manifest has only %d entries", len(before))
	}
	w.same("an unchanged store", before, w.manifest())
	w.same("an unchanged graphroot", tree, w.store())
	for name, change := range map[string]string{
		"a byte":   `find vfs/dir -path '*/data/keep' | while read -r f; do printf kept >"$f"; done`,
		"a mode":   `find vfs/dir -path '*/modes/closed' -exec chmod 0701 {} +`,
		"a volume": `echo more >>volumes/vol1/_data/file`,
		"a name":   `podman tag localhost/lab/base:1 localhost/lab/other:1`,
	} {
		w.script(w.user, "cd "+w.graphroot()+"\npodman unshare bash -euc '"+strings.ReplaceAll(change, "'", `'\''`)+"'")
		now := w.manifest()
		if diff(before, now) == "" {
			t.Errorf("the manifest does not show %s", name)
		}
		before = now
	}
}
