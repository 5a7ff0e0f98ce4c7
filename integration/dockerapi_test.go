package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// A verdict is what a client says of one call: ok, odd or fail.
type verdict struct{ call, word, saw string }

// replay has storagectl make the calls.
func (w *world) replay(args ...string) (result, []verdict) {
	w.t.Helper()
	r := w.ctl(append([]string{"verify", "--json", "--user", w.user, "--docker-api"}, args...)...)
	var all []verdict
	for line := range strings.Lines(r.stdout) {
		var d diagnosis
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			w.t.Fatalf("%v: %s", err, r)
		}
		word, known := map[string]string{"ok": "ok", "warning": "odd", "problem": "fail", "absent": "-"}[d.Outcome]
		if d.Kind == "check" && known {
			all = append(all, verdict{d.Check, word, d.Saw})
		}
	}
	return r, all
}

// client has a real client make them, as the owner in the node.
func (w *world) client(program ...string) []verdict {
	w.t.Helper()
	r := w.exec(lab.Owner, append(append([]string{"env", "PATH=/srv/clients/usr/bin:/usr/bin:/bin", "PYTHONPATH=/srv/clients/usr/lib/python", "PYTHONDONTWRITEBYTECODE=1"},
		program...), "/run/user/2000/podman/podman.sock", fmt.Sprint(time.Now().UnixNano()), "localhost/lab/base:1", "/tmp/base.tar", pulledImage)...)
	if r.code != exitDone {
		w.t.Fatal(r)
	}
	var all []verdict
	for line := range strings.Lines(r.stdout) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 3)
		if len(f) < 2 {
			w.t.Fatal(r)
		}
		all = append(all, verdict{f[0], f[1], strings.Join(f[2:], " ")})
	}
	return all
}

const pulledImage = "localhost:5000/lab/pulled:1"

// registry starts a real registry in the node, which alone has one image.
func (w *world) registry() {
	w.t.Helper()
	w.script("root", `cat >/root/registry.yml <<'END'
version: 0.1
storage:
  filesystem:
    rootdirectory: /root/registry
http:
  addr: 127.0.0.1:5000
END
mkdir -p /etc/containers/registries.conf.d
printf '[[registry]]\nlocation = "localhost:5000"\ninsecure = true\n' >/etc/containers/registries.conf.d/lab.conf
systemd-run -q --unit=lab-registry /srv/clients/usr/bin/docker-registry serve /root/registry.yml
for i in $(seq 600); do curl -sf http://127.0.0.1:5000/v2/ >/dev/null && exit; sleep 0.1; done
journalctl -u lab-registry >&2; exit 1`)
	w.script(lab.Owner, `mkdir /tmp/i; echo only in the registry >/tmp/i/f
tar -C /tmp/i -c f | podman import -q - `+pulledImage+`
podman push -q --tls-verify=false `+pulledImage+`
podman rmi `+pulledImage+` >/dev/null
podman save -q -o /tmp/base.tar localhost/lab/base:1
systemctl --user stop podman.service`)
}

// compare lists where a client and the replay do not agree.
func compare(replay, client []verdict, blind ...string) []string {
	var differ []string
	for i := range max(len(replay), len(client)) {
		var a, b verdict
		if i < len(replay) {
			a = replay[i]
		}
		if i < len(client) {
			b = client[i]
		}
		alike := a.word == b.word || slices.Contains(blind, a.call) && a.word != "fail" && b.word != "fail"
		if a.call != b.call || !alike {
			differ = append(differ, fmt.Sprintf("replay %v, client %v", a, b))
		}
	}
	return differ
}

// TestDockerAPI: the replay leaves nothing behind, and comes to the same verdicts,
// call by call, as docker-py and the docker command of Debian on the same node: on
// one that is well, and on ones where the registry, the network or the socket is not.
// STORAGECTL_SWEEP=full: on trixie, too.
func TestDockerAPI(t *testing.T) {
	releases := []string{"bookworm"}
	if os.Getenv("STORAGECTL_SWEEP") == "full" {
		releases = append(releases, "trixie")
	}
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			testDockerAPI(t, release)
		})
	}
}

func testDockerAPI(t *testing.T, release string) {
	clients, err := lab.DockerClients(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorldWith(t, lab.Owner, images.Small, lab.Options{Release: release, Binds: []string{clients + ":/srv/clients"}})
	w.script("root", "echo nameserver 127.0.0.1 >/etc/resolv.conf")
	w.registry()
	for _, name := range []string{"worker.py", "worker.sh"} {
		if err := w.node.CopyIn(w.ctx, lab.Owner, filepath.Join(root(t), "integration", "testdata", name), "/tmp/"+name); err != nil {
			t.Fatal(err)
		}
	}
	const socket = "/run/user/2000/podman/podman.sock"
	controllers := w.script(lab.Owner, "cat /sys/fs/cgroup/user.slice/user-2000.slice/user@2000.service/cgroup.controllers")
	for _, node := range []struct{ name, breaks, heals, fails string }{
		{name: "well"},
		{name: "no container gets a network", fails: "start", breaks: breakNetwork, heals: healNetwork},
		{name: "the registry is gone", fails: "pull-missing", breaks: "systemctl stop lab-registry"},
		{name: "the socket's mode", fails: "version", breaks: "chmod 0 " + socket, heals: "chmod 600 " + socket},
		{name: "the socket is stopped", fails: "version", breaks: "systemctl --user -M hashi@ stop podman.socket podman.service", heals: "systemctl --user -M hashi@ start podman.socket"},
	} {
		w.script("root", node.breaks)
		before := w.manifest()
		pull := []string{"--pull", pulledImage}
		r, replay := w.replay(pull...)
		if len(replay) == 0 {
			t.Fatalf("%s: %s", node.name, r)
		}
		w.same(node.name+": the store after the replay", before, w.manifest())
		last := replay[len(replay)-1]
		failed := ""
		if last.word == "fail" {
			failed = last.call
		}
		if failed != node.fails || (node.fails != "") != (r.code == exitUnverified) {
			t.Errorf("%s: want %q to fail, not %q: %s", node.name, node.fails, failed, r)
		}
		table := ""
		for _, v := range replay {
			table += fmt.Sprintf("\n  %-15s %-4s %s", v.call, v.word, v.saw)
		}
		t.Logf("%s:%s", node.name, table)
		if node.fails == "" {
			i := slices.IndexFunc(replay, func(v verdict) bool { return v.call == "memory" })
			if has := strings.Contains(controllers, "memory"); i < 0 || has != (replay[i].word == "ok") {
				t.Errorf("the user has the controllers %q, and a memory limit is judged so: %v", controllers, replay[max(0, i)])
			}
		}
		// How an engine answers in the moment in which a container ends is chance.
		chance := []string{"exit-code", "auto-remove"}
		// The docker command does not tell the status of an answer.
		for program, blind := range map[string][]string{"worker.py": chance, "worker.sh": append(chance, "name-clash", "create-missing")} {
			run := "python3"
			if strings.HasSuffix(program, "sh") {
				run = "bash"
			}
			if d := compare(replay, w.client(run, "/tmp/"+program), blind...); len(d) > 0 {
				t.Errorf("%s: %s differs:\n%s", node.name, program, strings.Join(d, "\n"))
			}
			w.script(lab.Owner, `podman ps -aq --filter name=client- | xargs -r podman rm -f -t 0 >/dev/null
podman network ls -q --filter name=client- | xargs -r podman network rm >/dev/null
podman volume ls -q --filter name=client- | xargs -r podman volume rm >/dev/null
podman rmi -f `+pulledImage+` >/dev/null 2>&1 || true`)
		}
		w.script("root", node.heals)
	}
}

// TestDockerAPIGate: a store whose socket does not serve a Docker client is not done
// with: the run can go on or back. One that is killed in the middle of the calls
// leaves nothing of them.
func TestDockerAPIGate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.script("root", "echo nameserver 127.0.0.1 >/etc/resolv.conf")
	before := w.manifest()
	w.script(lab.Owner, "systemctl --user stop podman.socket podman.service")
	if r := w.ctl(w.migrate("--docker-api")...); r.code != exitRefused || !strings.Contains(r.stderr, "podman.socket of hashi is not active") {
		t.Errorf("want it refused without a socket: %s", r)
	}
	w.script(lab.Owner, "systemctl --user start podman.socket")

	wait := w.start(w.migrate("--docker-api")...)
	networks := w.node.HostPath(w.graphroot()) + "/networks/storagectl-replay-*.json"
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if found, err := filepath.Glob(networks); len(found) > 0 || err != nil || time.Now().After(end) {
			if len(found) == 0 {
				t.Fatalf("no network of the calls: %v, %s", err, wait())
			}
			break
		}
	}
	w.signal("KILL")
	wait()
	w.must("rollback")
	w.same("the store", before, w.manifest())
	if out := w.podman("ps", "-aq", "--filter", "label=io.storagectl.replay") + w.podman("network", "ls", "-q", "--filter", "label=io.storagectl.replay"); out != "" {
		t.Errorf("left: %s", out)
	}

	w.script("root", breakNetwork)
	r := w.ctl(w.migrate("--docker-api")...)
	if r.code != exitUnverified || !strings.Contains(r.stderr, "does not serve a client: start") || !strings.Contains(r.stderr, "storagectl resume, which tries again; storagectl rollback") {
		t.Fatalf("want exit %d: %s", exitUnverified, r)
	}
	if d := w.driver(); d != "overlay" { // podman is up
		t.Errorf("podman is on %s", d)
	}
	w.must("rollback")
	w.same("the store", before, w.manifest())
	if r := w.ctl(w.migrate("--docker-api")...); r.code != exitUnverified {
		t.Fatalf("want exit %d: %s", exitUnverified, r)
	}
	w.script("root", healNetwork)
	r = w.must("resume", "--json")
	if !strings.Contains(r.stdout, `"docker_api":[{"name":"version"`) {
		t.Errorf("the calls are not in the result: %s", r)
	}
	w.migrated(before)

	// The rootful socket.
	w.script("root", "systemctl start podman.socket")
	if r := w.ctl("verify", "--docker-api"); r.code != exitFailed || strings.Contains(r.stdout, "  problem  ") || !strings.Contains(r.stdout, "  ok       stop ") {
		t.Errorf("want warnings alone: %s", r)
	}
}

const netavark = "/usr/lib/podman/netavark"

// What root does in a node to keep containers from getting any network but none,
// and what undoes it.
const (
	breakNetwork = "cp -a " + netavark + " /root/; printf '#!/bin/sh\\nexit 1\\n' >/root/broken; chmod 755 /root/broken; cp --remove-destination /root/broken " + netavark
	healNetwork  = "cp -a --remove-destination /root/netavark " + netavark
)
