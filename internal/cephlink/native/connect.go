//go:build cgo

// Package native connects to a cluster with librados. Only storagectl-ceph
// links it.
package native

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/storagectl/storagectl/internal/cephlink"
)

// Limits of a connection.
type Limits struct {
	Connect time.Duration // for the monitors to answer
	// Op is how long an operation on objects may take; zero: as long as it needs,
	// so that I/O waits for an OSD that is down, as a disk would.
	Op time.Duration
}

// Dial connects to a cluster. The caller shuts the connection down.
func Dial(c cephlink.Cluster, limits Limits, options map[string]string) (*rados.Conn, error) {
	conn, err := rados.NewConnWithClusterAndUser(c.NameOf(), "client."+c.ID())
	if err != nil {
		return nil, fmt.Errorf("cannot prepare a connection as client.%s: %w", c.ID(), err)
	}
	if err := configure(conn, c, limits, options); err != nil {
		return nil, err
	}
	if err := conn.Connect(); err != nil {
		return nil, explain(c, err)
	}
	return conn, nil
}

func configure(conn *rados.Conn, c cephlink.Cluster, limits Limits, options map[string]string) error {
	if path := c.ConfPath(); path != "/dev/null" {
		if _, err := os.ReadFile(path); err != nil {
			return &cephlink.Fault{ID: cephlink.NoConf, Errno: cephlink.Errno(err), Text: fmt.Sprintf("cannot read the cluster's configuration: %v", err),
				Hint: "copy ceph.conf from a monitor's host, or give the monitors' addresses (--ceph-mon)"}
		}
		if err := conn.ReadConfigFile(path); err != nil {
			return &cephlink.Fault{ID: cephlink.NoConf, Errno: cephlink.Errno(err), Text: fmt.Sprintf("cannot understand %s: %v", path, err)}
		}
	}
	seconds := func(d time.Duration) string { return strconv.Itoa(int(max(d.Seconds(), 1))) }
	set := map[string]string{"client_mount_timeout": seconds(limits.Connect), "log_file": "", "admin_socket": "", "err_to_stderr": "true"}
	if limits.Op > 0 {
		set["rados_osd_op_timeout"], set["rados_mon_op_timeout"] = seconds(limits.Op), seconds(limits.Op)
	}
	if len(c.Mons) > 0 {
		set["mon_host"] = strings.Join(c.Mons, ",")
	}
	for _, f := range []struct{ option, path string }{{"keyring", c.Keyring}, {"keyfile", c.KeyFile}} {
		if f.path == "" {
			continue
		}
		if _, err := os.ReadFile(f.path); err != nil {
			return &cephlink.Fault{ID: cephlink.NoKey, Errno: cephlink.Errno(err), Text: fmt.Sprintf("cannot read the key of client.%s: %v", c.ID(), err)}
		}
		set[f.option] = f.path
	}
	if c.KeyFile != "" {
		set["keyring"] = "/dev/null" // one that lies about must not win
	}
	for k, v := range options {
		set[k] = v
	}
	for k, v := range set {
		if err := conn.SetConfigOption(k, v); err != nil {
			return fmt.Errorf("cannot set the option %s of Ceph: %w", k, err)
		}
	}
	return nil
}

// explain says what a failed connection means; librados gives but a number.
func explain(c cephlink.Cluster, err error) error {
	f := &cephlink.Fault{Errno: cephlink.Errno(err)}
	where := c.ConfPath()
	if len(c.Mons) > 0 {
		where = strings.Join(c.Mons, ", ")
	}
	switch num := syscall.Errno(f.Errno); {
	case errors.Is(num, syscall.ETIMEDOUT):
		f.ID, f.Text = cephlink.Unreachable, fmt.Sprintf("cannot reach the cluster of %s: no monitor answered in time", where)
		f.Hint = "see that the monitors run and their ports (3300, 6789) are open from here"
	case errors.Is(num, syscall.EACCES), errors.Is(num, syscall.EPERM):
		f.ID, f.Text = cephlink.WrongKey, fmt.Sprintf("cannot log in to the cluster of %s as client.%s: it does not take the key, or the keyring has none", where, c.ID())
		f.Hint = fmt.Sprintf("ceph auth get client.%s, on a monitor's host, shows the key and the rights", c.ID())
	case errors.Is(num, syscall.ENOENT):
		f.ID, f.Text = cephlink.NoKey, fmt.Sprintf("cannot log in to the cluster of %s as client.%s: no key for it, or no monitor in the configuration", where, c.ID())
		f.Hint = fmt.Sprintf("ceph auth get client.%s -o /etc/ceph/%s.client.%s.keyring", c.ID(), c.NameOf(), c.ID())
	default:
		f.Text = fmt.Sprintf("cannot connect to the cluster of %s as client.%s: %v", where, c.ID(), err)
	}
	return f
}

// Session is the connection that the requests of one helper share.
type Session struct{ conn *rados.Conn }

// Op is how long an operation that a request asks for may take before Ceph
// itself gives it up, which tells more than the end of the helper.
const opTime = 45 * time.Second

// Handlers are the requests that every helper answers.
func (s *Session) Handlers(version string) map[string]cephlink.Handler {
	return map[string]cephlink.Handler{
		"hello": cephlink.Handle(func(struct{}) (cephlink.Hello, error) {
			major, minor, patch := rados.Version()
			h := cephlink.Hello{Protocol: cephlink.Protocol, Version: version, Ceph: fmt.Sprintf("librados %d.%d.%d", major, minor, patch)}
			return h, nil
		}),
		"connect": cephlink.Handle(func(q cephlink.Connect) (struct{}, error) {
			conn, err := Dial(q.Cluster, Limits{Connect: time.Duration(q.Seconds) * time.Second, Op: opTime}, nil)
			s.conn = conn
			return struct{}{}, err
		}),
	}
}

// Conn is the connection.
func (s *Session) Conn() (*rados.Conn, error) {
	if s.conn == nil {
		return nil, errors.New("cannot ask a cluster before a connection is made")
	}
	return s.conn, nil
}

// Pool opens a pool, in a namespace of RBD where one is given.
func Pool(conn *rados.Conn, pool, namespace string) (*rados.IOContext, error) {
	io, err := conn.OpenIOContext(pool)
	switch {
	case errors.Is(err, rados.ErrNotFound):
		return nil, &cephlink.Fault{ID: cephlink.NoPool, Errno: int(syscall.ENOENT), Text: fmt.Sprintf("there is no pool %q", pool),
			Hint: "ceph osd pool ls tells the pools; ceph osd pool create, rbd pool init make one"}
	case err != nil:
		return nil, fmt.Errorf("cannot open pool %s: %w", pool, err)
	}
	io.SetNamespace(namespace)
	return io, nil
}
