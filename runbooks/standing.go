package runbooks

import (
	"errors"
	"slices"

	"github.com/storagectl/storagectl/internal/engine"
)

// Standing is where one task of a run stands; the run's last step, the commit, is told
// likewise.
type Standing struct {
	Name, Title string
	Mark        engine.Mark
	// Outcome is "" while the task is not over, and of the commit.
	Outcome string
	Run     string // that the task made; "": none
	Text    string // why, or what a command said
	Seconds float64
}

// Standings tells of each step of a run where it stands, from its journal and from those
// of its tasks' runs.
func Standings(dir engine.Dir, run string, st engine.State) ([]Standing, error) {
	in, facts, err := decode(st)
	if err != nil {
		return nil, err
	}
	var all []Standing
	for _, step := range Outline(in) {
		s := Standing{Name: step.Name, Title: step.Title, Mark: st.Steps[step.Name].Mark}
		if k := slices.IndexFunc(in.Plan.Tasks, func(t PlannedTask) bool { return t.ID == step.Name }); k >= 0 {
			if err := s.learn(dir, run, in.Plan.Tasks[k], facts); err != nil {
				return nil, err
			}
		}
		all = append(all, s)
	}
	return all, nil
}

// decode reads what a run was asked for, and what it has learnt.
func decode(st engine.State) (Inputs, Facts, error) {
	in, err := DecodeInputs(st)
	if err != nil {
		return Inputs{}, Facts{}, err
	}
	facts, err := DecodeFacts(st)
	return in, facts, err
}

// learn fills in what became of a task.
func (s *Standing) learn(dir engine.Dir, run string, t PlannedTask, facts Facts) error {
	if s.Mark == engine.MarkNone {
		return nil
	}
	r := facts.result(t.ID)
	if r != nil {
		s.Outcome, s.Run, s.Text, s.Seconds = r.Outcome, r.Run, r.Text, r.Seconds
	}
	if job(t.Run) && s.Run == "" && s.Outcome != LeftOut {
		made, _, err := child(dir, Parent(run, t.ID))
		var damaged *engine.DamagedError
		if err != nil && !errors.As(err, &damaged) {
			return err
		}
		s.Run = made // a damaged journal hides it, and not all the rest
	}
	switch {
	case s.Mark == engine.MarkBegun, s.Mark == engine.MarkUndo:
		s.Outcome = ""
	case s.Mark == engine.MarkUndone && s.Outcome == LeftOut:
	case s.Mark == engine.MarkUndone && (slices.Contains(facts.Kept, t.ID) || t.stays() && (r != nil || t.Run != runExec || slices.Contains(facts.Begun, t.ID))):
		s.Outcome = Kept
	case s.Mark == engine.MarkUndone && !t.looks():
		s.Outcome = TakenBack
	}
	return nil
}

// Next are the commands that make sense for a run that no process is at.
func Next(run string, st engine.State) ([]string, error) {
	in, facts, err := decode(st)
	if err != nil {
		return nil, err
	}
	resume, rollback := "storagectl resume "+run, "storagectl rollback "+run
	switch {
	case st.Phase == engine.PhaseRollingBack, st.Phase == engine.PhaseRunning && in.Committing(st):
		return []string{resume}, nil
	case st.Phase == engine.PhaseFinished:
		return []string{"storagectl commit " + run, rollback}, nil
	case st.Phase != engine.PhaseRunning:
		return nil, nil
	}
	if Unclear(in, facts, st) {
		return []string{resume + " --exec again", resume + " --exec done", rollback}, nil
	}
	return []string{resume, rollback}, nil
}

// Unclear reports whether a run stopped at a command of which nobody can see if it has
// done its work: a person has to say whether it is run again.
func Unclear(in Inputs, facts Facts, st engine.State) bool {
	return slices.ContainsFunc(in.Plan.Tasks, func(t PlannedTask) bool {
		return st.Steps[t.ID].Mark == engine.MarkBegun && facts.unclear(t)
	})
}
