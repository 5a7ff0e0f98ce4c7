package runbooks

import (
	"context"
	"slices"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/migrate"
)

// undo takes a task back, nil where there is nothing to take back.
func (s *Session) undo(t PlannedTask) func(context.Context) error {
	switch {
	case job(t.Run):
		return func(ctx context.Context) error { return s.undoJob(ctx, t) }
	case t.Run == "drain":
		return func(ctx context.Context) error { return s.undoDrain(ctx, t) }
	case t.stays():
		return func(context.Context) error {
			r := s.facts.result(t.ID)
			if r != nil && r.Outcome == LeftOut || r == nil && t.Run == runExec && !slices.Contains(s.facts.Begun, t.ID) {
				return nil
			}
			how := ""
			if t.Run == "doctor" {
				how = "; storagectl doctor --undo can take it back"
			}
			return s.keep(t, "task %s has no way back, and is left as it is (%s)%s", t.ID, t.Line(), how)
		}
	}
	return nil
}

func (s *Session) undoJob(ctx context.Context, t PlannedTask) error {
	run, st, err := child(s.env.Dir, Parent(s.ID, t.ID))
	if err != nil || run == "" || st.Phase == engine.PhaseRolledBack {
		return err
	}
	final, err := migrate.NoWayBack(st)
	if err != nil {
		return err
	}
	if final || st.Phase == engine.PhaseCommitted {
		return s.keep(t, "task %s has no way back, and is left as it is: run %s is committed, or past its last step that could be taken back", t.ID, run)
	}
	o, err := s.back(ctx, t, "rollback", run)
	if err != nil {
		return err
	}
	if o.code != 0 {
		return o.failed(t, run)
	}
	if st, err = engine.Read(s.env.Dir.RunPath(run)); err == nil && st.Phase != engine.PhaseRolledBack {
		err = &TaskError{Task: t.ID, Code: 1, Run: run, Text: "its rollback ended well, but it is " + string(st.Phase)}
	}
	return err
}

// stays reports whether a task changes something and has no way back.
func (t PlannedTask) stays() bool {
	return t.Run == runExec || t.Run == "prune" || t.Run == "undrain" || t.Run == "doctor" && slices.Contains(t.Argv, "--fix")
}

// looks reports whether a task changes nothing.
func (t PlannedTask) looks() bool { return !t.stays() && !job(t.Run) && t.Run != "drain" }

// keep leaves a task as it is on the way back, and says why.
func (s *Session) keep(t PlannedTask, format string, args ...any) error {
	if !slices.Contains(s.facts.Kept, t.ID) {
		if err := s.learn(func(f *Facts) { f.Kept = append(f.Kept, t.ID) }); err != nil {
			return err
		}
	}
	return s.note(format, args...)
}

// back runs the command that takes a task back. The task's timeout is for the way
// there: half a way back is the worst place to stop.
func (s *Session) back(ctx context.Context, t PlannedTask, argv ...string) (outcome, error) {
	t.Timeout = 0
	return s.command(ctx, t, argv, nil)
}

// undoDrain gives the nodes back that a drain task took, if they are not yet, and has
// what its hooks have paused go on.
func (s *Session) undoDrain(ctx context.Context, t PlannedTask) error {
	if r := s.facts.result(t.ID); r != nil && r.Outcome == LeftOut {
		return nil
	}
	o, err := s.back(ctx, t, "undrain")
	if err != nil {
		return err
	}
	if o.code != 0 && !o.notDrained() {
		return o.failed(t, "")
	}
	if !slices.Contains(s.facts.Hooked, t.ID) || s.returned(t.ID) {
		return nil
	}
	for _, argv := range t.Back {
		if err := s.hook(ctx, t.ID, "rollback", argv); err != nil {
			if err := s.note("on the way back: %v", err); err != nil {
				return err
			}
		}
	}
	return nil
}

// returned reports whether an undrain task after a drain task came to its end, and so
// did its hooks.
func (s *Session) returned(drain string) bool {
	after := false
	for _, t := range s.Inputs.Plan.Tasks {
		r := s.facts.result(t.ID)
		if after && t.Run == "undrain" && r != nil && r.Outcome == Done {
			return true
		}
		after = after || t.ID == drain
	}
	return false
}
