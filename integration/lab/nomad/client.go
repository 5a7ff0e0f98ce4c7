package nomad

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/integration/lab"
)

// clientSetup runs in the node with an agent's unit ($1), its user ($2) and the
// socket of its podman ($3). The lab machine may have no cgroup controllers, and
// Nomad always sets limits: crun gets to see none.
const clientSetup = `
cat >/usr/local/bin/crun <<-'EOF'
	#!/bin/sh
	prev=
	for arg in "$@"; do
		case $prev in --bundle | -b)
			jq 'del(.linux.resources, .process.rlimits)' "$arg/config.json" >"$arg/config.json.new"
			mv "$arg/config.json.new" "$arg/config.json" ;;
		esac
		prev=$arg
	done
	exec /usr/bin/crun "$@"
EOF
chmod 0755 /usr/local/bin/crun
# A client that is root makes folders and log pipes that a rootless podman
# cannot open: the client runs as the store's owner.
mkdir -p "/etc/$1.d" "/var/lib/$1" /etc/nomad-tls
chown -R "$2:" "/etc/$1.d" "/var/lib/$1"
chown -R hashi: /etc/nomad-tls
test "$2" != root || systemctl enable --now --quiet podman.socket
cat >"/etc/systemd/system/$1.service" <<-EOF
	[Unit]
	Description=Nomad client
	[Service]
	User=$2
	ExecStartPre=/bin/sh -c 'until test -S $3; do sleep 0.2; done'
	ExecStart=/usr/local/lib/nomad/nomad agent -config /etc/$1.d
	KillMode=process
	Restart=on-failure
	[Install]
	WantedBy=multi-user.target
EOF
systemctl daemon-reload
systemctl enable --now --quiet "$1.service"
`

// AddClient boots a node on the cluster's network, with a Nomad client whose
// podman driver talks to the owner's rootless socket. It returns when Nomad has
// the node as ready and its podman driver as healthy.
func (c *Cluster) AddClient(ctx context.Context, opts lab.Options) (*Client, error) {
	i := len(c.Clients)
	cl := &Client{Name: fmt.Sprint("node", i), IP: fmt.Sprintf("10.77.0.%d", 11+i), unit: "nomad", user: lab.Owner, port: 4646}
	name := fmt.Sprintf("%s-n%d", c.hub, i)
	if err := joinNet(ctx, c.hub, name, cl.IP); err != nil {
		return nil, fmt.Errorf("cannot add a nomad client: %w", err)
	}
	c.nets = append(c.nets, name)
	opts.Netns = netPath(name)
	opts.Binds = append(opts.Binds, c.tools+":/usr/local/lib/nomad")
	var err error
	if cl.Node, err = lab.Boot(ctx, opts); err != nil {
		return nil, err
	}
	c.Clients = append(c.Clients, cl)
	return cl, c.enter(ctx, cl)
}

// AddAgent starts one more Nomad client in a client's node: as the user whose
// podman it serves, the owner's or root's. It is a Nomad node of its own.
func (c *Cluster) AddAgent(ctx context.Context, beside *Client, name, user string) (*Client, error) {
	c.agents++
	cl := &Client{Node: beside.Node, Name: name, IP: beside.IP, unit: "nomad-" + name, user: user, port: 4646 + 1000*c.agents}
	return cl, c.enter(ctx, cl)
}

// enter starts a client's agent and waits until Nomad knows it.
func (c *Cluster) enter(ctx context.Context, cl *Client) error {
	cl.Addr = fmt.Sprintf("%s://%s:%d", c.scheme(), cl.IP, cl.port)
	if err := c.configure(ctx, cl); err != nil {
		return fmt.Errorf("cannot add a nomad client: %w", err)
	}
	if err := c.WaitReady(ctx, cl); err != nil {
		log, _ := cl.Run(ctx, "root", "journalctl", "-u", cl.unit, "-n", "40", "--no-pager", "-o", "cat")
		return fmt.Errorf("cannot add a nomad client: %w; it said: %s", err, log)
	}
	return nil
}

func (c *Cluster) configure(ctx context.Context, cl *Client) error {
	var servers []string
	for k := range c.opts.Servers {
		servers = append(servers, fmt.Sprintf("%q", serverIP(k+1)))
	}
	socket := "/run/user/2000/podman/podman.sock"
	if cl.user == "root" {
		socket = "/run/podman/podman.sock"
	}
	config := fmt.Sprintf(`
name       = %q
data_dir   = "/var/lib/%s/data"
plugin_dir = "/usr/local/lib/nomad/plugins"
bind_addr  = "0.0.0.0"
ports { http = %d }
advertise { http = %q }
log_level  = "WARN"
disable_update_check = true
client {
  enabled = true
  servers = [%s]
  network_interface = "eth0"
  options = {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
    "driver.allowlist"     = "podman,raw_exec"
  }
}
acl { enabled = %v }
plugin "raw_exec" {
  config { enabled = true }
}
plugin "nomad-driver-podman" {
  config {
    socket_path = "unix:/%s"
    disable_log_collection = false
    gc { container = true }
    volumes { enabled = true }
  }
}
`, cl.Name, cl.unit, cl.port, cl.IP, strings.Join(servers, ", "), c.opts.ACL, socket) + c.tlsConfig("/etc/nomad-tls", "client")
	files := map[string]string{"/etc/" + cl.unit + ".d/client.hcl": config}
	if c.opts.TLS {
		for _, f := range []string{"nomad-agent-ca.pem", "global-client-nomad.pem", "global-client-nomad-key.pem", "global-cli-nomad.pem", "global-cli-nomad-key.pem"} {
			b, err := os.ReadFile(filepath.Join(c.dir, f))
			if err != nil {
				return err
			}
			files["/etc/nomad-tls/"+f] = string(b)
		}
	}
	for path, text := range files {
		cmd := cl.Cmd(ctx, "root", "sh", "-c", `umask 077; mkdir -p "$(dirname "$1")" && cat >"$1"`, "sh", path)
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	_, err := cl.Run(ctx, "root", "bash", "-euo", "pipefail", "-c", clientSetup, "setup", cl.unit, cl.user, socket)
	return err
}

// WaitReady waits until Nomad sees the client ready with a healthy podman, and
// learns its node id.
func (c *Cluster) WaitReady(ctx context.Context, cl *Client) error {
	return poll(ctx, 4*time.Minute, "a ready node with a healthy podman driver", func() (bool, error) {
		client, err := c.API(c.Token)
		if err != nil {
			return false, err
		}
		nodes, _, err := client.Nodes().List(nil)
		if err != nil {
			return false, nil //nolint:nilerr // not yet
		}
		for _, n := range nodes {
			if d := n.Drivers["podman"]; n.Name == cl.Name && n.Address == cl.IP && n.Status == api.NodeStatusReady && d != nil && d.Healthy {
				cl.ID = n.ID
				return true, nil
			}
		}
		return false, nil
	})
}

// Env is what storagectl in the client's node needs to reach its agent; the
// token goes by the environment.
func (c *Cluster) Env(cl *Client, token string) []string {
	env := []string{"NOMAD_ADDR=" + cl.Addr}
	if token != "" {
		env = append(env, "NOMAD_TOKEN="+token)
	}
	if c.opts.TLS {
		env = append(env, "NOMAD_CACERT=/etc/nomad-tls/nomad-agent-ca.pem", "NOMAD_TLS_SERVER_NAME=client.global.nomad",
			"NOMAD_CLIENT_CERT=/etc/nomad-tls/global-cli-nomad.pem", "NOMAD_CLIENT_KEY=/etc/nomad-tls/global-cli-nomad-key.pem")
	}
	return env
}

// Node is a client's node as the servers know it.
func (c *Cluster) Node(cl *Client) (*api.Node, error) {
	client, err := c.API(c.Token)
	if err != nil {
		return nil, err
	}
	n, _, err := client.Nodes().Info(cl.ID, nil)
	return n, err
}
