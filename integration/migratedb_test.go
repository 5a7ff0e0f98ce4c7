package integration

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestMigrateDB: podman's database goes from BoltDB to SQLite with all that is in
// it, and back; with the conversion of the store and alone; killed in the middle;
// and is refused where podman cannot do it. Only forky's podman can, so that needs
// its packages and is part of make matrix. They run in a root of their own on a node
// of another release, without systemd.
func TestMigrateDB(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, "bookworm", lab.Owner, images.Small)
		before := w.untouched()
		r := w.ctl(w.migrate("--migrate-db")...)
		w.same("the machine after a refusal", before, w.untouched())
		if r.code != exitRefused || !strings.Contains(r.stderr, "podman 4.3.1") || !strings.Contains(r.stderr, "5.8") {
			t.Errorf("not a refusal that says which podman can: %s", r)
		}
	})
	if os.Getenv("STORAGECTL_MATRIX") == "full" {
		t.Run("forky", func(t *testing.T) {
			t.Parallel()
			newForkyRoot(t).moveDatabase()
		})
	}
}

// forkyRoot is a node with the root of another release in it, for which init holds
// a mount namespace.
type forkyRoot struct {
	*world
	init string
}

func newForkyRoot(t *testing.T) forkyRoot {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	base, err := lab.Base(ctx, "forky")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorldWith(t, "root", images.Small, lab.Options{Release: "bookworm", Binds: []string{base + ":/mnt/forky"}})
	w.script("root", `
mount -o remount,bind,ro /mnt/forky
d=/var/lib/containers/forky; mkdir -p $d/up $d/work $d/containers $d/state /forky
mount -t overlay forky -o lowerdir=/mnt/forky,upperdir=$d/up,workdir=$d/work /forky
for m in proc sys dev; do mount --rbind /$m /forky/$m; done
mount -t tmpfs run /forky/run
mount --bind $d/containers /forky/var/lib/containers
mount --bind $d/state /forky/var/lib/storagectl
mount --rbind /usr/local/lib/storagectl /forky/usr/local/lib/storagectl
mkdir -p /forky/was
systemd-run --quiet --unit=forky unshare --mount --propagation private sh -euc 'cd /forky; pivot_root . was; umount -l /was; mount --make-rshared /; touch /run/ready; exec sleep infinity'
until test -e /proc/$(systemctl show --property=MainPID --value forky)/root/run/ready; do sleep 0.1; done`)
	return forkyRoot{w, strings.TrimSpace(w.script("root", "systemctl show --property=MainPID --value forky"))}
}

func (f forkyRoot) in(script string) string {
	f.t.Helper()
	return f.script("root", "nsenter -t "+f.init+" -m bash -euo pipefail -s <<'END'\ncd; export SUPPRESS_BOLTDB_WARNING=1\n"+script+"\nEND")
}

func (f forkyRoot) run(argv ...string) result {
	f.t.Helper()
	return f.exec("root", append([]string{"nsenter", "-t", f.init, "-m", "env"}, argv...)...)
}

func (f forkyRoot) must(args ...string) {
	f.t.Helper()
	if r := f.run(append([]string{"storagectl"}, args...)...); r.code != exitDone {
		f.t.Fatalf("storagectl %s: %s", strings.Join(args, " "), r)
	}
}

func (f forkyRoot) moveDatabase() {
	t := f.t
	// A database of the old kind is an older podman's; this one makes it if told so.
	f.in(`CI_DESIRED_DATABASE=boltdb podman --db-backend=boltdb volume create kept >/dev/null
mkdir -p ~/c; cp /bin/busybox ~/c/busybox; printf 'FROM scratch\nCOPY busybox /bin/busybox\n' >~/c/Dockerfile
podman build -q --network=none -t localhost/lab/base:1 ~/c >/dev/null
wait='trap "exit 0" TERM; while :; do /bin/busybox sleep 0.2; done'
podman run -d --name runs --network=none -v kept:/v localhost/lab/base:1 /bin/busybox sh -c "echo in >/v/file; $wait" >/dev/null </dev/null
podman create --name needs --requires runs --network=none localhost/lab/base:1 /bin/busybox true >/dev/null
podman pod create --name pod1 --infra=false >/dev/null
podman create --pod pod1 --network=none --name inpod localhost/lab/base:1 /bin/busybox true >/dev/null`)
	state := func() string {
		return f.in(`podman ps -a --sort names --format '{{.Names}} {{.ID}} {{.Pod}} {{.State}}'; podman pod ps -q; podman volume ls -q; podman exec runs /bin/busybox cat /v/file
podman inspect --format '{{.Dependencies}} {{.HostConfig.RestartPolicy.Name}} {{.Config.Cmd}}' needs runs inpod`)
	}
	before := state()
	const bolt, lite = "boltdb\nlibpod/bolt_state.db\n", "sqlite\ndb.sql\n"
	check := func(what, driver, db string) {
		t.Helper()
		if now := state(); now != before {
			t.Errorf("%s: it was\n%s\nand is\n%s", what, before, now)
		}
		if now, want := f.in(`podman info --format '{{.Store.GraphDriverName}}'; podman info --format '{{.Host.DatabaseBackend}}'
cd /var/lib/containers/storage; ls db.sql libpod/bolt_state.db* 2>/dev/null || true`), driver+"\n"+db; now != want {
			t.Errorf("%s: driver and database are %q, not %q", what, now, want)
		}
	}
	migrate := []string{"migrate", "--to", "overlay", "--yes"}
	both := append(migrate, "--migrate-db")
	check("at first", "vfs", bolt)
	// What is made while a run is cut off is on record somewhere, or told and kept.
	used := func(at string) string {
		if r := f.run(append([]string{"STORAGECTL_SWEEP_KILL_AT=" + at, "storagectl-sweep"}, both...)...); r.code != -1 {
			t.Fatalf("not killed at %s: %s", at, r)
		}
		f.in("podman volume create since >/dev/null")
		r := f.run("storagectl", "rollback")
		if r.code != exitDone {
			t.Fatalf("rollback: %s", r)
		}
		return r.stdout + r.stderr
	}
	used("move-db")
	f.in("podman volume rm since >/dev/null")
	check("used before the database was moved, rolled back", "vfs", bolt)
	if said := used("after-move-db"); !strings.Contains(said, "volume since") {
		t.Errorf("nothing is told of the volume: %s", said)
	}
	f.in("cd /var/lib/containers/storage; ls .storagectl-*/db/since/db.sql; rm -r .storagectl-*")
	check("used after the database was moved, rolled back", "vfs", bolt)
	// What was made before podman moved its database comes back with it.
	if r := f.run(append([]string{"STORAGECTL_SWEEP_KILL_AT=move-db", "storagectl-sweep"}, both...)...); r.code != -1 {
		t.Fatalf("not killed: %s", r)
	}
	f.in("podman volume create since >/dev/null")
	f.must("resume")
	f.must("rollback")
	// Its manifest is of before that, so that the rollback keeps what it knows of it, too.
	f.in("podman volume rm since >/dev/null; cd /var/lib/containers/storage; rm -r .storagectl-*")
	check("used, resumed and rolled back", "vfs", bolt)
	f.must(both...)
	check("both", "overlay", lite)
	f.must("rollback")
	check("both, rolled back", "vfs", bolt)
	f.must(append(migrate, "--commit")...)
	check("the store alone", "overlay", bolt)
	f.must(both...)
	check("the database alone", "overlay", lite)
	f.must("rollback")
	check("the database, rolled back", "overlay", bolt)

	for _, at := range []string{"move-db", "after-move-db"} {
		if r := f.run(append([]string{"STORAGECTL_SWEEP_KILL_AT=" + at, "storagectl-sweep"}, both...)...); r.code != -1 {
			t.Fatalf("not killed at %s: %s", at, r)
		}
		if at == "move-db" { // podman was, too, and left a database with nothing in it
			f.in("podman --db-backend=sqlite info >/dev/null")
		}
		f.must("resume")
		check("killed at "+at+", resumed", "overlay", lite)
		if r := f.run("STORAGECTL_SWEEP_KILL_AT=between-dbs", "storagectl-sweep", "rollback"); r.code != -1 {
			t.Fatalf("not killed: %s", r)
		}
		f.must("resume")
		check("killed on the way back, resumed", "overlay", bolt)
		if r := f.run(append([]string{"STORAGECTL_SWEEP_KILL_AT=" + at, "storagectl-sweep"}, both...)...); r.code != -1 {
			t.Fatalf("not killed at %s: %s", at, r)
		}
		f.must("rollback")
		check("killed at "+at+", rolled back", "overlay", bolt)
	}
	f.must(append(both, "--commit")...)
	check("the database, for good", "overlay", lite)
	if left := f.in("cd /var/lib/containers/storage; find . -maxdepth 2 -name '.storagectl*' -o -name '*-old'"); left != "" {
		t.Errorf("left in the store: %s", left)
	}
}
