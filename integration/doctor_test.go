package integration

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

const exitUnverified = 4

// A diagnosis is a message that doctor ends a check with.
type diagnosis struct {
	Kind    string          `json:"message_type"`
	Check   string          `json:"check"`
	Outcome string          `json:"outcome"`
	Saw     string          `json:"saw"`
	Mend    []string        `json:"mend"`
	Change  json.RawMessage `json:"change"`
	Checks  int             `json:"checks"`
}

// doctor runs storagectl doctor, as root, and gives its checks by name.
func (w *world) doctor(user string, args ...string) (result, map[string]diagnosis) {
	w.t.Helper()
	argv := append([]string{"doctor", "--json"}, args...)
	if user != "root" {
		argv = append(argv, "--user", user)
	}
	r := w.ctl(argv...)
	all := map[string]diagnosis{}
	for line := range strings.Lines(r.stdout) {
		var d diagnosis
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			w.t.Fatalf("%v: %s", err, r)
		}
		if d.Kind == "check" {
			all[d.Check] = d
		}
	}
	return r, all
}

// An illness is one way in which a host is broken, and how it shows.
type illness struct {
	name   string
	check  string
	user   string // whose store doctor is asked about; lab.Owner if empty
	breaks string // as root in the node
	saw    string // in what doctor sees
	// outcome; problem if empty.
	outcome string
	fixes   bool   // --fix mends it, and --undo brings it back
	heal    string // as root, where --fix does not, or after --undo
}

func illnesses() []illness {
	const (
		conf  = lab.Home + "/.config/containers/storage.conf"
		asHer = "runuser -u " + lab.Owner + " -- env HOME=" + lab.Home + " XDG_RUNTIME_DIR=/run/user/2000 "
		sock  = "/run/user/2000/podman/podman.sock"
	)
	return []illness{
		{name: "podman gone", check: "podman", saw: "not installed", breaks: "mv /usr/bin/podman /usr/bin/podman.away", heal: "mv /usr/bin/podman.away /usr/bin/podman"},
		{
			name: "podman fails", check: "podman-info", saw: "does not work",
			breaks: `mv /usr/bin/podman /usr/bin/podman.away; printf '#!/bin/sh\ncase "$*" in *info*) exit 125 ;; esac\nexec podman.away "$@"\n' >/usr/bin/podman; chmod 755 /usr/bin/podman`,
			heal:   "mv /usr/bin/podman.away /usr/bin/podman",
		},
		{
			name: "podman hangs", check: "podman-info", saw: "within 15s", outcome: "unknown",
			breaks: `mv /usr/bin/podman /usr/bin/podman.away; printf '#!/bin/sh\ncase "$*" in *info*) sleep 300 ;; esac\nexec podman.away "$@"\n' >/usr/bin/podman; chmod 755 /usr/bin/podman`,
			heal:   "mv /usr/bin/podman.away /usr/bin/podman",
		},
		{
			name: "storage.conf is no TOML", check: "storage-conf", saw: conf,
			breaks: "cp -a " + conf + " /root/conf; printf '[storage]\ndriver = \"vfs\n' >" + conf, heal: "cp -a /root/conf " + conf,
		},
		{
			name: "storage.conf against the database", check: "conf-against-database", saw: "driver is overlay",
			breaks: "cp -a " + conf + " /root/conf; sed -i 's/vfs/overlay/' " + conf, heal: "cp -a /root/conf " + conf,
		},
		{name: "no subordinate ids", check: "subids", saw: "has none", fixes: true, breaks: "cp -a /etc/subuid /etc/subgid /root/; sed -i /hashi/d /etc/subuid /etc/subgid", heal: "cp -a /root/subuid /root/subgid /etc/"},
		{name: "two users with the same ids", check: "subids", saw: "the same ids", breaks: "echo mallory:120000:65536 >>/etc/subuid", heal: "sed -i /mallory/d /etc/subuid"},
		{
			name: "newuidmap without privileges", check: "newuidmap", saw: "neither setuid nor",
			breaks: "cp -a /usr/bin/newuidmap /root/; cp --no-preserve=all /root/newuidmap /tmp/n; chmod 755 /tmp/n; mv /tmp/n /usr/bin/newuidmap",
			heal:   "rm /usr/bin/newuidmap; cp -a /root/newuidmap /usr/bin/newuidmap",
		},
		{name: "runtime folder open to others", check: "runtime-dir", saw: "alone", breaks: "chmod 755 /run/user/2000", heal: "chmod 700 /run/user/2000"},
		{
			name: "the user's systemd hangs", check: "user-bus", saw: "does not answer",
			breaks: "kill -STOP $(systemctl show -P MainPID user@2000.service)", heal: "kill -CONT $(systemctl show -P MainPID user@2000.service)",
		},
		{name: "fuse device gone", check: "fuse-device", saw: "not there", outcome: "warning", fixes: true, breaks: "umount /dev/fuse || true; rm -f /dev/fuse", heal: "mknod -m 666 /dev/fuse c 10 229"},
		{name: "private root", check: "shared-root", saw: "private", outcome: "warning", fixes: true, breaks: "mount --make-private /", heal: "mount --make-shared /"},
		{name: "no ports below 2000", check: "unprivileged-ports", saw: "from 2000", outcome: "warning", breaks: "echo 2000 >/proc/sys/net/ipv4/ip_unprivileged_port_start", heal: "echo 1024 >/proc/sys/net/ipv4/ip_unprivileged_port_start"},
		{name: "socket down", check: "socket-unit", saw: "does not listen", fixes: true, breaks: asHer + "systemctl --user stop podman.socket", heal: asHer + "systemctl --user start podman.socket"},
		{name: "socket off", check: "socket-unit", saw: "does not listen", outcome: "warning", fixes: true, breaks: "systemctl --global disable podman.socket; " + asHer + "systemctl --user disable --now podman.socket", heal: "systemctl --global enable podman.socket; " + asHer + "systemctl --user start podman.socket"},
		{name: "socket masked", check: "socket-unit", saw: "masked", outcome: "warning", breaks: asHer + "systemctl --user mask --now podman.socket", heal: asHer + "systemctl --user unmask podman.socket; " + asHer + "systemctl --user enable --now podman.socket"},
		{
			name: "the API hangs", check: "socket-answers", saw: "does not answer",
			breaks: asHer + "curl -sS --unix-socket " + sock + " http://d/_ping >/dev/null; pkill -STOP -u hashi -f 'podman.*system service'",
			heal:   "pkill -CONT -u hashi -f 'podman.*system service'",
		},
		{name: "socket for everybody", check: "socket-mode", saw: "everybody", breaks: "chmod 666 " + sock, heal: "chmod 660 " + sock},
		{name: "DOCKER_HOST to nowhere", check: "docker-host", saw: "/nowhere.sock", breaks: "echo DOCKER_HOST=unix:///nowhere.sock >>/etc/environment", heal: "sed -i /DOCKER_HOST/d /etc/environment"},
		{name: "docker.sock to nowhere", check: "docker-sock", user: "root", saw: "/nowhere.sock", fixes: true, breaks: "systemctl start podman.socket; ln -sfn /nowhere.sock /run/docker.sock", heal: "rm /run/docker.sock"},
		{name: "resolv.conf to nowhere", check: "resolv-conf", saw: "no such file", breaks: "mv /etc/resolv.conf /root/; ln -s /run/nowhere /etc/resolv.conf", heal: "mv /root/resolv.conf /etc/resolv.conf"},
		{name: "netavark gone", check: "network-backend", saw: "netavark", breaks: "mv /usr/lib/podman/netavark /root/", heal: "mv /root/netavark /usr/lib/podman/"},
		{
			name: "aardvark of another release", check: "netavark", saw: "9.9.9", outcome: "warning",
			breaks: `mv /usr/lib/podman/aardvark-dns /root/; printf '#!/bin/sh\necho aardvark-dns 9.9.9\n' >/usr/lib/podman/aardvark-dns; chmod 755 /usr/lib/podman/aardvark-dns`,
			heal:   "mv /root/aardvark-dns /usr/lib/podman/",
		},
		{name: "store mounted nosuid", check: "graphroot", saw: "nosuid", breaks: "mount -o remount,nosuid /opt", heal: "mount -o remount,suid /opt"},
		{name: "disk full", check: "space", saw: "free", breaks: "cd /opt; fallocate -l $(( $(stat -f -c '%a*%S' .) - 1000000 )) filler", heal: "rm /opt/filler"},
		{
			name: "a layer's folder gone", check: "store-records", saw: "has no files",
			breaks: "cd " + lab.GraphRoot + "/vfs/dir; mv $(ls | head -1) /opt/away-$(ls | head -1)", heal: "cd /opt; for d in away-*; do mv $d " + lab.GraphRoot + "/vfs/dir/${d#away-}; done",
		},
		{
			name: "a layer's file altered", check: "store-files", saw: "bytes instead of",
			breaks: "cd " + lab.GraphRoot + "/vfs/dir; find . -path '*/data/keep' | sort >/root/altered; cp -a $(head -1 /root/altered) /root/keep; for f in $(cat /root/altered); do echo more >>$f; done",
			heal:   "cd " + lab.GraphRoot + "/vfs/dir; for f in $(cat /root/altered); do cat /root/keep >$f; done",
		},
		{
			name: "a stopped process on a lock", check: "locks", saw: "is stopped",
			breaks: "setsid " + asHer + "flock " + lab.GraphRoot + "/storage.lock sleep 300 >/dev/null 2>&1 & until pgrep -x sleep >/dev/null; do sleep 0.1; done; pkill -STOP -x flock",
			heal:   "pkill -KILL -x flock; pkill -x sleep",
		},
		{
			name: "a run's folder", check: "leftover-runs", saw: ".storagectl-0042-migrate-abcd", outcome: "warning",
			breaks: asHer + "mkdir " + lab.GraphRoot + "/.storagectl-0042-migrate-abcd", heal: "rmdir " + lab.GraphRoot + "/.storagectl-0042-migrate-abcd",
		},
		{
			name: "a stale .has-mount-program", check: "mount-program-flag", saw: ".has-mount-program", outcome: "warning", fixes: true,
			breaks: asHer + "sh -c 'mkdir -p " + lab.GraphRoot + "/overlay; printf true >" + lab.GraphRoot + "/overlay/.has-mount-program'", heal: "rm -r " + lab.GraphRoot + "/overlay",
		},
		{name: "fstab without _netdev", check: "fstab", saw: "_netdev", outcome: "warning", breaks: "echo 'a:6789:/ /mnt/services ceph name=x,secretfile=/etc/ceph/x.secret 0 0' >>/etc/fstab", heal: "sed -i /services/d /etc/fstab"},
		{name: "fstab with a secret", check: "fstab", saw: "secret", breaks: "echo 'a:6789:/ /mnt/services ceph name=x,secret=AQ==,_netdev,nofail 0 0' >>/etc/fstab", heal: "sed -i /services/d /etc/fstab"},
		{name: "an image that is not mapped", check: "rbdmap", saw: "rbd_a/img is not mapped", outcome: "warning", breaks: "mkdir -p /etc/ceph; cp -a /etc/ceph/rbdmap /root/ || true; echo 'rbd_a/img id=a,keyring=/etc/ceph/a.keyring' >>/etc/ceph/rbdmap", heal: "sed -i /rbd_a/d /etc/ceph/rbdmap"},
		{name: "a key for everybody", check: "ceph-keys", saw: "everybody", breaks: "mkdir -p /etc/ceph; echo x >/etc/ceph/x.keyring; chmod 644 /etc/ceph/x.keyring", heal: "rm /etc/ceph/x.keyring"},
		{name: "a backup that leaves out vfs", check: "backup-excludes", saw: "/etc/cron.d/backup", outcome: "warning", breaks: `echo '0 3 * * * root restic backup /opt --exclude "*/vfs/*"' >/etc/cron.d/backup`, heal: "rm /etc/cron.d/backup"},
		// Last: it ends all that the user runs.
		{
			name: "linger off", check: "linger", saw: "off", fixes: true,
			breaks: "loginctl disable-linger hashi", heal: "loginctl enable-linger hashi",
		},
		{
			name: "no systemd of the user's", check: "runtime-dir", saw: "not there",
			breaks: "loginctl disable-linger hashi; while [ -e /run/user/2000 ]; do sleep 0.1; done",
			heal:   "loginctl enable-linger hashi; until [ -e /run/user/2000/bus ]; do sleep 0.1; done",
		},
	}
}

// TestDoctor: doctor sees each thing that is broken on a real node, in time and
// by the right check, --fix mends what it may, and --undo takes that back.
func TestDoctor(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, lab.Owner, images.Small, lab.Options{Release: "bookworm", FS: "ext4", Size: "400M"})
	w.script("root", "echo nameserver 127.0.0.1 >/etc/resolv.conf") // the lab's nodes have none
	before := w.untouched()
	began := time.Now()
	r, well := w.doctor(lab.Owner)
	t.Logf("%d checks in %.1f s", len(well), time.Since(began).Seconds())
	w.same("the machine after a look", before, w.untouched())
	if r.code != exitFailed { // vfs, at least
		t.Errorf("want exit %d: %s", exitFailed, r)
	}
	for id, d := range well {
		if d.Outcome == "problem" || d.Outcome == "unknown" && id != "cgroups" {
			t.Errorf("on a node that is well, %s is %s: %s", id, d.Outcome, d.Saw)
		}
	}
	if d := well["driver"]; d.Outcome != "warning" || !strings.Contains(strings.Join(d.Mend, " "), "storagectl migrate --to overlay --user hashi") {
		t.Errorf("driver: %+v", d)
	}
	for _, c := range illnesses() {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			w := &world{t: t, ctx: w.ctx, node: w.node, user: w.user}
			if c.user == "" {
				c.user = lab.Owner
			}
			if c.outcome == "" {
				c.outcome = "problem"
			}
			w.script("root", c.breaks)
			defer w.script("root", c.heal)
			look := func() (result, diagnosis) {
				began := time.Now()
				r, all := w.doctor(c.user, "--check", c.check)
				if took := time.Since(began); took > 25*time.Second {
					t.Errorf("it took %s", took)
				}
				return r, all[c.check]
			}
			ill := func(r result, d diagnosis) {
				t.Helper()
				if d.Outcome != c.outcome || !strings.Contains(d.Saw, c.saw) {
					t.Errorf("want %s that speaks of %q: %s", c.outcome, c.saw, r)
				}
				if want := map[string]int{"problem": exitUnverified, "warning": exitFailed, "unknown": exitFailed}[c.outcome]; r.code != want {
					t.Errorf("want exit %d: %s", want, r)
				}
				if d.Outcome != "unknown" && len(d.Mend) == 0 {
					t.Errorf("it does not say what mends it: %s", r)
				}
				if can := len(d.Change) > 0; can != c.fixes {
					t.Errorf("--fix can change something: %v, want %v: %s", can, c.fixes, r)
				}
			}
			r, d := look()
			ill(r, d)
			if !c.fixes {
				return
			}
			if r, all := w.doctor(c.user, "--check", c.check, "--fix", "--yes"); r.code != exitDone || all[c.check].Outcome != "ok" {
				t.Fatalf("--fix: %s", r)
			}
			w.must("doctor", "--undo", "latest")
			ill(look())
		})
	}
	if r, _ := w.doctor(lab.Owner); r.code != exitFailed {
		t.Errorf("after all is healed: %s", r)
	}
	if r := w.ctl("resume"); r.code != exitNoRun { // runs of doctor are not runs on stores
		t.Errorf("resume: %s", r)
	}
}

// TestDoctorCNI: a network whose version the plugins of Debian 11 do not know.
func TestDoctorCNI(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	node, err := lab.Boot(ctx, lab.Options{Release: "bullseye"}) // its podman makes no secrets, so that it has no store of the lab's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Errorf("cannot remove the node: %v", err)
		}
	})
	w := &world{t: t, ctx: ctx, node: node, user: "root"}
	w.podman("ps")
	w.script("root", `mkdir -p /etc/cni/net.d; ls /etc/cni/net.d | grep -q . || podman network create`)
	files := w.tree("/etc/cni")
	if r, all := w.doctor("root", "--check", "cni-version"); r.code != exitDone || all["cni-version"].Outcome != "ok" {
		t.Fatal(r)
	}
	w.script("root", `sed -i 's/"cniVersion": *"0.4.0"/"cniVersion": "1.0.0"/' /etc/cni/net.d/*.conflist`)
	broken := w.tree("/etc/cni")
	if r, all := w.doctor("root", "--check", "cni-version"); r.code != exitUnverified || !strings.Contains(all["cni-version"].Saw, "1.0.0") {
		t.Fatal(r)
	}
	if r, _ := w.doctor("root", "--check", "cni-version", "--fix", "--yes"); r.code != exitDone {
		t.Fatal(r)
	}
	times := func(inv inventory) inventory { // the files were written anew
		for k, v := range inv {
			inv[k] = strings.Join(slices.DeleteFunc(strings.Fields(v), func(f string) bool { return strings.HasPrefix(f, "mtime") }), " ")
		}
		return inv
	}
	w.same("the networks", times(files), times(w.tree("/etc/cni")))
	w.must("doctor", "--undo", "latest")
	w.same("the networks after --undo", times(broken), times(w.tree("/etc/cni")))
}
