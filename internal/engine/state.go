package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Mark is what the journal says of one step.
type Mark string

// The marks of a step.
const (
	MarkNone   Mark = ""       // never begun
	MarkBegun  Mark = "begun"  // begun, and perhaps done in part
	MarkDone   Mark = "done"   // its effect was seen
	MarkUndo   Mark = "undo"   // being taken back
	MarkUndone Mark = "undone" // taken back
)

// StepState is one step of a run as its journal tells it.
type StepState struct {
	Mark  Mark
	Begun time.Time // last begin; zero if never
	Done  time.Time // last done; zero if never
}

// State is a run as its journal tells it.
type State struct {
	Header  Header
	Phase   Phase
	Steps   map[string]StepState
	Facts   map[string]json.RawMessage
	Error   string // why the run last stopped; empty while it goes on
	Failed  string // the step whose failure stopped it; empty where it was asked to stop
	Records []Record
}

func newState() State {
	return State{Steps: map[string]StepState{}, Facts: map[string]json.RawMessage{}}
}

// LoadFacts fills v, a pointer to the job's struct of facts.
func (s State) LoadFacts(v any) error {
	b, err := json.Marshal(s.Facts)
	if err != nil {
		return fmt.Errorf("cannot load facts: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("cannot load facts: %w", err)
	}
	return nil
}

// Started is when the run was created, Last when its last record was written.
func (s State) Started() time.Time { return s.Records[0].Time }

// Last is when the run's last record was written.
func (s State) Last() time.Time { return s.Records[len(s.Records)-1].Time }

// apply takes one more record. It returns why the record cannot follow the ones
// before it, or "".
func (s *State) apply(r Record) string {
	if want := len(s.Records) + 1; r.Seq != want {
		return fmt.Sprintf("record %d where %d was due", r.Seq, want)
	}
	if (r.Kind == KindRun) != (r.Seq == 1) || (r.Kind == KindRun) != (r.Header != nil) {
		return "the run record is the first, and only the first"
	}
	switch r.Kind {
	case KindRun:
		if r.Header.Schema != Schema {
			return fmt.Sprintf("schema %d; this program knows %d", r.Header.Schema, Schema)
		}
		s.Header, s.Phase = *r.Header, PhaseRunning
	case KindFacts:
		for k, v := range r.Facts {
			if old, ok := s.Facts[k]; ok && !grown(old, v) {
				return fmt.Sprintf("fact %q is told twice", k)
			}
		}
		maps.Copy(s.Facts, r.Facts)
	case KindBegin, KindDone, KindUndo, KindUndone:
		if !slices.Contains(s.Header.Steps, r.Step) {
			return fmt.Sprintf("step %q is not in the plan", r.Step)
		}
		s.mark(r)
	case KindPhase:
		s.Phase, s.Error, s.Failed = r.Phase, "", ""
	case KindStop:
		s.Error, s.Failed = r.Error, r.Step
	case KindNote:
	default:
		return fmt.Sprintf("unknown kind %q", r.Kind)
	}
	s.Records = append(s.Records, r)
	return ""
}

// grown reports whether a fact is a list that holds all of the old one, in the
// same order, and more after it. A way back learns more than the way there knew.
func grown(old, now json.RawMessage) bool {
	var was, is []json.RawMessage
	if json.Unmarshal(old, &was) != nil || json.Unmarshal(now, &is) != nil || len(is) <= len(was) {
		return false
	}
	return slices.EqualFunc(was, is[:len(was)], func(a, b json.RawMessage) bool { return bytes.Equal(a, b) })
}

func (s *State) mark(r Record) {
	st := s.Steps[r.Step]
	switch r.Kind {
	case KindBegin:
		st.Mark, st.Begun, s.Error, s.Failed = MarkBegun, r.Time, "", ""
	case KindDone:
		st.Mark, st.Done = MarkDone, r.Time
	case KindUndo:
		st.Mark, s.Error, s.Failed = MarkUndo, "", ""
	case KindUndone:
		st.Mark = MarkUndone
	}
	s.Steps[r.Step] = st
}
