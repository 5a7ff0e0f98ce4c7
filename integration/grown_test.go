package integration

import (
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestRollbackLearnsMore: at a rollback more containers run than when podman was
// first stopped, one of the old ones was used, and an image was made.
func TestRollbackLearnsMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.script(w.user, `for n in used ran; do
	podman create --name $n --network none localhost/lab/base:1 /bin/busybox sh -c 'trap "exit 0" TERM; echo x >/y; while :; do /bin/busybox sleep 0.2; done'
done; podman start ran`)
	w.must(w.migrate()...)
	w.script(w.user, `podman start used; sleep 1; podman commit -q used localhost/since:1`)
	r := w.must("rollback")
	if d := w.driver(); d != "vfs" {
		t.Errorf("podman is on %s", d)
	}
	if !strings.Contains(r.stdout, "image localhost/since:1") || !strings.Contains(r.stdout, "container used (its files and log)") {
		t.Errorf("not all is told: %s", r)
	}
	if got := w.script(w.user, "podman ps --format '{{.Names}}' | sort"); got != "ran\nused\n" {
		t.Errorf("containers that run: %q", got)
	}
}
