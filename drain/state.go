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
	}
	if d := n.Drivers[driver]; d != nil {
		s.DriverDetected, s.DriverHealthy, s.DriverSays = d.Detected, d.Healthy, d.HealthDescription
		s.DriverLags = driver == "podman" && n.Attributes["driver.podman.health"] == ""
	}
	return s
}

// parseAddress reads an agent's address; a unix socket's has no host.
func parseAddress(addr string) (*url.URL, error) { return url.Parse(addr) }
