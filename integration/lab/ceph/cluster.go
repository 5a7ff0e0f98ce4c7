// Package ceph runs a real Ceph for tests and for people: a monitor, a manager,
// an OSD that keeps its data in memory, and a metadata server, with cephx on.
package ceph

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
)

// Options says what to start.
type Options struct {
	Name  string // default: random
	Size  int64  // bytes of the OSD's memory for data; default 4 GiB
	Hub   bool   // in a network of its own, which nodes join by Cluster.Join
	Netns string // name of a network namespace to live in, instead of the host's
	Addr  string // its address there; default 127.0.0.1, with Hub 10.78.0.1
	Keep  bool   // it outlives the process that started it, until Attach and Close
}

// What a new cluster has.
const (
	RBDPool = "rbd"    // ready for images
	FS      = "cephfs" // with an MDS
)

// A Cluster is a running Ceph. Close ends it and leaves nothing behind.
type Cluster struct {
	Name string
	FSID string

	opts    Options
	dir     string
	netns   string // "": the host's
	ports   [2]int // of the monitor, for messenger 2 and 1
	mu      sync.Mutex
	daemons map[string]*daemon
	nodes   int // that joined
	nets    []string
	unlock  func()
}

func clustersDir() string { return filepath.Join(lab.Cache(), "ceph") }

// Start starts a cluster and returns when images and files can be written. On
// an error nothing is left behind.
func Start(ctx context.Context, opts Options) (_ *Cluster, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if opts.Name == "" {
		opts.Name = "c" + randomHex(4)
	}
	if opts.Size == 0 {
		opts.Size = 4 << 30
	}
	if opts.Hub {
		opts.Addr = hubAddr
	}
	if opts.Addr == "" {
		opts.Addr = "127.0.0.1"
	}
	c := &Cluster{Name: opts.Name, opts: opts, dir: filepath.Join(clustersDir(), opts.Name), netns: opts.Netns, daemons: map[string]*daemon{}}
	if err := os.MkdirAll(clustersDir(), 0o755); err != nil {
		return nil, fmt.Errorf("cannot start ceph: %w", err)
	}
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot start ceph: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot start ceph: %w", errors.Join(err, c.Close()))
		}
	}()
	for _, step := range []func(context.Context) error{c.lock, c.network, c.configure, c.firstMon, c.firstOSD, c.populate, c.ready} {
		if err := step(ctx); err != nil {
			return c, err
		}
	}
	return c, nil
}

// lock keeps Clean away for as long as this process lives, and records what
// another process needs to know.
func (c *Cluster) lock(context.Context) error {
	f, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	c.unlock = func() { _ = f.Close() }
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return err
	}
	return c.save()
}

type record struct {
	Options Options
	FSID    string
	Netns   string
	Nets    []string
	Ports   [2]int
	Nodes   int
}

func (c *Cluster) save() error {
	b, err := json.Marshal(record{c.opts, c.FSID, c.netns, c.nets, c.ports, c.nodes})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, "cluster.json"), b, 0o600)
}

// Attach returns a cluster that another process started.
func Attach(name string) (*Cluster, error) {
	dir := filepath.Join(clustersDir(), name)
	var r record
	b, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot find the ceph cluster %q: %w", name, err)
	}
	return &Cluster{Name: name, FSID: r.FSID, opts: r.Options, dir: dir, netns: r.Netns, nets: r.Nets, ports: r.Ports, nodes: r.Nodes, daemons: map[string]*daemon{}}, nil
}

// List returns the names of the clusters there are.
func List() ([]string, error) {
	entries, err := os.ReadDir(clustersDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// Clean removes the clusters whose process is gone; with all, also those that
// were started to stay.
func Clean(all bool) error {
	names, err := List()
	for _, name := range names {
		c, aerr := Attach(name)
		if aerr != nil { // it was killed before it wrote its record
			c = &Cluster{Name: name, dir: filepath.Join(clustersDir(), name)}
		}
		if c.opts.Keep && !all || held(filepath.Join(c.dir, "lock")) {
			continue
		}
		err = errors.Join(err, c.Close())
	}
	return err
}

func held(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

// Conf is the ceph.conf of the cluster's clients. Beside it lie the keyrings,
// with their usual names.
func (c *Cluster) Conf() string { return filepath.Join(c.dir, "client", "ceph.conf") }

// Keyring is the keyring of a user, without "client.".
func (c *Cluster) Keyring(user string) string {
	return filepath.Join(c.dir, "client", "ceph.client."+user+".keyring")
}

// MonAddr is the address of the monitor for those who have no ceph.conf.
func (c *Cluster) MonAddr() string {
	return fmt.Sprintf("[v2:%[1]s:%[2]d,v1:%[1]s:%[3]d]", c.opts.Addr, c.ports[0], c.ports[1])
}

// Ceph runs the command ceph as client.admin, and returns what it wrote.
func (c *Cluster) Ceph(ctx context.Context, args ...string) (string, error) {
	return c.run(ctx, append([]string{"ceph", "--connect-timeout", "20"}, args...)...)
}

// RBD runs the command rbd as client.admin.
func (c *Cluster) RBD(ctx context.Context, args ...string) (string, error) {
	return c.run(ctx, append([]string{"rbd"}, args...)...)
}

func (c *Cluster) run(ctx context.Context, argv ...string) (string, error) {
	argv = append([]string{argv[0], "--conf", c.adminConf()}, argv[1:]...)
	cmd := c.command(ctx, argv...)
	var errs strings.Builder
	cmd.Stderr = &errs
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(errs.String()))
	}
	return string(out), nil
}

// command prepares a command in the cluster's network.
func (c *Cluster) command(ctx context.Context, argv ...string) *exec.Cmd {
	if c.netns != "" {
		argv = append([]string{"ip", "netns", "exec", c.netns}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	return cmd
}

// User makes a user with caps, as in User(ctx, "app", "mon", "profile rbd",
// "osd", "profile rbd pool=rbd"), or changes one's; its keyring is at Keyring.
func (c *Cluster) User(ctx context.Context, name string, caps ...string) error {
	if _, err := c.Ceph(ctx, append([]string{"auth", "get-or-create", "client." + name}, caps...)...); err != nil {
		if _, err := c.Ceph(ctx, append([]string{"auth", "caps", "client." + name}, caps...)...); err != nil {
			return err
		}
	}
	out, err := c.Ceph(ctx, "auth", "get", "client."+name)
	if err != nil {
		return err
	}
	return os.WriteFile(c.Keyring(name), []byte(out), 0o600)
}

// Install puts ceph.conf and the keyrings of some users into a node's /etc/ceph.
func (c *Cluster) Install(ctx context.Context, n *lab.Node, users ...string) error {
	if _, err := n.Run(ctx, "root", "mkdir", "-p", "/etc/ceph"); err != nil {
		return err
	}
	err := n.CopyIn(ctx, "root", c.Conf(), "/etc/ceph/ceph.conf")
	for _, u := range users {
		to := "/etc/ceph/ceph.client." + u + ".keyring"
		if err == nil {
			err = n.CopyIn(ctx, "root", c.Keyring(u), to)
		}
		if err == nil {
			_, err = n.Run(ctx, "root", "chmod", "600", to)
		}
	}
	return err
}

// Close kills the daemons, also those of a cluster that another process
// started, and removes its network and its folder.
func (c *Cluster) Close() error {
	c.mu.Lock()
	for name := range c.daemons {
		c.daemons[name].kill()
	}
	c.mu.Unlock()
	errs := []error{killAll(c.dir)}
	for i := len(c.nets) - 1; i >= 0; i-- {
		errs = append(errs, ip(context.Background(), "netns", "del", c.nets[i]))
	}
	c.nets = nil
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	if c.unlock != nil {
		c.unlock()
	}
	return nil
}
