// Package nomad runs a real Nomad for tests: servers in a network namespace of
// their own, and clients with the real podman driver in nodes of the lab.
package nomad

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/integration/lab"
)

// Options says what to start.
type Options struct {
	Servers int  // 1 if zero
	ACL     bool // with a management token in Cluster.Token
	TLS     bool // mTLS on HTTP and RPC
}

// A Cluster is a running Nomad. Close ends it and its clients' nodes.
type Cluster struct {
	Token   string // the management token; "" without ACL
	Clients []*Client

	opts    Options
	tools   string
	dir     string
	hub     string
	servers []*exec.Cmd // nil where stopped
	ended   []chan struct{}
	nets    []string
	agents  int // that were added to nodes that have one

	mu   sync.Mutex
	apis map[string]*api.Client // an agent takes a hundred connections at most
}

// A Client is a node of the lab with a Nomad client on it.
type Client struct {
	*lab.Node
	Name string // of the Nomad node
	ID   string
	IP   string
	Addr string // of its agent, for NOMAD_ADDR

	unit string // of systemd
	user string // whom it runs as, and whose podman it has
	port int
}

func serverIP(n int) string { return fmt.Sprintf("10.77.0.%d", n) }

// Start builds Nomad if need be and starts the servers.
func Start(ctx context.Context, opts Options) (_ *Cluster, err error) {
	opts.Servers = max(1, opts.Servers)
	c := &Cluster{opts: opts, servers: make([]*exec.Cmd, opts.Servers), ended: make([]chan struct{}, opts.Servers)}
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot start nomad: %w", errors.Join(err, c.Close()))
		}
	}()
	if c.tools, err = lab.NomadTools(ctx); err != nil {
		return c, err
	}
	if err := sweepNets(ctx); err != nil {
		return c, err
	}
	if c.dir, err = os.MkdirTemp("", "storagectl-nomad-"); err != nil {
		return c, err
	}
	c.hub = fmt.Sprintf("%s%d-%s", netPrefix, os.Getpid(), c.dir[len(c.dir)-6:])
	c.nets = append(c.nets, c.hub)
	var addrs []string
	for i := range opts.Servers {
		addrs = append(addrs, serverIP(i+1))
	}
	if err := makeNet(ctx, c.hub, addrs); err != nil {
		return c, err
	}
	if opts.TLS {
		if err := c.certificates(ctx); err != nil {
			return c, err
		}
	}
	for i := range opts.Servers {
		if err := c.StartServer(ctx, i); err != nil {
			return c, err
		}
	}
	if err := c.waitLeader(ctx); err != nil {
		return c, err
	}
	if opts.ACL {
		if err := c.bootstrap(ctx); err != nil {
			return c, err
		}
	}
	return c, c.waitKeyring(ctx)
}

// waitKeyring waits until the leader can encrypt: before that nodes cannot
// register, and try again only much later.
func (c *Cluster) waitKeyring(ctx context.Context) error {
	client, err := c.API(c.Token)
	if err != nil {
		return err
	}
	return poll(ctx, 2*time.Minute, "the keyring", func() (bool, error) {
		_, _, err := client.Variables().Create(&api.Variable{Path: "lab/ready", Items: api.VariableItems{"a": "b"}}, nil)
		return err == nil, nil
	})
}

func (c *Cluster) certificates(ctx context.Context) error {
	for _, args := range [][]string{
		{"tls", "ca", "create"},
		{"tls", "cert", "create", "-server", "-region", "global", "-additional-ipaddress", serverIP(1),
			"-additional-ipaddress", serverIP(2), "-additional-ipaddress", serverIP(3)},
		{"tls", "cert", "create", "-client"},
		{"tls", "cert", "create", "-cli"},
	} {
		cmd := exec.CommandContext(ctx, filepath.Join(c.tools, "nomad"), args...)
		cmd.Dir = c.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nomad %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// tlsConfig is the tls block of an agent whose certificates are in dir.
func (c *Cluster) tlsConfig(dir, role string) string {
	if !c.opts.TLS {
		return ""
	}
	return fmt.Sprintf(`
tls {
  http = true
  rpc  = true
  ca_file   = "%[1]s/nomad-agent-ca.pem"
  cert_file = "%[1]s/global-%[2]s-nomad.pem"
  key_file  = "%[1]s/global-%[2]s-nomad-key.pem"
  verify_server_hostname = true
  verify_https_client    = true
}
`, dir, role)
}

// StartServer starts server i, for the first time or again. It may come up later.
func (c *Cluster) StartServer(ctx context.Context, i int) error {
	dir := filepath.Join(c.dir, fmt.Sprint("server", i))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	addr := serverIP(i + 1)
	var peers []string
	for k := range c.opts.Servers {
		peers = append(peers, fmt.Sprintf("%q", serverIP(k+1)))
	}
	config := fmt.Sprintf(`
name      = "server%d"
data_dir  = %q
bind_addr = %q
log_level = "WARN"
disable_update_check = true
server {
  enabled = true
  bootstrap_expect = %d
  heartbeat_grace  = "30s"
  server_join { retry_join = [%s] }
}
acl { enabled = %v }
`, i, filepath.Join(dir, "data"), addr, c.opts.Servers, strings.Join(peers, ", "), c.opts.ACL) + c.tlsConfig(c.dir, "server")
	if err := os.WriteFile(filepath.Join(dir, "server.hcl"), []byte(config), 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(c.ServerLog(i), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	// Not bound to ctx: it lives until StopServer or the end of this process.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "ip", "netns", "exec", c.hub,
		filepath.Join(c.tools, "nomad"), "agent", "-config", filepath.Join(dir, "server.hcl"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		// The kernel sends the death signal when the thread that forked ends.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	c.servers[i], c.ended[i] = cmd, ended
	return nil
}

// ServerLog is the file with what server i wrote.
func (c *Cluster) ServerLog(i int) string {
	return filepath.Join(c.dir, fmt.Sprint("server", i), "log")
}

// StopServer kills server i; its disk stays.
func (c *Cluster) StopServer(i int) {
	if c.servers[i] == nil {
		return
	}
	_ = c.servers[i].Process.Kill() // ip netns exec has become nomad
	<-c.ended[i]
	c.servers[i] = nil
}

// Leader is the index of the server that leads.
func (c *Cluster) Leader() (int, error) {
	api, err := c.API(c.Token)
	if err != nil {
		return 0, err
	}
	addr, err := api.Status().Leader()
	for i := range c.servers {
		if strings.HasPrefix(addr, serverIP(i+1)+":") {
			return i, err
		}
	}
	return 0, errors.Join(err, fmt.Errorf("no leader: %q", addr))
}

func (c *Cluster) scheme() string {
	if c.opts.TLS {
		return "https"
	}
	return "http"
}

// Addr is the address of server i's agent.
func (c *Cluster) Addr(i int) string {
	return fmt.Sprintf("%s://%s:4646", c.scheme(), serverIP(i+1))
}

// API is a client of the first server that runs, with a token ("": none).
func (c *Cluster) API(token string) (*api.Client, error) {
	i := 0
	for i < len(c.servers)-1 && c.servers[i] == nil {
		i++
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := c.Addr(i) + " " + token
	if known := c.apis[key]; known != nil {
		return known, nil
	}
	tr := &http.Transport{DialContext: c.Dial}
	if c.opts.TLS {
		ca, err := os.ReadFile(filepath.Join(c.dir, "nomad-agent-ca.pem"))
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca)
		pair, err := tls.LoadX509KeyPair(filepath.Join(c.dir, "global-cli-nomad.pem"), filepath.Join(c.dir, "global-cli-nomad-key.pem"))
		if err != nil {
			return nil, err
		}
		tr.TLSClientConfig = &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}
	}
	// The environment of the tests must not matter.
	client, err := api.NewClient(&api.Config{Address: c.Addr(i), SecretID: token, Namespace: "default", Region: "global", HttpClient: &http.Client{Transport: tr}})
	if err != nil {
		return nil, err
	}
	if c.apis == nil {
		c.apis = map[string]*api.Client{}
	}
	c.apis[key] = client
	return client, nil
}

func (c *Cluster) waitLeader(ctx context.Context) error {
	return poll(ctx, 2*time.Minute, "a leader", func() (bool, error) {
		_, err := c.Leader()
		return err == nil, nil
	})
}

func (c *Cluster) bootstrap(ctx context.Context) error {
	return poll(ctx, 2*time.Minute, "the management token", func() (bool, error) {
		client, err := c.API("")
		if err != nil {
			return false, err
		}
		t, _, err := client.ACLTokens().Bootstrap(nil)
		if err != nil {
			return false, nil //nolint:nilerr // the leader is not ready yet
		}
		c.Token = t.SecretID
		return true, nil
	})
}

// TokenFor makes a client token with one policy, given as HCL.
func (c *Cluster) TokenFor(name, policy string) (*api.ACLToken, error) {
	client, err := c.API(c.Token)
	if err != nil {
		return nil, err
	}
	if _, err := client.ACLPolicies().Upsert(&api.ACLPolicy{Name: name, Rules: policy}, nil); err != nil {
		return nil, err
	}
	t, _, err := client.ACLTokens().Create(&api.ACLToken{Name: name, Type: "client", Policies: []string{name}}, nil)
	return t, err
}

// Close kills the servers and removes the clients' nodes and networks.
func (c *Cluster) Close() error {
	var errs []error
	for _, cl := range c.Clients {
		errs = append(errs, cl.Close())
	}
	for i := range c.servers {
		c.StopServer(i)
	}
	for i := len(c.nets) - 1; i >= 0; i-- {
		errs = append(errs, ip(context.Background(), "netns", "del", c.nets[i]))
	}
	c.nets, c.Clients = nil, nil
	if c.dir != "" {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	return errors.Join(errs...)
}

// poll looks four times a second until done says true or fails.
func poll(ctx context.Context, limit time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot see %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}
