package integration

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/integration/lab"
)

// A kind is one way in which people have containers.
type kind struct {
	name string
	has  []string // its containers and pods
	make string   // shell, after prelude; where it fails, the kind cannot be had here
	ask  string   // shell whose output must stay
	unit string   // service that runs the container
	anew bool     // the unit makes the container anew at each start
	// Releases, owners or "release/owner" where it is known that the lab cannot have
	// it, or that it is refused. Anywhere else that fails the test.
	not []string
}

// kinds are made in this order: --userns auto takes ids that no other container has,
// and the next two take all. What has ids of its own has no network in the lab, where
// it could not mount /sys in one that podman makes. What runs ends at once when it is told to, and
// writes only when it first starts.
func kinds() []kind {
	return []kind{
		{name: "running", has: []string{"running"},
			make: `run --name running -v vol1:/v --label for=lab $b /bin/busybox sh -c "test -e /f || { rm -r /home; echo line one; echo written >/f; }; $wait"
soon podman exec running /bin/busybox test -e /f`,
			ask: `podman exec running /bin/busybox cat /f /v/file`},
		{name: "exited", has: []string{"ended", "stopped"}, // the second is in some seeds
			make: `podman create --name ended --log-driver k8s-file $b /bin/busybox sh -c 'echo to the log; mkdir -m 700 /made; echo x >/made/file; exit 3' >/dev/null
podman start -a ended >/dev/null || test $? = 3`},
		{name: "created", has: []string{"unstarted"},
			make: `podman create --name unstarted $b /bin/busybox sleep 7 >/dev/null`},
		{name: "restart=always", has: []string{"always"},
			make: `run --name always --restart=always $b /bin/busybox sh -c "$wait"`},
		{name: "named, anonymous and bind volumes", has: []string{"volumes"},
			make: `mkdir -p ~/bind; echo b >~/bind/b
run --name volumes -v vol1:/v -v /anonymous -v ~/bind:/b $b /bin/busybox sh -c "test -e /anonymous/a || echo a >/anonymous/a; $wait"
soon podman exec volumes /bin/busybox test -e /anonymous/a`,
			ask: `podman exec volumes /bin/busybox cat /v/file /anonymous/a /b/b`},
		{name: "a secret", has: []string{"secretive"},
			not:  []string{"bullseye"}, // no --secret yet
			make: `run --name secretive --secret sec1 $b /bin/busybox sh -c "$wait"`,
			ask:  `podman exec secretive /bin/busybox cat /run/secrets/sec1`},
		{name: "a network of its own", has: []string{"networked"},
			make: `podman network create knet >/dev/null
run --name networked --network knet $b /bin/busybox sh -c "$wait"`,
			ask: `podman exec networked /bin/busybox ip -o link | cut -d: -f2 | cut -d@ -f1 | sort`},
		{name: "a health check", has: []string{"healthy"},
			make: `run --name healthy --health-cmd '/bin/busybox true' --health-interval 30s $b /bin/busybox sh -c "$wait"`,
			// The attach of podman 3.0 is now and then reset.
			ask: `for i in 1 2 3; do if podman healthcheck run healthy >/dev/null 2>&1; then echo passes; break; fi; done`},
		{name: "depends on another (`--requires`)", has: []string{"needy"},
			not:  []string{"bullseye"}, // no --requires yet
			make: `run --name needy --requires running $b /bin/busybox sh -c "$wait"`},
		{name: "in another's network (`--network container:`)", has: []string{"joined"},
			make: `run --name joined --network container:running $b /bin/busybox sh -c "$wait"`},
		{name: "in a pod, with infra", has: []string{"pod1", "inpod", "inpodidle"},
			make: `pause
podman pod create --name pod1 --infra-image localhost/lab/pause:1 --infra-command /pause >/dev/null
run --pod pod1 --name inpod $b /bin/busybox sh -c "$wait"
podman create --pod pod1 --name inpodidle $b /bin/busybox sh -c "$wait" >/dev/null`},
		{name: "an init container", has: []string{"pod2", "setup", "inpod2"},
			not: []string{"bullseye"}, // no --init-ctr yet
			make: `pause
podman pod create --name pod2 --infra-image localhost/lab/pause:1 --infra-command /pause >/dev/null
podman create --pod pod2 --init-ctr=always --name setup $b /bin/busybox sh -c 'test -e /set || echo up >/set' >/dev/null
podman create --pod pod2 --name inpod2 $b /bin/busybox sh -c "$wait" >/dev/null
podman pod start pod2 >/dev/null`},
		{name: "`--userns auto`", has: []string{"auto"},
			not: []string{"rootful"}, // refused
			make: `run --name auto --network=none --userns=auto $b /bin/busybox sh -c "test -e /k || echo k >/k; $wait"
soon podman exec auto /bin/busybox test -e /k`,
			ask: `podman exec auto /bin/busybox cat /proc/self/uid_map`},
		{name: "`--userns keep-id`", has: []string{"keeper"},
			not: []string{"rootful"}, // is for rootless podman
			make: `run --name keeper --userns=keep-id -u 0 $b /bin/busybox sh -c "test -e /k || echo k >/k; $wait"
soon podman exec keeper /bin/busybox test -e /k
podman restart keeper >/dev/null # from its second start on podman 4.3 gives it another HOME`,
			ask: `podman exec keeper /bin/busybox cat /proc/self/uid_map`},
		{name: "an id map (`--uidmap`)", has: []string{"idmap"},
			not: []string{"rootful"}, // refused
			make: `run --name idmap --network=none $idmap $b /bin/busybox sh -c "test -e /k || echo k >/k; $wait"
soon podman exec idmap /bin/busybox test -e /k`,
			ask: `podman exec idmap /bin/busybox cat /proc/self/uid_map`},
		{name: "a unit of `podman generate systemd`", has: []string{"generated"}, unit: "container-generated.service",
			not: []string{"rootless", "rootful"},
			make: `podman create --name generated $b /bin/busybox sh -c "$wait" >/dev/null
podman generate systemd --name generated >$units/container-generated.service 2>/dev/null
ctl daemon-reload
up container-generated.service`},
		{name: "the same with `--new`", has: []string{"generatednew"}, unit: "container-generatednew.service", anew: true,
			make: `podman create --name generatednew -v vol1:/v $b /bin/busybox sh -c "$wait" >/dev/null
podman generate systemd --new --name generatednew >$units/container-generatednew.service 2>/dev/null
podman rm generatednew >/dev/null
ctl daemon-reload
up container-generatednew.service`,
			ask: `podman exec generatednew /bin/busybox cat /v/file`},
		{name: "Quadlet", has: []string{"quadlet"}, unit: "quadlet.service", anew: true,
			not: []string{"bullseye", "bookworm"}, // podman has it from 4.4 on
			make: `mkdir -p $quadlets
cat >$quadlets/quadlet.container <<END
[Container]
Image=$b
ContainerName=quadlet
Volume=vol1:/v
Exec=/bin/busybox sh -c '$wait'
END
ctl daemon-reload
up quadlet.service`,
			ask: `podman exec quadlet /bin/busybox cat /v/file`},
	}
}

// prelude is what the scripts of the kinds go by.
const prelude = `
cd
b=localhost/lab/base:1
wait='trap "exit 0" TERM; while :; do /bin/busybox sleep 0.2; done'
run() { podman run -d --log-driver k8s-file "$@" >/dev/null </dev/null; }
soon() { for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; "$@"; }
pause() {
	podman image exists localhost/lab/pause:1 && return
	mkdir -p ~/pause
	printf '#!/bin/busybox sh\nexec /bin/busybox sleep 100000\n' >~/pause/pause
	chmod 755 ~/pause/pause
	printf 'FROM localhost/lab/base:1\nCOPY pause /pause\nSTOPSIGNAL SIGKILL\nCMD ["/pause"]\n' >~/pause/Dockerfile
	podman build -q --network=none -t localhost/lab/pause:1 ~/pause >/dev/null
}
if test "$(id -u)" = 0; then
	# What podman's mapped root must pass vfs makes for root alone (podman#20332).
	chmod 711 /var/lib/containers/storage/vfs /var/lib/containers/storage/vfs/dir 2>/dev/null || true
	idmap='--uidmap=0:300000:5000 --gidmap=0:400000:5000' units=/etc/systemd/system quadlets=/etc/containers/systemd
	ctl() { systemctl "$@"; }
else
	idmap=--uidmap=0:1:5000 units=~/.config/systemd/user quadlets=~/.config/containers/systemd
	ctl() { systemctl --user "$@"; }
fi
mkdir -p $units
up() { ctl start "$1" 2>/dev/null || { sudo journalctl -b -o cat --no-pager 2>&1 | grep -F "$1" | grep -vE 'Scheduled|Starting|Stopped' | head -1; return 1; }; }
`

// readyForKinds gives the node what a machine in use has.
func (w *world) readyForKinds() {
	w.t.Helper()
	w.script("root", `echo nameserver 127.0.0.1 >/etc/resolv.conf
for f in /etc/subuid /etc/subgid; do echo containers:1000000:1000000 >>$f; done # for --userns auto`)
	if w.user != "root" { // a lab node never is online
		w.script(w.user, "systemctl --user mask podman-user-wait-network-online.service 2>/dev/null || true")
	}
}

// makeKinds makes the kinds of some names, or all, and returns those that the
// node can have, and of the others why not.
func (w *world) makeKinds(names ...string) (made []kind, why map[string]string) {
	w.t.Helper()
	w.readyForKinds()
	script := "dir=$(mktemp -d)\ncat >$dir/prelude <<'PRELUDE'\n" + prelude + "PRELUDE\n"
	for i, k := range kinds() {
		if len(names) > 0 && !slices.Contains(names, k.name) {
			continue
		}
		made = append(made, k)
		script += fmt.Sprintf(`cat $dir/prelude - >$dir/kind <<'KIND'
%s
KIND
timeout 300 bash -euo pipefail $dir/kind >$dir/out 2>&1 </dev/null || { echo "=== %d $?"; cat $dir/out; }
`, k.make, i)
	}
	why = map[string]string{}
	for part, said := range parts(w.script(w.user, script)) {
		var i, code int
		if _, err := fmt.Sscan(part, &i, &code); err != nil {
			w.t.Fatalf("cannot read %q: %v", part, err)
		}
		k := kinds()[i]
		if why[k.name] = reason(said); code == 124 {
			why[k.name] = "it is not up after 300 s: " + why[k.name]
		}
		w.forget(k)
		made = slices.DeleteFunc(made, func(m kind) bool { return m.name == k.name })
	}
	return made, why
}

// parts splits what a script printed at its lines that begin with "=== ".
func parts(out string) map[string]string {
	all := map[string]string{}
	part := ""
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(line, "=== "); ok {
			part = strings.TrimSpace(name)
			all[part] = ""
		} else if part != "" {
			all[part] += line
		}
	}
	return all
}

// reason is the last line of what a command said, short.
func reason(said string) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	text := regexp.MustCompile(`[0-9a-f]{12,64}`).ReplaceAllString(lines[len(lines)-1], "…")
	if text = strings.TrimPrefix(text, "Error: "); len(text) > 200 {
		text = text[:200] + " …"
	}
	return text
}

// forget removes what there is of a kind.
func (w *world) forget(k kind) {
	w.t.Helper()
	script := prelude
	if k.unit != "" {
		script += fmt.Sprintf(`ctl stop %[1]s 2>/dev/null || true
rm -f $units/%[1]s $quadlets/%[2]s.container
ctl daemon-reload
ctl reset-failed %[1]s 2>/dev/null || true
`, k.unit, strings.TrimSuffix(k.unit, ".service"))
	}
	for _, name := range k.has {
		script += fmt.Sprintf("if podman pod exists %[1]s; then podman pod rm -f %[1]s; elif podman container exists %[1]s; then podman rm -f %[1]s; fi >/dev/null\n", name)
	}
	w.script(w.user, script)
}

// planOfKinds asks for a plan until there is one, and removes the kinds that a
// refusal names. It returns what is left, of the others the refusal's id, and
// the plan.
func (w *world) planOfKinds(made []kind) (left []kind, refused map[string]string, plan map[string]any) {
	w.t.Helper()
	left, refused = slices.Clone(made), map[string]string{}
	for range made {
		r := w.ctl(w.migrate("--dry-run", "--json")...)
		found := false
		for line := range strings.Lines(r.stdout) {
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				w.t.Fatalf("not a line of JSON: %q: %v", line, err)
			}
			if m["message_type"] == "plan" {
				return left, refused, m
			}
			if m["message_type"] != "error" {
				continue
			}
			if m["id"] == "old-podman" { // the store as a whole
				for _, k := range left {
					refused[k.name] = "old-podman"
				}
				return nil, refused, nil
			}
			for _, k := range slices.Clone(left) {
				if names(fmt.Sprint(m["error"]), append(slices.Clone(k.has), k.unit)) {
					found = true
					refused[k.name] = fmt.Sprint(m["id"])
					w.forget(k)
					left = slices.DeleteFunc(left, func(l kind) bool { return l.name == k.name })
				}
			}
		}
		if !found {
			w.t.Fatalf("neither a plan nor a refusal that names a container: %s", r)
		}
	}
	w.t.Fatal("every kind is refused")
	return nil, nil, nil
}

// names tells whether a text has one of the words.
func names(text string, words []string) bool {
	return slices.ContainsFunc(strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" ,:;()\"", r) }),
		func(w string) bool { return slices.Contains(words, w) })
}

// known tells whether a kind is known not to come through in a store of this
// release and owner.
func (k kind) known(release, user string) bool {
	if release == "bullseye" && user != "root" {
		return true // podman 3.0's overlay is refused there
	}
	owner := ownerKind(user)
	return slices.Contains(k.not, release) || slices.Contains(k.not, owner) || slices.Contains(k.not, release+"/"+owner)
}

func ownerKind(user string) string {
	if user == lab.Owner {
		return "rootless"
	}
	return "rootful"
}
