// Package cephlink is the wire between storagectl, which links no Ceph library,
// and storagectl-ceph, the helper that does: how a cluster is reached, how the
// helper is found, started, asked and ended, and how its errors come over.
package cephlink

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Cluster says how to reach a Ceph cluster, and as whom. Secrets are named by
// their file: neither a command line nor a log ever holds one.
type Cluster struct {
	Name    string   `json:"name,omitempty"`    // "ceph" if empty: names the default files in /etc/ceph
	Conf    string   `json:"conf,omitempty"`    // ceph.conf; /etc/ceph/NAME.conf if empty, unless Mons are given
	Mons    []string `json:"mons,omitempty"`    // the monitors' names or addresses, with a port or without, instead of a ceph.conf
	User    string   `json:"user,omitempty"`    // "admin" if empty; without "client."
	Keyring string   `json:"keyring,omitempty"` // keyring file; if empty, where ceph.conf or Ceph's own defaults say
	KeyFile string   `json:"keyFile,omitempty"` // a file with nothing but the base64 key, instead of a keyring
}

// ID is the user without "client.".
func (c Cluster) ID() string {
	if c.User == "" {
		return "admin"
	}
	return strings.TrimPrefix(c.User, "client.")
}

// NameOf is the name of the cluster.
func (c Cluster) NameOf() string {
	if c.Name == "" {
		return "ceph"
	}
	return c.Name
}

// ConfPath is the ceph.conf to read; /dev/null where the monitors are given.
func (c Cluster) ConfPath() string {
	switch {
	case c.Conf != "":
		return c.Conf
	case len(c.Mons) > 0:
		return "/dev/null"
	}
	return filepath.Join("/etc/ceph", c.NameOf()+".conf")
}

// Args are the options by which Ceph's own programs (rbd, ceph-fuse) reach the
// cluster as this user.
func (c Cluster) Args() []string {
	args := []string{"--conf", c.ConfPath(), "--id", c.ID()}
	if c.Name != "" {
		args = append(args, "--cluster", c.Name)
	}
	if len(c.Mons) > 0 {
		args = append(args, "-m", strings.Join(c.Mons, ","))
	}
	if c.Keyring != "" {
		args = append(args, "--keyring", c.Keyring)
	}
	if c.KeyFile != "" {
		args = append(args, "--keyfile", c.KeyFile)
	}
	return args
}

// Check refuses what no cluster can be reached by.
func (c Cluster) Check() error {
	for _, m := range c.Mons { // they also stand in lines of rbdmap and fstab
		if m == "" || strings.Trim(m, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:/[]-") != "" || strings.HasPrefix(m, "-") {
			return fmt.Errorf("cannot use %q as a monitor: give its name or address, with a port or without, or what mon_host is in a ceph.conf", m)
		}
	}
	for _, w := range []string{c.Name, c.User, c.Conf, c.Keyring, c.KeyFile} {
		if strings.ContainsAny(w, "\x00\n") {
			return fmt.Errorf("cannot use %q to reach a cluster: it has a line break or a zero byte", w)
		}
	}
	for _, p := range []string{c.Conf, c.Keyring, c.KeyFile} {
		if p != "" && !filepath.IsAbs(p) {
			return fmt.Errorf("cannot use %q to reach a cluster: it is not an absolute path", p)
		}
	}
	if c.Keyring != "" && c.KeyFile != "" {
		return fmt.Errorf("cannot use both a keyring (%s) and a key file (%s)", c.Keyring, c.KeyFile)
	}
	return nil
}
