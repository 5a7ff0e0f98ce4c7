package migrate

import (
	"context"
	"errors"
	"fmt"
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
