package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestContainersRefused: what would not come back is refused by name.
func TestContainersRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	for _, c := range []struct {
		name, id, make, lift string
		with                 []string
	}{
		{name: "rootless", id: "checkpoint", make: "podman run -d --name frozen --network=none localhost/lab/base:1 /bin/busybox sleep 1000", lift: "podman rm -f -t0 frozen", with: []string{"--containers", "checkpoint"}},
		{name: "goes", id: "auto-remove", make: "podman run -d --rm --name goes --network=none localhost/lab/base:1 /bin/busybox sleep 1000", lift: "podman stop -t0 goes; while podman container exists goes; do sleep 0.1; done"},
		{name: "holds", id: "paused", make: "podman run -d --name holds --network=none localhost/lab/base:1 /bin/busybox sleep 1000; podman pause holds", lift: "podman unpause holds; podman rm -f -t0 holds"},
	} {
		w.script(w.user, "cd; "+c.make)
		before := w.untouched()
		r := w.ctl(w.migrate(append(c.with, "--json")...)...)
		w.same("the machine after a refusal", before, w.untouched())
		said := slices.ContainsFunc(jsonLines(t, r.stdout+r.stderr), func(m map[string]any) bool {
			return strings.Contains(fmt.Sprint(m), c.id) && strings.Contains(fmt.Sprint(m), c.name)
		})
		if r.code != exitRefused || !said {
			t.Errorf("not a refusal %q that names %s: %s", c.id, c.name, r)
		}
		w.script(w.user, "cd; "+c.lift)
	}
	w.must(w.migrate()...)
}

// TestMappedRefused: ids that podman maps at mount must not be mapped twice.
func TestMappedRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", "root", images.Small)
	w.podman("create", "--name", "mapped", "--uidmap=0:100000:5000", "--gidmap=0:200000:5000", "localhost/lab/base:1", "/bin/busybox", "true")
	w.script("root", "echo containers:300000:65536 | tee -a /etc/subuid >>/etc/subgid")
	w.podman("create", "--name", "auto", "--userns=auto:size=2000", "localhost/lab/base:1", "/bin/busybox", "true")
	w.podman("info") // each podman command gives the driver's folder the owner that it needs
	before := w.untouched()
	r := w.ctl(w.migrate()...)
	w.same("the machine after a refusal", before, w.untouched())
	if r.code != exitRefused || !strings.Contains(r.stderr, "mapped") || !strings.Contains(r.stderr, "auto") {
		t.Errorf("not a refusal that names the containers: %s", r)
	}

	// Nor does a container go on with its memory where CRIU is not.
	before = w.untouched()
	r = w.ctl(w.migrate("--containers", "checkpoint")...)
	w.same("the machine after a refusal", before, w.untouched())
	if r.code != exitRefused || !strings.Contains(r.stderr, "no criu") || !strings.Contains(r.stderr, "crun") {
		t.Errorf("not a refusal that says what is missing: %s", r)
	}
}

// TestContainersOfUnits: what a unit runs is stopped and started by its unit,
// whether the unit keeps its container or makes it anew.
func TestContainersOfUnits(t *testing.T) {
	// The service is active before podman has started its container.
	const up = `for _ in $(seq 600); do podman exec unit /bin/busybox true 2>/dev/null && break; sleep 0.1; done; `
	for release, make := range map[string]string{
		"bookworm": `
podman create --name unit $image >/dev/null
cat >$units/web.service <<-EOF
	[Service]
	ExecStart=/usr/bin/podman start -a unit
	ExecStop=/usr/bin/podman stop unit
EOF
# As podman writes it, with the pid's path and the driver in that. It does not run: a
# rootless podman of the lab leaves the control group of its unit.
podman create --name idle $image >/dev/null
(cd $units && podman generate systemd --files --name idle >/dev/null)
# And somebody's drop-in, which says the same and has the last word.
mkdir $units/container-idle.service.d
(echo [Service]; grep ^PIDFile= $units/container-idle.service) >$units/container-idle.service.d/pid.conf
systemctl --user daemon-reload`,
		"trixie": `
systemctl --user mask podman-user-wait-network-online.service # a lab node never is online
mkdir -p ~/.config/containers/systemd
cat >~/.config/containers/systemd/web.container <<-EOF
	[Container]
	Image=localhost/lab/base:1
	ContainerName=unit
	Network=none
	Volume=vol1:/v
	Exec=/bin/busybox sh -c 'trap "exit 0" TERM; while :; do /bin/busybox sleep 0.2; done'
EOF
systemctl --user daemon-reload`,
	} {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, release, lab.Owner, images.Small)
			w.script(w.user, `
cd; units=~/.config/systemd/user; mkdir -p $units
`+strings.ReplaceAll(make, "$image", `--network=none -v vol1:/v localhost/lab/base:1 /bin/busybox sh -c 'trap "exit 0" TERM; while :; do /bin/busybox sleep 0.2; done'`)+`
systemctl --user start web.service
`+up)
			state := func() string {
				return w.script(w.user, `cd
`+up+`systemctl --user is-active web.service; podman ps --sort names --format '{{.Names}}'; podman exec unit /bin/busybox cat /v/file`)
			}
			before := state()
			units := w.unitFiles(lab.Home + "/.config/systemd/user")
			w.must(w.migrate()...)
			if d := w.driver(); d != "overlay" {
				t.Fatalf("podman is on %s", d)
			}
			if now := state(); now != before {
				t.Errorf("the unit was\n%s\nand is\n%s", before, now)
			}
			if release == "bookworm" {
				w.script(w.user, `grep -q '^PIDFile=.*/overlay-containers/' ~/.config/systemd/user/container-idle.service ~/.config/systemd/user/container-idle.service.d/pid.conf
! grep -r '^PIDFile=.*/vfs-containers/' ~/.config/systemd/user
systemctl --user show --property=PIDFile container-idle.service | grep -q /overlay-containers/`)
			}
			w.must("rollback")
			if now := w.unitFiles(lab.Home + "/.config/systemd/user"); now != units {
				t.Errorf("the unit files were\n%s\nand are after a rollback\n%s", units, now)
			}
			if now := state(); now != before || w.driver() != "vfs" {
				t.Errorf("after a rollback the unit is\n%s\non %s", now, w.driver())
			}
		})
	}
}
