package ceph

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/storagectl/storagectl/integration/lab"
)

// netPrefix begins the names of the network namespaces; the cluster's name
// follows.
const netPrefix = "scceph-"

// The network of a hub.
const (
	hubAddr = "10.78.0.1"
	nodeNet = "10.78.0."
	first   = 11 // of the nodes' addresses
)

// network makes a namespace that is a switch with the cluster's address, where
// one of its own is wanted.
func (c *Cluster) network(ctx context.Context) error {
	if !c.opts.Hub {
		return nil
	}
	name := netPrefix + c.Name
	c.netns, c.nets = name, append(c.nets, name)
	if err := errors.Join(c.save(), ip(ctx, "netns", "add", name)); err != nil {
		return err
	}
	return errors.Join(
		ip(ctx, "-n", name, "link", "set", "lo", "up"),
		ip(ctx, "-n", name, "link", "add", "br0", "type", "bridge"),
		ip(ctx, "-n", name, "link", "set", "br0", "up"),
		ip(ctx, "-n", name, "addr", "add", hubAddr+"/24", "dev", "br0"),
	)
}

// Join makes a network namespace with a cable to the cluster's network, for a
// node to live in, and returns its path (for lab.Options.Netns) and address. It
// is removed with the cluster.
func (c *Cluster) Join(ctx context.Context) (path, addr string, err error) {
	if !c.opts.Hub {
		return "", "", errors.New("cannot join a cluster that has no network of its own")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes++
	addr = fmt.Sprint(nodeNet, first+c.nodes-1)
	name, port := fmt.Sprintf("%s%s-%d", netPrefix, c.Name, c.nodes), fmt.Sprint("p", c.nodes)
	if err := ip(ctx, "netns", "add", name); err != nil {
		return "", "", err
	}
	c.nets = append(c.nets, name)
	err = errors.Join(c.save(),
		ip(ctx, "-n", c.netns, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name),
		ip(ctx, "-n", c.netns, "link", "set", port, "master", "br0", "up"),
		ip(ctx, "-n", name, "addr", "add", addr+"/24", "dev", "eth0"),
		ip(ctx, "-n", name, "link", "set", "lo", "up"),
		ip(ctx, "-n", name, "link", "set", "eth0", "up"),
		ip(ctx, "-n", name, "route", "add", "default", "via", hubAddr),
	)
	return filepath.Join("/run/netns", name), addr, err
}

// Cable is a cable to the cluster's network for a node that is a machine of its
// own (lab.Options.UML). It is removed with the cluster.
func (c *Cluster) Cable(ctx context.Context) (*lab.Cable, error) {
	if !c.opts.Hub {
		return nil, errors.New("cannot plug a machine into a cluster that has no network of its own")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes++
	k := &lab.Cable{Netns: c.netns, Tap: fmt.Sprint("tap", c.nodes), Addr: fmt.Sprint(nodeNet, first+c.nodes-1)}
	return k, errors.Join(c.save(),
		ip(ctx, "-n", c.netns, "tuntap", "add", k.Tap, "mode", "tap"),
		ip(ctx, "-n", c.netns, "link", "set", k.Tap, "master", "br0", "up"))
}

// Netns is the name of the cluster's network namespace, "" for the host's.
func (c *Cluster) Netns() string { return c.netns }

func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
