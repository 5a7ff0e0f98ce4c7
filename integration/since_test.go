package integration

import (
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestRollbackStartsWhatWasBegunSince: a unit that was begun after the migration
// runs again after a rollback, if the old store has what it needs; one that
// cannot is named, and the rollback is done all the same.
func TestRollbackStartsWhatWasBegunSince(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.must(w.migrate()...)
	w.script(w.user, `
cd; units=~/.config/systemd/user; mkdir -p $units
podman create --name made --network none localhost/lab/base:1 /bin/busybox true
podman commit -q made localhost/since:1; podman rm made
for u in later:localhost/lab/base:1 lost:localhost/since:1; do
	n=${u%%:*}
	cat >$units/$n.service <<-EOF
		[Service]
		Environment=PODMAN_SYSTEMD_UNIT=%n
		Type=notify
		NotifyAccess=all
		ExecStart=/usr/bin/podman run --rm --replace --pull=never --sdnotify=conmon --name $n --label PODMAN_SYSTEMD_UNIT --network none ${u#*:} /bin/busybox sleep 1000
		ExecStop=/usr/bin/podman stop -t 0 $n
	EOF
done
systemctl --user daemon-reload
systemctl --user start later.service lost.service`)
	r := w.must("rollback")
	if d := w.driver(); d != "vfs" {
		t.Errorf("podman is on %s", d)
	}
	state := w.script(w.user, "systemctl --user is-active podman.socket later.service || true; podman ps --format '{{.Names}}'")
	if state != "active\nactive\nlater\n" {
		t.Errorf("after the rollback: %q", state)
	}
	if !strings.Contains(r.stderr, `unit "lost.service" was begun after the migration and does not start on the old store`) || strings.Contains(r.stderr, `"later.service"`) {
		t.Errorf("what does not run again is not told: %s", r)
	}
}
