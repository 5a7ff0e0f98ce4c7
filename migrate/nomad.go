package migrate

import (
	"os"
	"slices"
	"time"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/engine"
)

// The steps around the work on a host whose store takes work from Nomad, or
// from somebody else who is to be waited for.
const (
	stepSlot            = "slot"
	stepHookBefore      = "hook-before"
	stepHookAfterStop   = "hook-after-stop"
	stepHookBeforeStart = "hook-before-start"
	stepBusy            = "wait-busy"
	stepDrain           = StepDrain
	stepUndrain         = "undrain"
	stepCanary          = "canary"
	stepHookAfter       = "hook-after"
	stepSlotBack        = "slot-back"
)

// StepDrain takes the Nomad nodes out of service.
const StepDrain = "drain"

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
	Grace        time.Duration `json:"drainGrace,omitempty"` // past the deadline
	IgnoreSystem bool          `json:"ignoreSystem,omitempty"`
	Reason       string        `json:"reason,omitempty"`
	Slots        int           `json:"slots,omitempty"` // 0: none are used
	SlotPath     string        `json:"slotPath,omitempty"`
	SlotWait     time.Duration `json:"slotWait,omitempty"`
	Canary       string        `json:"canary,omitempty"` // an image of the store with a shell; "": none
	CanaryShell  []string      `json:"canaryShell,omitempty"`

	// DockerAPI has the calls of a Docker client made before the host is given back.
	DockerAPI bool `json:"dockerAPI,omitempty"`

	Busy drain.BusyOptions `json:"busy,omitzero"`
	// Commands word by word, run one after the other: before the drain, once podman is
	// stopped, before it is started again, and after the return.
	HookBefore      [][]string    `json:"hookBefore,omitempty"`
	HookAfterStop   [][]string    `json:"hookAfterStop,omitempty"`
	HookBeforeStart [][]string    `json:"hookBeforeStart,omitempty"`
	HookAfter       [][]string    `json:"hookAfter,omitempty"`
	HookTimeout     time.Duration `json:"hookTimeout,omitempty"` // of each
}

// NomadUse is Nomad as a run found it; it stands in the run's first record.
type NomadUse struct {
	Config   drain.Config `json:"config"`
	Nodes    []drain.Node `json:"nodes"` // and whether they took work before
	OwnAlloc string       `json:"ownAlloc,omitempty"`
	Operator string       `json:"operator"`
	Units    []string     `json:"units,omitempty"` // services of its agents; none were seen: nomad.service
}

// returnLimit is how long the driver may take to be healthy again. It looks at
// podman every 30 seconds, and the servers know some seconds later.
const returnLimit = 3 * time.Minute

// around puts the steps that take the host out of service and back around a
// plan. A plan without Nomad, and that none of these was asked for, is as it was.
func (s *Session) around(plan []engine.Step) []engine.Step {
	out, use := s.Inputs.Request.Outage, s.Inputs.Nomad
	var before, stopped, starting, after []engine.Step
	var needs []string
	if use != nil && out.Slots > 0 {
		needs = []string{stepSlot}
		before = append(before, engine.Step{Name: stepSlot, Title: "take a maintenance slot", Pausable: true,
			Holds: s.holdsSlot, Do: s.takeSlot, Undo: s.slotBack})
	}
	if len(out.HookBefore) > 0 {
		before = append(before, engine.Step{Name: stepHookBefore, Title: "run the hooks before", Pausable: true,
			Do: s.hooksBefore, Undo: s.hooksBack(out.HookAfter)})
	}
	if out.DockerAPI {
		after = append(after, engine.Step{Name: StepDockerAPI, Title: "make a Docker client's calls on podman's socket",
			Do: s.dockerAPI, Undo: s.sweepDockerAPI})
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
	if len(out.HookAfterStop) > 0 {
		stopped = append(stopped, engine.Step{Name: stepHookAfterStop, Title: "run the hooks after the stop", Needs: []string{stepStop},
			Do: s.hooks("after-stop", out.HookAfterStop), Undo: s.hooksBack(out.HookBeforeStart)})
	}
	if len(out.HookBeforeStart) > 0 {
		starting = append(starting, engine.Step{Name: stepHookBeforeStart, Title: "run the hooks before the start", Needs: []string{stepStop},
			Do: s.hooks("before-start", out.HookBeforeStart), Undo: s.hooksBack(out.HookAfterStop)})
	}
	if len(out.HookAfter) > 0 {
		after = append(after, engine.Step{Name: stepHookAfter, Title: "run the hooks after",
			Do: s.hooks("after", out.HookAfter), Undo: s.hooksBack(out.HookBefore)})
	}
	if len(needs) > 0 {
		after = append(after, engine.Step{Name: stepSlotBack, Title: "give the maintenance slot back",
			Holds: s.slotGone, Do: s.slotBack, Undo: s.takeSlot})
	}
	if len(before)+len(stopped)+len(starting)+len(after) == 0 && s.Inputs.Request.Window == nil {
		return plan
	}
	stop := slices.IndexFunc(plan, func(st engine.Step) bool { return st.Name == stepStop })
	start := slices.IndexFunc(plan, func(st engine.Step) bool { return st.Name == stepStart })
	before = s.gated(plan[:stop], append(before, plan[stop]))
	all := slices.Concat(plan[:stop], before, stopped, plan[stop+1:start], starting, plan[start:start+1], after, plan[start+1:])
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
	c, err := drain.New(s.Inputs.Nomad.Config.Now(drain.FromEnv(os.Getenv)))
	if err != nil {
		return nil, err
	}
	c.Point = s.env.Point
	c.Marks = map[string]drain.Mark{}
	for _, m := range s.facts.Drains {
		c.Marks[m.Node] = m
	}
	s.drainer = c
	return c, nil
}

// ownAlloc is the allocation that this process runs in, or that the run began
// in; "": none. A job that Nomad starts again has another one.
func (s *Session) ownAlloc() string {
	if id := os.Getenv(allocVar); id != "" {
		return id
	}
	return s.Inputs.Nomad.OwnAlloc
}

// allocVar is set in each task that Nomad starts.
const allocVar = "NOMAD_ALLOC_ID"

func (s *Session) drainOptions(step string) drain.Options {
	out, use := s.Inputs.Request.Outage, s.Inputs.Nomad
	meta := map[string]string{"storagectl.operator": use.Operator, "storagectl.step": step}
	if out.Reason != "" {
		meta["storagectl.reason"] = out.Reason
	}
	return drain.Options{Run: s.ID, Deadline: out.Deadline, IgnoreSystem: out.IgnoreSystem, OwnAlloc: s.ownAlloc(), Meta: meta}
}
