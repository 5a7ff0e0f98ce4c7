// Package tell is how the world hears of a run: systemd's journal, notifications,
// metrics, and the audit. Nothing in it holds up a run, and none of its failures
// fails one. It knows nothing of steps and stores but their names.
package tell

import (
	"time"
)

// Point is a moment of a run that notifications can be asked for.
type Point string

// The points of a run, in the order in which they may come.
const (
	Begin      Point = "begin"       // a command begins a run, or takes it up again
	Waiting    Point = "waiting"     // it stopped at a safe point because of the maintenance window
	Drained    Point = "drained"     // Nomad's nodes are empty
	Stopped    Point = "stopped"     // podman is stopped
	Started    Point = "started"     // podman works again
	Done       Point = "done"        // the command came to its end, and so did the run
	Failed     Point = "failed"      // the command did not come to its end
	RolledBack Point = "rolled-back" // all is put back
	Committed  Point = "committed"   // what was kept for a way back is removed
)

// Points are all points.
func Points() []Point {
	return []Point{Begin, Waiting, Drained, Stopped, Started, Done, Failed, RolledBack, Committed}
}

// Event is what is told of a run at a point.
type Event struct {
	ID      string    `json:"id"` // of this event: a receiver that has seen it may drop it
	Point   Point     `json:"point"`
	Time    time.Time `json:"time"`
	Host    string    `json:"host"`
	Command string    `json:"command"` // of storagectl
	Run     string    `json:"run,omitempty"`
	Job     string    `json:"job,omitempty"`
	Owner   string    `json:"owner,omitempty"` // of the store
	Store   string    `json:"store,omitempty"` // its graphroot
	Phase   string    `json:"phase,omitempty"` // of the run
	Step    string    `json:"step,omitempty"`  // drained, stopped, started: the step that did it
	Text    string    `json:"text"`            // a line for people
	Error   string    `json:"error,omitempty"`
	Exit    int       `json:"exit"`                   // the command's exit code; 0 while it is at work
	Down    float64   `json:"seconds_down,omitempty"` // how long podman was stopped
	Audit   string    `json:"audit,omitempty"`        // the hash of the last record of the audit
}
