// Package doctor looks at a host on which podman runs, and tells what is wrong
// before it hurts: named checks, each with what was seen, why it matters, and the
// command that mends it.
//
// A check only looks. It has a deadline of its own and asks nothing of the
// network; what it cannot find out is unknown, and neither well nor wrong. What
// lies in the store or the home of a user is looked at with that user's rights.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/verify"
)

// Outcome is how a check ended.
type Outcome string

// The outcomes, the worst last.
const (
	Absent  Outcome = "absent" // what it is about is not there, so that there is nothing to judge
	OK      Outcome = "ok"
	Unknown Outcome = "unknown" // it could not be found out
	Warning Outcome = "warning" // it works, and will hurt some day
	Problem Outcome = "problem" // something does not work, or is in danger
)

// Worse reports whether o is worse than the other.
func (o Outcome) Worse(than Outcome) bool {
	order := []Outcome{Absent, OK, Unknown, Warning, Problem}
	return slices.Index(order, o) > slices.Index(order, than)
}

// Finding is what one check saw.
type Finding struct {
	Outcome Outcome `json:"outcome"`
	Saw     string  `json:"saw"`
	// Mend is the commands that mend it, each whole, to be run as root unless it
	// begins with another user; or a sentence where no command does.
	Mend []string `json:"mend,omitempty"`
	// Change is what --fix would do; nil where nothing can be done safely.
	Change *Change `json:"change,omitempty"`
	// Read and Checked are all that the proofs of that name saw.
	Read    *verify.ReadReport  `json:"read,omitempty"`
	Checked *verify.CheckReport `json:"storage_check,omitempty"`
}

// Check is one thing that is looked at.
type Check struct {
	ID    string // stable
	Group string
	Title string
	Why   string // why it matters
	// Mends says in words what mends it, for the documentation.
	Mends string
	// Fixes says in words what --fix does; empty: nothing.
	Fixes string
	// Limit is how long it may take; [DefaultLimit] if zero.
	Limit time.Duration
	Look  func(context.Context, *Host) Finding
}

// DefaultLimit is how long a check may take.
const DefaultLimit = 10 * time.Second

// Result is a check and what it found.
type Result struct {
	Check   string  `json:"check"`
	Group   string  `json:"group"`
	Title   string  `json:"title"`
	Why     string  `json:"why"`
	Seconds float64 `json:"seconds"`
	Finding
}

// atOnce is how many checks run side by side: most wait for another process, and
// half of them for the same answer of podman.
const atOnce = 12

// Run does checks side by side and gives their results in the order of the checks.
// It returns at most a moment after the last one's deadline, also where one hangs
// in the kernel. Commands that were started for it and hang are killed by then.
func Run(ctx context.Context, h *Host, checks []Check) []Result {
	ctx, cancel := context.WithCancel(ctx)
	var looks sync.WaitGroup
	defer leave(h, cancel, &looks)
	h.share(ctx)
	results := make([]Result, len(checks))
	type done struct {
		i int
		r Result
	}
	ended := make(chan done)
	slots := make(chan struct{}, atOnce)
	for i, c := range checks {
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			ended <- done{i, one(ctx, h, c, &looks)}
		}()
	}
	for range checks {
		d := <-ended
		results[d.i] = d.r
	}
	return results
}

// leave ends what is still under way of checks that were given up, and waits for
// that a moment.
func leave(h *Host, cancel context.CancelFunc, looks *sync.WaitGroup) {
	cancel()
	h.dismiss()
	over := make(chan struct{})
	go func() { looks.Wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(time.Second):
	}
}

func one(ctx context.Context, h *Host, c Check, looks *sync.WaitGroup) Result {
	limit := c.Limit
	if limit == 0 {
		limit = DefaultLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	seen := make(chan Finding, 1)
	looks.Go(func() { seen <- c.Look(ctx, h) })
	var f Finding
	select {
	case f = <-seen:
		if ctx.Err() != nil && f.Outcome == Unknown {
			f = late(ctx, limit)
		}
	case <-ctx.Done():
		f = late(ctx, limit)
	}
	return Result{Check: c.ID, Group: c.Group, Title: c.Title, Why: c.Why, Seconds: time.Since(began).Seconds(), Finding: f}
}

func late(ctx context.Context, limit time.Duration) Finding {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return Finding{Outcome: Unknown, Saw: fmt.Sprintf("no answer within %s", brief.Time(limit))}
	}
	return Finding{Outcome: Unknown, Saw: "interrupted"}
}

// Worst is the worst outcome of all.
func Worst(results []Result) Outcome {
	worst := Absent
	for _, r := range results {
		if r.Outcome.Worse(worst) {
			worst = r.Outcome
		}
	}
	return worst
}

func ok(format string, args ...any) Finding {
	return Finding{Outcome: OK, Saw: fmt.Sprintf(format, args...)}
}

func absent(format string, args ...any) Finding {
	return Finding{Outcome: Absent, Saw: fmt.Sprintf(format, args...)}
}

func warning(saw string, mend ...string) Finding {
	return Finding{Outcome: Warning, Saw: saw, Mend: mend}
}

func problem(saw string, mend ...string) Finding {
	return Finding{Outcome: Problem, Saw: saw, Mend: mend}
}

func unknown(err error) Finding { return Finding{Outcome: Unknown, Saw: err.Error()} }

// by gives a finding the change that --fix makes.
func (f Finding) by(c Change) Finding {
	f.Change = &c
	return f
}
