package ceph

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: crypto/rand aborts the program instead
	return hex.EncodeToString(b)
}

func uuid() string {
	s := randomHex(16)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// newKey makes a cephx key: type 1 (AES), the time, the length, 16 bytes.
func newKey() string {
	b := make([]byte, 28)
	binary.LittleEndian.PutUint16(b, 1)
	binary.LittleEndian.PutUint32(b[2:], uint32(time.Now().Unix()))
	binary.LittleEndian.PutUint16(b[10:], 16)
	_, _ = rand.Read(b[12:])
	return base64.StdEncoding.EncodeToString(b)
}

// freePorts finds ports for the monitor that nobody on the host listens at, below
// those that the kernel gives to outgoing connections: a daemon that is started
// again must find its own free again.
func freePorts() (ports [2]int, err error) {
	for i, tries := 0, 0; i < len(ports); tries++ {
		port := 10000 + mathrand.IntN(20000)
		l, lerr := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)) //nolint:noctx // it does not wait
		if lerr != nil {
			if tries == 100 {
				return ports, lerr
			}
			continue
		}
		defer func() { _ = l.Close() }() // after both are known
		ports[i] = port
		i++
	}
	return ports, nil
}

// shared is what daemons and clients must agree on.
const shared = `[global]
fsid = %s
mon host = %s
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
`

// own is the daemons' part. The OSD must write its memory to disk when it is
// stopped in order, which a fast shutdown would leave out.
const own = `mon initial members = a
public addr = %[1]s
cluster addr = %[1]s
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
osd fast shutdown = false
memstore device bytes = %[2]d
mon allow pool size one = true
mon allow pool delete = true
mon warn on pool no redundancy = false
mon data avail warn = 1
mon data avail crit = 0
mon cluster log to file = false
mgr initial modules =
mds cache memory limit = 67108864
run dir = %[3]s/run
admin socket = %[3]s/run/$name.$pid.asok
log file =
log to stderr = true
debug rocksdb = 0
mon data = %[3]s/mon
mgr data = %[3]s/mgr
osd data = %[3]s/osd
mds data = %[3]s/mds
keyring = %[3]s/keyring
[mon]
public addrv = %[4]s
`

// users with the caps that their daemons need.
func users() [][]string {
	return [][]string{
		{"mon.", "mon", "allow *"},
		{"client.admin", "mon", "allow *", "mgr", "allow *", "osd", "allow *", "mds", "allow *"},
		{"mgr.a", "mon", "allow profile mgr", "osd", "allow *", "mds", "allow *"},
		{"osd.0", "mon", "allow profile osd", "mgr", "allow profile osd", "osd", "allow *"},
		{"mds.a", "mon", "allow profile mds", "osd", "allow *", "mds", "allow *", "mgr", "allow profile mds"},
	}
}

func (c *Cluster) configure(context.Context) error {
	for _, d := range []string{"client", "run", "log", "mon", "mgr", "osd", "mds"} {
		if err := os.Mkdir(filepath.Join(c.dir, d), 0o755); err != nil {
			return err
		}
	}
	c.FSID = uuid()
	c.ports = [2]int{3300, 6789}
	if c.netns == "" {
		var err error
		if c.ports, err = freePorts(); err != nil {
			return err
		}
	}
	common := fmt.Sprintf(shared, c.FSID, c.MonAddr())
	var all strings.Builder
	for _, u := range users() {
		key := fmt.Sprintf("[%s]\n\tkey = %s\n", u[0], newKey())
		all.WriteString(key)
		for i := 1; i < len(u); i += 2 {
			fmt.Fprintf(&all, "\tcaps %s = %q\n", u[i], u[i+1])
		}
		if u[0] == "client.admin" {
			if err := os.WriteFile(c.Keyring("admin"), []byte(key), 0o600); err != nil {
				return err
			}
		}
	}
	return errors.Join(
		os.WriteFile(c.Conf(), []byte(common), 0o644),
		os.WriteFile(c.daemonConf(), []byte(common+fmt.Sprintf(own, c.opts.Addr, c.opts.Size, c.dir, c.MonAddr())), 0o600),
		os.WriteFile(c.adminConf(), []byte(common+"keyring = "+c.Keyring("admin")+"\n"), 0o600),
		os.WriteFile(filepath.Join(c.dir, "keyring"), []byte(all.String()), 0o600),
		c.save(),
	)
}

func (c *Cluster) adminConf() string { return filepath.Join(c.dir, "admin.conf") }

func (c *Cluster) daemonConf() string { return filepath.Join(c.dir, "ceph.conf") }

// firstMon makes the monitor's store, into which the keyring goes with all its
// caps, and starts what needs nothing but a monitor.
func (c *Cluster) firstMon(ctx context.Context) error {
	if err := c.once(ctx, "ceph-mon", "--mkfs", "-i", "a", "--keyring", filepath.Join(c.dir, "keyring")); err != nil {
		return err
	}
	for _, d := range []string{"mon", "mgr", "mds"} {
		if err := c.startDaemon(d); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) firstOSD(ctx context.Context) error {
	id := uuid()
	if _, err := c.Ceph(ctx, "osd", "new", id, "0"); err != nil {
		return c.withLogs(err)
	}
	if err := c.once(ctx, "ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", id); err != nil {
		return err
	}
	return c.startDaemon("osd")
}

// once runs a daemon's program that makes its store and ends.
func (c *Cluster) once(ctx context.Context, argv ...string) error {
	cmd := c.command(ctx, append(argv, "--conf", c.daemonConf())...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out[max(0, len(out)-2000):])
	}
	return nil
}

// populate makes the pools and the filesystem. One python does it all: each
// start of the command ceph takes half a second.
func (c *Cluster) populate(ctx context.Context) error {
	cmds := [][2]string{
		{"osd pool create", `"pool":"rbd","pg_num":8`},
		{"osd pool create", `"pool":"cephfs_data","pg_num":8`},
		{"osd pool create", `"pool":"cephfs_meta","pg_num":8`},
		{"osd pool application enable", `"pool":"rbd","app":"rbd"`},
		{"fs new", `"fs_name":"cephfs","metadata":"cephfs_meta","data":"cephfs_data"`},
	}
	script := "import rados\nr = rados.Rados(conffile='" + c.adminConf() + "')\nr.connect(20)\n"
	for _, m := range cmds {
		script += fmt.Sprintf("n, _, e = r.mon_command('''{\"prefix\":\"%s\",%s}''', b'')\nassert n == 0, e\n", m[0], m[1])
	}
	out, err := c.command(ctx, "/usr/bin/python3", "-c", script).CombinedOutput()
	if err != nil {
		return c.withLogs(fmt.Errorf("cannot make the pools: %w: %s", err, out))
	}
	return nil
}

// ready waits until a file can be written and the pools' sizes are known.
func (c *Cluster) ready(ctx context.Context) error {
	return c.withLogs(poll(ctx, 3*time.Minute, "a healthy cluster", func() (bool, error) {
		out, err := c.Ceph(ctx, "status", "--format", "json")
		if err != nil {
			return false, nil //nolint:nilerr // it may answer the next time
		}
		healthy := strings.Contains(out, `"status":"HEALTH_OK"`) && strings.Contains(out, `"up:active"`) && !strings.Contains(out, `"bytes_avail":0`)
		return healthy && strings.Contains(out, `"bytes_avail":`), nil
	}))
}

// withLogs adds the ends of the daemons' logs to an error.
func (c *Cluster) withLogs(err error) error {
	if err == nil {
		return nil
	}
	for _, d := range []string{"mon", "mgr", "osd", "mds"} {
		b, _ := os.ReadFile(c.Log(d)) // none: it was not started
		err = fmt.Errorf("%w\n%s: %s", err, d, b[max(0, len(b)-1000):])
	}
	return err
}

func poll(ctx context.Context, limit time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		if ok, err := done(); err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot see %s: %w", what, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}
