package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/podman"
)

// Ran is a container that ran when podman was stopped for a run.
type Ran struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// stopContainers stops what runs in podman when the units are down, with
// podman's own grace time. What is kept is remembered first, in the order in
// which it was started.
func (s *Session) stopContainers(ctx context.Context) error {
	cs, err := s.cli.Containers(ctx)
	if err != nil {
		return err
	}
	cs = slices.DeleteFunc(cs, func(c podman.Container) bool {
		_, nomads := drain.IsNomads(c.Names, c.Labels)
		// What Nomad still has here was to leave with the drain: it is not ours to
		// stop, and is told as what still uses podman.
		return c.State != "running" && c.State != "paused" || nomads && s.Inputs.Nomad != nil
	})
	if len(cs) == 0 {
		return nil
	}
	if s.Inputs.Request.Containers == Keep {
		if err := s.remember(ctx, cs); err != nil {
			return err
		}
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

// remember adds running containers to the facts, and refuses those that would
// not come back as they are.
func (s *Session) remember(ctx context.Context, running []podman.Container) error {
	if r, err := unkeepable(ctx, s.cli, running); err != nil {
		return err
	} else if r != nil {
		return r
	}
	slices.SortStableFunc(running, func(a, b podman.Container) int { return int(a.StartedAt - b.StartedAt) })
	ran := slices.Clone(s.facts.Ran)
	for _, c := range running {
		if !slices.ContainsFunc(ran, func(r Ran) bool { return r.ID == c.ID }) {
			ran = append(ran, Ran{c.ID, c.Name()})
		}
	}
	if len(ran) == len(s.facts.Ran) {
		return nil
	}
	return s.learn(func(f *Facts) { f.Ran = ran })
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
			if err := s.note("container %s ran before and is not there any more: somebody removed it", r.Name); err != nil {
				return err
			}
			continue
		}
		if s.runsAgain(cs[i]) {
			continue
		}
		if _, err := s.cli.Run(ctx, nil, "start", r.ID); err != nil {
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
