package ceph

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/storagectl/storagectl/integration/lab"
)

// umlModules is where Debian's user-mode-linux has its modules.
const umlModules = "/usr/lib/uml/modules"

// guestInit prepares the guest and runs the script. The disk, the modules and
// the shared folder are the host's files, by hostfs.
const guestInit = `#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /lib/modules
mount -t hostfs none /lib/modules -o %[1]s
mount -t hostfs none /mnt -o %[2]s
ip link set lo up
ip addr add %[3]s/24 dev vec0
ip link set vec0 up
/lib/systemd/systemd-udevd --daemon
bash -euo pipefail /mnt/%[4]s </dev/null
echo $? >/mnt/status
sync
echo o >/proc/sysrq-trigger
sleep 60
`

// UML runs a script of the folder dir as root in a User-Mode Linux, whose kernel
// has rbd, ceph and nbd where the host's may not, with a bookworm node's disk
// and in the cluster's network. dir is its /mnt. Its console goes to out. The
// error is that of the script, by its exit status.
func (c *Cluster) UML(ctx context.Context, dir, script string, out io.Writer) error {
	if !c.opts.Hub {
		return errors.New("cannot start a guest beside a cluster that has no network of its own")
	}
	base, err := lab.Base(ctx, "bookworm")
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.nodes++
	n := c.nodes
	err = c.save()
	c.mu.Unlock()
	tap, addr := fmt.Sprint("tap", n), fmt.Sprint(nodeNet, first+n-1)
	work := filepath.Join(c.dir, tap)
	for _, d := range []string{"", "upper", "work", "root"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(work, d), 0o755))
	}
	init := fmt.Sprintf(guestInit, umlModules, dir, addr, script)
	err = errors.Join(err,
		os.RemoveAll(filepath.Join(dir, "status")),
		os.WriteFile(filepath.Join(work, "upper", "guest-init"), []byte(init), 0o755),
		ip(ctx, "-n", c.netns, "tuntap", "add", tap, "mode", "tap"),
		ip(ctx, "-n", c.netns, "link", "set", tap, "master", "br0", "up"))
	if err != nil {
		return fmt.Errorf("cannot prepare a guest: %w", err)
	}
	defer func() {
		// What is left goes with the cluster.
		_ = ip(context.WithoutCancel(ctx), "-n", c.netns, "tuntap", "del", tap, "mode", "tap")
		_ = os.RemoveAll(work)
	}()
	// The mounts of this shell end with it.
	cmd := exec.CommandContext(ctx, "unshare", "-m", "--propagation", "private", "sh", "-euc", `
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$W/upper,workdir=$W/work" "$W/root"
exec ip netns exec "$NS" linux.uml "$@"`, "sh",
		"mem=768M", "root=/dev/root", "rootfstype=hostfs", "rootflags="+filepath.Join(work, "root"), "rw", "init=/guest-init",
		"quiet", "con=null", "con0=null,fd:1", "vec0:transport=tap,ifname="+tap+",depth=128,gro=1")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "BASE=" + base, "W=" + work, "NS=" + c.netns, "TMPDIR=/dev/shm", "HOME=" + work}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	ran := cmd.Run()
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return fmt.Errorf("the guest ended without a word: %w", errors.Join(ran, ctx.Err()))
	}
	if s := strings.TrimSpace(string(status)); s != "0" {
		return fmt.Errorf("the guest's script ended with %s", s)
	}
	return nil
}
