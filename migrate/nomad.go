package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman"
)

// The steps around the work on a host whose store takes work from Nomad, or
// from somebody else who is to be waited for.
const (
	stepSlot       = "slot"
	stepHookBefore = "hook-before"
	stepBusy       = "wait-busy"
	stepDrain      = "drain"
	stepUndrain    = "undrain"
	stepCanary     = "canary"
	stepHookAfter  = "hook-after"
	stepSlotBack   = "slot-back"
)

// How a job finds Nomad.
const (
	NomadAuto = "auto"
	NomadOff  = "off"
)

// Outage is what an operator asks about taking the host out of service.
type Outage struct {
	Nomad        string        `json:"nomad,omitempty"` // NomadAuto, NomadOff or an address; "": off
	TokenFile    string        `json:"tokenFile,omitempty"`
	Nodes        []string      `json:"nodes,omitempty"` // names or ids; none: found
	Deadline     time.Duration `json:"deadline,omitempty"`
	IgnoreSystem bool          `json:"ignoreSystem,omitempty"`
	Reason       string        `json:"reason,omitempty"`
	Slots        int           `json:"slots,omitempty"` // 0: none are used
	SlotPath     string        `json:"slotPath,omitempty"`
	SlotWait     time.Duration `json:"slotWait,omitempty"`
	Canary       string        `json:"canary,omitempty"` // an image of the store with a shell; "": none
	CanaryShell  []string      `json:"canaryShell,omitempty"`

	Busy       drain.BusyOptions `json:"busy,omitzero"`
	HookBefore []string          `json:"hookBefore,omitempty"` // argv
	HookAfter  []string          `json:"hookAfter,omitempty"`
}

// NomadUse is Nomad as a run found it; it stands in the run's first record.
type NomadUse struct {
	Config   drain.Config `json:"config"`
	Nodes    []drain.Node `json:"nodes"` // and whether they took work before
	OwnAlloc string       `json:"ownAlloc,omitempty"`
	Operator string       `json:"operator"`
}

// drainGrace is how long past its deadline a drain may take to be over: Nomad
// still has to stop what is left, and tell.
const drainGrace = 2 * time.Minute

// returnLimit is how long the driver may take to be healthy again. It looks at
// podman every 30 seconds, and the servers know some seconds later.
const returnLimit = 3 * time.Minute

const hookLimit = 2 * time.Minute

// around puts the steps that take the host out of service and back around a
// plan. A plan without Nomad and without busy containers or hooks is as it was.
func (s *Session) around(plan []engine.Step) []engine.Step {
	out, use := s.Inputs.Request.Outage, s.Inputs.Nomad
	var before, after []engine.Step
	var needs []string
	if use != nil && out.Slots > 0 {
		needs = []string{stepSlot}
		before = append(before, engine.Step{Name: stepSlot, Title: "take a maintenance slot", Pausable: true,
			Holds: s.holdsSlot, Do: s.takeSlot, Undo: s.slotBack})
	}
	if len(out.HookBefore) > 0 {
		before = append(before, engine.Step{Name: stepHookBefore, Title: "run the hook before", Do: s.hook(out.HookBefore)})
	}
	if use != nil {
		before = append(before, engine.Step{Name: stepDrain, Title: "drain the Nomad node", Pausable: true,
			Holds: s.drained, Do: s.drain, Undo: s.giveBackAnyhow})
		after = append(after, engine.Step{Name: stepUndrain, Title: "give the Nomad node back",
			Holds: s.givenBack, Do: s.undrain, Undo: s.takeOutAgain})
		if out.Canary != "" {
			after = append(after, engine.Step{Name: stepCanary, Title: "run a canary job through Nomad", Do: s.canary})
		}
	}
	if len(out.Busy.Labels) > 0 {
		before = append(before, engine.Step{Name: stepBusy, Title: "wait for containers at work", Pausable: true,
			Do: s.waitBusy})
	}
	if len(out.HookAfter) > 0 {
		after = append(after, engine.Step{Name: stepHookAfter, Title: "run the hook after", Do: s.hook(out.HookAfter)})
	}
	if len(needs) > 0 {
		after = append(after, engine.Step{Name: stepSlotBack, Title: "give the maintenance slot back",
			Holds: s.slotGone, Do: s.slotBack, Undo: s.takeSlot})
	}
	if len(before)+len(after) == 0 {
		return plan
	}
	stop := slices.IndexFunc(plan, func(st engine.Step) bool { return st.Name == stepStop })
	start := slices.IndexFunc(plan, func(st engine.Step) bool { return st.Name == stepStart })
	all := slices.Concat(plan[:stop], before, plan[stop:start+1], after, plan[start+1:])
	if len(needs) == 0 {
		return all
	}
	for i := range all {
		switch st := &all[i]; {
		case i <= slices.IndexFunc(all, func(st engine.Step) bool { return st.Name == stepSlot }), st.Final, st.Name == stepSlotBack:
		default:
			st.Needs = append(slices.Clone(needs), st.Needs...)
		}
	}
	return all
}

// nomad gives the run's client of Nomad; the token is the caller's.
func (s *Session) nomad() (*drain.Client, error) {
	if s.drainer != nil {
		return s.drainer, nil
	}
	c, err := drain.New(s.Inputs.Nomad.Config.WithToken(drain.FromEnv(os.Getenv)))
	s.drainer = c
	return c, err
}

func (s *Session) drainOptions(step string) drain.Options {
	out, use := s.Inputs.Request.Outage, s.Inputs.Nomad
	meta := map[string]string{"storagectl.operator": use.Operator, "storagectl.step": step}
	if out.Reason != "" {
		meta["storagectl.reason"] = out.Reason
	}
	return drain.Options{Run: s.ID, Deadline: out.Deadline, IgnoreSystem: out.IgnoreSystem, OwnAlloc: use.OwnAlloc, Meta: meta}
}

// drain takes every node of this host out of service and waits until nothing of
// Nomad's is left in the store.
func (s *Session) drain(ctx context.Context) error {
	c, err := s.nomad()
	if err != nil {
		return err
	}
	o := s.drainOptions(stepDrain)
	for _, n := range s.Inputs.Nomad.Nodes {
		if err := c.Drain(ctx, n, o); err != nil {
			return refusedBy(err)
		}
	}
	limit := o.Deadline + drainGrace
	if o.Deadline == 0 || o.OwnAlloc != "" {
		limit = 24 * time.Hour
	}
	for _, n := range s.Inputs.Nomad.Nodes {
		err := c.Wait(ctx, n, o, drain.WaitOptions{Limit: limit, Containers: s.nomadContainers, Progress: s.drainProgress})
		if err != nil {
			return err
		}
	}
	return nil
}

// refusedBy makes a refusal of what says that the node is not ours to drain.
func refusedBy(err error) error {
	var foreign *drain.ForeignDrainError
	var rights *drain.RightsError
	switch {
	case errors.As(err, &foreign):
		return &Refusal{ID: "nomad-draining", Text: err.Error(), Hint: "let that drain end, or agree with whoever set it, then try again"}
	case errors.As(err, &rights):
		return &Refusal{ID: "nomad-rights", Text: err.Error(), Hint: "apply this policy to the token:\n" + rights.Policy}
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
	return NomadContainers(ctx, s.cli, s.Inputs.Nomad.OwnAlloc)
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

// drained looks whether the nodes are out of service by this run. Podman may be
// down: its containers are looked at by the steps that stop it.
func (s *Session) drained(ctx context.Context) (bool, error) {
	c, err := s.nomad()
	if err != nil {
		return false, err
	}
	for _, n := range s.Inputs.Nomad.Nodes {
		if done, err := c.Empty(ctx, n, s.drainOptions(stepDrain), nil); err != nil || !done {
			return false, err
		}
	}
	return true, nil
}

// stillOut looks, before a change that cannot bear new work, whether another
// hand gave the nodes work again. It stops the run if so: whoever did that has
// to be asked.
func (s *Session) stillOut(ctx context.Context) error {
	if err := s.lostSlot(); err != nil || s.Inputs.Nomad == nil {
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
	again := s.facts.Returning
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
		if err := c.Return(ctx, n, drain.ReturnOptions{Options: s.drainOptions(stepUndrain), Limit: returnLimit}); err != nil {
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
	for _, n := range s.Inputs.Nomad.Nodes {
		state, err := c.Look(ctx, n, "podman")
		if err != nil {
			return err
		}
		switch {
		case state.LastMeta[drain.MetaRun] != s.ID || (state.Eligible && !state.Draining):
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
			if err := c.WaitDriver(ctx, n, "podman", returnLimit); err != nil {
				return err
			}
			if err := c.SetEligible(ctx, n, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeOutAgain drains a node that was given back, before its store is taken
// back, too.
func (s *Session) takeOutAgain(ctx context.Context) error { return s.drain(ctx) }

// canary proves that Nomad can work on this host.
func (s *Session) canary(ctx context.Context) error {
	c, err := s.nomad()
	if err != nil {
		return err
	}
	out := s.Inputs.Request.Outage
	o := drain.CanaryOptions{Image: out.Canary, Shell: out.CanaryShell, Namespace: s.Inputs.Nomad.Config.Namespace, Limit: 2 * time.Minute}
	for _, n := range s.Inputs.Nomad.Nodes {
		if !n.Eligible {
			if err := s.note("no canary on node %s: it takes no work, as before", n.Name); err != nil {
				return err
			}
			continue
		}
		results, err := c.Canary(ctx, n, o)
		if err != nil {
			return err
		}
		for i, r := range results {
			word := fmt.Sprintf("works (%.1f s)", r.Seconds)
			if r.Tries > 1 {
				word = fmt.Sprintf("works at try %d (%.1f s): Nomad had to start the driver again", r.Tries, r.Seconds)
			}
			if !r.OK {
				word = "does not work: " + r.Why
			}
			if err := s.note("canary on node %s, %s: %s", n.Name, r.Variant, word); err != nil {
				return err
			}
			// The plain one must work; the others depend on the host.
			if i == 0 && !r.OK {
				return fmt.Errorf("%w: the canary on node %s: %s", ErrVerification, n.Name, r.Why)
			}
		}
	}
	return nil
}

func (s *Session) waitBusy(ctx context.Context) error {
	o := s.Inputs.Request.Outage.Busy
	o.Progress = func(names []string) {
		if s.env.Note != nil {
			s.env.Note("waiting for containers at work: " + strings.Join(names, ", "))
		}
	}
	err := drain.WaitBusy(ctx, s.cli, o)
	var busy *drain.BusyError
	if errors.As(err, &busy) {
		return &Refusal{ID: "busy-containers", Text: err.Error(), Hint: "let them end, or say what to do at the deadline (--busy-then wait or stop)"}
	}
	return err
}

func (s *Session) hook(argv []string) func(context.Context) error {
	return func(ctx context.Context) error {
		text, err := drain.Hook(ctx, s.env.Runner, argv, hookLimit)
		if text != "" {
			if bad := s.note("hook %s said: %s", argv[0], text); bad != nil {
				return errors.Join(err, bad)
			}
		}
		return err
	}
}

// takeSlot waits for a slot and keeps it as long as this process lives.
func (s *Session) takeSlot(ctx context.Context) error {
	c, err := s.nomad()
	if err != nil {
		return err
	}
	out := s.Inputs.Request.Outage
	ctx, cancel := context.WithTimeout(ctx, out.SlotWait)
	defer cancel()
	mine, err := s.keptSlot()
	if err != nil {
		return err
	}
	lease, err := c.AcquireSlot(ctx, drain.SlotOptions{Path: out.SlotPath, Slots: out.Slots, Run: s.ID, Owner: s.Inputs.Nomad.Operator, Mine: mine,
		Waiting: func(slots []drain.Slot) {
			for _, sl := range slots {
				if sl.Held && s.env.Note != nil {
					s.env.Note(fmt.Sprintf("slot %s is held by %s (run %s) since %s", sl.Path, sl.Owner, sl.Run, sl.Since.Format(time.RFC3339)))
				}
			}
		}})
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return &Refusal{ID: "no-slot", Text: err.Error(), Hint: "wait until another node is done (storagectl status --cluster), or allow more with --slots"}
		}
		return refusedBy(err)
	}
	s.lease = lease
	b, err := json.Marshal(lease.Ref)
	if err == nil {
		err = renameio.WriteFile(s.slotFile(), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot remember the slot: %w", err)
	}
	return nil
}

// slotFile remembers the slot over a crash. It is no fact: a slot comes and goes.
func (s *Session) slotFile() string { return filepath.Join(s.env.Dir.RunPath(s.ID), "slot.json") }

// keptSlot is the slot that the run has, or had when it was cut off; nil: none.
func (s *Session) keptSlot() (*drain.SlotRef, error) {
	b, err := os.ReadFile(s.slotFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var ref drain.SlotRef
	if err == nil {
		err = json.Unmarshal(b, &ref)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read which slot the run has: %w", err)
	}
	return &ref, nil
}

// holdsSlot says whether this process holds the slot. One that was lost in the
// middle is an error: the run stops before its next change.
func (s *Session) holdsSlot(context.Context) (bool, error) {
	return s.lease != nil, s.lostSlot()
}

func (s *Session) lostSlot() error {
	if s.lease == nil {
		return nil
	}
	return s.lease.Err()
}

func (s *Session) slotBack(ctx context.Context) error {
	c, err := s.nomad()
	if err != nil {
		return err
	}
	if s.lease != nil {
		s.lease.Leave()
		s.lease = nil
	}
	ref, err := s.keptSlot()
	if err != nil || ref == nil {
		return err
	}
	if err := c.ReleaseSlot(ctx, *ref); err != nil {
		return err
	}
	if err := os.Remove(s.slotFile()); err != nil {
		return fmt.Errorf("cannot forget the slot: %w", err)
	}
	return nil
}

func (s *Session) slotGone(context.Context) (bool, error) {
	ref, err := s.keptSlot()
	return ref == nil, err
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
