package drain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"
)

// Options say how a node is drained.
type Options struct {
	Run string // whose drain it is; goes into the drain's Meta
	// Deadline is what Nomad gives the allocations to move away before it stops
	// them. Zero: as long as they need. There is no force.
	Deadline     time.Duration
	IgnoreSystem bool              // leave system jobs where they are
	Meta         map[string]string // operator, reason, step
	// OwnAlloc is the allocation that this very program runs in. On its node the
	// drain has no deadline, and Wait ends it once only this allocation and those
	// of system jobs are left.
	OwnAlloc string
}

func (o Options) meta() map[string]string {
	m := maps.Clone(o.Meta)
	if m == nil {
		m = map[string]string{}
	}
	m[MetaRun] = o.Run
	return m
}

// Drain sets the drain. A node that is drained for this run already is left as
// it is; for anybody else it is a [*ForeignDrainError]. One that another hand made
// eligible, or ineligible, since n was found is a [*MovedError].
func (c *Client) Drain(ctx context.Context, n Node, o Options) error {
	info, err := c.look(ctx, n)
	if err != nil {
		return err
	}
	s := stateOf(info, "")
	switch {
	case s.Draining && c.Ours(s, o.Run):
		c.remember(s) // a resumed run may have been cut off before it could
		return nil
	case s.Draining:
		return foreign(s)
	case s.Eligible != n.Eligible && !c.Ours(s, o.Run) && (!s.Ours(o.Run) || s.LastStatus != string(api.DrainStatusCanceled)):
		// Our own drain that was cancelled may be set again: whoever resumes has asked.
		return &MovedError{Node: n.Name, Eligible: s.Eligible}
	}
	spec := &api.DrainSpec{Deadline: o.Deadline, IgnoreSystemJobs: o.IgnoreSystem}
	if o.OwnAlloc != "" {
		allocs, err := c.allocs(ctx, n.ID)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(allocs, func(a *api.Allocation) bool {
			return a.ID == o.OwnAlloc && !a.ClientTerminalStatus()
		}) {
			spec.Deadline, spec.IgnoreSystemJobs = 0, true
		}
	}
	err = c.few(ctx, func(ctx context.Context) error {
		_, err := c.api.Nodes().UpdateDrainOpts(n.ID, &api.DrainOptions{DrainSpec: spec, Meta: o.meta()}, c.change(ctx, "drain"))
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot drain node %s: %w", n.Name, err)
	}
	// Two at the same moment: the later word counts.
	if info, err = c.look(ctx, n); err != nil {
		return err
	}
	if s = stateOf(info, ""); !s.Ours(o.Run) {
		return foreign(s)
	}
	delete(c.Marks, n.ID)
	c.remember(s)
	return nil
}

func foreign(s State) error {
	return &ForeignDrainError{Node: s.Name, AccessorID: s.LastAccessorID, Meta: s.LastMeta, Since: s.LastUpdated}
}

// Progress is what is left on a node.
type Progress struct {
	Node       string         `json:"node"`
	Left       int            `json:"left"` // allocations that are not client-terminal
	ByJob      map[string]int `json:"byJob,omitempty"`
	Containers int            `json:"containers"` // of Nomad, in podman
	Unheard    error          `json:"-"`          // why Nomad cannot be asked now
}

// WaitOptions say how long to wait, and what else must hold.
type WaitOptions struct {
	// Limit is how long Wait waits in all, by this machine's monotonic clock.
	Limit time.Duration
	// Containers lists podman's containers that Nomad started, those of the own
	// allocation left out. Nil: nobody looks.
	Containers func(context.Context) ([]string, error)
	// Nodes are all that may have containers there; the one waited for if nil.
	Nodes []Node
	// Settle is what containers get to go once their allocations have ended; two
	// minutes if zero: a big one on a slow disk takes its time.
	Settle   time.Duration
	Progress func(Progress)
}

// Wait returns nil when the node is seen empty: it has no drain any more, its
// last drain is this run's and complete, it is ineligible, each allocation is
// client-terminal, and no container of Nomad is left. Servers that are gone or
// without a leader are waited for. It fails with [*CanceledError],
// [*ForeignDrainError], [*EligibleError], [*ChangedError], or, at the limit or
// when all that is left are containers that no allocation owns, [*AliveError]; it
// never takes a deadline that passed for an empty node.
func (c *Client) Wait(ctx context.Context, n Node, o Options, w WaitOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	limit := time.NewTimer(w.Limit)
	defer limit.Stop()
	changed := c.watch(ctx, n.ID)
	// Podman sends no word to us: look at its containers by the clock.
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	alive := &AliveError{Node: n.Name, Draining: true}
	if w.Settle == 0 {
		w.Settle = 2 * time.Minute
	}
	moved := time.Now() // when something was seen last that Nomad may still end
	for {
		done, err := c.empty(ctx, n, o, w, alive)
		if err != nil || done {
			return err
		}
		if len(alive.Leftover) == 0 || len(alive.Leftover) < len(alive.Containers) {
			moved = time.Now()
		}
		if time.Since(moved) >= w.Settle {
			return alive
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return alive
		case <-changed:
		case <-tick.C:
		}
	}
}

// Empty is one look of Wait: whether the node is empty now, by this run's drain.
func (c *Client) Empty(ctx context.Context, n Node, o Options, containers func(context.Context) ([]string, error)) (bool, error) {
	var alive AliveError
	done, err := c.empty(ctx, n, o, WaitOptions{Containers: containers}, &alive)
	if err == nil && !done && alive.Last != nil {
		return false, alive.Last
	}
	var canceled *CanceledError
	var eligible *EligibleError
	if errors.As(err, &canceled) || errors.As(err, &eligible) {
		return false, nil
	}
	return done, err
}

// empty looks once, and writes into alive what is in the way.
func (c *Client) empty(ctx context.Context, n Node, o Options, w WaitOptions, alive *AliveError) (bool, error) {
	p := Progress{Node: n.Name, ByJob: map[string]int{}}
	defer func() {
		if w.Progress != nil {
			w.Progress(p)
		}
	}()
	var s State
	var allocs []*api.Allocation
	info, err := c.look(ctx, n)
	if err == nil {
		s = stateOf(info, "")
		allocs, err = c.allocs(ctx, n.ID)
	}
	if alive.Last, p.Unheard = err, err; err != nil {
		if isChanged(err) || ctx.Err() != nil || !passing(err) {
			return false, err
		}
		return false, nil // a server that is gone may come back
	}
	alive.Draining, alive.Down = s.Draining, s.Status == api.NodeStatusDown
	alive.Allocs, alive.Containers, alive.Leftover = nil, nil, nil
	moving, own := left(allocs, o)
	for _, a := range moving {
		p.ByJob[a.JobID]++
	}
	alive.Allocs, p.Left = allocNames(moving), len(moving)
	if w.Containers != nil {
		if alive.Containers, err = w.Containers(ctx); err != nil {
			return false, err
		}
		p.Containers = len(alive.Containers)
	}
	if err := c.still(s, o); err != nil {
		return false, err
	}
	if s.Draining {
		if !own || len(moving) > 0 {
			return false, nil
		}
		return false, c.cancelOwn(ctx, n, o)
	}
	// Nomad calls the allocations of a node that is down lost, whatever runs there.
	if alive.Down || len(moving) > 0 || len(alive.Containers) == 0 {
		return len(moving) == 0 && !alive.Down, nil
	}
	if w.Nodes == nil {
		w.Nodes = []Node{n}
	}
	alive.Leftover, alive.Last = c.leftover(ctx, w.Nodes, alive.Containers)
	return false, nil
}

// left picks the allocations that are in the way, which an own allocation's drain
// waits for, and tells whether the own one lives.
func left(allocs []*api.Allocation, o Options) (moving []*api.Allocation, own bool) {
	for _, a := range allocs {
		if a.ClientTerminalStatus() {
			continue
		}
		if a.ID == o.OwnAlloc {
			own = true
			continue
		}
		system := a.Job != nil && a.Job.Type != nil && *a.Job.Type == api.JobTypeSystem
		if system && (o.IgnoreSystem || o.OwnAlloc != "") {
			continue // the containers tell whether it is in the store's way
		}
		moving = append(moving, a)
	}
	return moving, own
}

func allocNames(allocs []*api.Allocation) []string {
	var names []string
	for _, a := range allocs {
		names = append(names, a.JobID+"/"+a.ID[:min(8, len(a.ID))])
	}
	return names
}

// still fails if the drain is not this run's any more.
func (c *Client) still(s State, o Options) error {
	switch {
	case s.Draining && !c.Ours(s, o.Run):
		return foreign(s)
	case s.Draining:
		return nil
	case s.Eligible:
		if s.LastStatus == string(api.DrainStatusCanceled) {
			return &CanceledError{Node: s.Name, AccessorID: s.LastAccessorID, Meta: s.LastMeta, At: s.LastUpdated}
		}
		return &EligibleError{Node: s.Name}
	case !s.Ours(o.Run):
		return foreign(s)
	case s.LastStatus == string(api.DrainStatusCanceled) && s.LastMeta[metaOwn] == "":
		return &CanceledError{Node: s.Name, AccessorID: s.LastAccessorID, Meta: s.LastMeta, At: s.LastUpdated}
	case !c.Ours(s, o.Run):
		return foreign(s)
	}
	return nil
}

// metaOwn marks a drain that the allocation on the node itself ended.
const metaOwn = "storagectl.ended-by-allocation"

// cancelOwn ends the drain while the node stays ineligible: an allocation would
// block the drain of its own node for ever, and be killed at a deadline.
func (c *Client) cancelOwn(ctx context.Context, n Node, o Options) error {
	meta := o.meta()
	meta[metaOwn] = o.OwnAlloc
	err := c.few(ctx, func(ctx context.Context) error {
		_, err := c.api.Nodes().UpdateDrainOpts(n.ID, &api.DrainOptions{MarkEligible: false, Meta: meta}, c.change(ctx, "end-drain"))
		return err
	})
	if err != nil && !passing(err) {
		return fmt.Errorf("cannot end the drain of node %s: %w", n.Name, err)
	}
	return nil // looked at again
}

// allocs lists the allocations of a node that the token may see.
func (c *Client) allocs(ctx context.Context, id string) ([]*api.Allocation, error) {
	var list []*api.Allocation
	err := c.few(ctx, func(ctx context.Context) (err error) {
		list, _, err = c.api.Nodes().Allocations(id, query(ctx))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list the allocations of node %s: %w", id, err)
	}
	return list, nil
}

// watch tells, through blocking queries, that the node or its allocations may
// have changed. What it reads decides nothing.
func (c *Client) watch(ctx context.Context, id string) <-chan struct{} {
	changed := make(chan struct{}, 1)
	follow := func(read func(q *api.QueryOptions) (*api.QueryMeta, error)) {
		var index uint64
		for ctx.Err() == nil {
			q := query(ctx)
			q.WaitIndex, q.WaitTime = index, time.Minute
			meta, err := read(q)
			if err != nil {
				select { // the looks between tell what is wrong
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
				index = 0
				continue
			}
			if meta.LastIndex < index { // a restored server
				index = 0
				continue
			}
			index = meta.LastIndex
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}
	go follow(func(q *api.QueryOptions) (*api.QueryMeta, error) {
		_, m, err := c.api.Nodes().Info(id, q)
		return m, err
	})
	go follow(func(q *api.QueryOptions) (*api.QueryMeta, error) {
		_, m, err := c.api.Nodes().Allocations(id, q)
		return m, err
	})
	return changed
}

// StillOut fails unless the node is out of service by this run's drain and has no
// allocation: for a look before a change that cannot bear new work.
func (c *Client) StillOut(ctx context.Context, n Node, o Options) error {
	info, err := c.look(ctx, n)
	if err != nil {
		return err
	}
	s := stateOf(info, "")
	if err := c.still(s, o); err != nil {
		return err
	}
	if s.Draining {
		return &AliveError{Node: n.Name, Draining: true}
	}
	// It may have been eligible for a while in between.
	allocs, err := c.allocs(ctx, n.ID)
	if err != nil {
		return err
	}
	if moving, _ := left(allocs, o); len(moving) > 0 {
		return &AliveError{Node: n.Name, Allocs: allocNames(moving)}
	}
	return nil
}
