package nomad

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/integration/lab"
)

// clientSetup runs in the node. The lab machine may have no cgroup controllers,
// and Nomad always sets limits: crun gets to see none.
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
mkdir -p /etc/nomad.d /var/lib/nomad /etc/nomad-tls
chown -R hashi: /etc/nomad.d /var/lib/nomad /etc/nomad-tls
cat >/etc/systemd/system/nomad.service <<-EOF
	[Unit]
	Description=Nomad client
	[Service]
	User=hashi
	ExecStartPre=/bin/sh -c 'until test -S /run/user/2000/podman/podman.sock; do sleep 0.2; done'
	ExecStart=/usr/local/lib/nomad/nomad agent -config /etc/nomad.d
	KillMode=process
	Restart=on-failure
	[Install]
	WantedBy=multi-user.target
EOF
systemctl daemon-reload
systemctl enable --now --quiet nomad.service
`

// AddClient boots a node on the cluster's network, with a Nomad client whose
// podman driver talks to the owner's rootless socket. It returns when Nomad has
// the node as ready and its podman driver as healthy.
func (c *Cluster) AddClient(ctx context.Context, opts lab.Options) (*Client, error) {
	i := len(c.Clients)
	cl := &Client{IP: fmt.Sprintf("10.77.0.%d", 11+i)}
	cl.Addr = fmt.Sprintf("%s://%s:4646", c.scheme(), cl.IP)
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
	if err := c.configure(ctx, cl, i); err != nil {
		return nil, fmt.Errorf("cannot add a nomad client: %w", err)
	}
	if err := c.WaitReady(ctx, cl); err != nil {
		log, _ := cl.Run(ctx, "root", "journalctl", "-u", "nomad", "-n", "40", "--no-pager", "-o", "cat")
		return nil, fmt.Errorf("cannot add a nomad client: %w; it said: %s", err, log)
	}
	return cl, nil
}

func (c *Cluster) configure(ctx context.Context, cl *Client, i int) error {
	var servers []string
	for k := range c.opts.Servers {
		servers = append(servers, fmt.Sprintf("%q", serverIP(k+1)))
	}
	config := fmt.Sprintf(`
name       = "node%d"
data_dir   = "/var/lib/nomad/data"
plugin_dir = "/usr/local/lib/nomad/plugins"
bind_addr  = "0.0.0.0"
advertise { http = %q }
log_level  = "WARN"
disable_update_check = true
client {
  enabled = true
  servers = [%s]
  network_interface = "eth0"
  options = {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
    "driver.allowlist"     = "podman"
  }
}
acl { enabled = %v }
plugin "nomad-driver-podman" {
  config {
    socket_path = "unix://run/user/2000/podman/podman.sock"
    disable_log_collection = false
    gc { container = true }
    volumes { enabled = true }
  }
}
`, i, cl.IP, strings.Join(servers, ", "), c.opts.ACL) + c.tlsConfig("/etc/nomad-tls", "client")
	files := map[string]string{"/etc/nomad.d/client.hcl": config}
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
	_, err := cl.Script(ctx, "root", clientSetup)
	return err
}

// WaitReady waits until Nomad sees the client ready with a healthy podman, and
// learns its node id.
func (c *Cluster) WaitReady(ctx context.Context, cl *Client) error {
	return poll(ctx, 90*time.Second, "a ready node with a healthy podman driver", func() (bool, error) {
		client, err := c.API(c.Token)
		if err != nil {
			return false, err
		}
		nodes, _, err := client.Nodes().List(nil)
		if err != nil {
			return false, nil //nolint:nilerr // not yet
		}
		for _, n := range nodes {
			if d := n.Drivers["podman"]; n.Address == cl.IP && n.Status == api.NodeStatusReady && d != nil && d.Healthy {
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

// ServiceJob is a service of count podman containers, at most one a node unless
// there are fewer nodes.
func ServiceJob(id, image string, count int) *api.Job {
	task := api.NewTask("main", "podman").SetConfig("image", image).
		SetConfig("command", "/bin/busybox").SetConfig("args", []string{"sleep", "100000"}).
		SetConfig("network_mode", "none").SetConfig("init", false)
	task.KillTimeout = new(2 * time.Second)
	task.Resources = &api.Resources{CPU: new(20), MemoryMB: new(32)}
	task.LogConfig = &api.LogConfig{MaxFiles: new(1), MaxFileSizeMB: new(1)}
	group := api.NewTaskGroup("group", count).AddTask(task)
	group.EphemeralDisk = &api.EphemeralDisk{SizeMB: new(10)}
	group.Migrate = &api.MigrateStrategy{MaxParallel: new(1), HealthCheck: new("task_states"),
		MinHealthyTime: new(time.Second), HealthyDeadline: new(time.Minute)}
	group.Update = &api.UpdateStrategy{HealthCheck: new("task_states"), MinHealthyTime: new(time.Second)}
	job := api.NewServiceJob(id, id, "global", 50).AddTaskGroup(group).AddDatacenter("dc1")
	job.Spreads = []*api.Spread{{Attribute: "${node.unique.id}", Weight: new(int8(100))}}
	return job
}

// RunJob registers a job and waits until count allocations of it run.
func (c *Cluster) RunJob(ctx context.Context, job *api.Job, count int) error {
	client, err := c.API(c.Token)
	if err != nil {
		return err
	}
	if _, _, err := client.Jobs().Register(job, nil); err != nil {
		return err
	}
	var why string
	err = poll(ctx, 90*time.Second, "the job running", func() (bool, error) {
		allocs, err := c.Allocs(*job.ID)
		if err != nil {
			return false, err
		}
		running := 0
		why = ""
		for _, a := range allocs {
			if a.ClientStatus == api.AllocClientStatusRunning {
				running++
			}
			for _, t := range a.TaskStates {
				for _, e := range t.Events {
					why += "\n" + e.Type + ": " + e.DisplayMessage
				}
			}
		}
		return running >= count, nil
	})
	if err != nil {
		return errors.Join(err, fmt.Errorf("its last word: %s", why))
	}
	return nil
}

// Allocs lists the allocations of a job.
func (c *Cluster) Allocs(job string) ([]*api.AllocationListStub, error) {
	client, err := c.API(c.Token)
	if err != nil {
		return nil, err
	}
	allocs, _, err := client.Jobs().Allocations(job, true, nil)
	return allocs, err
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
