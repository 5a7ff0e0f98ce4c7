// Package lab boots real Debian nodes with systemd and rootless podman in
// systemd-nspawn, for tests and for people.
//
// A node's root is a kernel overlayfs over a cached tree. What podman's native
// overlay driver must write to (/opt with the home of the store's owner,
// /var/lib/containers) and storagectl's state (/var/lib/storagectl) are bind
// mounts of plain folders or of a filesystem of its own, since overlayfs cannot
// be the upper layer of another. All mounts live in the node's mount namespace,
// so they are gone when its processes are.
package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Owner is the user whose rootless store the nodes are about.
const Owner = "hashi"

// Home is the owner's home; it is not under /home on purpose.
const Home = "/opt/homelab/data/home"

// GraphRoot is the owner's store.
const GraphRoot = Home + "/.local/share/containers/storage"

// Options says what to boot.
type Options struct {
	Release string   // bookworm (the default), trixie, …
	Name    string   // default: random
	Seed    string   // folder like a node's data folder that it starts with; default: empty stores
	FS      string   // "": a folder of the host; ext4 or xfs: a filesystem of its own for the data
	Size    string   // of that filesystem, as truncate(1) takes it; default 8G
	Binds   []string // further --bind arguments
	Udev    bool     // runs udev, so that /dev/disk/by-uuid is there and systemd knows of loop devices
	Netns   string   // path of the network namespace it lives in; default: one of its own with nothing but lo
	Keep    bool     // Clean spares it unless told to take all
	UML     *Cable   // a machine with a kernel of its own, at the end of this cable, instead of a container
}

// A Node is one machine. Its disk outlives Kill and Poweroff, not Close.
type Node struct {
	Name string

	opts   Options
	base   base
	dir    string
	cgroup string
	pid    int // of its init, as the host sees it; 0 when it is off
	unlock func()
}

func nodesDir() string { return filepath.Join(Cache(), "nodes") }

// Boot builds what is missing, boots a node on a fresh disk and returns when
// its systemd has finished and the owner's user manager runs. On an error
// nothing is left behind.
func Boot(ctx context.Context, opts Options) (*Node, error) {
	if opts.Release == "" {
		opts.Release = "bookworm"
	}
	if opts.Name == "" {
		opts.Name = randomName()
	}
	b, err := buildBase(ctx, opts.Release)
	if err != nil {
		return nil, err
	}
	n := &Node{Name: opts.Name, opts: opts, base: b, dir: filepath.Join(nodesDir(), opts.Name)}
	if err := n.make(ctx); err != nil {
		return nil, fmt.Errorf("cannot make node %s: %w", n.Name, err)
	}
	if err := n.Start(ctx); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func randomName() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails: crypto/rand aborts the program instead
	return "t" + hex.EncodeToString(b)
}

// make lays out the node's folder.
func (n *Node) make(ctx context.Context) error {
	if err := os.MkdirAll(nodesDir(), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		return err
	}
	unlock, err := lockFile(ctx, filepath.Join(n.dir, "lock"), time.Second)
	if err != nil {
		return err
	}
	n.unlock = unlock
	if err := n.save(); err != nil {
		return err
	}
	return n.layout(ctx)
}

// Reset cuts the power and boots the node again with the disk it began with.
func (n *Node) Reset(ctx context.Context) error {
	err := n.Kill(ctx)
	for _, d := range []string{"upper", "work", "root", "data", "disk"} {
		err = errors.Join(err, removeAll(filepath.Join(n.dir, d)))
	}
	if err == nil {
		err = n.layout(ctx)
	}
	if err != nil {
		return fmt.Errorf("cannot reset node %s: %w", n.Name, err)
	}
	return n.Start(ctx)
}

// layout makes the node's disk.
func (n *Node) layout(ctx context.Context) error {
	for _, d := range []string{"upper", "work", "root", "data"} {
		if err := os.Mkdir(filepath.Join(n.dir, d), 0o755); err != nil {
			return err
		}
	}
	if n.opts.Udev {
		etc := filepath.Join(n.dir, "upper", "etc")
		if err := errors.Join(os.MkdirAll(etc, 0o755), os.WriteFile(filepath.Join(etc, "lab-udev"), nil, 0o644)); err != nil {
			return err
		}
	}
	rel, err := lookupRelease(n.opts.Release)
	if err != nil {
		return err
	}
	for path, text := range rel.dropins {
		path = filepath.Join(n.dir, "upper", "etc", "systemd", "system", path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			return err
		}
	}
	if n.opts.UML != nil {
		if err := n.layoutUML(); err != nil {
			return err
		}
	}
	seed := n.opts.Seed
	if seed == "" {
		seed = n.base.data
	}
	switch n.opts.FS {
	case "":
		return run(ctx, nil, "cp", "-a", "--reflink=auto", seed+"/.", filepath.Join(n.dir, "data"))
	case "ext4", "xfs":
		size := n.opts.Size
		if size == "" {
			size = "8G"
		}
		// The mounts of this shell end with it.
		return run(ctx, []string{"SEED=" + seed, "FS=" + n.opts.FS, "SIZE=" + size, "N=" + n.dir},
			"unshare", "-m", "--propagation", "private", "sh", "-euc", `
truncate -s "$SIZE" "$N/disk"
"mkfs.$FS" -q "$N/disk"
mount -o loop "$N/disk" "$N/data"
rm -rf "$N/data/lost+found"
cp -a "$SEED/." "$N/data"
umount "$N/data"`)
	}
	return fmt.Errorf("unknown filesystem %q", n.opts.FS)
}

// Start boots the node on the disk it has.
func (n *Node) Start(ctx context.Context) error {
	limit, program := 4*time.Minute, n.nspawn
	if n.opts.UML != nil {
		limit, program = 10*time.Minute, n.uml
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cgroup, err := makeCgroup(n.Name)
	if err != nil {
		return fmt.Errorf("cannot make the cgroup of node %s: %w", n.Name, err)
	}
	n.cgroup = cgroup
	group, err := os.Open(cgroup)
	if err != nil {
		return fmt.Errorf("cannot open the cgroup of node %s: %w", n.Name, err)
	}
	defer func() { _ = group.Close() }()
	console, err := os.OpenFile(n.Console(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("cannot open the console of node %s: %w", n.Name, err)
	}
	defer func() { _ = console.Close() }()
	cmd, err := program(ctx)
	if err != nil {
		return fmt.Errorf("cannot start node %s: %w", n.Name, err)
	}
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start node %s: %w", n.Name, err)
	}
	if n.opts.UML != nil {
		n.pid = cmd.Process.Pid
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()

	if err := n.wait(ctx, exited); err != nil {
		log, _ := os.ReadFile(n.Console())
		return fmt.Errorf("cannot boot node %s: %w; its console ends: %s", n.Name, err, tail(log, 2000))
	}
	return nil
}

// wait returns when the node is up.
func (n *Node) wait(ctx context.Context, exited <-chan error) error {
	alive := func(ok bool) (bool, error) {
		select {
		case err := <-exited:
			return false, fmt.Errorf("it ended: %w", err)
		default:
			return ok, nil
		}
	}
	const often = 50 * time.Millisecond
	if err := poll(ctx, often, func() (bool, error) {
		if n.opts.UML == nil {
			n.pid = initPid(n.cgroup)
		}
		return alive(n.pid != 0)
	}); err != nil {
		return err
	}
	// --wait blocks on systemd's own signal, but only once the bus is there.
	var state string
	if err := poll(ctx, often, func() (bool, error) {
		out, _ := n.Run(ctx, "root", "systemctl", "is-system-running", "--wait")
		state = strings.TrimSpace(out)
		return alive(state == "running" || state == "degraded")
	}); err != nil {
		return fmt.Errorf("systemd is %q: %w", state, err)
	}
	return poll(ctx, often, func() (bool, error) {
		_, err := n.Run(ctx, "root", "test", "-S", "/run/user/2000/podman/podman.sock")
		return alive(err == nil)
	})
}

// Console is the host's file with what the node wrote to its console.
func (n *Node) Console() string { return filepath.Join(n.dir, "console") }

// Pid is the host's pid of the running node's init.
func (n *Node) Pid() int { return n.pid }

// HostPath is where the host sees an absolute path of the running node. A
// symlink with an absolute target leads out of the node. A machine of its own has
// no such place.
func (n *Node) HostPath(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", n.pid, filepath.Clean(path))
}

// Cmd prepares a command in the node as a user, with a login's environment and
// the home as working folder. It dies with ctx.
func (n *Node) Cmd(ctx context.Context, user string, argv ...string) *exec.Cmd {
	home, runtime := "/root", "/run/user/0"
	switch user {
	case Owner:
		home, runtime = Home, "/run/user/2000"
	case "other":
		home, runtime = "/home/other", "/run/user/2001"
	}
	login := []string{"setpriv", "--reuid=" + user, "--regid=" + user, "--init-groups", "--pdeathsig=KILL",
		"env", "-i", "-C", home, "HOME=" + home, "USER=" + user, "LOGNAME=" + user,
		"SHELL=/bin/bash", "LANG=C.UTF-8",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if user != "root" {
		login = append(login, "XDG_RUNTIME_DIR="+runtime, "DBUS_SESSION_BUS_ADDRESS=unix:path="+runtime+"/bus")
	}
	enter := n.enter()
	if n.opts.UML != nil {
		enter = n.enterUML()
	}
	cmd := exec.CommandContext(ctx, "sh", slices.Concat(enter, login, argv)...)
	cmd.WaitDelay = 5 * time.Second // a daemon it left behind may hold its output open
	return cmd
}

func (n *Node) enter() []string {
	// Into a cgroup of the node first: from outside of its cgroup namespace a
	// process has no path that systemd or podman there could make sense of.
	return []string{"-c", `echo $$ >"$0/payload/init.scope/cgroup.procs" && exec nsenter "$@"`, n.cgroup,
		"-t", fmt.Sprint(n.pid), "-m", "-u", "-i", "-n", "-p", "-C", "--"}
}

// Run runs a command in the node and returns what it wrote to stdout. The error
// holds the end of stderr; an *exec.ExitError inside it has the exit status.
func (n *Node) Run(ctx context.Context, user string, argv ...string) (string, error) {
	return runCmd(n.Cmd(ctx, user, argv...), argv)
}

// Script runs a shell script, which stops at its first error.
func (n *Node) Script(ctx context.Context, user, script string) (string, error) {
	cmd := n.Cmd(ctx, user, "bash", "-euo", "pipefail", "-s")
	cmd.Stdin = strings.NewReader(script)
	return runCmd(cmd, []string{"script"})
}

func runCmd(cmd *exec.Cmd, argv []string) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, tail(errs.Bytes(), 4000))
	}
	return out.String(), nil
}

// CopyIn copies a file of the host into the node, owned by user.
func (n *Node) CopyIn(ctx context.Context, user, from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("cannot copy into node %s: %w", n.Name, err)
	}
	defer func() { _ = f.Close() }()
	cmd := n.Cmd(ctx, user, "sh", "-c", `cat >"$1"`, "sh", to)
	cmd.Stdin = f
	_, err = runCmd(cmd, []string{"copy to", to})
	return err
}

// CopyOut copies a file of the node to the host.
func (n *Node) CopyOut(ctx context.Context, from, to string) error {
	f, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("cannot copy out of node %s: %w", n.Name, err)
	}
	cmd := n.Cmd(ctx, "root", "cat", from)
	cmd.Stdout = f
	if err := cmd.Run(); err != nil {
		return errors.Join(fmt.Errorf("cannot copy %s out of node %s: %w", from, n.Name, err), f.Close())
	}
	return f.Close()
}

// Kill cuts the power: every process of the node dies at once, by SIGKILL. What
// was written stays, as the host's page cache is not lost with the node.
func (n *Node) Kill(ctx context.Context) error {
	n.pid = 0
	if err := killCgroup(ctx, n.Name); err != nil {
		return err
	}
	freeFuseLoops()
	return freeLoops(n.dir)
}

// Poweroff shuts the node down in order and returns when it is off.
func (n *Node) Poweroff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if n.pid == 0 {
		return nil
	}
	// The command may die with the node that it stops; look at the node instead.
	_, _ = n.Run(ctx, "root", "systemctl", "poweroff", "--no-block")
	err := poll(ctx, 50*time.Millisecond, func() (bool, error) {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", n.pid))
		return errors.Is(err, fs.ErrNotExist), nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("cannot see node %s go down: %w", n.Name, err), n.Kill(context.WithoutCancel(ctx)))
	}
	return n.Kill(ctx) // removes the cgroups
}

// Data is the folder of the host with the node's data while the node is off,
// shaped like a seed. Only for nodes without a filesystem of their own.
func (n *Node) Data() string { return filepath.Join(n.dir, "data") }

// Close kills the node and removes its disk. It may be called twice.
func (n *Node) Close() error {
	err := n.Kill(context.Background())
	if n.unlock != nil {
		n.unlock()
	}
	if err != nil {
		return err
	}
	return removeNode(n.Name)
}

func removeNode(name string) error {
	return errors.Join(
		removeAll(filepath.Join(nodesDir(), name)),
		os.RemoveAll(filepath.Join("/run/systemd/nspawn/propagate", name)))
}
