package migrate

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
)

// stopDeadline is how long podman's processes may take to end by themselves
// once their units are stopped (conmon cleans up after its container).
const stopDeadline = 30 * time.Second

// stop stops the owner's units that use podman, remembers which they were, and
// waits until no process of the owner uses the store. An interruption cuts only
// the wait short: units are stopped as a whole.
func (s *Session) stop(ctx context.Context) error {
	if err := s.mayStop(ctx); err != nil {
		return err
	}
	interruptible := ctx
	ctx = context.WithoutCancel(ctx)
	if s.Inputs.Systemd {
		u, err := s.activeUnits(ctx)
		if err != nil {
			return err
		}
		if s.facts.Units == nil { // on a second try some are stopped already
			were := u
			if err := s.learn(func(f *Facts) { f.Units = &were }); err != nil {
				return err
			}
		} else if s.facts.Since == nil && s.journal.State().Phase == engine.PhaseRollingBack {
			since := u.without(*s.facts.Units)
			if err := s.learn(func(f *Facts) { f.Since = &since }); err != nil {
				return err
			}
		}
		// Stopping one may end others, or bring them up: look until none is left.
		for range 3 {
			if err := s.stopAll(ctx, u); err != nil {
				return &Refusal{ID: "unit", Text: err.Error(),
					Hint: "see why the unit does not stop (systemctl status), then try again"}
			}
			if u, err = s.activeUnits(ctx); err != nil {
				return err
			}
			if u.none() {
				break
			}
		}
		if !u.none() {
			return &Refusal{ID: "unit", Text: "units that use podman come back after they were stopped: " + u.names(),
				Hint: "stop what starts them, or mask them, then try again"}
		}
	}
	away, err := s.away(ctx)
	if err != nil {
		return err
	}
	if s.Inputs.Request.Containers != Refuse && !away {
		if err := s.stopContainers(ctx); err != nil && s.relocating() && s.journal.State().Phase == engine.PhaseRollingBack {
			// Its disk may have died under it. What still runs is seen below.
			if err := s.note("podman does not answer: %v", err); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
	}
	ps, err := s.waitQuiet(interruptible)
	if err != nil {
		return err
	}
	if len(ps) > 0 {
		return &Refusal{ID: "busy", Text: fmt.Sprintf("after %.0f s podman is still in use by %s", stopDeadline.Seconds(), list(ps)),
			Hint: "let these end, or stop them, then try again"}
	}
	return nil
}

// mayStop looks once more, while all is as it was, whether there is work that a
// stop would cut off: a run may go on long after its node was drained.
func (s *Session) mayStop(ctx context.Context) error {
	st := s.journal.State()
	if st.Phase != engine.PhaseRunning || st.Steps[stepSwap].Mark != engine.MarkNone || st.Steps[stepReset].Mark != engine.MarkNone {
		return nil
	}
	if err := s.stillOut(ctx); err != nil {
		return err
	}
	if labels := s.Inputs.Request.Outage.Busy.Labels; len(labels) > 0 {
		return busyRefusal(drain.NotBusy(ctx, s.cli, labels))
	}
	return nil
}

// waitQuiet waits until the owner has no podman processes (pause processes do
// not count) and returns those that are left at the deadline.
func (s *Session) waitQuiet(ctx context.Context) ([]process, error) {
	for began := time.Now(); ; {
		ps, err := s.busy(ctx)
		waited := time.Since(began)
		if err != nil || len(ps) == 0 || waited > stopDeadline {
			return ps, err
		}
		if s.env.Progress != nil && waited > time.Second {
			s.env.Progress(Progress{Step: stepStop, Phase: fmt.Sprintf("wait, %.0f s at most", stopDeadline.Seconds()),
				Done: int64(waited.Seconds()), Unit: "seconds", Note: "in use by " + list(ps)})
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
		u, err := s.activeUnits(ctx)
		if err != nil || !u.none() {
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
func (s *Session) toStart() units {
	if s.facts.Units == nil {
		return units{}
	}
	return s.facts.Units.backwards(units{})
}

// begunSince are the units to start besides after a rollback.
func (s *Session) begunSince() units {
	if s.facts.Units == nil || s.facts.Since == nil {
		return units{}
	}
	return s.facts.Since.backwards(*s.facts.Units)
}

// backwards gives stopped units in the order in which they are to be started,
// without the services that a socket among them, or among others, starts.
func (u units) backwards(others units) units {
	pick := func(stopped, others []string) (start []string) {
		for _, unit := range slices.Backward(stopped) {
			name, ok := strings.CutSuffix(unit, ".service")
			if ok && (slices.Contains(stopped, name+".socket") || slices.Contains(others, name+".socket")) {
				continue
			}
			start = append(start, unit)
		}
		return start
	}
	return units{Own: pick(u.Own, others.Own), System: pick(u.System, others.System)}
}

// without gives the units that are not among others.
func (u units) without(others units) units {
	less := func(all, others []string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(n string) bool { return slices.Contains(others, n) })
	}
	return units{Own: less(u.Own, others.Own), System: less(u.System, others.System)}
}

// startSince starts what was begun after the migration and ran until the
// rollback. What needs an image or a container that the old store has not got
// cannot run on it: that is noted, and no failure of the rollback.
func (s *Session) startSince(ctx context.Context) error {
	since := s.begunSince()
	var each []units
	for _, name := range since.Own {
		each = append(each, units{Own: []string{name}})
	}
	for _, name := range since.System {
		each = append(each, units{System: []string{name}})
	}
	for _, u := range each {
		if err := s.startAll(ctx, u); err != nil {
			if err := s.note("unit %q was begun after the migration and does not start on the old store: %v", u.names(), err); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Session) startUnits(ctx context.Context) error {
	if err := s.startAll(ctx, s.toStart()); err != nil {
		return err
	}
	if err := s.answers(ctx); err != nil {
		return err
	}
	if err := s.startSince(ctx); err != nil {
		return err
	}
	return s.startContainers(ctx)
}

// started observes that what ran before runs again.
func (s *Session) started(ctx context.Context) (bool, error) {
	want := s.toStart()
	if len(want.Own) > 0 {
		up, err := ask[[]string](ctx, s, opUnitActive, want.Own)
		if err != nil || len(up) != len(want.Own) {
			return false, err
		}
	}
	for _, u := range want.System {
		active := false
		err := s.onSystemBus(ctx, func(b *host.Bus) (err error) { active, err = b.Active(ctx, u); return err })
		if err != nil || !active {
			return false, err
		}
	}
	return s.containersStarted(ctx)
}

// ownUsers are the values of User= that a manager's units of this user have.
func ownUsers(uid int) []string {
	if uid == 0 {
		return []string{"", "root", "0"}
	}
	return []string{""} // a user's manager runs all as that user
}

// units are what uses the store, by the manager that has them. What stands in
// Own comes from the owner's worker, who may say anything: it is only ever
// handed back to that worker. What stands in System was found by root itself.
type units struct {
	Own    []string `json:"own"`
	System []string `json:"system,omitempty"` // the system's units that run as the owner (User=)
}

func (u units) none() bool        { return len(u.Own)+len(u.System) == 0 }
func (u units) all() []string     { return append(slices.Clone(u.System), u.Own...) }
func (u units) names() string     { return strings.Join(u.all(), ", ") }
func (s *Session) asksRoot() bool { return !s.Inputs.Owner.Rootful() && os.Getuid() == 0 }

// activeUnits lists what uses the store now: units of the owner's own manager
// and, where root looks for another, the system's units that run as the owner.
func (s *Session) activeUnits(ctx context.Context) (u units, err error) {
	if u.Own, err = ask[[]string](ctx, s, opUnits, none{}); err != nil || !s.asksRoot() {
		return u, err
	}
	err = s.onSystemBus(ctx, func(b *host.Bus) (err error) {
		u.System, err = b.PodmanUnits(ctx, int(s.Inputs.Owner.UID), s.Inputs.Owner.Name, fmt.Sprint(s.Inputs.Owner.UID))
		return err
	})
	return u, err
}

// stopAll stops the system's units first, and startAll starts them last: they
// may need the owner's.
func (s *Session) stopAll(ctx context.Context, u units) error {
	for _, name := range u.System {
		if err := s.onSystemBus(ctx, func(b *host.Bus) error { return b.Stop(ctx, name) }); err != nil {
			return err
		}
	}
	for _, name := range u.Own {
		if _, err := ask[none](ctx, s, opUnitStop, name); err != nil {
			return err
		}
	}
	return nil
}

func (s *Session) startAll(ctx context.Context, u units) error {
	for _, name := range u.Own {
		if _, err := ask[none](ctx, s, opUnitStart, name); err != nil {
			return err
		}
	}
	for _, name := range u.System {
		if err := s.onSystemBus(ctx, func(b *host.Bus) error { return b.Start(ctx, name) }); err != nil {
			return err
		}
	}
	return nil
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
	if s.facts.Units == nil || !slices.Contains(s.facts.Units.Own, podmanSocket) {
		return nil
	}
	_, err := ask[none](ctx, s, opPing, podmanSocket)
	return err
}

const podmanSocket = "podman.socket"
