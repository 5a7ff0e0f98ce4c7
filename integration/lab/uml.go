package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// This file is nodes that are machines of their own in User-Mode Linux: Debian's
// kernel as a program, which has what the host's kernel may lack, such as Ceph's
// own clients. The root is the same tree as a container's, seen by hostfs; the
// data is on a real disk. Commands go in through a folder that both see.

// A Cable is where the network of a machine is.
type Cable struct {
	Netns string // name of the network namespace with the other end
	Tap   string // the device there
	Addr  string // of the machine, in a net of 24 bits
}

// umlModules is where Debian's user-mode-linux has its modules.
const umlModules = "/usr/lib/uml/modules"

// umlInit runs before systemd.
const umlInit = `#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
busybox mount -t proc proc /proc
mount -t devtmpfs dev /dev 2>/dev/null
mount -t sysfs sysfs /sys
mkdir -p /lib/modules /lab /data
mount -t hostfs none /lib/modules -o %[1]s
mount -t hostfs none /lab -o %[2]s
mount -t hostfs none /usr/local/lib/storagectl -o %[3]s
for d in tmp var/tmp; do mount -t tmpfs -o mode=1777 tmpfs "/$d"; done # by hostfs all that users make is root's
for m in autofs4 fuse tun overlay loop; do modprobe $m; done
mount /dev/ubda /data
for d in opt var/lib/containers var/lib/storagectl; do mount --bind "/data/${d##*/}" "/$d"; done
ip link set lo up
ip addr add %[4]s/24 dev vec0
ip link set vec0 up
exec /lib/systemd/systemd
`

// umlAgent runs what it finds in /lab, each in a process of its own.
const umlAgent = `
while :; do
	for d in /lab/ask-*; do
		test -e "$d/argv" || continue
		mapfile -d '' -t argv <"$d/argv"
		mv "$d/argv" "$d/taken"
		(
			set +e
			"${argv[@]}" <"$d/in" >"$d/out" 2>"$d/err"
			echo $? >"$d/status.new"
			mv "$d/status.new" "$d/status"
		) &
	done
	sleep 0.05
done
`

const umlAgentUnit = `[Unit]
Description=Commands of the lab
DefaultDependencies=no
After=dbus.socket
[Service]
ExecStart=/bin/bash /lab/agent
KillMode=process
`

// umlAsk runs a command by the agent: in comes all of stdin, out come stdout and
// stderr once it has ended. A machine that is gone is an error.
const umlAsk = `
set -e; share=$0 pid=$1; shift
d=$(mktemp -d "$share/ask-XXXXXX")
trap 'rm -rf "$d"' EXIT
cat >"$d/in"
printf '%s\0' "$@" >"$d/argv.new"
mv "$d/argv.new" "$d/argv"
until test -e "$d/status"; do
	kill -0 "$pid" || exit 255
	sleep 0.05
done
cat "$d/out"
cat "$d/err" >&2
exit "$(cat "$d/status")"
`

func (n *Node) share() string { return filepath.Join(n.dir, "share") }

// layoutUML writes what a machine has beyond the root of a container.
func (n *Node) layoutUML() error {
	if n.opts.FS == "" {
		n.opts.FS = "ext4" // hostfs has no extended attributes, and no overlay on it
	}
	units := filepath.Join(n.dir, "upper", "etc", "systemd", "system")
	init := fmt.Sprintf(umlInit, umlModules, n.share(), binDir(), n.opts.UML.Addr)
	return errors.Join(
		os.RemoveAll(n.share()), os.Mkdir(n.share(), 0o755), os.MkdirAll(units, 0o755),
		os.WriteFile(filepath.Join(n.share(), "agent"), []byte(umlAgent), 0o644),
		os.WriteFile(filepath.Join(n.dir, "upper", "lab-init"), []byte(init), 0o755),
		os.WriteFile(filepath.Join(n.dir, "upper", "etc", "lab-udev"), nil, 0o644),
		// All takes its time here, and longer where others have the processors.
		os.WriteFile(filepath.Join(n.dir, "upper", "etc", "systemd", "system.conf"), []byte("[Manager]\nDefaultDeviceTimeoutSec=10min\nDefaultTimeoutStartSec=10min\n"), 0o644),
		os.WriteFile(filepath.Join(units, "lab-agent.service"), []byte(umlAgentUnit), 0o644),
		// Its devices are its own: udev may look at them all.
		os.Symlink("/lib/systemd/system/systemd-udev-trigger.service", filepath.Join(units, "systemd-udev-trigger.service")))
}

// uml prepares the program that is a machine. It is not bound to ctx: the machine
// outlives this call, and the program that made it.
func (n *Node) uml(ctx context.Context) (*exec.Cmd, error) {
	old, err := filepath.Glob(filepath.Join(n.share(), "ask-*"))
	for _, d := range old { // of before the power cut
		err = errors.Join(err, os.RemoveAll(d))
	}
	// Each file that the machine knows is open on the host.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "unshare", "-m", "--propagation", "private", "sh", "-euc", `
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$N/upper,workdir=$N/work" "$N/root"
ulimit -n "$(ulimit -Hn)"
exec ip netns exec "$NETNS" linux.uml "$@"`, "sh",
		"mem=1024M", "root=/dev/root", "rootfstype=hostfs", "rootflags="+filepath.Join(n.dir, "root"), "rw", "init=/lab-init",
		"ubd0="+filepath.Join(n.dir, "disk"), "con=null", "con0=null,fd:1",
		"vec0:transport=tap,ifname="+n.opts.UML.Tap+",depth=128,gro=1",
		"systemd.mask=getty.target", "systemd.wants=lab-agent.service", "systemd.show_status=1")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "BASE=" + n.base.root, "N=" + n.dir, "NETNS=" + n.opts.UML.Netns,
		"TMPDIR=/dev/shm", "HOME=" + n.dir} // its memory is a file there
	return cmd, err
}

func (n *Node) enterUML() []string {
	return []string{"-c", umlAsk, n.share(), fmt.Sprint(n.pid)}
}
