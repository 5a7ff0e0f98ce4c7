package integration

import "github.com/storagectl/storagectl/integration/lab"

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
	// within is a script that shows doctor, which is "$@", another view of the node.
	within string
}

// view is a script that shows the doctor alone a prepared view of /proc or /sys: for
// what the kernel of the lab, which all its nodes share, does not have or must not
// be made to do.
func view(prepare string) string {
	return "exec unshare --mount sh -euc '" + prepare + "; exec \"$@\"' sh \"$@\""
}

func illnesses() []illness {
	const (
		conf  = lab.Home + "/.config/containers/storage.conf"
		asHer = "runuser -u " + lab.Owner + " -- env HOME=" + lab.Home + " XDG_RUNTIME_DIR=/run/user/2000 "
		sock  = "/run/user/2000/podman/podman.sock"
		slice = "/sys/fs/cgroup/user.slice/user-2000.slice/user@2000.service/cgroup.controllers"

		// A kernel with SELinux, or AppArmor, as its files show it: the lab's has neither.
		selinux = `mount -t tmpfs view /mnt; mkdir -p /mnt/cgroup /mnt/selinux/booleans; mount --rbind /sys/fs/cgroup /mnt/cgroup
			echo 1 >/mnt/selinux/enforce; echo 0 0 >/mnt/selinux/booleans/virt_sandbox_use_fusefs; mount --move /mnt /sys/fs`
		apparmor = `mount -t tmpfs view /sys/kernel/security; mkdir /sys/kernel/security/apparmor; echo "$PROFILE" >/sys/kernel/security/apparmor/profiles`
		usernsOf = `mount -t tmpfs view /mnt; cp /proc/sys/kernel/osrelease /mnt/; echo 1 >/mnt/apparmor_restrict_unprivileged_userns; mount --move /mnt /proc/sys/kernel`
		// A store on FUSE, seen by the doctor alone.
		onFuse = "mkdir -p /run/fuse/up /run/fuse/work; fuse-overlayfs -o allow_other,lowerdir=" + lab.GraphRoot + ",upperdir=/run/fuse/up,workdir=/run/fuse/work " + lab.GraphRoot
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
		{name: "socket for nobody", check: "socket-mode", saw: "cannot use", breaks: "chmod 000 " + sock, heal: "chmod 660 " + sock},
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
		{
			name: "a podman that is newer than its database", check: "database", saw: "podman 6 cannot read BoltDB", outcome: "warning",
			breaks: `mv /usr/bin/podman /usr/bin/podman.away; printf '#!/bin/sh\ncase "$*" in --version) echo podman version 5.4.2 ;; *) exec podman.away "$@" ;; esac\n' >/usr/bin/podman; chmod 755 /usr/bin/podman`,
			heal:   "mv /usr/bin/podman.away /usr/bin/podman",
		},
		{name: "a database that is none", check: "database", saw: "db.sql", breaks: asHer + "sh -c 'echo no database at all >" + lab.GraphRoot + "/db.sql'", heal: "rm " + lab.GraphRoot + "/db.sql"},
		{name: "tun device gone", check: "tun-device", saw: "not there", breaks: "umount /dev/net/tun || true; rm -f /dev/net/tun", heal: "mknod -m 666 /dev/net/tun c 10 200"},
		{
			name: "no controllers for users", check: "cgroups", saw: "without the controllers memory and pids", outcome: "warning", breaks: ":", heal: ":",
			within: view("echo cpuset cpu >/run/controllers; mount --bind /run/controllers " + slice),
		},
		{
			// In a user namespace of its own, whose limit is no other's.
			name: "no user namespaces", check: "user-namespaces", saw: "user.max_user_namespaces is 0", breaks: "mkfifo /run/mapped", heal: "rm /run/mapped",
			within: `unshare --user --mount sh -c 'read _ </run/mapped; exec sh -c "echo 0 >/proc/sys/user/max_user_namespaces; exec \"\$@\"" sh "$@"' sh "$@" & child=$!
until [ "$(readlink /proc/$child/ns/user)" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.05; done
echo 0 0 4294967295 >/proc/$child/uid_map; echo 0 0 4294967295 >/proc/$child/gid_map; echo >/run/mapped; wait $child`,
		},
		{name: "SELinux keeps containers from FUSE", check: "selinux", saw: "virt_sandbox_use_fusefs is off while the store is on fuse", breaks: ":", heal: "pkill -x fuse-overlayfs || true", within: view(selinux + "; " + onFuse)},
		{name: "AppArmor keeps podman from user namespaces", check: "apparmor", saw: "podman has none", breaks: ":", heal: ":", within: view(usernsOf + "; PROFILE=; " + apparmor)},
		{
			name: "AppArmor watches FUSE mounts", check: "apparmor", saw: "fusermount3 is enforced", outcome: "warning", breaks: ":", heal: ":",
			within: view(`PROFILE="/usr/bin/fusermount3 (enforce)"; ` + apparmor),
		},
		{
			name: "images without a name", check: "reclaimable", saw: "images without a name", outcome: "warning",
			breaks: asHer + `bash -euo pipefail -c 'cd; for i in $(seq 14); do echo $i >one; tar -c one | podman import -q - >/dev/null; done; rm one'`,
			heal:   asHer + `sh -c 'cd; podman rmi -f $(podman images -q --filter dangling=true) >/dev/null'`,
		},
		{
			name: "a build's container", check: "external-containers", saw: "that podman does not know", outcome: "warning",
			breaks: asHer + "sh -euc 'cd; buildah from --pull-never localhost/lab/tricky:1 >/dev/null; sed -i s/\\\"created\\\":\\\"20../\\\"created\\\":\\\"2019/ " + lab.GraphRoot + "/vfs-containers/containers.json'",
			heal:   asHer + "sh -c 'cd; buildah rm --all >/dev/null'",
		},
		// Last: it ends all that the user runs.
		{
			name: "linger off", check: "linger", saw: "off", fixes: true,
			breaks: "loginctl disable-linger hashi", heal: lingers,
		},
		{
			name: "no systemd of the user's", check: "runtime-dir", saw: "not there",
			breaks: lingersNot, heal: lingers,
		},
	}
}

// lingers and lingersNot switch the owner's systemd on and off, and end when no job of it is
// left: logind ends it some seconds after linger went off, and a start that is asked for in
// between comes after that end, with no folder for a moment.
const (
	ofOwner    = "jobs() { systemctl list-jobs --no-legend | grep -q 2000; }; "
	lingers    = ofOwner + "loginctl enable-linger hashi; until systemctl is-active -q user@2000.service && [ -e /run/user/2000/bus ] && ! jobs; do sleep 0.1; done"
	lingersNot = ofOwner + "loginctl disable-linger hashi; while systemctl is-active -q user@2000.service || [ -e /run/user/2000 ] || jobs; do sleep 0.1; done"
)
