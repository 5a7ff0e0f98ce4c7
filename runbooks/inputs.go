package runbooks

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/migrate"
)

// Job is the name of a runbook's runs in their journals, and of the lock that one of
// them holds at a time.
const Job = "runbook"

// Inputs are all that a run is made of; they stand in its first record.
type Inputs struct {
	Name   string `json:"name"`
	Origin string `json:"origin"` // the file, or [Embedded]
	Text   string `json:"text"`
	SHA256 string `json:"sha256"` // of the text
	Plan   Plan   `json:"plan"`
	Now    bool   `json:"now,omitempty"` // windows did not count when it was begun
	// Policy is what a boot makes of the run where it was cut off: resume, rollback or
	// wait; "" is the word of resume --boot.
	Policy string `json:"policy,omitempty"`
}

// Outcomes of a task.
const (
	Done        = "done"
	LeftOut     = "left-out"      // a condition did not hold
	Failed      = "failed"        // and the run went on, as the runbook says
	TakenAsDone = "taken-as-done" // a person said so
	TakenBack   = "taken-back"    // by a rollback
	Kept        = "kept"          // by a rollback: it has no way back, and was left as it is
)

// Result is what became of a task.
type Result struct {
	Task    string  `json:"task"`
	Outcome string  `json:"outcome"`
	Run     string  `json:"run,omitempty"` // the run that the task made
	Code    int     `json:"code,omitempty"`
	Text    string  `json:"text,omitempty"` // why, or what a command said
	Seconds float64 `json:"seconds"`
}

// Facts are what a run learned and must remember.
type Facts struct {
	// Begun are the exec tasks whose commands were begun: nobody can see whether one
	// that was cut off did its work.
	Begun []string `json:"begun,omitempty"`
	// Hooked are the drain tasks whose hooks were begun: what these paused is to go on.
	Hooked []string `json:"hooked,omitempty"`
	// Results are those of the tasks that are over, in their order.
	Results []Result `json:"results,omitempty"`
	// Kept are the tasks that a rollback has left as they are: they have no way back.
	Kept []string `json:"kept,omitempty"`
}

// result is what became of a task last, nil if it is not over.
func (f Facts) result(task string) *Result {
	for i, r := range slices.Backward(f.Results) {
		if r.Task == task {
			return &f.Results[i]
		}
	}
	return nil
}

// DecodeInputs reads a run's inputs from its state.
func DecodeInputs(st engine.State) (Inputs, error) {
	var in Inputs
	if st.Header.Job != Job {
		return in, fmt.Errorf("cannot go on with a %q job: it is no runbook", st.Header.Job)
	}
	if err := json.Unmarshal(st.Header.Inputs, &in); err != nil {
		return in, fmt.Errorf("cannot read the run's inputs: %w", err)
	}
	return in, nil
}

// DecodeFacts reads what a run has learned.
func DecodeFacts(st engine.State) (f Facts, err error) { return f, st.LoadFacts(&f) }

// NewInputs are those of a run of b.
func NewInputs(b *Runbook, plan Plan, now bool) Inputs {
	return Inputs{Name: b.Name, Origin: b.Origin, Text: b.Text, SHA256: sum(b.Text), Plan: plan, Now: now}
}

func sum(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}

// keeps reports whether a task may keep an old store, which a commit removes.
func (in Inputs) keeps() bool {
	return slices.ContainsFunc(in.Plan.Tasks, func(t PlannedTask) bool { return job(t.Run) })
}

// Committing reports whether the run was cut off inside its commit.
func (in Inputs) Committing(st engine.State) bool {
	return in.keeps() && st.Steps[commitStep].Mark == engine.MarkBegun
}

// Parent is how a run of migrate or relocate names the task that began it.
func Parent(run, task string) string { return run + "/" + task }

// child finds the latest run that a task began. Nothing that is read of a task tells
// whether it made a run but the runs themselves: the process may have been killed
// right after.
func child(dir engine.Dir, parent string) (string, engine.State, error) {
	runs, err := dir.List()
	if err != nil {
		return "", engine.State{}, err
	}
	of, _, _ := strings.Cut(parent, "/")
	for _, run := range slices.Backward(runs) {
		if run == of { // what is older is none of its
			break
		}
		// Whose it is, its first record tells: what is damaged after it in another's
		// journal does not matter here.
		h, err := engine.ReadHeader(dir.RunPath(run))
		if err != nil {
			return "", engine.State{}, fmt.Errorf("cannot see whether the task has made a run: %w", err)
		}
		if p, err := ParentOf(engine.State{Header: h}); err != nil {
			return "", engine.State{}, err
		} else if p != parent {
			continue
		}
		st, err := engine.Read(dir.RunPath(run))
		if err != nil {
			return "", st, fmt.Errorf("cannot read the run that the task has made: %w", err)
		}
		return run, st, nil
	}
	return "", engine.State{}, nil
}

// ParentOf names the run and the task, as [Parent] does, that began a run; "": none.
func ParentOf(st engine.State) (string, error) {
	if st.Header.Job == Job {
		return "", nil
	}
	in, err := migrate.DecodeInputs(st)
	if err != nil {
		return "", err
	}
	return in.Request.Parent, nil
}
