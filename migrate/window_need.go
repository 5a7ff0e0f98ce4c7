package migrate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/window"
)

// NeedFact is what a run will take of a window, estimated before it takes anything
// out of service, and what that is made of. The parts are seconds.
type NeedFact struct {
	At     time.Time `json:"at,omitzero"`
	Closes time.Time `json:"closes,omitzero"` // the window
	Fits   bool      `json:"fits"`

	Drain float64 `json:"drain"` // what jobs get to move away
	Busy  float64 `json:"busy"`  // what containers at work get
	// While podman is down:
	Stop    float64 `json:"stop"`    // to stop it, verify and start it again
	Look    float64 `json:"look"`    // to look at each file once more
	Copy    float64 `json:"copy"`    // to copy what will have changed
	Earlier float64 `json:"earlier"` // what earlier runs of this job took for all three, at most
	Margin  float64 `json:"margin"`

	Files int64 `json:"files"` // that were staged
	Bytes int64 `json:"bytes"` // that will have to be copied, as far as can be told
}

// How long things take where nothing was measured. They are meant to be too long:
// a run that ends early harms nobody.
const (
	needStop     = time.Minute // podman's processes alone get half of that
	needFiles    = 10_000      // files a second, from a cold disk
	needRate     = 50e6        // bytes a second: written, and read back
	needChanging = 100         // a hundredth of what was copied changes until podman is stopped
)

// need estimates what the run will take of the window.
func (s *Session) need() (NeedFact, error) {
	n := planNeed(s.Inputs)
	if s.drainedBefore() {
		n.Drain = 0
	}
	rate := needRate
	if st := s.facts.Stage; st != nil {
		n.Files += st.Dirs + st.Linked + st.Reflinked + st.Copied
		n.Bytes += st.Bytes / needChanging
	}
	if c := s.facts.Copied; c != nil {
		n.Files += c.Files
		n.Bytes += c.Bytes / needChanging
		if c.Seconds >= 1 && s.Inputs.Request.Relocate.Rate == 0 { // else it says nothing of the disk
			rate = min(max(float64(c.Bytes)/c.Seconds, 1e6), needRate)
		}
	}
	n.Look = float64(n.Files) / needFiles
	n.Copy = float64(n.Bytes) / rate
	earlier, err := s.earlier()
	if err != nil {
		return n, err
	}
	n.Earlier = earlier.Seconds()
	n.Margin = n.podmanDown() / 2
	return n, nil
}

// planNeed is what is known of a run's need before it has staged anything.
func planNeed(in Inputs) NeedFact {
	out := in.Request.Outage
	n := NeedFact{Stop: needStop.Seconds(), Bytes: in.Left}
	if in.Nomad != nil {
		n.Drain = out.Deadline.Seconds()
	}
	if len(out.Busy.Labels) > 0 {
		n.Busy = out.Busy.Deadline.Seconds()
	}
	n.Copy = float64(n.Bytes) / needRate
	n.Margin = n.podmanDown() / 2
	return n
}

// drainedBefore reports whether the run's drain is at its end already.
func (s *Session) drainedBefore() bool {
	return s.journal.State().Steps[stepDrain].Mark == engine.MarkDone
}

// earlier is the longest time for which podman was down in earlier runs of the same
// job on the same store. One that was interrupted meanwhile tells nothing.
func (s *Session) earlier() (time.Duration, error) {
	runs, err := s.env.Dir.List()
	if err != nil {
		return 0, err
	}
	var longest time.Duration
	for _, run := range runs {
		st, err := engine.Read(s.env.Dir.RunPath(run))
		if err != nil || run == s.ID || st.Header.Store != s.Inputs.StoreKey() || st.Header.Job != s.Inputs.Job() || !straight(st) {
			continue // a journal that cannot be read tells nothing either
		}
		_, down := Down(st)
		longest = max(longest, down)
	}
	return longest, nil
}

// straight reports whether a run went from podman's stop to its start without a break.
func straight(st engine.State) bool {
	from := slices.IndexFunc(st.Records, func(r engine.Record) bool { return r.Kind == engine.KindBegin && r.Step == stepStop })
	to := slices.IndexFunc(st.Records, func(r engine.Record) bool { return r.Kind == engine.KindDone && r.Step == stepStart })
	if from < 0 || to < from {
		return false
	}
	begun := map[string]bool{}
	for _, r := range st.Records[from:to] {
		if r.Kind == engine.KindStop || r.Kind == engine.KindUndo || r.Kind == engine.KindBegin && begun[r.Step] {
			return false
		}
		begun[r.Step] = begun[r.Step] || r.Kind == engine.KindBegin
	}
	return true
}

// podmanDown is for how many seconds podman will be down.
func (n NeedFact) podmanDown() float64 { return max(n.Stop+n.Look+n.Copy, n.Earlier) }

// down is how long before the window closes podman has to be stopped.
func (n NeedFact) down() time.Duration { return inSeconds(n.podmanDown() + n.Margin) }

// all is how long before the window closes the outage has to begin.
func (n NeedFact) all() time.Duration { return inSeconds(n.Drain+n.Busy) + n.down() }

func inSeconds(f float64) time.Duration { return time.Duration(f * float64(time.Second)) }

// String tells what the need is made of.
func (n NeedFact) String() string {
	var words []string
	add := func(seconds float64, format string, args ...any) {
		if seconds > 0 {
			words = append(words, fmt.Sprintf("%s %s", about(inSeconds(seconds)), fmt.Sprintf(format, args...)))
		}
	}
	add(n.Drain, "for the drain")
	add(n.Busy, "for containers at work")
	if n.Earlier >= n.Stop+n.Look+n.Copy {
		add(n.Earlier, "with podman down, as in an earlier run")
	} else {
		add(n.Stop, "to stop podman, verify and start it")
		add(n.Look, "to look at %s once more", Count(n.Files, "file", "files"))
		add(n.Copy, "to copy %s", Bytes(n.Bytes))
	}
	add(n.Margin, "of margin")
	return strings.Join(words, ", ")
}

// tooShort refuses a run that no opening of its window is long enough for.
func tooShort(w window.Window, n NeedFact) *Refusal {
	return &Refusal{ID: "window-short", Text: fmt.Sprintf("the window %s is open for %s, and the run needs %s (%s)", w, about(w.Length()), about(n.all()), n),
		Hint: "give a longer --window, a shorter --drain-deadline, or --now"}
}

// WindowPlan is a maintenance window as a plan shows it.
type WindowPlan struct {
	Spec string        `json:"spec"`
	Open *window.Span  `json:"open,omitempty"` // it is open now
	Next []window.Span `json:"next"`           // the next three
	Need *NeedFact     `json:"need,omitempty"` // of the run; in a plan as far as it is known before anything is staged
	Now  bool          `json:"now,omitempty"`  // it is overridden
}

// LookAtWindow tells of a window; nil if there is none.
func LookAtWindow(w *window.Window, now time.Time) *WindowPlan {
	if w == nil {
		return nil
	}
	p := &WindowPlan{Spec: w.String(), Next: w.Next(now, 3)}
	if span, open := w.At(now); open {
		p.Open = &span
	}
	return p
}

// window judges the window of a request.
func (a *Assessment) window(now time.Time) {
	r := a.Inputs.Request
	if a.Window = LookAtWindow(r.Window, now); a.Window == nil {
		return
	}
	if !slices.ContainsFunc(a.Plan, func(p PlannedStep) bool { return p.Name == stepWindow }) {
		a.Window = nil
		a.Notes = append(a.Notes, "nothing is taken out of service: the window does not matter")
		return
	}
	a.Window.Now = r.Now
	n := planNeed(a.Inputs)
	a.Window.Need = &n
	switch {
	case r.Now:
	case n.all() > r.Window.Length():
		a.Refusals = append(a.Refusals, *tooShort(*r.Window, n))
	case a.Window.Open == nil && len(a.Window.Next) == 0:
		a.refuse("window-never", "give a window that opens, or --now", "the window %s does not open in the next ten years", r.Window)
	}
}

// Text tells of the window in some lines.
func (p *WindowPlan) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "  window     %s", p.Spec)
	if p.Now {
		b.WriteString(" (overridden by --now)")
	}
	b.WriteByte('\n')
	line := func(word string, s window.Span) {
		to := s.Closes.Format("15:04 MST")
		if s.Length() >= 24*time.Hour {
			to = clock(s.Closes)
		}
		fmt.Fprintf(&b, "    %-8s %s … %s\n", word, s.Opens.Format("Mon 2006-01-02 15:04"), to)
	}
	if p.Open != nil {
		line("open now", *p.Open)
	}
	for _, s := range p.Next {
		line("next", s)
	}
	if p.Need != nil {
		known := ""
		if p.Need.At.IsZero() {
			known = ", as far as is known before anything is staged"
		}
		fmt.Fprintf(&b, "    needs    %s%s (%s)\n", about(p.Need.all()), known, p.Need)
	}
	return b.String()
}
