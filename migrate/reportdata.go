package migrate

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/report"
	"github.com/storagectl/storagectl/verify"
)

// ReportOptions are what a report takes from its surroundings.
type ReportOptions struct {
	Now  time.Time
	Host string // the name of this host
}

// gathering collects what is known of a run.
type gathering struct {
	id       string
	st       engine.State
	known    bool // the job is one of this package's: in and facts are filled in
	in       Inputs
	facts    Facts
	s        *Session // of which only what is kept in the state directory can be asked
	manifest *verify.Manifest
	titles   map[string]PlannedStep
	course   course
	missing  []string
}

// Report gathers what is known of a run, from its journal and folder alone: nothing is
// asked of the host, and no lock is taken. It serves every run whose journal can be
// read: one that is under way, was cut off, or is of an earlier release, whose journal
// knows less; and one of a job that this package does not know, of which the steps and
// what was said are told.
func Report(dir engine.Dir, run string, o ReportOptions) (report.Data, error) {
	st, err := engine.Read(dir.RunPath(run))
	if err != nil {
		return report.Data{}, err
	}
	active, _, err := dir.AtWork(st.Header.Store, run) // another run may have the store by now
	if err != nil {
		return report.Data{}, err
	}
	active = active && !st.Phase.Over()
	g := &gathering{id: run, st: st, titles: map[string]PlannedStep{}}
	g.learn(dir)
	plan := g.plan()
	for _, p := range plan {
		g.titles[p.Name] = p
	}
	g.course = courseOf(st, active, o.Now, g.title)
	d := report.Data{
		Schema: report.Schema, Run: run, Job: st.Header.Job, Parent: parentOf(st), Version: st.Header.Version, Host: o.Host, Made: o.Now,
		Phase: string(st.Phase), Outcome: outcomeOf(st, active), Began: st.Started(), Ended: g.course.last, Worked: g.course.worked().Seconds(),
		Pauses: g.course.pauses, Down: g.course.down, Away: g.course.away,
		DownSeconds: report.Total(g.course.down).Seconds(), AwaySeconds: report.Total(g.course.away).Seconds(),
	}
	for _, p := range plan {
		d.Steps = append(d.Steps, report.Step{Name: p.Name, Title: p.Title, Mark: string(st.Steps[p.Name].Mark), Final: p.Final, Acts: g.course.acts[p.Name]})
	}
	d.Headline, d.Words = g.headline(d.Outcome), g.words(d)
	d.Events = g.events()
	if g.known {
		d.Owner, d.Place = g.in.Owner.Name, g.in.Store.GraphRoot
		d.Store, d.Containers, d.Groups = g.store(), g.containers(), g.groups()
		d.Checks, d.Calls = g.checks(), g.calls()
	}
	if !active && g.known {
		if d.Next, err = g.next(); err != nil {
			return d, err
		}
	}
	slices.Sort(g.missing) // facts come in any order
	d.Missing = g.missing
	return d, nil
}

// learn reads inputs, facts and the manifest, as far as they are there.
func (g *gathering) learn(dir engine.Dir) {
	in, err := DecodeInputs(g.st)
	if err != nil {
		return
	}
	g.known, g.in = true, in
	for name, raw := range g.st.Facts { // one that another release wrote otherwise must not hide the rest
		one, err := json.Marshal(map[string]json.RawMessage{name: raw})
		if err == nil {
			err = json.Unmarshal(one, &g.facts)
		}
		g.miss("what the run noted as "+name, err)
	}
	g.s = &Session{ID: g.id, Inputs: in, env: Env{Dir: dir}, facts: g.facts}
	if g.facts.Before == nil {
		return
	}
	m, err := g.s.readManifest()
	if err != nil {
		g.miss("what the store held", err)
		return
	}
	g.manifest = &m
}

// plan is the steps of the run: those of the journal, with their titles where this
// release has them.
func (g *gathering) plan() []PlannedStep {
	var ours []PlannedStep
	if g.known && (g.in.Request.Relocate == nil || g.in.Target != nil) {
		ours = outline((&Session{Inputs: g.in}).steps())
	}
	plan := make([]PlannedStep, len(g.st.Header.Steps))
	for i, name := range g.st.Header.Steps {
		plan[i] = PlannedStep{Name: name, Title: name}
		if k := slices.IndexFunc(ours, func(p PlannedStep) bool { return p.Name == name }); k >= 0 {
			plan[i] = ours[k]
		}
	}
	return plan
}

func (g *gathering) title(step string) string {
	if p, is := g.titles[step]; is {
		return p.Title
	}
	return step
}

func (g *gathering) miss(what string, err error) {
	if err != nil {
		g.missing = append(g.missing, fmt.Sprintf("%s: %v", what, err))
	}
}

// parentOf is the run and task that began a run; "": a person did.
func parentOf(st engine.State) string {
	var in struct {
		Request struct {
			Parent string `json:"parent"`
		} `json:"request"`
	}
	if json.Unmarshal(st.Header.Inputs, &in) != nil {
		return ""
	}
	return in.Request.Parent
}

// outcomeOf is where a run stands.
func outcomeOf(st engine.State, active bool) report.Outcome {
	switch {
	case active:
		return report.Running
	case st.Phase == engine.PhaseFinished:
		return report.Finished
	case st.Phase == engine.PhaseCommitted:
		return report.Committed
	case st.Phase == engine.PhaseRolledBack:
		return report.RolledBack
	case st.Phase == engine.PhaseRollingBack:
		return report.RollingBack
	case st.Error != "":
		for _, r := range slices.Backward(st.Records) {
			if r.Kind == engine.KindStop && stepFailed(r) {
				return report.Failed
			} else if r.Kind == engine.KindStop {
				break
			}
		}
		return report.Stopped
	}
	return report.CutOff
}

// events are the errors and notes, then what else an operator has to know of.
func (g *gathering) events() []report.Event {
	events := slices.Clone(g.course.events)
	for i := range events {
		events[i].Text = strings.TrimSpace(events[i].Text)
	}
	if s := g.facts.Stage; s != nil {
		for _, d := range s.Damage {
			events = append(events, report.Event{Kind: report.Harm, Step: g.title(stepStage), Text: "carried over as it is: " + d.String()})
		}
	}
	for _, k := range g.facts.KeptNew {
		events = append(events, report.Event{Kind: report.Kept, Text: k})
	}
	return events
}

// Next are the commands that make sense for a run that no process is at.
func Next(run string, st engine.State) ([]string, error) {
	final, err := NoWayBack(st)
	if err != nil {
		return nil, err
	}
	switch {
	case st.Phase == engine.PhaseRunning && final, st.Phase == engine.PhaseRollingBack:
		return []string{"storagectl resume " + run}, nil
	case st.Phase == engine.PhaseRunning:
		return []string{"storagectl resume " + run, "storagectl rollback " + run}, nil
	case st.Phase == engine.PhaseFinished:
		return []string{"storagectl commit " + run, "storagectl rollback " + run}, nil
	}
	return nil, nil
}

func (g *gathering) next() ([]report.Command, error) {
	lines, err := Next(g.id, g.st)
	if err != nil {
		return nil, err
	}
	var list []report.Command
	for _, line := range lines {
		what := map[string]string{
			"resume":   "goes on where it stopped",
			"rollback": "puts everything back as it was before",
			"commit":   "removes the old store, which lies in " + g.in.OldStore(g.id) + "; there is no way back after it",
		}[strings.Fields(line)[1]]
		if g.st.Phase == engine.PhaseRollingBack {
			what = "goes on with the way back"
		}
		list = append(list, report.Command{Line: line, What: what})
	}
	return list, nil
}
