package nomad

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// netPrefix begins the names of the lab's network namespaces; the pid of the
// process that made one follows, so that the next can remove what is left.
const netPrefix = "sclab-"

func netPath(name string) string { return filepath.Join("/run/netns", name) }

// makeNet makes a network namespace that is a switch: a bridge with the
// servers' addresses.
func makeNet(ctx context.Context, name string, addrs []string) error {
	if err := ip(ctx, "netns", "add", name); err != nil {
		return err
	}
	in := func(args ...string) error { return ip(ctx, append([]string{"-n", name}, args...)...) }
	err := errors.Join(in("link", "set", "lo", "up"), in("link", "add", "br0", "type", "bridge"), in("link", "set", "br0", "up"))
	for _, a := range addrs {
		err = errors.Join(err, in("addr", "add", a+"/24", "dev", "br0"))
	}
	return err
}

// joinNet makes a network namespace with one cable, eth0, to the switch.
func joinNet(ctx context.Context, hub, name, addr string) error {
	if err := ip(ctx, "netns", "add", name); err != nil {
		return err
	}
	port := "p" + addr[strings.LastIndexByte(addr, '.')+1:]
	return errors.Join(
		ip(ctx, "-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name),
		ip(ctx, "-n", hub, "link", "set", port, "master", "br0", "up"),
		ip(ctx, "-n", name, "addr", "add", addr+"/24", "dev", "eth0"),
		ip(ctx, "-n", name, "link", "set", "lo", "up"),
		ip(ctx, "-n", name, "link", "set", "eth0", "up"),
		ip(ctx, "-n", name, "route", "add", "default", "via", serverIP(1)),
	)
}

// sweepNets removes the network namespaces of processes that are gone.
func sweepNets(ctx context.Context) error {
	names, err := filepath.Glob(netPath(netPrefix + "*"))
	for _, path := range names {
		name := filepath.Base(path)
		word, _, _ := strings.Cut(strings.TrimPrefix(name, netPrefix), "-")
		pid, odd := strconv.Atoi(word)
		if _, gone := os.Stat(fmt.Sprintf("/proc/%d", pid)); odd == nil && gone != nil {
			bad := ip(ctx, "netns", "del", name)
			if _, left := os.Lstat(path); left == nil { // another test may sweep at the same time
				err = errors.Join(err, bad)
			}
		}
	}
	return err
}

func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Dial connects to an address in the cluster's network.
func (c *Cluster) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	target, err := os.Open(netPath(c.hub))
	if err != nil {
		return nil, err
	}
	defer target.Close()
	// A socket belongs to the namespace that its thread is in when it is made.
	runtime.LockOSThread()
	home, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", syscall.Gettid()))
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer home.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return nil, errors.Join(err, back) // stays locked: the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return conn, err
}
