package integration

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// kinds makes a container of each kind, in a store that has the images. What
// runs ends at once when it is told to, and writes only when it first starts.
const kinds = `
cd
wait='trap "exit 0" TERM; while :; do /bin/busybox sleep 0.2; done'
run() { podman run -d --log-driver k8s-file "$@" >/dev/null </dev/null; }
b=localhost/lab/base:1
printf 'FROM localhost/lab/base:1\nSTOPSIGNAL SIGKILL\nCMD ["/bin/busybox", "sleep", "100000"]\n' >/tmp/Pause
podman build -q --network=none -t localhost/lab/pause:1 -f /tmp/Pause /tmp >/dev/null
podman network create knet >/dev/null
run --name running -v vol1:/v --label for=lab --secret sec1 $b /bin/busybox sh -c "test -e /f || { echo written >/f; rm -r /home; echo line one; }; $wait"
podman create --name ended --log-driver k8s-file $b /bin/busybox sh -c 'echo to the log; mkdir -m 700 /made; echo x >/made/file; exit 3' >/dev/null
podman start -a ended >/dev/null </dev/null || true
podman create --name new $b /bin/busybox sleep 7 >/dev/null
run --name always --restart=always --network knet $b /bin/busybox sh -c "$wait"
mkdir -p ~/bind; echo b >~/bind/b
podman create --name mapped $MAPPED -v ~/bind:/b -v /anonymous $b /bin/busybox sh -c "test -e /k || echo k >/k; $wait" >/dev/null
$START mapped >/dev/null
run --name healthy --health-cmd '/bin/busybox true' --health-interval 30s $b /bin/busybox sh -c "$wait"
run --name needy --requires running --network container:running $b /bin/busybox sh -c "$wait"
podman pod create --name pod1 --infra-image localhost/lab/pause:1 --infra-command "/bin/busybox sleep 100000" >/dev/null
run --pod pod1 --name inpod $b /bin/busybox sh -c "$wait"
podman create --pod pod1 --name inpodidle $b /bin/busybox sh -c "$wait" >/dev/null
sleep 1
`

func containerKinds() []string {
	return []string{"running", "ended", "new", "always", "mapped", "healthy", "needy", "inpod", "inpodidle", "stopped"}
}

// containers lists what podman says of each container, and its files, without
// what another driver and another start must change.
func (w *world) containers() inventory {
	w.t.Helper()
	inv := inventory{}
	var list []map[string]any
	if err := json.Unmarshal([]byte(w.script(w.user, `cd; podman inspect $(podman ps -aq)`)), &list); err != nil {
		w.t.Fatal(err)
	}
	for _, c := range list {
		name := fmt.Sprint(c["Name"])
		delete(c, "GraphDriver")
		delete(c, "Driver")
		state, _ := c["State"].(map[string]any)
		for _, k := range []string{"ConmonPid", "Pid", "StartedAt", "FinishedAt", "Health", "Healthcheck", "CgroupPath"} {
			delete(state, k)
		}
		net, _ := c["NetworkSettings"].(map[string]any)
		delete(net, "SandboxKey")
		lease(net)
		nets, _ := net["Networks"].(map[string]any)
		for _, n := range nets {
			if m, ok := n.(map[string]any); ok {
				lease(m)
			}
		}
		inv.flatten("inspect "+name, c)
	}
	out := w.script(w.user, `
cat >/tmp/look.sh <<'EOF'
all="`+strings.Join(containerKinds(), " ")+`"
podman mount $all >/dev/null
for c in $all; do
	echo "=== files $c"; /usr/local/lib/storagectl/labtree $(podman mount $c)
	echo "=== diff $c"; podman diff $c | sort
done
podman umount $all >/dev/null
for c in running ended; do
	echo "=== log $c"; podman logs $c 2>&1
	echo "=== export $c"; podman export $c | tar -tv --numeric-owner --full-time | sort -k6 | sha256sum
done
EOF
cd; test $(id -u) = 0 && exec bash -euo pipefail /tmp/look.sh; exec podman unshare bash -euo pipefail /tmp/look.sh`)
	part := ""
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(line, "=== "); ok {
			part = strings.TrimSpace(name)
			continue
		}
		var f [3]string
		if strings.HasPrefix(part, "files ") && json.Unmarshal([]byte(line), &f) == nil {
			inv[part+" "+f[1]] = f[2]
			continue
		}
		inv[part] += line
	}
	return inv
}

// flatten adds each value of a JSON document by its path. Podman's folders of a
// container are named after the driver.
func (inv inventory) flatten(path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			inv.flatten(path+"."+k, e)
		}
	case []any:
		for i, e := range v {
			inv.flatten(fmt.Sprintf("%s[%d]", path, i), e)
		}
	default:
		inv[path] = strings.NewReplacer("/vfs-containers/", "/DRIVER-containers/", "/overlay-containers/", "/DRIVER-containers/").Replace(fmt.Sprint(v))
	}
}

// lease drops what a network gives anew at each start.
func lease(m map[string]any) {
	for _, k := range []string{"IPAddress", "MacAddress", "GlobalIPv6Address"} {
		delete(m, k)
	}
}

// TestContainersLive: containers of every kind are what they were after a
// migration, after a rollback, and after the commit of another migration.
func TestContainersLive(t *testing.T) {
	for _, c := range []struct{ release, user string }{
		{"bookworm", lab.Owner}, {"bookworm", "root"}, {"trixie", lab.Owner}, {"trixie", "root"},
	} {
		t.Run(c.release+"/"+c.user, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.release, c.user, images.Containers)
			w.script("root", "echo nameserver 127.0.0.1 >/etc/resolv.conf")
			mapped := "MAPPED=--userns=keep-id; START='podman start'\n"
			if c.user == "root" { // refused there, see TestMappedRefused
				mapped = "MAPPED=; START='podman start'\n"
			}
			w.script(c.user, mapped+kinds)
			before := w.containers()
			up := w.podman("ps", "--format", "{{.Names}}", "--sort", "names")
			check := func(driver string) {
				t.Helper()
				if d := w.driver(); d != driver {
					t.Fatalf("podman is on %s", d)
				}
				w.same("the containers", before, w.containers())
				if now := w.podman("ps", "--format", "{{.Names}}", "--sort", "names"); now != up {
					t.Errorf("running are %q, were %q", strings.Fields(now), strings.Fields(up))
				}
			}
			w.must(w.migrate()...)
			check("overlay")

			// What they do now is theirs alone: the old store keeps what it had.
			w.script(c.user, `cd; podman exec running /bin/busybox sh -c 'echo later >>/f'`)
			r := w.must("rollback")
			if !strings.Contains(r.stdout+r.stderr, "container running") {
				t.Errorf("the rollback does not say that a container was used: %s", r)
			}
			check("vfs")

			w.must(w.migrate("--commit")...)
			check("overlay")
			if left := w.leftovers("vfs*"); left != "" && !strings.Contains(left, ".storagectl-0001") {
				t.Errorf("left in the store: %s", left)
			}
			w.script(c.user, `
cd
podman exec running /bin/busybox sh -c 'test "$(cat /f)" = written && test ! -e /home && cat /v/file'
podman commit -q running localhost/lab/from-running:1 >/dev/null
podman stop -a >/dev/null
podman pod rm -f pod1 >/dev/null
podman rm needy >/dev/null
podman rm running ended new always mapped healthy stopped >/dev/null
podman rmi localhost/lab/from-running:1 >/dev/null`)
		})
	}
}

// TestContainersRefused: what would not come back is refused by name.
func TestContainersRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	for _, c := range []struct {
		name, id, make, lift string
		with                 []string
	}{
		{name: "rootless", id: "checkpoint", make: "podman run -d --name frozen --network=none localhost/lab/base:1 /bin/busybox sleep 1000", lift: "podman rm -f -t0 frozen", with: []string{"--containers", "checkpoint"}},
		{name: "goes", id: "auto-remove", make: "podman run -d --rm --name goes --network=none localhost/lab/base:1 /bin/busybox sleep 1000", lift: "podman stop -t0 goes"},
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
systemctl --user start web.service; sleep 1; podman exec unit /bin/busybox true`)
			state := func() string {
				return w.script(w.user, `cd; systemctl --user is-active web.service; podman ps --sort names --format '{{.Names}}'; podman exec unit /bin/busybox cat /v/file`)
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
				w.script(w.user, `grep -q '^PIDFile=.*/overlay-containers/' ~/.config/systemd/user/container-idle.service
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
