package drain

import (
	"context"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
)

// MetaRun is the key of a drain's Meta that says whose it is.
const MetaRun = "storagectl.run"

// State is a node as the leader sees it now.
type State struct {
	Node
	Status         string            `json:"status"`
	Draining       bool              `json:"draining"`
	LastStatus     string            `json:"lastDrain,omitempty"` // draining, complete, canceled
	LastMeta       map[string]string `json:"lastMeta,omitempty"`
	LastAccessorID string            `json:"lastAccessor,omitempty"`
	LastUpdated    time.Time         `json:"lastUpdated,omitzero"`
	DriverDetected bool              `json:"driverDetected"`
	DriverHealthy  bool              `json:"driverHealthy"`
	DriverSays     string            `json:"driverSays,omitempty"`
	// DriverLags: a task that Nomad places on a driver that has seen its podman
	// gone, and not yet back, fails. So with nomad-driver-podman before 0.6.2
	// (0.4.1 panics), which has no attribute for its health.
	DriverLags bool `json:"driverLags,omitempty"`

	started      time.Time     // of the last drain
	deadline     time.Duration // of the drain that goes on
	ignoreSystem bool
}

// Mark is how a drain looked when it was set. Nomad keeps the Meta of a drain
// that another hand replaces without a Meta of its own (nomad node drain -enable);
// the mark tells the two apart.
type Mark struct {
	Node         string        `json:"node"` // id
	Accessor     string        `json:"accessor,omitempty"`
	Started      time.Time     `json:"started"` // by Nomad's clock
	Updated      time.Time     `json:"updated"`
	Deadline     time.Duration `json:"deadline"`
	IgnoreSystem bool          `json:"ignoreSystem,omitempty"`
}

func (c *Client) remember(s State) {
	if c.Marks[s.ID].Started.Equal(s.started) {
		return
	}
	if c.Marks == nil {
		c.Marks = map[string]Mark{}
	}
	c.Marks[s.ID] = Mark{Node: s.ID, Accessor: s.LastAccessorID, Started: s.started, Updated: s.LastUpdated, Deadline: s.deadline, IgnoreSystem: s.ignoreSystem}
}

// Ours says whether the node's last drain is the one that this run set, not
// replaced and not ended by another hand.
func (c *Client) Ours(s State, run string) bool {
	if !s.Ours(run) {
		return false
	}
	if !s.Draining && s.LastStatus == string(api.DrainStatusCanceled) {
		return s.LastMeta[metaOwn] != ""
	}
	m, known := c.Marks[s.ID]
	switch {
	case !known, !m.Started.Equal(s.started): // a drain that begins anew has only the Meta it was given
		return true
	case m.Accessor != s.LastAccessorID:
		return false
	}
	// Without ACLs all have the same accessor. The end of a drain is an update, too.
	return !s.Draining || m.Updated.Equal(s.LastUpdated) && m.Deadline == s.deadline && m.IgnoreSystem == s.ignoreSystem
}

// Ours says whether the node's last drain is the one of this run.
func (s State) Ours(run string) bool { return s.LastMeta[MetaRun] == run }

// Look observes a node. It fails with a [*ChangedError] if the node came back
// under another id.
func (c *Client) Look(ctx context.Context, n Node, driver string) (State, error) {
	info, err := c.look(ctx, n)
	if err != nil {
		return State{}, err
	}
	return stateOf(info, driver), nil
}

func stateOf(n *api.Node, driver string) State {
	s := State{Node: nodeOf(n), Status: n.Status, Draining: n.DrainStrategy != nil}
	if l := n.LastDrain; l != nil {
		s.LastStatus, s.LastMeta, s.LastAccessorID, s.LastUpdated = string(l.Status), l.Meta, strings.TrimPrefix(l.AccessorID, "token:"), l.UpdatedAt
		s.started = l.StartedAt
	}
	if d := n.DrainStrategy; d != nil {
		s.deadline, s.ignoreSystem = d.Deadline, d.IgnoreSystemJobs
	}
	if d := n.Drivers[driver]; d != nil {
		s.DriverDetected, s.DriverHealthy, s.DriverSays = d.Detected, d.Healthy, d.HealthDescription
		s.DriverLags = driver == "podman" && n.Attributes["driver.podman.health"] == ""
	}
	return s
}

// parseAddress reads an agent's address; a unix socket's has no host.
func parseAddress(addr string) (*url.URL, error) { return url.Parse(addr) }
