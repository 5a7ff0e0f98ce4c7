package drain

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
)

// The tests run against real Nomad agents on loopback, from the lab's cache;
// raw_exec stands in for podman, which the end-to-end tests have.
const testDriver = "raw_exec"

// nomadBinary is looked for by the first test that needs it.
var nomadBinary = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "run", "./integration/lab/cmd/lab", "nomad")
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("cannot get nomad from the lab: %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "nomad"), nil
})

// An agent is one process of Nomad.
type agent struct {
	t    testing.TB
	dir  string
	http int
	rpc  int
	serf int
	cmd  *exec.Cmd
	done chan struct{}
}

// lastPort was given to an agent. It counts up from anywhere: an agent opens its
// ports some time after they were found free, and no other may be given them until.
var lastPort = sync.OnceValue(func() *atomic.Int32 {
	var n atomic.Int32
	n.Store(rand.Int32N(20000))
	return &n
})

// ports finds free ones below those that the kernel gives to outgoing connections
// (ip_local_port_range): an agent that is started again must find its own free again.
func ports(t testing.TB, n int) []int {
	t.Helper()
	var list []int
	for tries := 0; len(list) < n; tries++ {
		port := 10000 + int(lastPort().Add(1))%20000
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			if tries == 100 {
				t.Fatal(err)
			}
			continue
		}
		defer l.Close()
		list = append(list, port)
	}
	return list
}

func newAgent(t testing.TB) *agent {
	p := ports(t, 3)
	dir, err := os.MkdirTemp("", "storagectl-drain-")
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, dir: dir, http: p[0], rpc: p[1], serf: p[2]}
	t.Cleanup(a.remove)
	return a
}

func (a *agent) start(config string) {
	a.t.Helper()
	text := fmt.Sprintf(`
data_dir = %q
bind_addr = "127.0.0.1"
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
ports {
  http = %d
  rpc  = %d
  serf = %d
}
log_level = "WARN"
disable_update_check = true
acl { enabled = true }
`, filepath.Join(a.dir, "data"), a.http, a.rpc, a.serf) + config
	file := filepath.Join(a.dir, "agent.hcl")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		a.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(a.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		a.t.Fatal(err)
	}
	defer log.Close()
	binary, err := nomadBinary()
	if err != nil {
		a.t.Fatal(err)
	}
	a.cmd = exec.Command(binary, "agent", "-config", file)
	a.cmd.Stdout, a.cmd.Stderr = log, log
	a.cmd.Dir = a.dir // by which its children are known, who outlive it
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, done := make(chan error), make(chan struct{})
	cmd := a.cmd
	go func() {
		runtime.LockOSThread() // the death signal is the thread's
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(done)
		}
	}()
	if err := <-started; err != nil {
		a.t.Fatal(err)
	}
	a.done = done
}

func (a *agent) stop() {
	if a.cmd == nil {
		return
	}
	_ = a.cmd.Process.Signal(syscall.SIGCONT)
	_ = a.cmd.Process.Kill()
	<-a.done
	a.cmd = nil
}

// remove ends the agent and what it started, and removes its folder.
func (a *agent) remove() {
	a.end()
	if err := os.RemoveAll(a.dir); err != nil {
		a.t.Error(err)
	}
}

// end ends the agent and what it started, as a power cut does.
func (a *agent) end() {
	a.stop()
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		if cwd, _ := os.Readlink(p + "/cwd"); strings.HasPrefix(cwd+"/", a.dir+"/") {
			var pid int
			if _, err := fmt.Sscanf(p, "/proc/%d", &pid); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); strings.HasPrefix(f[1], a.dir+"/") {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
}

func (a *agent) addr() string { return fmt.Sprintf("http://127.0.0.1:%d", a.http) }

// A cluster is servers and clients.
type cluster struct {
	t       testing.TB
	servers []*agent
	clients []*agent
	token   string
	apis    map[string]*api.Client // an agent takes a hundred connections at most
}

func newCluster(t testing.TB, servers int) *cluster {
	t.Helper()
	c := &cluster{t: t, apis: map[string]*api.Client{}}
	for range servers {
		c.servers = append(c.servers, newAgent(t))
	}
	for i := range c.servers {
		c.startServer(i)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, a := range append(c.servers, c.clients...) {
				log, _ := os.ReadFile(filepath.Join(a.dir, "log"))
				t.Logf("%s: %s", a.dir, log[max(0, len(log)-1500):])
			}
		}
	})
	eventually(t, 3*time.Minute, "the management token", func() bool {
		tok, _, err := c.api(0, "").ACLTokens().Bootstrap(nil)
		if err == nil {
			c.token = tok.SecretID
		}
		return err == nil
	})
	eventually(t, 3*time.Minute, "the keyring", func() bool {
		_, _, err := c.admin().Variables().Create(&api.Variable{Path: "lab/ready", Items: api.VariableItems{"a": "b"}}, nil)
		return err == nil
	})
	return c
}

func (c *cluster) startServer(i int) {
	var peers []string
	for _, s := range c.servers {
		peers = append(peers, fmt.Sprintf("\"127.0.0.1:%d\"", s.serf))
	}
	c.servers[i].start(fmt.Sprintf(`
name = "server%d"
server {
  enabled = true
  bootstrap_expect = %d
  heartbeat_grace = "30s"
  server_join { retry_join = [%s] }
}`, i, len(c.servers), strings.Join(peers, ", ")))
}

func (c *cluster) api(i int, token string) *api.Client {
	key := c.servers[i].addr() + token
	if cl := c.apis[key]; cl != nil {
		return cl
	}
	cl, err := api.NewClient(&api.Config{Address: c.servers[i].addr(), SecretID: token})
	if err != nil {
		c.t.Fatal(err)
	}
	c.apis[key] = cl
	return cl
}

// admin is a client with all rights, as another operator has one.
func (c *cluster) admin() *api.Client { return c.api(0, c.token) }

func (c *cluster) startClient(a *agent, name string) {
	var rpc []string
	for _, s := range c.servers {
		rpc = append(rpc, fmt.Sprintf("\"127.0.0.1:%d\"", s.rpc))
	}
	a.start(fmt.Sprintf(`
name = %q
client {
  enabled = true
  servers = [%s]
  network_interface = "lo"
  options = {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
    "driver.allowlist" = "raw_exec"
  }
  cpu_total_compute = 4000
}
plugin "raw_exec" {
  config { enabled = true }
}`, name, strings.Join(rpc, ", ")))
}

// addClient returns a node that is ready.
func (c *cluster) addClient(name string) (Node, *agent) {
	c.t.Helper()
	a := newAgent(c.t)
	c.clients = append(c.clients, a)
	c.startClient(a, name)
	return c.ready(name), a
}

func (c *cluster) ready(name string) Node {
	c.t.Helper()
	var n Node
	eventually(c.t, 3*time.Minute, name+" ready", func() bool {
		list, _, err := c.admin().Nodes().List(nil)
		if err != nil {
			return false
		}
		for _, s := range list {
			if d := s.Drivers[testDriver]; s.Name == name && s.Status == "ready" && d != nil && d.Healthy {
				n = Node{ID: s.ID, Name: name, Datacenter: s.Datacenter, Pool: s.NodePool, Eligible: s.SchedulingEligibility == "eligible"}
				return true
			}
		}
		return false
	})
	return n
}

// client is ours, with a token.
func (c *cluster) client(token string) *Client {
	c.t.Helper()
	cl, err := New(Config{Address: c.servers[0].addr(), token: newSecret(token)})
	if err != nil {
		c.t.Fatal(err)
	}
	return cl
}

func (c *cluster) tokenFor(policy string) *api.ACLToken {
	c.t.Helper()
	name := "p" + randomID()[:8]
	if _, err := c.admin().ACLPolicies().Upsert(&api.ACLPolicy{Name: name, Rules: policy}, nil); err != nil {
		c.t.Fatalf("%v in\n%s", err, policy)
	}
	t, _, err := c.admin().ACLTokens().Create(&api.ACLToken{Name: name, Type: "client", Policies: []string{name}}, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return t
}

// run registers a job of sleepers and waits until count of them run.
func (c *cluster) run(t testing.TB, id, kind string, count int, node string) []*api.AllocationListStub {
	t.Helper()
	task := api.NewTask("main", testDriver).SetConfig("command", "/bin/sleep").SetConfig("args", []string{"10000"})
	task.KillTimeout = new(time.Second)
	task.Resources = &api.Resources{CPU: new(10), MemoryMB: new(10)}
	task.LogConfig = &api.LogConfig{MaxFiles: new(1), MaxFileSizeMB: new(1)}
	g := api.NewTaskGroup("g", count).AddTask(task)
	g.EphemeralDisk = &api.EphemeralDisk{SizeMB: new(10)}
	g.Migrate = &api.MigrateStrategy{MaxParallel: new(1), HealthCheck: new("task_states"), MinHealthyTime: new(500 * time.Millisecond), HealthyDeadline: new(time.Minute)}
	job := &api.Job{ID: &id, Name: &id, Type: &kind, Datacenters: []string{"*"}, TaskGroups: []*api.TaskGroup{g}}
	if kind != "service" {
		g.Migrate = nil
	}
	if node != "" {
		job.Constrain(api.NewConstraint("${node.unique.id}", "=", node))
	}
	if _, _, err := c.admin().Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _, _ = c.admin().Jobs().Deregister(id, true, nil) })
	var list []*api.AllocationListStub
	t.Cleanup(func() {
		if t.Failed() {
			c.why(id)
		}
	})
	eventually(t, 3*time.Minute, id+" running", func() bool {
		list = c.running(id)
		return len(list) >= count
	})
	return list
}

// why logs what became of a job's tasks.
func (c *cluster) why(id string) {
	all, _, _ := c.admin().Jobs().Allocations(id, true, nil)
	for _, a := range all {
		for _, t := range a.TaskStates {
			for _, e := range t.Events {
				c.t.Logf("%s %s on %s: %s %s", id, a.ID[:8], a.NodeName, e.Type, e.DisplayMessage)
			}
		}
	}
	evals, _, _ := c.admin().Jobs().Evaluations(id, nil)
	for _, e := range evals {
		for g, m := range e.FailedTGAllocs {
			c.t.Logf("%s: group %s not placed: %+v", id, g, m)
		}
	}
}

func (c *cluster) running(id string) []*api.AllocationListStub {
	all, _, err := c.admin().Jobs().Allocations(id, true, nil)
	if err != nil {
		return nil
	}
	var list []*api.AllocationListStub
	for _, a := range all {
		if a.ClientStatus == "running" {
			list = append(list, a)
		}
	}
	return list
}

func (c *cluster) node(n Node) *api.Node {
	c.t.Helper()
	info, _, err := c.admin().Nodes().Info(n.ID, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return info
}

func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within %s: %s", limit, what)
}

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestSecret: a token is in nothing that could be printed or kept.
func TestSecret(t *testing.T) {
	const token = "3f0e-very-secret"
	c := FromEnv(func(k string) string {
		return map[string]string{"NOMAD_TOKEN": token, "NOMAD_ADDR": "http://127.0.0.1:1", "NOMAD_REGION": "r1"}[k]
	})
	cl, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, down := cl.HostNodes(ctx, Find{})
	if down == nil {
		t.Error("a cluster that is not there has nodes")
	}
	text := fmt.Sprintf("%v %+v %#v %s %v", c, c, c, j, down)
	if strings.Contains(text, token) {
		t.Errorf("the token is in %s", text)
	}
	if !bytes.Contains(j, []byte(`"region":"r1"`)) {
		t.Errorf("no region in %s", j)
	}
}
