package drain

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/api"
)

// ReturnOptions say how a node is given back.
type ReturnOptions struct {
	Options
	Driver string        // podman if empty
	Limit  time.Duration // for the driver to become healthy
	// Since is when its podman came back, at the latest; now if zero.
	Since time.Time
}

// Return waits until the node is ready and its driver detected and healthy, and
// makes it eligible if n, as it was found before the drain, was. It fails with
// [*EligibleError] if another hand did so, and with [*DriverError] at the limit;
// the node stays ineligible then.
func (c *Client) Return(ctx context.Context, n Node, o ReturnOptions) error {
	s, err := c.fit(ctx, n, o, func(s State) error { return c.still(s, o.Options) })
	if err != nil {
		return err
	}
	if !n.Eligible && !s.Draining {
		return nil
	}
	return c.SetEligible(ctx, n, s.Draining)
}

// SetEligible restores what n was before the drain, and looks whether it is so.
func (c *Client) SetEligible(ctx context.Context, n Node, draining bool) error {
	err := c.few(ctx, func(ctx context.Context) error {
		var err error
		if draining { // a drain that did not end: end it with the node as it was
			_, err = c.api.Nodes().UpdateDrainOpts(n.ID, &api.DrainOptions{MarkEligible: n.Eligible}, c.change(ctx, "eligibility"))
		} else {
			_, err = c.api.Nodes().ToggleEligibility(n.ID, n.Eligible, c.change(ctx, "eligibility"))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot give node %s back: %w", n.Name, err)
	}
	info, err := c.look(ctx, n)
	if err != nil {
		return err
	}
	if s := stateOf(info, ""); s.Eligible != n.Eligible || s.Draining {
		return fmt.Errorf("cannot give node %s back: Nomad took the word, and it is eligible: %v, draining: %v", n.Name, s.Eligible, s.Draining)
	}
	return nil
}

// WaitDriver waits as Return does, whatever the node's drain.
func (c *Client) WaitDriver(ctx context.Context, n Node, o ReturnOptions) error {
	_, err := c.fit(ctx, n, o, func(State) error { return nil })
	return err
}

// healthLag is how long the servers may call a driver healthy that has found its
// podman gone: the client gathers changes for 5 to 10 s before it tells them
// (nodeUpdateRetryIntv in Nomad's client).
const healthLag = 11 * time.Second

// fit waits until the node is ready and its driver healthy; check may end that.
// Podman has just come back: word of a driver that lags is believed only when
// what it saw meanwhile would have been told.
func (c *Client) fit(ctx context.Context, n Node, o ReturnOptions, check func(State) error) (State, error) {
	if o.Driver == "" {
		o.Driver = "podman"
	}
	if o.Since.IsZero() {
		o.Since = time.Now()
	}
	waiting, cancel := context.WithTimeout(ctx, o.Limit)
	defer cancel()
	changed := c.watch(waiting, n.ID)
	var s State
	for {
		info, err := c.look(waiting, n)
		if err == nil {
			s = stateOf(info, o.Driver)
			if err := check(s); err != nil {
				return s, err
			}
			if s.Status == api.NodeStatusReady && s.DriverDetected && s.DriverHealthy && (!s.DriverLags || time.Since(o.Since) >= healthLag) {
				return s, nil
			}
		} else if waiting.Err() == nil && (isChanged(err) || !passing(err)) {
			return s, err
		}
		wait := 2 * time.Second // an unreachable server sends no word
		if lag := healthLag - time.Since(o.Since); s.DriverLags && lag > 0 {
			wait = min(wait, lag)
		}
		select {
		case <-waiting.Done():
			if ctx.Err() != nil {
				return s, ctx.Err()
			}
			if err != nil && s.ID == "" {
				return s, err
			}
			return s, &DriverError{Node: n.Name, Driver: o.Driver, Why: fmt.Sprintf("the node is %s; the driver: %s", s.Status, s.DriverSays)}
		case <-changed:
		case <-time.After(wait):
		}
	}
}
