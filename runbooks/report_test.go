package runbooks

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/report"
	"github.com/storagectl/storagectl/migrate"
)

// TestReport: the report of a runbook's run tells what became of each task, which run it
// made, and how to go on; it has no secret.
func TestReport(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	p := plan(task("verify"), b.command("zero", "exit 1"), task("migrate", "--to", "overlay"), b.command("last", "echo hunter2 token; exit 7"))
	p.Tasks[0].When.LastSuccessOlder, p.Tasks[1].Continue = "1h", true
	p.Params = map[string]string{"user": "hashi", "api_token": "hunter2", "none": ""}
	p.Window, p.Longest = mornings, 90*time.Minute
	b.at(func() bool { return true })
	done := b.begin(plan(task("verify"))) // so that a success of verify is not old
	if err := done.Forward(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	done.Close()
	nothing := func(context.Context) error { return nil }
	// The command of the task makes a run that is finished.
	s := b.begin(p)
	made := b.run(Parent(s.ID, "migrate"), func(j *engine.Journal) {
		r, err := engine.NewRun(j, []engine.Step{{Name: "stop", Do: nothing}, {Name: "start", Do: nothing}}, nil)
		if err == nil {
			err = r.Forward(t.Context(), true)
		}
		if err != nil {
			t.Error(err)
		}
	})
	if err := s.Forward(t.Context(), false); err == nil {
		t.Fatal("the last task failed")
	}
	s.Close()
	d, err := Report(b.env.Dir, s.ID, migrate.ReportOptions{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, k := range d.Tasks {
		all = append(all, k.ID+" "+k.Result+" "+k.Run)
	}
	if got, want := strings.Join(all, ", "), "verify left-out , zero failed , migrate done "+made+", last failed "; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if k := d.Tasks[2]; k.Made == nil || k.Made.Outcome != report.Committed || k.Made.More != "storagectl report "+made {
		t.Errorf("%+v", k.Made)
	}
	if d.Headline != "Failed at task “last”: runbook test" || d.Outcome != report.Failed || d.Runbook != "test" || len(d.Missing) > 0 {
		t.Errorf("%s, %s; %v", d.Headline, d.Outcome, d.Missing)
	}
	if len(d.Next) != 3 || d.Next[0].Line != "storagectl resume "+s.ID+" --exec again" {
		t.Errorf("%+v", d.Next)
	}
	var text bytes.Buffer
	for _, write := range []func() error{func() error { return report.Markdown(&text, d) }, func() error { return report.HTML(&text, d) }, func() error { return report.JSON(&text, d) }} {
		if err := write(); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"- user: hashi\n", "- none: (none)\n", "- window: daily 00:00 12h UTC\n", "- at most: 1h30m\n", `href="#run-` + made + `"`, `id="run-` + made + `"`, "(not shown)"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q", want)
		}
	}
	if strings.Contains(text.String(), "hunter2") {
		t.Errorf("the report has a secret:\n%s", text.String())
	}

	// Taken back: what has no way back stays.
	s = b.again(s)
	if err := s.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if d, err = Report(b.env.Dir, s.ID, migrate.ReportOptions{Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	all = nil
	for _, k := range d.Tasks {
		all = append(all, k.ID+" "+k.Result)
	}
	if got, want := strings.Join(all, ", "), "verify left-out, zero kept, migrate kept, last kept"; got != want || len(d.Next) > 0 {
		t.Errorf("got  %s\nwant %s; %v", got, want, d.Next)
	}

	// A journal of a task's run that is damaged does not hide the rest.
	if err := os.WriteFile(b.env.Dir.RunPath(made)+"/journal", []byte("no record\nno record\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err = Report(b.env.Dir, s.ID, migrate.ReportOptions{Now: time.Now()}); err != nil || len(d.Tasks) != 4 || len(d.Missing) != 1 {
		t.Errorf("%v; %+v, %v", err, d.Tasks, d.Missing)
	}
}
