// Package report writes what is known of a run for people: as a page of HTML that
// needs nothing but itself, as Markdown, and as JSON. It knows nothing of engines,
// jobs or hosts: who has a run fills in [Data].
//
// Every text in Data may be of other people's making (names of images are): the
// writers here let none of it become markup.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Schema is the version of [Data] as JSON (docs/json.md).
const Schema = 1

// Outcome is where a run stands, in a word.
type Outcome string

// The outcomes.
const (
	Running     Outcome = "running"      // a process is at it now
	Finished    Outcome = "finished"     // done, and can be taken back
	Committed   Outcome = "committed"    // done for good
	RolledBack  Outcome = "rolled-back"  // everything is as it was
	RollingBack Outcome = "rolling-back" // stopped on the way back
	Failed      Outcome = "failed"       // a step failed, and that was the last word
	Stopped     Outcome = "stopped"      // it was asked to stop
	CutOff      Outcome = "cut-off"      // its process ended without a word
)

// Data is what a report tells of a run. Lists are in the order in which they are shown.
type Data struct {
	Schema   int       `json:"schema"`
	Run      string    `json:"run"`
	Job      string    `json:"job"`
	Parent   string    `json:"parent,omitempty"`  // the run and task that began this one
	Runbook  string    `json:"runbook,omitempty"` // of which it is the run: its name
	Version  string    `json:"version,omitempty"` // of the program that began it
	Host     string    `json:"host,omitempty"`    // on which the report was made
	Made     time.Time `json:"made"`
	Owner    string    `json:"owner,omitempty"` // whose store
	Place    string    `json:"place,omitempty"` // where it is
	Phase    string    `json:"phase"`           // as status tells it
	Outcome  Outcome   `json:"outcome"`
	Headline string    `json:"headline"`
	Words    []string  `json:"words"` // what was done, a sentence or two each

	// Began is when the run began, Ended when its last word was written; of a run
	// that is not over and keeps podman down, the time of the report.
	Began time.Time `json:"began"`
	Ended time.Time `json:"ended"`
	// Worked is for how many seconds a step was under way.
	Worked float64 `json:"worked_seconds"`
	Steps  []Step  `json:"steps"`
	Tasks  []Task  `json:"tasks,omitempty"`  // of a runbook; the steps are their course in time
	Pauses []Pause `json:"pauses,omitempty"` // nothing of the run was under way
	// Down is when podman was stopped, Away when Nomad placed nothing on the node.
	Down        []Span  `json:"down,omitempty"`
	DownSeconds float64 `json:"down_seconds"`
	Away        []Span  `json:"away,omitempty"`
	AwaySeconds float64 `json:"away_seconds,omitempty"`

	Store      *Store      `json:"store,omitempty"` // nil: nothing is known of it
	Checks     []Check     `json:"checks,omitempty"`
	Calls      []Call      `json:"calls,omitempty"` // of a Docker client
	Events     []Event     `json:"events,omitempty"`
	Containers []Container `json:"containers,omitempty"`
	Groups     []Group     `json:"facts,omitempty"`
	Next       []Command   `json:"next,omitempty"`
	Missing    []string    `json:"missing,omitempty"` // what could not be told, and why
}

// Span is a stretch of time. Open says that it had not ended when the report was made.
type Span struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	Open bool      `json:"open,omitempty"`
}

// Length is how long a span is; a clock that was set back makes it 0, not less.
func (s Span) Length() time.Duration { return max(0, s.To.Sub(s.From)) }

// Total adds spans up.
func Total(spans []Span) time.Duration {
	var sum time.Duration
	for _, s := range spans {
		sum += s.Length()
	}
	return sum
}

// Step is one step of the plan.
type Step struct {
	Name  string `json:"name"`
	Title string `json:"title"`
	Mark  string `json:"mark"` // as status tells it
	Final bool   `json:"final,omitempty"`
	Acts  []Act  `json:"acts,omitempty"`
	// Outcome is what became of a task in a word, where the mark does not tell it.
	Outcome string `json:"outcome,omitempty"`
}

// NotBegun is the result of a task that the run has not come to.
const NotBegun = "not-begun"

// Task is a task of a runbook.
type Task struct {
	ID      string  `json:"id"`
	Line    string  `json:"line"`             // as one would type it
	Result  string  `json:"result,omitempty"` // as status tells it; "": it is not over
	Text    string  `json:"text,omitempty"`   // why, or what it said
	Run     string  `json:"run,omitempty"`    // that it began
	Seconds float64 `json:"seconds,omitempty"`
	Made    *Made   `json:"made,omitempty"` // that run; nil: there is none, or it cannot be told
}

// Made is the run that a task began, in short.
type Made struct {
	Run      string   `json:"run"`
	Outcome  Outcome  `json:"outcome"`
	Headline string   `json:"headline"`
	Words    []string `json:"words,omitempty"`
	More     string   `json:"more,omitempty"` // the command that tells all of it
}

// Act is one time that a step was done or taken back.
type Act struct {
	Span
	Undo bool `json:"undo,omitempty"`
	End  End  `json:"end"`
}

// End is how an act ended.
type End string

// The ends of an act.
const (
	EndDone    End = "done"
	EndFailed  End = "failed"
	EndStopped End = "stopped" // asked to
	EndCut     End = "cut-off" // the process ended without a word: a crash, a power cut
	EndNot     End = "under-way"
)

// Pause is a time in which nothing of the run was under way.
type Pause struct {
	Span
	Why string `json:"why"`
}

// Store is what a store holds, and how much of the disk.
type Store struct {
	// How says what the sizes are of.
	How string `json:"how"`
	// Before and After are bytes, each layer counted once; 0: not known.
	Before int64   `json:"before,omitempty"`
	After  int64   `json:"after,omitempty"`
	Was    string  `json:"was,omitempty"` // what it was on, what it is on
	Is     string  `json:"is,omitempty"`
	Images []Image `json:"images,omitempty"`
	// Rest is what no image has: containers' own files, layers without an image.
	Rest *Image `json:"rest,omitempty"`
}

// Image is one image with all of its layers, those that it shares too.
type Image struct {
	ID     string   `json:"id,omitempty"`
	Names  []string `json:"names,omitempty"`
	Layers int      `json:"layers,omitempty"`
	Before int64    `json:"before,omitempty"` // bytes; 0: not known
	After  int64    `json:"after,omitempty"`
}

// Result is what a check came to.
type Result string

// The results.
const (
	Passed    Result = "passed"
	NotPassed Result = "failed"
	NotMade   Result = "not-made" // the run did not get there, or it was not asked for
)

// Check is something that was verified.
type Check struct {
	What   string `json:"what"`
	Result Result `json:"result"`
	Text   string `json:"text,omitempty"`
}

// Call is one call of a Docker client.
type Call struct {
	Name    string  `json:"name"`
	What    string  `json:"what"`
	Saw     string  `json:"saw,omitempty"`
	OK      bool    `json:"ok"`
	Left    bool    `json:"left,omitempty"` // not made: it does not apply
	Odd     bool    `json:"odd,omitempty"`  // not as Docker answers
	Seconds float64 `json:"seconds"`
}

// Kind says what an [Event] is.
type Kind string

// The kinds of events.
const (
	Error Kind = "error" // the run failed
	Halt  Kind = "stop"  // the run stopped, and was asked to
	Cut   Kind = "cut-off"
	Note  Kind = "note"
	Harm  Kind = "damage" // of the store, seen by the run
	Kept  Kind = "kept"   // made since, and set aside by the way back
)

// Event is something that went otherwise than planned, or is worth telling.
type Event struct {
	Time time.Time `json:"time,omitzero"`
	Kind Kind      `json:"kind"`
	Step string    `json:"step,omitempty"` // its title
	Text string    `json:"text"`
}

// Container is one container of the store, and what became of it.
type Container struct {
	ID     string `json:"id,omitempty"`
	Name   string `json:"name"`
	Image  string `json:"image,omitempty"`
	Became string `json:"became"`
}

// Group is a list of facts under a title.
type Group struct {
	Title string `json:"title"`
	Facts []Fact `json:"facts"`
}

// Fact is a name and what it is.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Command is something that can be done now, and what it does.
type Command struct {
	Line string `json:"line"`
	What string `json:"what,omitempty"`
}

// JSON writes the report as one indented document.
func JSON(w io.Writer, d Data) error {
	b, err := json.MarshalIndent(d, "", "  ")
	if err == nil {
		_, err = w.Write(append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("cannot write the report: %w", err)
	}
	return nil
}
