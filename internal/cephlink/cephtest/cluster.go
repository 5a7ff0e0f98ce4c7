// Package cephtest gives tests a real Ceph cluster, by the lab's command, and
// the helper, built with the libraries of this machine. The lab and its tests
// are another room: nothing of it is linked here.
package cephtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/cephlink"
)

// Cluster is a running cluster.
type Cluster struct {
	Name    string `json:"-"`
	Conf    string `json:"conf"`
	Keyring string `json:"keyring"` // of client.admin
	Netns   string `json:"netns"`
	Mon     string `json:"mon"`
	FSID    string `json:"fsid"`

	Helper string `json:"-"` // storagectl-ceph
	dir    string
}

// Start starts a cluster, in a network of its own (hub) or on loopback. root is
// the project's folder. Call Close.
func Start(root string, hub bool, size int64) (_ *Cluster, err error) {
	dir, err := os.MkdirTemp("", "cephtest-")
	if err != nil {
		return nil, err
	}
	c := &Cluster{Name: fmt.Sprintf("t%d-%s", os.Getpid(), filepath.Base(dir)[len("cephtest-"):]), dir: dir, Helper: filepath.Join(dir, cephlink.Helper)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	builds := []struct{ cgo, tags, pkg, out string }{
		{"1", "pacific", "./cmd/storagectl-ceph", c.Helper},
		{"0", "", "./integration/lab/cmd/lab", filepath.Join(dir, "lab")},
	}
	for _, b := range builds {
		cmd := exec.Command("go", "build", "-buildvcs=false", "-tags="+b.tags, "-o", b.out, b.pkg) //nolint:noctx // go test's own limit holds
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return c, fmt.Errorf("cannot build %s: %w: %s", b.pkg, err, out)
		}
	}
	args := []string{"up", "-size", fmt.Sprint(size), c.Name}
	if !hub {
		args = append([]string{"up", "-host"}, args[1:]...)
	}
	if _, err := c.Lab(args...); err != nil {
		return c, err
	}
	out, err := c.Lab("env", "-json", c.Name)
	if err == nil {
		err = json.Unmarshal([]byte(out), c)
	}
	return c, err
}

// LabPath is the lab's command.
func (c *Cluster) LabPath() string { return filepath.Join(c.dir, "lab") }

// Lab runs "lab ceph ARGS".
func (c *Cluster) Lab(args ...string) (string, error) {
	return run(c.LabPath(), append([]string{"ceph"}, args...)...)
}

// Daemon does something (stop, start, freeze, thaw) to a daemon (mon, mgr, osd,
// mds), now and, undone, at the end of the test.
func (c *Cluster) Daemon(t testing.TB, verb, daemon string) {
	t.Helper()
	if _, err := c.Lab(verb, c.Name, daemon); err != nil {
		t.Fatal(err)
	}
}

// Healthy waits until the cluster works.
func (c *Cluster) Healthy(t testing.TB) {
	t.Helper()
	if _, err := c.Lab("wait", c.Name); err != nil {
		t.Fatal(err)
	}
}

// Close ends the cluster.
func (c *Cluster) Close() error {
	var err error
	if _, there := os.Stat(filepath.Join(c.dir, "lab")); there == nil {
		if _, err = c.Lab("down", c.Name); err != nil && strings.Contains(err.Error(), "cannot find") {
			err = nil // it was never up
		}
	}
	return errors.Join(err, os.RemoveAll(c.dir))
}

func run(argv0 string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv0, args...)
	cmd.WaitDelay = time.Second
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", argv0, strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// Ceph runs the command ceph as client.admin.
func (c *Cluster) Ceph(t testing.TB, args ...string) string {
	t.Helper()
	return c.Tool(t, append([]string{"ceph"}, args...)...)
}

// Tool runs one of Ceph's programs as client.admin.
func (c *Cluster) Tool(t testing.TB, argv ...string) string {
	t.Helper()
	argv = append([]string{argv[0], "--conf", c.Conf, "--keyring", c.Keyring}, argv[1:]...)
	if argv[0] == "ceph" { // it takes a keyring by its environment alone
		argv = append([]string{"env", "CEPH_ARGS=--keyring " + c.Keyring, "ceph", "--conf", c.Conf}, argv[5:]...)
	}
	if c.Netns != "" {
		argv = append([]string{"ip", "netns", "exec", c.Netns}, argv...)
	}
	out, err := run(argv[0], argv[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// User makes a user with caps and returns its keyring.
func (c *Cluster) User(t testing.TB, name string, caps ...string) string {
	t.Helper()
	out := c.Ceph(t, append([]string{"auth", "get-or-create", "client." + name}, caps...)...)
	path := filepath.Join(t.TempDir(), name+".keyring")
	if err := os.WriteFile(path, []byte(out+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Admin reaches the cluster as client.admin.
func (c *Cluster) Admin() cephlink.Cluster {
	return cephlink.Cluster{Conf: c.Conf, Keyring: c.Keyring}
}

// Link is a helper that is connected, until the test ends.
func (c *Cluster) Link(t testing.TB, as cephlink.Cluster) *cephlink.Client {
	t.Helper()
	link, err := cephlink.Start(context.Background(), cephlink.Options{Path: c.Helper, Cluster: as})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = link.Close() })
	return link
}
