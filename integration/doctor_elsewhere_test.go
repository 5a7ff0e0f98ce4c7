package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// asleep puts a program that never answers in the place of others.
func (w *world) asleep(programs ...string) {
	w.t.Helper()
	for _, p := range programs {
		w.script("root", fmt.Sprintf("mv %[1]s %[1]s.away; printf '#!/bin/sh\\nexec sleep 1000\\n' >%[1]s; chmod 755 %[1]s", p))
	}
}

// TestDoctorHangs: whatever hangs, doctor comes to its end, changes nothing, and
// says unknown of what it could not find out: never absent, never well.
func TestDoctorHangs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	before := w.store()
	ends := func(what string, unknown ...string) map[string]diagnosis {
		t.Helper()
		began := time.Now()
		r, all := w.doctor(lab.Owner)
		took := time.Since(began)
		t.Logf("%s: %.1f s", what, took.Seconds())
		if took > 90*time.Second {
			t.Errorf("%s: it took %s", what, took)
		}
		for _, id := range unknown {
			if d := all[id]; d.Outcome != "unknown" {
				t.Errorf("%s: %s is %s: %s", what, id, d.Outcome, d.Saw)
			}
		}
		if r.code == exitDone || !strings.Contains(r.stdout, `"message_type":"doctor"`) {
			t.Errorf("%s: %s", what, r)
		}
		return all
	}
	w.script("root", `mv /usr/bin/podman /usr/bin/podman.real; printf '#!/bin/sh\ncase "$*" in *--version) exec podman.real "$@" ;; esac\nexec sleep 1000\n' >/usr/bin/podman; chmod 755 /usr/bin/podman`)
	all := ends("podman says its version alone", "podman-info", "driver", "network-backend", "netavark", "nomad")
	for _, id := range []string{"podman", "storage-conf", "database", "graphroot", "store-records"} { // these need no more
		if d := all[id]; d.Outcome != "ok" {
			t.Errorf("%s is %s: %s", id, d.Outcome, d.Saw)
		}
	}
	w.script("root", "kill -STOP $(systemctl show -P MainPID user@2000.service)")
	w.asleep("/usr/bin/podman", "/usr/lib/podman/netavark", "/usr/lib/podman/aardvark-dns", "/usr/bin/getent", "/usr/bin/getsubids",
		"/usr/bin/newuidmap", "/usr/bin/newgidmap", "/usr/bin/systemctl", "/usr/bin/loginctl", "/usr/bin/rbd")
	ends("everything hangs", "podman", "podman-info", "storage-conf", "conf-against-database", "database", "driver", "graphroot",
		"network-backend", "netavark", "space", "reclaimable", "external-containers", "store-records", "store-files", "locks", "nomad")
	w.same("the store", before, w.store())
	// Of the service behind the socket systemd is the parent, and may wait for it.
	if left := w.script("root", "ps -eo ppid,lstart,args | awk '$1 == 1 && /[s]leep 1000/'"); left != "" {
		t.Errorf("left: %s", left)
	}
}

// noMounts is the profile of a container in which nothing may be mounted: podman's
// own, but for mounts that have a type and options.
const noMounts = `jq '.syscalls = [.syscalls[] | .names -= ["mount"]] + [{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 4, "value": 0, "op": "SCMP_CMP_EQ"}]}]' \
	/usr/share/containers/seccomp.json >/run/no-mounts.json`

// TestDoctorWorkspace: in a container without systemd, as workspaces in Kubernetes
// are, doctor knows where it is, leaves out what does not apply, and says of what is
// missing how the container is to be started. The container is podman's, on the
// node's own root; what makes it one of Kubernetes is the environment that it gives.
func TestDoctorWorkspace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", "root", images.Small)
	w.script("root", noMounts)
	// look starts a workspace with these options, and has its user ask the doctor.
	const caps = "chmod u-s /usr/bin/new?idmap; setcap cap_setuid+ep /usr/bin/newuidmap; setcap cap_setgid+ep /usr/bin/newgidmap"
	look := func(prepare string, options ...string) map[string]diagnosis {
		t.Helper()
		args := append([]string{"run", "-d", "--name", "workspace", "--network=none", "--pull=never", "-v", "/usr/local/lib/storagectl:/usr/local/lib/storagectl:ro"}, options...)
		w.podman(append(args, "--rootfs", "/:O", "sleep", "1000")...)
		defer w.podman("rm", "-f", "-t", "0", "workspace")
		w.podman("exec", "workspace", "install", "-d", "-o", "hashi", "-g", "hashi", lab.Home)
		if prepare != "" {
			w.podman("exec", "workspace", "sh", "-c", caps)
			w.podman("exec", "-u", "hashi", "workspace", "sh", "-c", prepare)
		}
		_, all := w.diagnoses(w.exec("root", "podman", "exec", "-u", "hashi", "workspace", "storagectl", "doctor", "--json"))
		return all
	}
	want := func(all map[string]diagnosis, check, outcome, saw, mend string) {
		t.Helper()
		d := all[check]
		if d.Outcome != outcome || !strings.Contains(d.Saw, saw) || !strings.Contains(strings.Join(d.Mend, " "), mend) {
			t.Errorf("%s: want %s, %q and %q, got %+v", check, outcome, saw, mend, d)
		}
	}
	const kube = "KUBERNETES_SERVICE_HOST=10.0.0.1"

	// Debian's newuidmap, as it is, is of no use there.
	want(look(""), "newuidmap", "problem", "is setuid", "setcap cap_setuid+ep")

	all := look(":", "-e", kube)
	want(all, "place", "ok", "a container of Kubernetes (KUBERNETES_SERVICE_HOST), without systemd", "")
	for _, id := range []string{"linger", "user-bus", "socket-unit", "shared-root", "cgroups", "fstab", "rbdmap", "ceph-health", "rbd-watchers", "nomad"} {
		want(all, id, "absent", "", "")
	}
	want(all, "fuse-device", "warning", "", "device plugin for /dev/fuse")
	want(all, "tun-device", "problem", "", "device plugin for /dev/net/tun")
	want(all, "newuidmap", "ok", "", "")
	want(all, "user-namespaces", "ok", "", "")
	want(all, "overlay", "ok", "", "")
	for id, d := range all {
		if d.Change != nil {
			t.Errorf("--fix would change %s: %s", id, d.Change)
		}
		if mend := strings.Join(d.Mend, " "); strings.Contains(mend, "systemctl") || strings.Contains(mend, "loginctl") || strings.Contains(mend, "modprobe") {
			t.Errorf("%s: %q cannot be done here", id, mend)
		}
	}

	// With what it needs, and a store on a volume.
	const store = "mkdir -p ~/.config/containers; printf '[storage]\\ndriver = \"%s\"\\n' >~/.config/containers/storage.conf; podman info >/dev/null 2>&1 || true"
	all = look(fmt.Sprintf(store, "vfs"), "--device", "/dev/fuse", "--device", "/dev/net/tun")
	want(all, "place", "ok", "a container of podman (/run/.containerenv), without systemd", "")
	want(all, "fuse-device", "ok", "", "")
	want(all, "tun-device", "ok", "", "")
	want(all, "driver", "warning", "vfs, on the root of a container", "volume")
	want(all, "graphroot", "warning", "an overlay itself", "volume")

	// Overlay cannot lie on the overlay that is a container's root.
	all = look(fmt.Sprintf(store, "overlay"), "-e", kube)
	want(all, "graphroot", "problem", "on overlay, which cannot hold the kernel's overlay", "a volume of the pod")

	all = look(":", "-e", kube, "--security-opt", "no-new-privileges")
	want(all, "newuidmap", "problem", "no_new_privs", "allowPrivilegeEscalation: true")
	all = look(":", "--security-opt", "seccomp=/run/no-mounts.json")
	want(all, "overlay", "warning", "cannot be mounted", "seccomp")
}
