package drain

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
)

// Find says which nodes are this host's.
type Find struct {
	// Nodes are names, ids, or addresses of the nodes' own agents (http://…);
	// given, nothing else is looked for.
	Nodes []string
	// Driver that places containers in the store: podman if empty.
	Driver string
	// Rootless says whose store it is: nodes whose driver says otherwise cannot
	// place containers in it.
	Rootless bool
	// Clients is how many clients of Nomad run on this host, as its processes tell.
	// Zero: nobody counted.
	Clients int
}

// Node is a node as it was found.
type Node struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	Datacenter string `json:"datacenter"`
	Pool       string `json:"pool"`
	Class      string `json:"class,omitempty"` // what operators sort nodes by
	// Eligible is whether it took work then: so it is given back.
	Eligible bool `json:"eligible"`
}

// HostNodes finds the nodes of this host that can place containers in the
// store. A node is this host's if a local agent says that it is it, or if its
// host name is ours and its address is one of our interfaces'. It fails with
// [ErrNoNode] if there is none, with a [*DownError] if one of them is down, with an
// [*UnseenError] if more clients run here than nodes are this host's, and refuses
// names that are not unique.
func (c *Client) HostNodes(ctx context.Context, f Find) ([]Node, error) {
	if f.Driver == "" {
		f.Driver = "podman"
	}
	var stubs []*api.NodeListStub
	err := c.few(ctx, func(ctx context.Context) (err error) {
		stubs, _, err = c.api.Nodes().List(query(ctx))
		return err
	})
	if status(err) == http.StatusForbidden {
		return nil, rightsError(nil, Rights{}, "node:write (and so node:read)")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list Nomad's nodes: %w", err)
	}
	if len(f.Nodes) > 0 {
		return c.named(ctx, stubs, f.Nodes)
	}
	// That needs agent:read, which the least policy does not have: not being
	// allowed to ask is no error.
	var own []string
	if local(c.Config.Address) {
		if id, err := c.self(ctx); err == nil {
			own = append(own, id)
		}
	}
	addrs, err := localAddrs()
	if err != nil {
		return nil, err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("cannot find this host's nodes: %w", err)
	}
	var nodes []Node
	var down, live []*api.Node
	for _, s := range stubs {
		if !slices.Contains(own, s.ID) && !slices.Contains(addrs, s.Address) {
			continue
		}
		n, err := c.info(ctx, s.ID)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(own, s.ID) && n.Attributes["unique.hostname"] != hostname {
			continue
		}
		// A driver that is not detected now may be a minute later.
		can := n.Drivers[f.Driver] != nil && (f.Driver != "podman" || serves(n.Attributes, f.Rootless))
		switch {
		case n.Status != api.NodeStatusDown:
			live = append(live, n)
			if can {
				nodes = append(nodes, nodeOf(n))
			}
		case can:
			down = append(down, n)
		}
	}
	for _, n := range down {
		// A client that lost its data folder is another node now, at the same address;
		// Nomad keeps the old one for a day.
		if !slices.ContainsFunc(live, func(l *api.Node) bool { return l.HTTPAddr == n.HTTPAddr && n.HTTPAddr != "" }) {
			return nil, &DownError{Node: n.Name, ID: n.ID}
		}
	}
	if f.Clients > len(live) {
		return nil, &UnseenError{Clients: f.Clients, Nodes: len(live)}
	}
	if len(nodes) == 0 {
		return nil, ErrNoNode
	}
	return nodes, nil
}

// serves says whether a podman driver may place containers in a rootless store,
// or in root's. From 0.6.2 on it can have several sockets, each with attributes of
// its own (driver.podman.NAME.rootless). One that tells nothing may.
func serves(attrs map[string]string, rootless bool) bool {
	told := false
	for k, v := range attrs {
		if strings.HasPrefix(k, "driver.podman.") && strings.HasSuffix(k, ".rootless") {
			if told = true; isTrue(v) == rootless {
				return true
			}
		}
	}
	return !told
}

func isTrue(s string) bool { return s == "true" || s == "1" }

func nodeOf(n *api.Node) Node {
	return Node{ID: n.ID, Name: n.Name, Datacenter: n.Datacenter, Pool: n.NodePool, Class: n.NodeClass, Eligible: n.SchedulingEligibility == api.NodeSchedulingEligible}
}

func (c *Client) named(ctx context.Context, stubs []*api.NodeListStub, names []string) ([]Node, error) {
	var nodes []Node
	for _, name := range names {
		if strings.Contains(name, "://") {
			conf := c.Config
			conf.Address = name
			agent, err := New(conf)
			if err != nil {
				return nil, err
			}
			if name, err = agent.self(ctx); err != nil {
				return nil, fmt.Errorf("%w: cannot ask the agent which node it is (agent:read): %w", ErrNoNode, err)
			}
		}
		var found []string
		for _, s := range stubs {
			if s.ID == name || (s.Name == name && s.Status != api.NodeStatusDown) {
				found = append(found, s.ID)
			}
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("%w: there is no node %q", ErrNoNode, name)
		}
		if len(found) > 1 {
			return nil, fmt.Errorf("cannot choose node %q: %v have that name; give an id", name, found)
		}
		n, err := c.info(ctx, found[0])
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, nodeOf(n))
	}
	return nodes, nil
}

// self is the node that the agent itself is.
func (c *Client) self(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var self api.AgentSelf
	if _, err := c.api.Raw().Query("/v1/agent/self", &self, query(ctx)); err != nil {
		return "", err
	}
	id := self.Stats["client"]["node_id"]
	if id == "" {
		return "", fmt.Errorf("the agent at %s is no client", c.Config.Address)
	}
	return id, nil
}

// local says whether an agent's address is this host's.
func local(addr string) bool {
	u, err := parseAddress(addr)
	if err != nil {
		return false
	}
	if u.Scheme == "unix" || u.Hostname() == "localhost" {
		return true
	}
	addrs, err := localAddrs()
	return err == nil && slices.Contains(addrs, u.Hostname())
}

func localAddrs() ([]string, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("cannot list this host's addresses: %w", err)
	}
	addrs := make([]string, 0, len(list))
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			addrs = append(addrs, n.IP.String())
		}
	}
	return addrs, nil
}

// few tries some seconds: for looks that nothing depends on yet.
func (c *Client) few(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return retry(ctx, f)
}

// info is the node as the leader has it now.
func (c *Client) info(ctx context.Context, id string) (*api.Node, error) {
	var n *api.Node
	err := c.few(ctx, func(ctx context.Context) (err error) {
		n, _, err = c.api.Nodes().Info(id, query(ctx))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot look at node %s: %w", id, err)
	}
	return n, nil
}

// look is info for a node that must still be there under its id.
func (c *Client) look(ctx context.Context, n Node) (*api.Node, error) {
	info, err := c.info(ctx, n.ID)
	if status(err) != http.StatusNotFound {
		if err == nil {
			return info, c.other(ctx, n)
		}
		return nil, err
	}
	if other := c.other(ctx, n); other != nil {
		return nil, other
	}
	return nil, &ChangedError{Name: n.Name, Was: n.ID}
}

// other finds a node of the same name that lives under another id, while ours
// does not live: a client whose data folder was lost.
func (c *Client) other(ctx context.Context, n Node) error {
	var stubs []*api.NodeListStub
	err := c.few(ctx, func(ctx context.Context) (err error) {
		stubs, _, err = c.api.Nodes().List(query(ctx))
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot list Nomad's nodes: %w", err)
	}
	now := ""
	for _, s := range stubs {
		switch {
		case s.ID == n.ID && s.Status != api.NodeStatusDown:
			return nil
		case s.ID != n.ID && s.Name == n.Name && s.Status == api.NodeStatusReady:
			now = s.ID
		}
	}
	if now == "" {
		return nil // down, and nobody in its place: it may come back
	}
	return &ChangedError{Name: n.Name, Was: n.ID, Now: now}
}

// isChanged is for callers that go on with other errors.
func isChanged(err error) bool {
	var c *ChangedError
	return errors.As(err, &c)
}
