package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Cache returns the folder that holds node roots, stores and running nodes:
// $STORAGECTL_LAB_CACHE, or /var/cache/storagectl-lab. It must be on a
// filesystem that can be the upper layer of a kernel overlayfs (ext4, xfs).
func Cache() string {
	if dir := os.Getenv("STORAGECTL_LAB_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/storagectl-lab"
}

// setup turns a bare Debian tree into a node. It runs on the host with the tree
// in $R. What the node must keep over a power cut and what podman's native
// overlay driver writes to lives in $D, outside the overlayfs of the root.
const setup = `
chroot "$R" useradd -m -s /bin/bash -u 2001 -U other
mkdir -p "$R/opt/homelab/data"
chroot "$R" useradd -m -s /bin/bash -u 2000 -U -d /opt/homelab/data/home hashi
echo hashi:100000:65536 >"$R/etc/subuid"
echo hashi:100000:65536 >"$R/etc/subgid"
mkdir -p "$R/var/lib/systemd/linger"
touch "$R/var/lib/systemd/linger/hashi"
echo 'hashi ALL=(ALL) NOPASSWD: ALL' >"$R/etc/sudoers.d/hashi"
chmod 0440 "$R/etc/sudoers.d/hashi"

# The cgroup v2 tree of the lab machine may have no controllers at all.
mkdir -p "$R/etc/containers"
cat >"$R/etc/containers/containers.conf" <<-EOF
	[containers]
	pids_limit = 0
	[engine.runtimes]
	crun = ["/usr/local/bin/crun"]
EOF
# crun loads a device filter and lifts RLIMIT_MEMLOCK for it; a lab machine may
# forbid that even to root (no CAP_SYS_RESOURCE). Only then drop all limits.
cat >"$R/usr/local/bin/crun" <<-'EOF'
	#!/bin/sh
	read -r _ _ ids </proc/self/uid_map
	if [ "$ids" = 4294967295 ] && ! prlimit --memlock=unlimited:unlimited true 2>/dev/null; then
		prev=
		for arg in "$@"; do
			case $prev in --bundle | -b)
				jq 'del(.linux.resources, .process.rlimits)' "$arg/config.json" >"$arg/config.json.new"
				mv "$arg/config.json.new" "$arg/config.json" ;;
			esac
			prev=$arg
		done
	fi
	exec /usr/bin/crun "$@"
EOF
chmod 0755 "$R/usr/local/bin/crun"
test -e "$R/etc/containers/policy.json" ||
	echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$R/etc/containers/policy.json"
cat >"$R/etc/containers/storage.conf" <<-EOF
	# Storage of the root user on this node.
	[storage]
	driver = "vfs"
	runroot = "/run/containers/storage"
	graphroot = "/var/lib/containers/storage"
EOF
H="$R/opt/homelab/data/home"
mkdir -p "$H/.config/containers"
cat >"$H/.config/containers/storage.conf" <<-EOF
	# chosen in a hurry, see ticket 17
	[storage]
	driver = "vfs"   # overlay did not work on the old disk
EOF
chown -R 2000:2000 "$H/.config"

chroot "$R" systemctl --global enable podman.socket
# Nothing here may reach for the network or run by itself in a test.
rm -f "$R"/etc/systemd/system/timers.target.wants/* "$R/etc/resolv.conf"
for u in podman-auto-update.timer podman-restart.service systemd-networkd-wait-online.service; do
	chroot "$R" systemctl mask "$u" >/dev/null 2>&1 || true
done
# udev runs where a test asks for it (Options.Udev). It must never set off events
# for what is already there: they would reach every udev of the host.
for u in systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket; do
	mkdir -p "$R/etc/systemd/system/$u.d"
	printf '[Unit]\nConditionPathExists=/etc/lab-udev\n' >"$R/etc/systemd/system/$u.d/lab.conf"
done
chroot "$R" systemctl mask systemd-udev-trigger.service systemd-udev-settle.service >/dev/null 2>&1
mkdir -p "$R/etc/systemd/network"
ln -s /dev/null "$R/etc/systemd/network/99-default.link"
printf 'z /dev/net/tun 0666 root root\nz /dev/fuse 0666 root root\n' >"$R/etc/tmpfiles.d/lab.conf"
echo node >"$R/etc/hostname"
printf '127.0.0.1 localhost node\n::1 localhost\n' >"$R/etc/hosts"
mkdir -p "$R/usr/local/lib/storagectl" "$R/var/lib/containers" "$R/var/lib/storagectl"
ln -s ../lib/storagectl/storagectl "$R/usr/local/bin/storagectl"
ln -s ../lib/storagectl/storagectl-sweep "$R/usr/local/bin/storagectl-sweep"

mkdir -p "$D/containers" "$D/storagectl"
chmod 0700 "$D/storagectl"
mv "$R/opt" "$D/opt"
mkdir "$R/opt"
`

// base is a node root that is never written to.
type base struct {
	root string // lower layer of the nodes' root overlayfs
	data string // seed of the folders that are bind mounted over it
	key  string // names the recipe: it changes when the recipe does
}

// Base builds the root of a release unless the cache has it and returns its
// folder. Two processes that ask at once build it once.
func Base(ctx context.Context, releaseName string) (string, error) {
	b, err := buildBase(ctx, releaseName)
	return b.root, err
}

func buildBase(ctx context.Context, releaseName string) (base, error) {
	rel, err := lookupRelease(releaseName)
	if err != nil {
		return base{}, err
	}
	args := []string{"--mode=root", "--variant=minbase",
		"--include=" + strings.Join(append(commonPackages(), rel.packages...), ","),
		"--aptopt=Acquire::Retries \"3\""}
	for _, o := range rel.aptopts {
		args = append(args, "--aptopt="+o)
	}
	sum := sha256.Sum256([]byte(strings.Join(args, "\n") + rel.name + setup))
	key := rel.name + "-" + hex.EncodeToString(sum[:6])
	dir := filepath.Join(Cache(), "base", key)
	err = once(ctx, dir, func(tmp string) error {
		root, data := filepath.Join(tmp, "root"), filepath.Join(tmp, "data")
		if err := os.MkdirAll(data, 0o755); err != nil {
			return err
		}
		if err := run(ctx, nil, "mmdebstrap", append(args, rel.name, root)...); err != nil {
			return err
		}
		return run(ctx, []string{"R=" + root, "D=" + data}, "sh", "-euc", setup)
	})
	if err != nil {
		return base{}, fmt.Errorf("cannot build the %s node: %w", rel.name, err)
	}
	return base{root: filepath.Join(dir, "root"), data: filepath.Join(dir, "data"), key: key}, nil
}

// once makes the folder dir by build, which fills a temporary folder that is
// renamed when complete. While one process builds, others wait; a folder that
// exists is complete.
func once(ctx context.Context, dir string, build func(tmp string) error) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	unlock, err := lockFile(ctx, dir+".lock", 30*time.Minute)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	tmp := dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil { // left by a killed build
		return err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	if err := build(tmp); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return os.Rename(tmp, dir)
}

// lockFile takes an exclusive flock on path and waits for it up to limit.
func lockFile(ctx context.Context, path string, limit time.Duration) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = poll(ctx, 200*time.Millisecond, func() (bool, error) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}

// poll calls done every interval until it says true, fails, or ctx ends.
func poll(ctx context.Context, interval time.Duration, done func() (bool, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// run starts a command on the host and waits; its error ends with what the
// command wrote.
func run(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, tail(out, 2000))
	}
	return nil
}

func tail(b []byte, n int) string {
	if len(b) > n {
		b = b[len(b)-n:]
	}
	return strings.TrimSpace(string(b))
}
