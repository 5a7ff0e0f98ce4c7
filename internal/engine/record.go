package engine

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"time"
)

// Schema is the version of the journal's format.
const Schema = 1

// Kind says what a journal record tells.
type Kind string

// The kinds of records.
const (
	KindRun    Kind = "run"    // the first record: job, inputs, plan
	KindFacts  Kind = "facts"  // what the run learned
	KindBegin  Kind = "begin"  // a step is about to act
	KindDone   Kind = "done"   // a step's effect was seen
	KindUndo   Kind = "undo"   // a step is about to be taken back
	KindUndone Kind = "undone" // a step is taken back
	KindPhase  Kind = "phase"  // the run as a whole changed its phase
	KindStop   Kind = "stop"   // the run stopped here: failed or interrupted
	KindNote   Kind = "note"   // something worth telling later; no effect on the run
)

// Phase is where a run stands as a whole.
type Phase string

// The phases of a run.
const (
	PhaseRunning     Phase = "running"      // going forward, or stopped on the way
	PhaseFinished    Phase = "finished"     // all but the final step is done
	PhaseCommitted   Phase = "committed"    // the final step is done
	PhaseRollingBack Phase = "rolling-back" // going back, or stopped on the way back
	PhaseRolledBack  Phase = "rolled-back"  // everything is put back
)

// Over reports whether nothing is left to do for the run except a commit or a
// rollback that the operator asks for.
func (p Phase) Over() bool {
	return p == PhaseFinished || p == PhaseCommitted || p == PhaseRolledBack
}

// Header is the content of a journal's first record.
type Header struct {
	Schema  int             `json:"schema"`
	Run     string          `json:"run"`
	Job     string          `json:"job"`
	Store   string          `json:"store"`   // what the run's lock is named after
	Version string          `json:"version"` // of the program
	Inputs  json.RawMessage `json:"inputs"`
	Steps   []string        `json:"steps"`
	Actor   *Actor          `json:"actor,omitempty"`
}

// Actor is who had a run begun or go on, and by which command.
type Actor struct {
	Command  string `json:"command"`
	UID      int    `json:"uid"`
	LoginUID int    `json:"loginUID"` // who logged in, whatever they became since; -1: nobody
	SudoUser string `json:"sudoUser,omitempty"`
}

// Record is one line of a journal.
type Record struct {
	Seq    int                        `json:"seq"` // 1, 2, 3 …
	Time   time.Time                  `json:"time"`
	Kind   Kind                       `json:"kind"`
	Step   string                     `json:"step,omitempty"`
	Header *Header                    `json:"header,omitempty"`
	Facts  map[string]json.RawMessage `json:"facts,omitempty"`
	Phase  Phase                      `json:"phase,omitempty"`
	Error  string                     `json:"error,omitempty"`
	Text   string                     `json:"text,omitempty"`
	Actor  *Actor                     `json:"actor,omitempty"` // a note's: a command takes the run up
	Exit   *int                       `json:"exit,omitempty"`  // a note's: the command lets go of it, with this exit code
	Audit  string                     `json:"audit,omitempty"` // a note's: the audit's last hash, when all before it was told there
	File   string                     `json:"file,omitempty"`  // of that audit; "": the one in the state directory
}

// line is a record as it stands in the file: the checksum is over the exact
// bytes of Rec, so that a flipped bit is told from a torn write.
type line struct {
	CRC string          `json:"crc"`
	Rec json.RawMessage `json:"rec"`
}

func sum(b []byte) string {
	return fmt.Sprintf("%08x", crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

func encode(r Record) ([]byte, error) {
	rec, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(line{CRC: sum(rec), Rec: rec})
	if err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

func decode(b []byte) (Record, error) {
	var l line
	if err := json.Unmarshal(b, &l); err != nil {
		return Record{}, fmt.Errorf("not a record: %w", err)
	}
	if got := sum(l.Rec); got != l.CRC {
		return Record{}, fmt.Errorf("checksum is %s, the record says %s", got, l.CRC)
	}
	var r Record
	if err := json.Unmarshal(l.Rec, &r); err != nil {
		return Record{}, fmt.Errorf("not a record: %w", err)
	}
	return r, nil
}
