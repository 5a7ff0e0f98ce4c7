package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman"
)

// drain takes every node of this host out of service and waits until nothing of
// Nomad's is left in the store.
func (s *Session) drain(ctx context.Context) error {
	c, err := s.nomad()
	if err != nil {
		return err
	}
	o := s.drainOptions(stepDrain)
	for _, n := range s.nodes() {
		if err := c.Drain(ctx, n, o); err != nil {
			return RefusedBy(err)
		}
		if err := s.keepMark(c.Marks[n.ID]); err != nil {
			return err
		}
	}
	limit := s.Inputs.Request.Outage.DrainLimit()
	for _, n := range s.nodes() {
		err := c.Wait(ctx, n, o, drain.WaitOptions{Limit: limit, Containers: s.nomadContainers, Nodes: s.nodes(), Progress: s.drainProgress})
		if err != nil {
			return err
		}
	}
	return nil
}

// nodes are the run's nodes, and how they are given back.
func (s *Session) nodes() []drain.Node {
	if s.facts.Back != nil {
		return s.facts.Back
	}
	return s.Inputs.Nomad.Nodes
}

// keepMark remembers how a drain looked when it was set.
func (s *Session) keepMark(m drain.Mark) error {
	for _, had := range slices.Backward(s.facts.Drains) {
		if had.Node == m.Node {
			if had.Started.Equal(m.Started) {
				return nil
			}
			break
		}
	}
	return s.learn(func(f *Facts) { f.Drains = append(f.Drains, m) })
}

// DrainLimit is how long a drain may take in all: past its deadline Nomad still
// has to stop what is left, and tell. One without a deadline gets a day. The drain
// of a node that this program is an allocation of has no deadline in Nomad; the
// operator's counts here all the same.
func (o Outage) DrainLimit() time.Duration {
	if o.Deadline == 0 {
		return 24 * time.Hour
	}
	return o.Deadline + o.Grace
}

// RefusedBy makes a refusal of what says that the node is not ours to drain.
func RefusedBy(err error) error {
	var foreign *drain.ForeignDrainError
	var rights *drain.RightsError
	var moved *drain.MovedError
	switch {
	case errors.As(err, &moved):
		return &Refusal{ID: "nomad-moved", Text: err.Error(), Hint: "ask whoever did that, or see the node's events (nomad node status -verbose), then begin anew"}
	case errors.As(err, &foreign):
		return &Refusal{ID: "nomad-draining", Text: err.Error(), Hint: "let that drain end, or agree with whoever set it, then try again"}
	case errors.As(err, &rights):
		return &Refusal{ID: "nomad-rights", Text: err.Error(), Hint: "apply this policy to the token:", Policy: rights.Policy}
	}
	return err
}

func (s *Session) drainProgress(p drain.Progress) {
	if s.env.Progress == nil {
		return
	}
	var words []string
	for job, n := range p.ByJob {
		words = append(words, fmt.Sprintf("%s: %d", job, n))
	}
	slices.Sort(words)
	if p.Containers > 0 {
		words = append(words, fmt.Sprintf("%d containers", p.Containers))
	}
	if p.Unheard != nil {
		words = append(words, "Nomad does not answer")
	}
	s.drainMost = max(s.drainMost, p.Left)
	s.env.Progress(Progress{Step: stepDrain, Phase: "drain " + p.Node, Done: int64(s.drainMost - p.Left), Total: int64(s.drainMost),
		Unit: "allocations", Note: strings.Join(words, ", ")})
}

// nomadContainers lists what Nomad has in the store, our own allocation left out.
func (s *Session) nomadContainers(ctx context.Context) ([]string, error) {
	return NomadContainers(ctx, s.cli, s.ownAlloc())
}

// NomadContainers names the containers of a store that Nomad started, those of
// the allocation own left out.
func NomadContainers(ctx context.Context, cli podman.CLI, own string) ([]string, error) {
	list, err := cli.Containers(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range list {
		if alloc, is := drain.IsNomads(c.Names, c.Labels); is && (own == "" || alloc != own) {
			names = append(names, c.Name())
		}
	}
	return names, nil
}

// drained looks whether the nodes are out of service by this run, and empty. No
// step that needs podman down needs this one: podman is up.
func (s *Session) drained(ctx context.Context) (bool, error) {
	c, err := s.nomad()
	if err != nil {
		return false, err
	}
	for _, n := range s.nodes() {
		if done, err := c.Empty(ctx, n, s.drainOptions(stepDrain), s.nomadContainers); err != nil || !done {
			return false, err
		}
	}
	return true, nil
}

// stillOut looks, before a change that cannot bear new work, whether another
// hand gave the nodes work again. It stops the run if so: whoever did that has
// to be asked.
func (s *Session) stillOut(ctx context.Context) error {
	if err := s.lostSlot(ctx); err != nil || s.Inputs.Nomad == nil {
		return err
	}
	c, err := s.nomad()
	if err != nil {
		return err
	}
	for _, n := range s.Inputs.Nomad.Nodes {
		if err := c.StillOut(ctx, n, s.drainOptions(stepDrain)); err != nil {
			return fmt.Errorf("cannot go on: %w", err)
		}
	}
	return nil
}

// undrain gives the nodes back as they were.
func (s *Session) undrain(ctx context.Context) error {
	c, err := s.nomad()
	if err != nil {
		return err
	}
	began, again := time.Now(), s.facts.Returning
	if err := s.learn(func(f *Facts) { f.Returning = true }); err != nil {
		return err
	}
	for _, n := range s.Inputs.Nomad.Nodes {
		state, err := c.Look(ctx, n, "podman")
		if err != nil {
			return err
		}
		if again && state.Eligible && n.Eligible {
			continue // given back by a try that was cut off
		}
		if err := c.Return(ctx, n, drain.ReturnOptions{Options: s.drainOptions(stepUndrain), Limit: returnLimit, Since: began}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Session) givenBack(ctx context.Context) (bool, error) {
	c, err := s.nomad()
	if err != nil {
		return false, err
	}
	for _, n := range s.Inputs.Nomad.Nodes {
		state, err := c.Look(ctx, n, "podman")
		if err != nil || state.Draining || state.Eligible != n.Eligible {
			return false, err
		}
	}
	return true, nil
}

// giveBackAnyhow is the way back: the old store is in its place and podman
// answers. What another hand did to a node meanwhile is left as it is.
func (s *Session) giveBackAnyhow(ctx context.Context) error {
	c, err := s.nomad()
	if err != nil {
		return err
	}
	began := time.Now()
	for _, n := range s.nodes() {
		state, err := c.Look(ctx, n, "podman")
		if err != nil {
			return err
		}
		if n.Eligible && c.Ours(state, s.ID) && (state.Draining || !state.Eligible) {
			if err := c.WaitDriver(ctx, n, drain.ReturnOptions{Limit: returnLimit, Since: began}); err != nil {
				return err
			}
		}
		switch {
		case !c.Ours(state, s.ID) || (state.Eligible && !state.Draining):
			if state.Eligible != n.Eligible || state.Draining {
				if err := s.note("node %s is left as another hand made it: eligible %v, draining %v", n.Name, state.Eligible, state.Draining); err != nil {
					return err
				}
			}
		case state.Draining: // a drain that did not come to its end
			if err := c.SetEligible(ctx, n, true); err != nil {
				return err
			}
		case n.Eligible:
			if err := c.SetEligible(ctx, n, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeOutAgain drains a node that was given back, before its store is taken
// back, too. What another hand made of it since then is how it is left in the end.
func (s *Session) takeOutAgain(ctx context.Context) error {
	if s.facts.Back != nil {
		return s.drain(ctx)
	}
	c, err := s.nomad()
	if err != nil {
		return err
	}
	given := !s.journal.State().Steps[stepUndrain].Done.IsZero() // all of them, and it was seen
	back := slices.Clone(s.Inputs.Nomad.Nodes)
	for i, n := range back {
		state, err := c.Look(ctx, n, "podman")
		if err != nil {
			return err
		}
		if state.Eligible == n.Eligible || state.Draining || !given && c.Ours(state, s.ID) {
			continue
		}
		back[i].Eligible = state.Eligible
		if err := s.note("node %s was changed by another hand, and will be left so: eligible %v", n.Name, state.Eligible); err != nil {
			return err
		}
	}
	if err := s.learn(func(f *Facts) { f.Back = back }); err != nil {
		return err
	}
	return s.drain(ctx)
}

// HeldNodes names the nodes that a run has taken out of service and not given
// back, as its journal tells.
func HeldNodes(st engine.State, in Inputs) []string {
	mark, back := st.Steps[stepDrain].Mark, st.Steps[stepUndrain].Mark
	if in.Nomad == nil || (mark != engine.MarkBegun && mark != engine.MarkDone) || back == engine.MarkDone {
		return nil
	}
	var names []string
	for _, n := range in.Nomad.Nodes {
		names = append(names, n.Name)
	}
	return names
}
