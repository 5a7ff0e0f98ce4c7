package runbooks

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/report"
	"github.com/storagectl/storagectl/internal/window"
	"github.com/storagectl/storagectl/migrate"
)

// Report gathers what is known of the run of a runbook: of its own journal, and of the
// runs that its tasks began. Like [migrate.Report] it asks nothing of the host. Values of
// parameters that look as if they were secrets are not in it.
func Report(dir engine.Dir, run string, o migrate.ReportOptions) (report.Data, error) {
	d, err := migrate.Report(dir, run, o)
	if err != nil {
		return d, err
	}
	st, err := engine.Read(dir.RunPath(run))
	if err != nil {
		return d, err
	}
	in, err := DecodeInputs(st)
	if err != nil {
		d.Missing = append(d.Missing, err.Error())
		return d, nil
	}
	tasks, err := Standings(dir, run, st)
	if err != nil {
		d.Missing = append(d.Missing, fmt.Sprintf("what became of the tasks: %v", err))
		return d, nil
	}
	d.Runbook = in.Name
	for _, t := range tasks {
		if task := reportTask(dir, &d, t, st.Failed, o); t.Name != commitStep {
			d.Tasks = append(d.Tasks, task)
		}
	}
	slices.SortStableFunc(d.Down, func(a, b report.Span) int { return a.From.Compare(b.From) })
	slices.SortStableFunc(d.Away, func(a, b report.Span) int { return a.From.Compare(b.From) })
	d.DownSeconds, d.AwaySeconds = report.Total(d.Down).Seconds(), report.Total(d.Away).Seconds()
	d.Headline, d.Words = headline(in, d, st), words(d)
	d.Groups = groups(in, o.Now, d, st)
	if d.Outcome != report.Running {
		if d.Next, err = nextOf(run, st); err != nil {
			return d, err
		}
	}
	hide(&d, in)
	return d, nil
}

// reportTask is a task with the run that it made, whose time podman was stopped in is the
// runbook's, too.
func reportTask(dir engine.Dir, d *report.Data, t Standing, failed string, o migrate.ReportOptions) report.Task {
	task := report.Task{ID: t.Name, Line: t.Title, Result: t.Outcome, Run: t.Run, Text: t.Text, Seconds: t.Seconds}
	switch {
	case t.Name == failed:
		task.Result = Failed
	case t.Mark == engine.MarkNone:
		task.Result = report.NotBegun
	}
	if k := slices.IndexFunc(d.Steps, func(s report.Step) bool { return s.Name == t.Name }); k >= 0 {
		s := &d.Steps[k]
		if s.Outcome = strings.ReplaceAll(task.Result, "-", " "); t.Name == commitStep {
			s.Title = t.Title
		}
		if n := len(s.Acts); n > 0 && t.Outcome == Failed { // the engine took it as done, and went on
			s.Acts[n-1].End = report.EndFailed
		}
	}
	if t.Run == "" {
		return task
	}
	made, err := migrate.Report(dir, t.Run, o)
	if err != nil {
		d.Missing = append(d.Missing, fmt.Sprintf("run %s of task %s: %v", t.Run, t.Name, err))
		return task
	}
	d.Down, d.Away = append(d.Down, made.Down...), append(d.Away, made.Away...)
	task.Made = &report.Made{Run: made.Run, Outcome: made.Outcome, Headline: made.Headline, Words: made.Words, More: "storagectl report " + made.Run}
	return task
}

func headline(in Inputs, d report.Data, st engine.State) string {
	at := ""
	for _, t := range d.Tasks {
		if t.Result == "" && st.Steps[t.ID].Mark != engine.MarkNone || t.ID == st.Failed {
			at = fmt.Sprintf(" at task “%s”", t.ID)
		}
	}
	book := "runbook " + in.Name
	switch d.Outcome {
	case report.Finished, report.Committed:
		if n := count(d, Failed); n > 0 {
			return fmt.Sprintf("R%s came to its end, and %s failed", book[1:], migrate.Count(n, "task", "tasks"))
		}
		return "R" + book[1:] + " is done"
	case report.RolledBack:
		return "Rolled back: " + book + ", as far as its tasks have a way back"
	case report.Running:
		return "Under way" + at + ": " + book
	case report.Failed:
		return "Failed" + at + ": " + book
	case report.Stopped:
		return "Stopped" + at + ": " + book
	case report.RollingBack:
		return "Stopped on the way back" + at + ": " + book
	}
	return "Cut off" + at + ": " + book
}

func count(d report.Data, result string) (n int) {
	for _, t := range d.Tasks {
		if t.Result == result {
			n++
		}
	}
	return n
}

// words tell what was done, for somebody who was not there.
func words(d report.Data) []string {
	var became []string
	for _, r := range []string{Done, TakenAsDone, Failed, LeftOut, TakenBack, Kept, report.NotBegun} {
		if n := count(d, r); n > 0 {
			became = append(became, fmt.Sprintf("%d %s", n, strings.ReplaceAll(r, "-", " ")))
		}
	}
	text := migrate.Count(len(d.Tasks), "task", "tasks")
	if len(became) > 0 {
		text += ": " + strings.Join(became, ", ")
	}
	ws := []string{text + "."}
	if len(d.Down) > 0 {
		ws = append(ws, fmt.Sprintf("Podman was stopped for %s, in the runs of its tasks.", report.Length(time.Duration(d.DownSeconds*float64(time.Second)))))
	}
	if d.Outcome == report.Finished {
		ws = append(ws, "What its tasks keep for a rollback is kept until it is committed.")
	}
	return ws
}

// groups are the facts that the run was built from.
func groups(in Inputs, now time.Time, d report.Data, st engine.State) []report.Group {
	book := []report.Fact{{Name: "name", Value: in.Name}, {Name: "file", Value: in.Origin}, {Name: "its SHA-256", Value: in.SHA256}}
	if in.Plan.Window != "" {
		book = append(book, report.Fact{Name: "window", Value: in.Plan.Window})
	}
	if w, err := window.Parse(in.Plan.Window); err == nil && d.Outcome != report.Running && st.Phase == engine.PhaseRunning {
		if next := w.Next(now, 1); len(next) > 0 {
			book = append(book, report.Fact{Name: "opens next", Value: next[0].Opens.Format("Mon 2006-01-02 15:04 MST")})
		}
	}
	if in.Now {
		book = append(book, report.Fact{Name: "window does not matter", Value: "--now"})
	}
	if in.Plan.Longest > 0 {
		book = append(book, report.Fact{Name: "at most", Value: brief.Time(in.Plan.Longest)})
	}
	if in.Policy != "" {
		book = append(book, report.Fact{Name: "after a boot", Value: in.Policy})
	}
	all := []report.Group{{Title: "The runbook", Facts: book}}
	var params []report.Fact
	for _, name := range sorted(in.Plan.Params) {
		value := in.Plan.Params[name]
		if value == "" {
			value = "(none)"
		}
		params = append(params, report.Fact{Name: name, Value: value})
	}
	if len(params) > 0 {
		all = append(all, report.Group{Title: "Parameters", Facts: params})
	}
	return append(all, migrate.ReportRun(st))
}

func nextOf(run string, st engine.State) ([]report.Command, error) {
	lines, err := Next(run, st)
	if err != nil {
		return nil, err
	}
	var list []report.Command
	for _, line := range lines {
		what := map[string]string{
			"resume":   "goes on where it stopped",
			"rollback": "takes back the runs of its tasks, last first, as far as they have a way back",
			"commit":   "removes what its tasks keep for a rollback; there is no way back after it",
		}[strings.Fields(line)[1]]
		switch {
		case st.Phase == engine.PhaseRollingBack:
			what = "goes on with the way back"
		case strings.HasSuffix(line, "--exec "+ExecAgain):
			what = "runs the command that was cut off or failed once more, and goes on"
		case strings.HasSuffix(line, "--exec "+ExecDone):
			what = "takes that command as done, and goes on"
		}
		list = append(list, report.Command{Line: line, What: what})
	}
	return list, nil
}

// hide takes out of a report what was said for parameters whose names tell that they are
// secrets, wherever it stands.
func hide(d *report.Data, in Inputs) {
	var pairs []string
	for _, name := range sorted(in.Plan.Params) {
		if secret(name) && in.Plan.Params[name] != "" {
			pairs = append(pairs, in.Plan.Params[name], "(not shown)")
		}
	}
	if pairs == nil {
		return
	}
	clean := strings.NewReplacer(pairs...).Replace
	for i := range d.Tasks {
		d.Tasks[i].Line, d.Tasks[i].Text = clean(d.Tasks[i].Line), clean(d.Tasks[i].Text)
	}
	for i := range d.Steps {
		d.Steps[i].Title = clean(d.Steps[i].Title)
	}
	for i := range d.Events {
		d.Events[i].Text, d.Events[i].Step = clean(d.Events[i].Text), clean(d.Events[i].Step)
	}
	for _, g := range d.Groups {
		for i := range g.Facts {
			g.Facts[i].Value = clean(g.Facts[i].Value)
		}
	}
}

func secret(name string) bool {
	return slices.ContainsFunc([]string{"secret", "token", "pass"}, func(w string) bool { return strings.Contains(name, w) })
}
