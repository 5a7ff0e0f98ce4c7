package migrate

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/storagectl/storagectl/drain"
)

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
	return busyRefusal(drain.WaitBusy(ctx, s.cli, o))
}

func busyRefusal(err error) error {
	var busy *drain.BusyError
	if errors.As(err, &busy) {
		return &Refusal{ID: "busy-containers", Text: err.Error(), Hint: "let them end, or say what to do at the deadline (--busy-then wait or stop)"}
	}
	return err
}

// hooksBefore runs the hooks before the drain. One that fails is a refusal:
// nothing was taken out of service yet.
func (s *Session) hooksBefore(ctx context.Context) error {
	for _, argv := range s.Inputs.Request.Outage.HookBefore {
		if err := s.hook(ctx, "before", argv); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return &Refusal{ID: "hook", Text: err.Error(), Hint: "see what it said, in the journal, too; the node was not touched"}
		}
	}
	return nil
}

// hooks runs the hooks of a later point. One that fails stops the run, or has it take
// itself back where the store was not touched yet; a resume runs them all again.
func (s *Session) hooks(when string, list [][]string) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, argv := range list {
			if err := s.hook(ctx, when, argv); err != nil {
				return err
			}
		}
		return nil
	}
}

// hooksBack runs the hooks of the other side on the way back: what the hooks
// before paused goes on again, and what those after let go on is paused for the
// second outage. Nothing on the way back depends on them: a failure is noted.
func (s *Session) hooksBack(list [][]string) func(context.Context) error {
	if len(list) == 0 {
		return nil
	}
	return func(ctx context.Context) error {
		for _, argv := range list {
			if err := s.hook(ctx, "rollback", argv); err != nil {
				if err := s.note("on the way back: %v", err); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// hook runs one hook; what it says is kept in the journal.
func (s *Session) hook(ctx context.Context, when string, argv []string) error {
	vars := []string{"STORAGECTL_RUN=" + s.ID, "STORAGECTL_HOOK=" + when}
	if use := s.Inputs.Nomad; use != nil {
		var names []string
		for _, n := range use.Nodes {
			names = append(names, n.Name)
		}
		vars = append(vars, "STORAGECTL_NODES="+strings.Join(names, ","))
	}
	text, err := drain.Hook(ctx, s.env.Runner, argv, s.Inputs.Request.Outage.HookTimeout, vars...)
	if text != "" {
		return errors.Join(err, s.note("hook %s said: %s", drain.HookName(argv), text))
	}
	return err
}

// hookNames is hooks for people, who want to see in a plan what will run.
func hookNames(list [][]string) string {
	names := make([]string, len(list))
	for i, argv := range list {
		for k, w := range argv {
			if strings.ContainsAny(w, " \t\n\"'\\") || w == "" {
				w = strconv.Quote(w)
			}
			if k > 0 {
				names[i] += " "
			}
			names[i] += w
		}
	}
	return strings.Join(names, ", then ")
}
