package runbooks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
)

// outcomes are what became of the tasks.
func outcomes(s *Session) string {
	var all []string
	for _, r := range s.Facts().Results {
		all = append(all, r.Task+" "+r.Outcome)
	}
	return strings.Join(all, ", ")
}

// TestWindowBetween: a window that closes while a drain of this run holds the node
// stops nothing until it is given back.
func TestWindowBetween(t *testing.T) {
	t.Parallel()
	b := newBench(t, map[string]string{"migrate": closed})
	p := plan(task("drain"), task("migrate", "--nomad", "off", "--window", mornings), b.command("touch", "touch touched"), task("undrain"))
	p.Window = mornings
	b.closing()
	s := b.begin(p)
	b.given(s, s.Forward(t.Context(), false))
	if !exists(b.path("touched")) || !strings.Contains(b.called(), "--now") {
		t.Error(b.called())
	}
	s.Close()

	b.evening()
	s = b.begin(p)
	before := b.called()
	if err := s.Forward(t.Context(), false); code(err) != ExitWindow || b.called() != before {
		t.Errorf("out of the window: %v; %s", err, b.called())
	}
}

// TestLimitDrained: a task is not told to stop while its run has drained the node, which
// would stay so.
func TestLimitDrained(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	s := b.begin(plan(task("migrate")))
	if !s.inService(task("migrate")) {
		t.Error("it has no run yet")
	}
	id, err := b.env.Dir.New("migrate")
	if err != nil {
		t.Fatal(err)
	}
	j, err := engine.Create(b.env.Dir.RunPath(id), engine.Header{Run: id, Job: "migrate", Store: "s", Steps: []string{"drain", "stop", "start", "undrain"},
		Inputs: fmt.Appendf(nil, `{"request":{"to":"overlay","parent":%q}}`, Parent(s.ID, "migrate"))}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	look := func(want bool) {
		t.Helper()
		if is := s.inService(task("migrate")); is != want {
			t.Errorf("in service: %v", is)
		}
	}
	look(true)
	var steps []engine.Step
	for _, name := range []string{"drain", "stop", "start", "undrain"} {
		steps = append(steps, engine.Step{Name: name, Do: func(context.Context) error { look(false); return nil }})
	}
	r, err := engine.NewRun(j, steps, nil)
	if err == nil {
		err = r.Forward(t.Context(), false)
	}
	if err != nil {
		t.Fatal(err)
	}
	look(true)
}

// TestWindowWait: a run that began before its window does nothing that the window is for
// until it opens, if that is soon enough; the time that it waits is none of its limit's.
func TestWindowWait(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	p := plan(task("verify"), b.command("touch", "touch touched"))
	p.Window, p.WindowWait, p.Longest = mornings, 5*time.Hour, time.Minute
	b.evening() // it opens in 6 hours
	s := b.begin(p)
	if err := s.Forward(t.Context(), false); code(err) != ExitWindow || exists(b.path("touched")) || b.called() != "verify" {
		t.Errorf("%v; %s", err, b.called())
	}
	s.Close()

	p.WindowWait = 7 * time.Hour
	looks := 0
	b.at(func() bool {
		looks++
		return looks > 4
	})
	s = b.begin(p)
	b.given(s, s.Forward(t.Context(), false))
	if !exists(b.path("touched")) || looks < 5 {
		t.Errorf("after %d looks: %s", looks, b.called())
	}
}

// TestClockBack: what a clock says that was put back since the run's last word opens no
// window, once.
func TestClockBack(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	p := plan(b.command("touch", "touch touched"))
	p.Window = mornings
	b.evening()
	s := b.begin(p)
	if err := s.Forward(t.Context(), false); code(err) != ExitWindow {
		t.Fatal(err)
	}
	b.env.Now = func() time.Time { return time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC) }
	s = b.again(s)
	if err := s.Forward(t.Context(), false); code(err) != ExitWindow || !strings.Contains(err.Error(), "the clock was put back by 12h") || exists(b.path("touched")) {
		t.Errorf("got %v", err)
	}
	s = b.again(s)
	if err := s.Forward(t.Context(), false); err != nil || !exists(b.path("touched")) {
		t.Errorf("the second time: %v", err)
	}
}

// TestStoreHeld: that somebody else has the store is no failure, after which a person would
// have to look; but while a drain of the run holds the node, it is.
func TestStoreHeld(t *testing.T) {
	t.Parallel()
	b := newBench(t, map[string]string{"verify": `[ -e free ] || { echo '{"message_type":"error","error":"held by another run: 0007"}'; exit 11; }`})
	p := plan(task("verify"))
	p.OnFailure = [][]string{{"touch", b.path("told")}}
	s := b.begin(p)
	if err := s.Forward(t.Context(), false); code(err) != 11 || !errors.Is(err, engine.ErrPaused) || s.journal.State().Failed != "" || exists(b.path("told")) {
		t.Errorf("%v, failed at %q", err, s.journal.State().Failed)
	}
	b.script("free", "")
	s = b.again(s)
	b.given(s, s.Forward(t.Context(), false))
	s.Close()
	if err := os.Remove(b.path("free")); err != nil {
		t.Fatal(err)
	}
	p = plan(task("drain"), task("verify"), task("undrain"))
	s = b.begin(p)
	if err := s.Forward(t.Context(), false); code(err) != 11 || errors.Is(err, engine.ErrPaused) || s.journal.State().Failed != "verify" {
		t.Errorf("%v, failed at %q", err, s.journal.State().Failed)
	}
}

// TestKilled: what was killed in the middle of a task is gone on with at once, and once.
func TestKilled(t *testing.T) {
	t.Parallel()
	const kill = `[ -e enough ] || { [ -e once ] && touch enough; touch once; kill -9 $PPID; }`
	b := newBench(t, map[string]string{"verify": kill})
	s := b.begin(plan(task("verify"), task("doctor")))
	if err := s.Forward(t.Context(), false); code(err) != 1 || !strings.Contains(err.Error(), "it was killed") || b.called() != "verify; verify" {
		t.Errorf("killed twice: %v; %s", err, b.called())
	}
	s = b.again(s)
	if err := s.Forward(t.Context(), false); err != nil || b.called() != "verify; verify; verify; doctor" {
		t.Errorf("%v; %s", err, b.called())
	}
	s.Close()

	b = newBench(t, map[string]string{"verify": strings.Replace(kill, "[ -e once ] &&", "", 1)})
	s = b.begin(plan(task("verify"), task("doctor")))
	if err := s.Forward(t.Context(), false); err != nil || b.called() != "verify; verify; doctor" {
		t.Errorf("killed once: %v; %s", err, b.called())
	}
}

// TestLimitBetween: nor does the limit of a runbook.
func TestLimitBetween(t *testing.T) {
	t.Parallel()
	b := newBench(t, map[string]string{"verify": "sleep 1.5"})
	p := plan(task("drain"), task("verify"), b.command("slow", "sleep 0.1; touch touched"), task("undrain"), task("doctor"))
	p.Longest = 5 * time.Second // until the drain is begun
	b.script("drain", drains+"; sleep 5.5")
	s := b.begin(p)
	err := s.Forward(t.Context(), false)
	if code(err) != 1 || !strings.Contains(err.Error(), "is not begun") || exists(b.path("held")) || !exists(b.path("touched")) || b.called() != "drain; verify; undrain" {
		t.Errorf("%v; %s", err, b.called())
	}
}

// TestUndrainAnyhow: conditions that held for the drain need not hold for the undrain,
// nor for a drain that was begun.
func TestUndrainAnyhow(t *testing.T) {
	t.Parallel()
	no := When{PodmanAtLeast: "999"} // also where there is no podman at all: that is an error
	b := newBench(t, nil)
	p := plan(task("drain"), task("undrain"))
	p.Tasks[1].When, p.Window = no, mornings
	b.closing()
	s := b.begin(p)
	b.given(s, s.Forward(t.Context(), false))
	s.Close()

	// The drain is set, and does not come to its end.
	b.script("drain", drains+"; "+fails)
	s = b.begin(p)
	if err := s.Forward(t.Context(), false); code(err) != 1 {
		t.Fatal(err)
	}
	b.evening()
	s = b.again(s)
	b.script("drain", drains)
	s.Inputs.Plan.Tasks[0].When = no
	b.given(s, s.Forward(t.Context(), false))
	s.Close()

	// One that fails before it has set anything, or is another's, holds nothing.
	for _, script := range []string{fails, "echo 0009-runbook-bbbb/drain >held; " + fails} {
		b.script("drain", script)
		b.env.NowOver = true
		s = b.begin(p)
		if err := s.Forward(t.Context(), false); code(err) != 1 {
			t.Fatal(err)
		}
		b.env.NowOver = false
		s = b.again(s)
		if err := s.Forward(t.Context(), false); code(err) != ExitWindow {
			t.Errorf("out of the window: %v", err)
		}
		s.Close()
	}
}

// TestDrainGoesOn: with on_failure = "continue" what follows a drain that was set and
// failed is on the way to give the node back.
func TestDrainGoesOn(t *testing.T) {
	t.Parallel()
	b := newBench(t, map[string]string{"drain": drains + "; " + fails})
	b.closing()
	p := plan(task("drain"), b.command("touch", "touch touched"), task("undrain"))
	p.Tasks[0].Continue, p.Window = true, mornings
	s := b.begin(p)
	b.given(s, s.Forward(t.Context(), false))
	if got := outcomes(s); got != "drain failed, touch done, undrain done" {
		t.Error(got)
	}
}

// TestUndrainAgain: an undrain that was done is not in the way of its hooks, also
// where the record of it was lost; where nothing was drained it is left out.
func TestUndrainAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	p := plan(task("drain"), task("undrain"))
	p.Tasks[1].After = [][]string{{"sh", "-c", fmt.Sprintf("cd '%s'; echo x >>resumed; [ -e well ]", b.env.Dir.Path)}}
	s := b.begin(p)
	if err := s.Forward(t.Context(), false); err == nil {
		t.Fatal("the hook failed")
	}
	s = b.again(s)
	b.script("well", "")
	b.given(s, s.Forward(t.Context(), false))
	if text, _ := os.ReadFile(b.path("resumed")); string(text) != "x\nx\n" || outcomes(s) != "drain done, undrain done" {
		t.Errorf("the hook ran: %q; %s", text, outcomes(s))
	}

	// restart-podman where no Nomad is.
	s.Close()
	p.Tasks[0].When.LastSuccessOlder = "1h" // it was done just now
	s = b.begin(p)
	b.given(s, s.Forward(t.Context(), false))
	if text, _ := os.ReadFile(b.path("resumed")); string(text) != "x\nx\n" || outcomes(s) != "drain left-out, undrain left-out" {
		t.Errorf("the hook ran: %q; %s", text, outcomes(s))
	}
}

// TestBackHooks: what the hooks of a drain have paused goes on after a rollback, and
// not a second time after an undrain that was done.
func TestBackHooks(t *testing.T) {
	t.Parallel()
	say := func(b *bench, word string) [][]string {
		return [][]string{{"sh", "-c", fmt.Sprintf("cd '%s'; echo %s $STORAGECTL_HOOK >>said; [ ! -e ill ]", b.env.Dir.Path, word)}}
	}
	for name, c := range map[string]struct {
		drain  string // the script
		more   []PlannedTask
		closed bool
		want   string
	}{
		"a task failed":       {drains, []PlannedTask{task("verify")}, false, "pause before-drain\ngo rollback\n"},
		"the drain failed":    {fails, nil, false, "pause before-drain\ngo rollback\n"},
		"it was given back":   {drains, []PlannedTask{task("undrain"), task("verify")}, false, "pause before-drain\ngo after-return\n"},
		"nothing was drained": {drains, nil, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, map[string]string{"drain": c.drain, "verify": fails})
			p := plan(append([]PlannedTask{task("drain")}, c.more...)...)
			p.Tasks[0].Before, p.Tasks[0].Back, p.Window = say(b, "pause"), say(b, "go"), mornings
			if len(p.Tasks) > 2 {
				p.Tasks[1].After = say(b, "go")
			}
			b.at(func() bool { return !c.closed })
			s := b.begin(p)
			if err := s.Forward(t.Context(), false); err == nil {
				t.Fatal("it came to its end")
			}
			s = b.again(s)
			b.script("ill", "") // a hook that fails is no reason to stop half-way back
			if err := s.Rollback(t.Context()); err != nil || exists(b.path("held")) || s.State().Phase != engine.PhaseRolledBack {
				t.Errorf("%v, %s", err, s.State().Phase)
			}
			if said, _ := os.ReadFile(b.path("said")); string(said) != c.want {
				t.Errorf("said %q", said)
			}
		})
	}
}

// TestCommitHalfway: nothing is committed while the run of a task stands half-way.
func TestCommitHalfway(t *testing.T) {
	t.Parallel()
	b := newBench(t, map[string]string{"migrate": fails})
	p := plan(task("migrate"), task("relocate"))
	p.Tasks[0].Continue, p.Tasks[1].Continue = true, true
	b.script("relocate", fails)
	s := b.begin(p)
	run := b.run(Parent(s.ID, "migrate"), nil)
	if err := s.Forward(t.Context(), false); err != nil || s.State().Phase != engine.PhaseFinished {
		t.Fatal(err, s.State().Phase)
	}
	if left, err := s.Halfway(); err != nil || len(left) != 1 || left[0] != run {
		t.Errorf("%v, %v", left, err)
	}
	before := b.called()
	if err := s.Forward(t.Context(), true); err == nil || s.State().Phase == engine.PhaseCommitted || b.called() != before {
		t.Errorf("%v; it is %s; %s", err, s.State().Phase, b.called())
	}
}

// TestBackTakesItsTime: the timeout of a task does not stop its way back.
func TestBackTakesItsTime(t *testing.T) {
	t.Parallel()
	b := newBench(t, map[string]string{"rollback": "sleep 0.5", "undrain": "sleep 0.5; " + undrains})
	p := plan(task("drain"), task("migrate"))
	s := b.begin(p)
	run := b.run(Parent(s.ID, "migrate"), nil)
	for i := range s.Inputs.Plan.Tasks {
		s.Inputs.Plan.Tasks[i].Timeout = 50 * time.Millisecond
	}
	b.script("held", s.ID+"/drain")
	for _, u := range []PlannedTask{s.Inputs.Plan.Tasks[1], s.Inputs.Plan.Tasks[0]} {
		if err := s.undo(u)(t.Context()); err != nil {
			t.Errorf("%s: %v", u.ID, err)
		}
	}
	st, err := engine.Read(b.env.Dir.RunPath(run))
	if err != nil || st.Phase != engine.PhaseRolledBack || exists(b.path("held")) {
		t.Errorf("%v, %v; %s", st.Phase, err, b.called())
	}
}

// TestChild: the run of a task is found among ten thousand, and beside a journal that
// is damaged; its own must be whole.
func TestChild(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	runs := filepath.Join(b.env.Dir.Path, "runs")
	if err := os.MkdirAll(filepath.Join(runs, "9998-migrate-aaaa"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := b.begin(plan(task("migrate")))
	mine := b.run(Parent(s.ID, "migrate"), nil)
	other := b.run("", nil)
	if !strings.HasPrefix(s.ID, "9999-") || !strings.HasPrefix(mine, "10000-") {
		t.Fatal(s.ID, mine)
	}
	damage := func(run string) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(runs, run, "journal"), os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString("no record\nno record\n")
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	damage(other)
	if run, _, err := child(b.env.Dir, Parent(s.ID, "migrate")); run != mine || err != nil {
		t.Errorf("%q, %v, want %q", run, err, mine)
	}
	damage(mine)
	var damaged *engine.DamagedError
	if run, _, err := child(b.env.Dir, Parent(s.ID, "migrate")); !errors.As(err, &damaged) {
		t.Errorf("%q, %v", run, err)
	}
}

// TestHookWords: what a hook is told, a secret perhaps, is on no command line, and in no
// title. The task's command has it all the same.
func TestHookWords(t *testing.T) {
	t.Parallel()
	b := newBench(t, map[string]string{"migrate": `cat >stdin; echo '{"message_type":"already"}'`})
	book, err := Parse([]byte(`
name = "hooked"
[[task]]
id = "migrate"
run = "migrate"
args = { to = "overlay" }
[hooks]
before-drain = [["curl", "-H", "Authorization: Bearer secret"]]
after-return = [["/bin/sync"]]
`), "hooked.toml")
	if err != nil {
		t.Fatal(err)
	}
	p, err := book.Expand(nil, Known{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.Tasks[0].Line(), "storagectl migrate --to overlay --hook-before 'curl …' --hook-after sync --hook-timeout 2m"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	s := b.begin(p)
	err = s.Forward(t.Context(), false)
	words, _ := os.ReadFile(b.path("stdin"))
	if want := `["--hook-before","[\"curl\",\"-H\",\"Authorization: Bearer secret\"]","--hook-after","[\"/bin/sync\"]"]`; err != nil || string(words) != want ||
		b.called() != "migrate --to overlay --hook-timeout 2m --hooks-from -" {
		t.Errorf("%v; %s; %s", err, b.called(), words)
	}
}

// TestDoctorCode: only a doctor that could look, and mend, has but warnings.
func TestDoctorCode(t *testing.T) {
	t.Parallel()
	b := newBench(t, map[string]string{"doctor": "exit 1"})
	s := b.begin(plan(task("doctor", "--fix")))
	if err := s.Forward(t.Context(), false); err != nil || s.Facts().Results[0].Code != 1 {
		t.Errorf("warnings: %v", err)
	}
	s.Close()
	b.script("doctor", fails)
	s = b.begin(plan(task("doctor", "--fix")))
	if err := s.Forward(t.Context(), false); err == nil || !strings.Contains(err.Error(), "it is ill") {
		t.Errorf("it failed, and is taken as done: %v", err)
	}
}

// TestExecAgain: the window is asked for a command that is run again, too.
func TestExecAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	p := plan(b.command("touch", "echo x >>touched; [ -e well ]"))
	p.Window = mornings
	morning := true
	b.at(func() bool { return morning })
	s := b.begin(p)
	if err := s.Forward(t.Context(), false); err == nil {
		t.Fatal("the command failed")
	}
	b.script("well", "")
	for _, c := range []struct {
		word    string
		morning bool
		code    int
		touched string
	}{
		{"", false, 1, "x\n"}, // a person's word is wanted, at any time
		{ExecAgain, false, ExitWindow, "x\n"},
		{ExecAgain, true, 0, "x\nx\n"},
	} {
		morning = c.morning
		s = b.again(s)
		s.env.Exec = c.word
		err := s.Forward(t.Context(), false)
		if text, _ := os.ReadFile(b.path("touched")); code(err) != c.code || string(text) != c.touched || c.code == 0 && err != nil {
			t.Errorf("--exec %s, in the window: %v: %v; %q", c.word, c.morning, err, text)
		}
	}
}
