package integration

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // database/sql's driver for podman's database

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestContainersAtBoot: what a boot would start and nobody wants to run stays off,
// units that look for their pid by the driver's name find it, the init containers of a pod run before its others, in the order of before, and
// a network of CNI's gives the same address, on podman 4.3.1 as root.
func TestContainersAtBoot(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, "root", images.Small, lab.Options{Release: "bookworm", Binds: []string{"/usr/lib/cni"}})
	w.script("root", `
mount -o remount,bind,ro /usr/lib/cni
echo nameserver 127.0.0.1 >/etc/resolv.conf
printf '[network]\nnetwork_backend = "cni"\n' >>/etc/containers/containers.conf
systemctl unmask podman-restart.service; systemctl daemon-reload
test "$(podman info --format '{{.Host.NetworkBackend}}')" = cni
cd; b=localhost/lab/base:1; wait='trap "exit 0" TERM; while :; do /bin/busybox sleep 0.2; done'
podman network create --disable-dns --subnet 10.99.0.0/24 cninet >/dev/null
run() { podman run -d "$@" >/dev/null </dev/null; }
run --name always --restart=always --network cninet --ip 10.99.0.9 $b /bin/busybox sh -c "$wait"
run --name off --restart=always --network=none $b /bin/busybox sh -c "$wait"
printf 'FROM localhost/lab/base:1\nSTOPSIGNAL SIGKILL\nCMD ["/bin/busybox", "sleep", "100000"]\n' >/tmp/Pause
podman build -q --network=none -t localhost/lab/pause:1 -f /tmp/Pause /tmp >/dev/null
podman pod create --name pod1 --network cninet --infra-image localhost/lab/pause:1 --infra-command "/bin/busybox sleep 100000" >/dev/null
podman create --pod pod1 --init-ctr=always --name first -v shared:/s $b /bin/busybox sh -c 'echo ran >>/s/order' >/dev/null
podman create --pod pod1 --name second -v shared:/s $b /bin/busybox sh -c "echo second >>/s/order; $wait" >/dev/null
podman pod start pod1 >/dev/null </dev/null
podman create --pod pod1 --name idle $b /bin/busybox sh -c "$wait" >/dev/null
systemctl start podman-restart.service
podman stop off >/dev/null
# Units as podman writes them, with the pid's path and the driver in that.
for c in kept spare; do
	podman create --name $c --network=none $b /bin/busybox sh -c "$wait" >/dev/null
	(cd /etc/systemd/system && podman generate systemd --files --name $c >/dev/null)
	grep -q '^PIDFile=.*/vfs-containers/' /etc/systemd/system/container-$c.service
done
systemctl daemon-reload; systemctl start container-kept.service`)
	state := func() string {
		return w.script("root", `
systemctl is-active podman-restart.service container-kept.service
systemctl is-active container-spare.service || true
podman ps -a --format json | jq -r '.[] | "\(.Names[0]) \(.Id) \(.Pod) \(.Networks) \(.State | sub("stopped"; "exited"))"' | sort
podman inspect --format '{{(index .NetworkSettings.Networks "cninet").IPAddress}}' always
podman exec always /bin/busybox ip -4 -o addr show dev eth0 | grep -o '10[.0-9]*/24'
podman network inspect cninet`)
	}
	order := func(starts int) string { // "second" writes after podman has started it
		return strings.TrimSpace(w.script("root", fmt.Sprintf(`f=$(podman volume inspect --format '{{.Mountpoint}}' shared)/order
for _ in $(seq 300); do test $(wc -l <$f) -lt %d || break; sleep 0.1; done; cat $f`, 2*starts)))
	}
	files := w.unitFiles("/etc/systemd/system")
	before, ran := state(), strings.TrimSpace(strings.Repeat("ran\nsecond\n", 1))
	check := func(driver string, starts int) {
		t.Helper()
		if now := state(); now != before || w.driver() != driver {
			t.Errorf("it was\n%s\nand is on %s\n%s", before, w.driver(), now)
		}
		if want, got := strings.TrimSpace(strings.Repeat(ran+"\n", starts)), order(starts); got != want {
			t.Errorf("the pod's containers wrote %q in this order, not %q", got, want)
		}
	}
	check("vfs", 1)
	if r := w.exec("root", append([]string{"env", "STORAGECTL_SWEEP_KILL_AT=after-unit-files", "storagectl-sweep"}, w.migrate()...)...); r.code != -1 {
		t.Fatalf("not killed: %s", r)
	}
	w.must("resume")
	check("overlay", 2)
	if r := w.must(w.migrate()...); !strings.Contains(r.stdout, "already") {
		t.Errorf("a store on overlay, in use, is not let be: %s", r)
	}
	w.script("root", "systemctl restart container-kept.service; systemctl start container-spare.service; systemctl stop container-spare.service")
	w.must("rollback")
	check("vfs", 3)
	if now := w.unitFiles("/etc/systemd/system"); now != files {
		t.Errorf("the unit files were\n%s\nand are after a rollback\n%s", files, now)
	}
}

// unitFiles lists the units' files in a folder, and their drop-ins, but for their times.
func (w *world) unitFiles(dir string) string {
	w.t.Helper()
	return w.script("root", "cd "+dir+"; for f in *.service *.service.d/*.conf; do test -e $f || continue; stat -c '%n %A %u %g' $f; sha256sum <$f; done")
}

// TestDatabasesRefused: two databases that both hold something, and one of a form
// that is not known, stop a run before anything is changed.
func TestDatabasesRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "trixie", lab.Owner, images.Small)
	refused := func(words ...string) {
		t.Helper()
		before := w.untouched()
		r := w.ctl(w.migrate("--json")...)
		w.same("the machine after a refusal", before, w.untouched())
		said := slices.ContainsFunc(jsonLines(t, r.stdout+r.stderr), func(m map[string]any) bool {
			text := fmt.Sprint(m["error"])
			return m["id"] == "database" && !slices.ContainsFunc(words, func(s string) bool { return !strings.Contains(text, s) })
		})
		if r.code != exitRefused || !said {
			t.Errorf("not a refusal with %q: %s", words, r)
		}
	}
	w.script(w.user, "cd; CI_DESIRED_DATABASE=boltdb podman --db-backend=boltdb volume create inbolt")
	refused("db.sql", "bolt_state.db")
	w.script(w.user, "rm "+w.graphroot()+"/libpod/bolt_state.db")

	db, err := sql.Open("sqlite", filepath.Join(w.node.Data(), lab.GraphRoot, "db.sql"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	alter := func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(w.ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	alter("CREATE TABLE FromTheFuture (ID TEXT)")
	refused("podman 5.4.2", "FromTheFuture")
	alter("DROP TABLE FromTheFuture")
	w.must(w.migrate()...)
}
