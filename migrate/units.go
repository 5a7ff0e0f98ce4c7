package migrate

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/host"
)

// stopDeadline is how long podman's processes may take to end by themselves
// once their units are stopped (conmon cleans up after its container).
const stopDeadline = 30 * time.Second

// stop stops the owner's units that use podman, remembers which they were, and
// waits until no process of the owner uses the store.
func (s *Session) stop(ctx context.Context) error {
	if s.Inputs.Systemd {
		units, err := s.activeUnits(ctx)
		if err != nil {
			return err
		}
		if s.facts.Units == nil { // on a second try some are stopped already
			were := slices.Clone(units)
			if err := s.learn(func(f *Facts) { f.Units = &were }); err != nil {
				return err
			}
		}
		// Stopping one may end others, or bring them up: look until none is left.
		for range 3 {
			for _, u := range units {
				if err := s.unit(ctx, opUnitStop, u); err != nil {
					return &Refusal{ID: "unit", Text: err.Error(),
						Hint: "see why the unit does not stop (systemctl status), then try again"}
				}
			}
			if units, err = s.activeUnits(ctx); err != nil {
				return err
			}
			if len(units) == 0 {
				break
			}
		}
		if len(units) > 0 {
			return &Refusal{ID: "unit", Text: fmt.Sprintf("units that use podman come back after they were stopped: %s", strings.Join(units, ", ")),
				Hint: "stop what starts them, or mask them, then try again"}
		}
	}
	if s.Inputs.Request.Containers == Discard {
		if err := s.stopContainers(ctx); err != nil {
			return err
		}
	}
	ps, err := s.waitQuiet(ctx)
	if err != nil {
		return err
	}
	if len(ps) > 0 {
		return &Refusal{ID: "busy", Text: "podman is still in use by " + list(ps),
			Hint: "let these end, or stop them, then try again"}
	}
	return nil
}

// waitQuiet waits until the owner has no podman processes (pause processes do
// not count) and returns those that are left at the deadline.
func (s *Session) waitQuiet(ctx context.Context) ([]process, error) {
	for deadline := time.Now().Add(stopDeadline); ; {
		ps, err := s.busy(ctx)
		if err != nil || len(ps) == 0 || time.Now().After(deadline) {
			return ps, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond): // processes of others: no event tells that the last has gone
		}
	}
}

func (s *Session) busy(ctx context.Context) ([]process, error) {
	ps, err := ask[[]process](ctx, s, opProcesses, processArgs{})
	return slices.DeleteFunc(ps, func(p process) bool { return p.Pause }), err
}

// stopped observes that the owner's units are down and nothing uses the store.
func (s *Session) stopped(ctx context.Context) (bool, error) {
	if s.Inputs.Systemd {
		units, err := s.activeUnits(ctx)
		if err != nil || len(units) > 0 {
			return false, err
		}
	}
	ps, err := s.busy(ctx)
	return len(ps) == 0, err
}

// quiet ends podman's pause processes and makes sure that nothing else of
// podman lives, immediately before the store's folders are touched.
func (s *Session) quiet(ctx context.Context) error {
	ps, err := ask[[]process](ctx, s, opProcesses, processArgs{EndPause: true})
	if err != nil {
		return err
	}
	if len(ps) > 0 {
		return fmt.Errorf("cannot touch the store while it is in use by %s", list(ps))
	}
	return nil
}

func list(ps []process) string {
	words := make([]string, len(ps))
	for i, p := range ps {
		words[i] = p.String()
	}
	return strings.Join(words, ", ")
}

// toStart are the units to start again: those that ran, last stopped first. A
// service that its socket starts is left to the socket.
func (s *Session) toStart() []string {
	if s.facts.Units == nil {
		return nil
	}
	var units []string
	for _, u := range slices.Backward(*s.facts.Units) {
		name, ok := strings.CutSuffix(u, ".service")
		if ok && slices.Contains(*s.facts.Units, name+".socket") {
			continue
		}
		units = append(units, u)
	}
	return units
}

func (s *Session) startUnits(ctx context.Context) error {
	for _, u := range s.toStart() {
		if err := s.unit(ctx, opUnitStart, u); err != nil {
			return err
		}
	}
	return s.answers(ctx)
}

// started observes that what ran before runs again.
func (s *Session) started(ctx context.Context) (bool, error) {
	want := s.toStart()
	if len(want) == 0 {
		return true, nil
	}
	up, err := ask[[]string](ctx, s, opUnitActive, slices.DeleteFunc(slices.Clone(want), isSystem))
	if err != nil {
		return false, err
	}
	for _, u := range want {
		if !isSystem(u) {
			continue
		}
		err := s.onSystemBus(ctx, func(b *host.Bus) error {
			active, err := b.Active(ctx, strings.TrimPrefix(u, systemPrefix))
			if active {
				up = append(up, u)
			}
			return err
		})
		if err != nil {
			return false, err
		}
	}
	return len(up) == len(want), nil
}

// systemPrefix marks, in the facts, a unit of the system's manager that runs
// podman as the owner of a rootless store (User=).
const systemPrefix = "system:"

func isSystem(unit string) bool { return strings.HasPrefix(unit, systemPrefix) }

// ownUsers are the values of User= that a manager's units of this user have.
func ownUsers(uid int) []string {
	if uid == 0 {
		return []string{"", "root", "0"}
	}
	return []string{""} // a user's manager runs all as that user
}

// activeUnits lists what uses the store now: units of the owner's own manager
// and, where root looks for another, the system's units that run as the owner.
func (s *Session) activeUnits(ctx context.Context) ([]string, error) {
	units, err := ask[[]string](ctx, s, opUnits, none{})
	if o := s.Inputs.Owner; err == nil && !o.Rootful() && os.Getuid() == 0 {
		err = s.onSystemBus(ctx, func(b *host.Bus) error {
			theirs, err := b.PodmanUnits(ctx, o.Name, fmt.Sprint(o.UID))
			for _, u := range theirs {
				units = append(units, systemPrefix+u)
			}
			return err
		})
	}
	return units, err
}

// unit starts or stops one unit, wherever it belongs.
func (s *Session) unit(ctx context.Context, op, unit string) error {
	name, system := strings.CutPrefix(unit, systemPrefix)
	if !system {
		_, err := ask[none](ctx, s, op, unit)
		return err
	}
	return s.onSystemBus(ctx, func(b *host.Bus) error {
		if op == opUnitStop {
			return b.Stop(ctx, name)
		}
		return b.Start(ctx, name)
	})
}

func (s *Session) onSystemBus(ctx context.Context, f func(*host.Bus) error) error {
	b, err := host.SystemBus(ctx)
	if err != nil {
		return err
	}
	defer b.Close()
	return f(b)
}

// answers asks podman's API for a sign of life where its socket ran before:
// an active socket unit alone serves nobody.
func (s *Session) answers(ctx context.Context) error {
	if s.facts.Units == nil || !slices.Contains(*s.facts.Units, podmanSocket) {
		return nil
	}
	_, err := ask[none](ctx, s, opPing, podmanSocket)
	return err
}

const podmanSocket = "podman.socket"
