package integration

import (
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestRollbackUnderLater: a migration is not rolled back under a later one, whose store
// and database would go; after that one it is.
func TestRollbackUnderLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	before := w.manifest()
	w.must(w.migrate()...)
	w.script(w.user, `podman create -q --name between --network none localhost/lab/base:1 /bin/busybox true
podman commit -q between localhost/between:1`)
	between := w.manifest()
	w.must("migrate", "--to", "vfs", "--user", w.user, "--yes")
	w.isOn("vfs", between)

	w.refused("later-run", "rollback", "1")
	w.isOn("vfs", between)
	w.must("rollback")
	w.isOn("overlay", between)
	w.must("rollback", "1")
	w.isOn("vfs", before)
}
