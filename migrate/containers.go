package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
)

// Ran is a container that ran when podman was stopped for a run.
type Ran struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// Init is for an init container: it runs and ends before the others of its pod
	// start, each time that the pod does.
	Init bool `json:"init,omitempty"`
	// Frozen is for one that goes on from a checkpoint.
	Frozen bool `json:"frozen,omitempty"`
}

// stopContainers stops what runs in podman when the units are down, with
// podman's own grace time. What is kept is remembered first, in the order in
// which it was started.
func (s *Session) stopContainers(ctx context.Context) error {
	all, err := s.cli.Containers(ctx)
	if err != nil {
		return err
	}
	cs := slices.DeleteFunc(slices.Clone(all), func(c podman.Container) bool {
		_, nomads := drain.IsNomads(c.Names, c.Labels)
		// What Nomad still has here was to leave with the drain: it is not ours to
		// stop, and is told as what still uses podman.
		return c.State != "running" && c.State != "paused" || nomads && s.Inputs.Nomad != nil
	})
	if len(cs) == 0 {
		return nil
	}
	if s.Inputs.Request.keeping() {
		if err := s.remember(ctx, cs, all); err != nil {
			return err
		}
	}
	if err := s.freeze(ctx, cs); err != nil {
		return err
	}
	// Its exit status is no witness: the processes are looked for afterwards.
	ids := make([]string, len(cs))
	for i, c := range cs {
		ids[i] = c.ID
	}
	_, err = s.cli.Run(ctx, nil, append([]string{"stop"}, ids...)...)
	if busy, lookErr := s.waitQuiet(ctx); lookErr != nil || len(busy) == 0 {
		return lookErr
	}
	return err
}

// remember adds running containers, of all, to the facts, and refuses those that
// would not come back as they are.
func (s *Session) remember(ctx context.Context, running, all []podman.Container) error {
	if r, err := unkeepable(ctx, s.cli, running); err != nil {
		return err
	} else if r != nil {
		return r
	}
	inits, err := s.initContainers(ctx, running, all)
	if err != nil {
		return err
	}
	// Of those that were started in the same second a pod's infra container is the first:
	// podman starts it with any other, and notes it as an error to be told so once more.
	// Then come the init containers.
	rank := func(c podman.Container) int {
		switch {
		case c.Infra:
			return 0
		case slices.ContainsFunc(inits, func(i podman.Container) bool { return i.ID == c.ID }):
			return 1
		}
		return 2
	}
	running = append(slices.Clone(inits), running...)
	slices.SortStableFunc(running, func(a, b podman.Container) int {
		return cmp.Or(cmp.Compare(a.StartedAt, b.StartedAt), cmp.Compare(rank(a), rank(b)))
	})
	ran := slices.Clone(s.facts.Ran)
	for _, c := range running {
		if !slices.ContainsFunc(ran, func(r Ran) bool { return r.ID == c.ID }) {
			init := slices.ContainsFunc(inits, func(i podman.Container) bool { return i.ID == c.ID })
			ran = append(ran, Ran{ID: c.ID, Name: c.Name(), Init: init, Frozen: !init && s.Inputs.Request.Containers == Checkpoint})
		}
	}
	if len(ran) == len(s.facts.Ran) {
		return nil
	}
	return s.learn(func(f *Facts) { f.Ran = ran })
}

// initContainers are those of all that ran when the pods of running containers were
// started. To start a pod's containers one by one leaves them out.
func (s *Session) initContainers(ctx context.Context, running, all []podman.Container) ([]podman.Container, error) {
	if !slices.ContainsFunc(running, func(c podman.Container) bool { return c.Pod != "" }) {
		return nil, nil
	}
	db, err := s.database(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(all), func(c podman.Container) bool {
		i := slices.IndexFunc(db.Containers, func(d libpoddb.Container) bool { return d.ID == c.ID })
		return i < 0 || db.Containers[i].Init != "always" || c.StartedAt <= 0 || // one that runs once is gone by then
			!slices.ContainsFunc(running, func(r podman.Container) bool { return r.Pod == c.Pod })
	}), nil
}

// unkeepable refuses running containers that cannot be stopped and started
// again: paused ones, whose processes would be killed, and those that podman
// deletes as soon as they stop.
func unkeepable(ctx context.Context, cli podman.CLI, running []podman.Container) (*Refusal, error) {
	var paused []string
	for _, c := range running {
		if c.State == "paused" {
			paused = append(paused, c.Name())
		}
	}
	if len(paused) > 0 {
		return &Refusal{ID: "paused", Text: "containers are paused: " + strings.Join(paused, ", "),
			Hint: "podman unpause " + strings.Join(paused, " ") + ", or stop them"}, nil
	}
	gone, err := autoRemoved(ctx, cli, running)
	if err != nil || len(gone) == 0 {
		return nil, err
	}
	return autoRemoveRefusal(gone), nil
}

func autoRemoveRefusal(names []string) *Refusal {
	return &Refusal{ID: "auto-remove", Hint: "stop these yourself first, if they and their anonymous volumes may go",
		Text: "podman deletes these running containers (--rm) with their anonymous volumes as soon as they stop: " + strings.Join(names, ", ")}
}

// autoRemoved names those of the containers that podman deletes when they stop.
func autoRemoved(ctx context.Context, cli podman.CLI, cs []podman.Container) (names []string, err error) {
	for _, c := range cs {
		out, err := cli.Run(ctx, nil, "container", "inspect", "--format", "{{.HostConfig.AutoRemove}}", c.ID)
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(out)) == "true" {
			names = append(names, c.Name())
		}
	}
	return names, nil
}

// startContainers starts what ran before and does not run again by a unit or by
// itself. Podman starts what a container depends on before it.
func (s *Session) startContainers(ctx context.Context) error {
	if len(s.facts.Ran) == 0 {
		return nil
	}
	cs, err := s.cli.Containers(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range s.facts.Ran {
		i := slices.IndexFunc(cs, func(c podman.Container) bool { return c.ID == r.ID })
		if i < 0 {
			if err := s.note("container %s ran before and is not in this store: somebody removed it, or it was made on the other one", r.Name); err != nil {
				return err
			}
			continue
		}
		if s.runsAgain(cs[i]) {
			continue
		}
		if r.Frozen {
			done, err := s.thaw(ctx, r)
			if err != nil {
				errs = append(errs, fmt.Errorf("container %s does not go on from its checkpoint (podman start %s gives that up): %w", r.Name, r.Name, err))
			}
			if done || err != nil {
				continue
			}
		}
		start := []string{"start", r.ID}
		if r.Init { // and wait for its end: a failure is one of the pod's start, too
			start = []string{"start", "--attach", r.ID}
		}
		if _, err := s.cli.Run(ctx, nil, start...); err != nil {
			errs = append(errs, fmt.Errorf("cannot start container %s again: %w", r.Name, err))
		}
	}
	return errors.Join(errs...)
}

// runsAgain tells whether a container runs, or was started after podman's stop
// and has ended by itself.
func (s *Session) runsAgain(c podman.Container) bool {
	return c.State == "running" || c.StartedAt > s.journal.State().Steps[stepStop].Begun.Unix()
}

// containersStarted observes that what ran before was started again.
func (s *Session) containersStarted(ctx context.Context) (bool, error) {
	if len(s.facts.Ran) == 0 {
		return true, nil
	}
	cs, err := s.cli.Containers(ctx)
	if err != nil {
		return false, err
	}
	for _, r := range s.facts.Ran {
		i := slices.IndexFunc(cs, func(c podman.Container) bool { return c.ID == r.ID })
		if i >= 0 && !s.runsAgain(cs[i]) {
			return false, nil
		}
	}
	return true, nil
}
