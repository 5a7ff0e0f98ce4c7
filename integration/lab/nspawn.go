package lab

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
)

// nspawn prepares the program that is a node in a container. It is not bound to
// ctx: the node outlives this call, and the program that made it.
func (n *Node) nspawn(ctx context.Context) (*exec.Cmd, error) {
	if n.opts.Udev {
		if err := n.readyUdev(); err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "unshare", append([]string{"-m", "--propagation", "private", "sh", "-euc", `
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$N/upper,workdir=$N/work" "$N/root"
if test -e "$N/disk"; then mount -o loop "$N/disk" "$N/data"; fi
exec systemd-nspawn "$@"`, "sh"}, n.nspawnArgs()...)...)
	cmd.Env = append(os.Environ(), "BASE="+n.base.root, "N="+n.dir,
		"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", "SYSTEMD_NSPAWN_USE_CGNS=1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes")
	return cmd, nil
}

func (n *Node) nspawnArgs() []string {
	args := []string{
		"--directory=" + filepath.Join(n.dir, "root"), "--boot", "--machine=" + n.Name,
		"--register=no", "--keep-unit", "--private-users=no", "--capability=all",
		"--system-call-filter=@mount @keyring bpf", "--console=pipe",
	}
	if n.opts.Netns != "" {
		args = append(args, "--network-namespace-path="+n.opts.Netns)
	} else {
		args = append(args, "--private-network")
	}
	bind := func(from, to string) { args = append(args, "--bind="+from+":"+to) }
	data := filepath.Join(n.dir, "data")
	bind(filepath.Join(data, "opt"), "/opt")
	bind(filepath.Join(data, "containers"), "/var/lib/containers")
	bind(filepath.Join(data, "storagectl"), "/var/lib/storagectl")
	devices := []string{"/dev/fuse", "/dev/net/tun", "/dev/loop-control", "/dev/autofs"}
	moreLoops()
	loops, _ := filepath.Glob("/dev/loop[0-9]*") // the pattern is well formed
	for _, dev := range append(devices, loops...) {
		if _, err := os.Stat(dev); err == nil {
			bind(dev, dev)
		}
	}
	if n.opts.Udev {
		bind(n.udevRun(), "/run/udev")
	}
	if bin := binDir(); bin != "" {
		args = append(args, "--bind-ro="+bin+":/usr/local/lib/storagectl")
	}
	for _, b := range n.opts.Binds {
		args = append(args, "--bind="+b)
	}
	return args
}

func (n *Node) udevRun() string { return filepath.Join(n.dir, "udev") }

// readyUdev makes the node's /run/udev of a boot. In a container systemd listens
// to udev only if it seems to run already when systemd begins.
func (n *Node) readyUdev() error {
	dir := n.udevRun()
	return errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "control"), nil, 0o600))
}

// binDir is the bin folder of the project this runs in ($STORAGECTL_LAB_BIN
// overrides it). The folder is bound and not the file, so that a node sees a
// binary that was built after it booted.
func binDir() string {
	if dir := os.Getenv("STORAGECTL_LAB_BIN"); dir != "" {
		return dir
	}
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "integration", "lab")); err == nil {
			bin := filepath.Join(dir, "bin")
			if err := os.MkdirAll(bin, 0o755); err != nil {
				return ""
			}
			return bin
		}
	}
	return ""
}
