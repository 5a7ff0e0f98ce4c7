package engine

import (
	"fmt"
	"slices"
	"time"
)

// A Try is a resume or rollback of a run that no person asked for.
type Try struct {
	Time time.Time `json:"time"`
	Step string    `json:"step"` // at which it took up the run
	Undo bool      `json:"undo,omitempty"`
}

// triesFact is the fact that remembers them.
const triesFact = "unattended"

type triesOf struct {
	Unattended []Try `json:"unattended,omitempty"` // triesFact
}

// AgainError reports a run that needs a person: to go on with it by itself would do
// again what has failed.
type AgainError struct {
	Step string
	Why  string
}

func (e *AgainError) Error() string { return e.Why }

// next is the step at which the run would be taken up.
func (s State) next(back bool) string {
	if !back {
		for _, name := range s.Header.Steps {
			if s.Steps[name].Mark != MarkDone {
				return name
			}
		}
		return s.Header.Steps[len(s.Header.Steps)-1] // only the word that it is over is missing
	}
	for _, name := range slices.Backward(s.Header.Steps) {
		if m := s.Steps[name].Mark; m != MarkNone && m != MarkUndone {
			return name
		}
	}
	return s.Header.Steps[0]
}

// Unattended judges whether a run may be gone on with, or rolled back, by itself. A
// step that failed is not done again without a person; and one that was cut off is
// tried once, not again and again, as it may be what the machine dies of. A person's
// own try begins the count anew. The error is an [*AgainError].
func (s State) Unattended(back bool) error {
	back = back || s.Phase == PhaseRollingBack
	if s.Failed != "" && back == (s.Phase == PhaseRollingBack) {
		return &AgainError{Step: s.Failed, Why: fmt.Sprintf("it has failed, and would fail again: a person is to look at it (%s)", s.Error)}
	}
	var known triesOf
	if err := s.LoadFacts(&known); err != nil {
		return err
	}
	if len(known.Unattended) == 0 {
		return nil
	}
	last := known.Unattended[len(known.Unattended)-1]
	step := s.next(back)
	if last.Step != step || last.Undo != back {
		return nil
	}
	tried := false // the record is the one after the try
	for _, r := range s.Records[s.lastTry()+1:] {
		// It was asked to stop, for a reboot or by its window; or somebody has taken it
		// up since. What a try tells first is that it takes the run up.
		if r.Kind == KindStop || r.Actor != nil && tried {
			return nil
		}
		tried = true
	}
	return &AgainError{Step: step, Why: fmt.Sprintf("step %s was tried by itself at %s, and cut off again: a person is to look at it",
		step, last.Time.Format(time.RFC3339))}
}

// lastTry is the index of the record that remembers the latest try, -1: there was none.
func (s State) lastTry() int {
	for i, r := range slices.Backward(s.Records) {
		if _, is := r.Facts[triesFact]; is {
			return i
		}
	}
	return -1
}

// Try remembers that the run is taken up by itself, before it is.
func (j *Journal) Try(back bool) error {
	back = back || j.state.Phase == PhaseRollingBack
	var known triesOf
	if err := j.LoadFacts(&known); err != nil {
		return err
	}
	known.Unattended = append(known.Unattended, Try{Time: j.now().UTC(), Step: j.state.next(back), Undo: back})
	return j.SaveFacts(known)
}

// Untried remembers that a try came not as far as to take up the run, and why: it may be
// tried again. If it did take it up, nothing is written.
func (j *Journal) Untried(why error) error {
	if len(j.state.Records) == 0 || j.state.lastTry() != len(j.state.Records)-1 {
		return nil
	}
	return j.append(Record{Kind: KindStop, Error: why.Error()})
}
