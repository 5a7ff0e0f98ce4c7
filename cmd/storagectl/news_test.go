package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks/prune"
)

// teller is a program with a state directory and no host: its runs do nothing.
func teller(t *testing.T, command string) *app {
	t.Helper()
	a := &app{stdout: io.Discard, stderr: io.Discard, stateDir: t.TempDir(), command: command}
	a.out = newOutput(a)
	return a
}

// begun is the journal of a new run of the migrate job.
func (a *app) begun(t *testing.T) (*engine.Journal, []engine.Step) {
	t.Helper()
	in := migrate.Inputs{Request: migrate.Request{To: "overlay", Images: migrate.Keep}, Owner: podman.Owner{Name: "hashi"},
		Store: migrate.Store{GraphRoot: a.stateDir, Driver: "vfs"}}
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	h := engine.Header{Job: migrate.JobMigrate, Store: "0-x", Inputs: raw, Actor: a.actor()}
	plan, err := migrate.Outline(engine.State{Header: h})
	if err != nil {
		t.Fatal(err)
	}
	var steps []engine.Step
	for _, p := range plan {
		steps = append(steps, engine.Step{Name: p.Name, Title: p.Title, Final: p.Final, Do: func(context.Context) error { return nil },
			Undo: func(context.Context) error { return nil }})
	}
	h.Steps = engine.Names(steps)
	if h.Run, err = a.dir().New(h.Job); err != nil {
		t.Fatal(err)
	}
	j, err := engine.Create(a.dir().RunPath(h.Run), h, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return j, steps
}

// taken is the journal of the latest run, taken up by this command.
func (a *app) taken(t *testing.T) *engine.Journal {
	t.Helper()
	run, err := a.dir().Find("")
	if err != nil {
		t.Fatal(err)
	}
	j, err := engine.Open(a.dir().RunPath(run), engine.Options{})
	if err == nil {
		err = j.TakenUp(*a.actor())
	}
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// act goes on with a run and tells of it, as goOn does.
func (a *app) act(t *testing.T, j *engine.Journal, steps []engine.Step, f func(*engine.Run) error) {
	t.Helper()
	a.news = a.hear(j, tell.Event{Owner: "hashi", Store: a.stateDir})
	r, err := engine.NewRun(j, steps, a.event)
	if err != nil {
		t.Fatal(err)
	}
	err = f(r)
	a.news.end(t.Context(), exitCode(err), err)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	a.news.last(t.Context())
}

func (a *app) entries(t *testing.T) []tell.Entry {
	t.Helper()
	c, err := a.audit().Read()
	if err != nil {
		t.Fatal(err)
	}
	return c.Entries
}

func events(entries []tell.Entry) string {
	var all []string
	for _, e := range entries {
		all = append(all, e.Event)
	}
	return strings.Join(all, " ")
}

// TestNews: a run is told of at its points, to a webhook, in the metrics and in the
// audit; and who hears of it nothing does not fail it.
func TestNews(t *testing.T) {
	var mu sync.Mutex
	var heard []tell.Event
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var e tell.Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, e)
	}))
	defer srv.Close()
	a := teller(t, "migrate")
	a.conf.Notify = []tell.Target{{URL: srv.URL}, {Exec: []string{"/bin/false"}, On: []tell.Point{tell.Done}}}
	a.conf.Metrics.Dir = t.TempDir()
	j, steps := a.begun(t)
	a.act(t, j, steps, func(r *engine.Run) error { return r.Forward(t.Context(), false) })

	var points []tell.Point
	for _, e := range heard {
		points = append(points, e.Point)
		if e.Run != j.State().Header.Run || e.Owner != "hashi" || e.Command != "migrate" || e.Text == "" || len(e.Audit) != 64 {
			t.Errorf("%+v", e)
		}
	}
	if want := []tell.Point{tell.Begin, tell.Stopped, tell.Started, tell.Done}; !slices.Equal(points, want) {
		t.Errorf("heard %v, want %v", points, want)
	}
	if notes := fmt.Sprint(j.State().Records); !strings.Contains(notes, `false was not told of "done": it exited with 1`) {
		t.Error("what was not delivered is not noted in the journal")
	}
	b, err := os.ReadFile(filepath.Join(a.conf.Metrics.Dir, tell.MetricsFile(os.Getuid())))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf(`storagectl_store_info{driver="overlay",owner="hashi",store=%q} 1`, a.stateDir),
		fmt.Sprintf(`storagectl_run_phase{owner="hashi",phase="finished",store=%q} 1`, a.stateDir),
		fmt.Sprintf(`storagectl_run_active{owner="hashi",store=%q} 0`, a.stateDir),
		fmt.Sprintf(`storagectl_store_podman_down{owner="hashi",store=%q} 0`, a.stateDir),
		`storagectl_command_last_exit_code{command="migrate"} 0`, "storagectl_store_filesystem_free_bytes{",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in the metrics:\n%s", want, b)
		}
	}

	entries := a.entries(t)
	if got := events(entries); got != "begin finished end" {
		t.Errorf("the audit has %s", got)
	}
	if by := entries[0].By; by == nil || by.Command != "migrate" || by.UID != os.Getuid() || entries[1].Verified == nil || *entries[2].Exit != 0 {
		t.Errorf("%+v", entries)
	}
	if err := a.verifyAudit(); err != nil {
		t.Error(err)
	}
}

// TestNewsWaiting: what stopped because of its window waits, and did not fail.
func TestNewsWaiting(t *testing.T) {
	a := teller(t, "migrate")
	out := filepath.Join(t.TempDir(), "out")
	a.conf.Notify = []tell.Target{{Exec: []string{"/bin/sh", "-c", `cat >>"$0"`, out}}}
	j, steps := a.begun(t)
	a.act(t, j, steps, func(*engine.Run) error { return &migrate.ClosedError{Why: "the window is closed"} })
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(b); !strings.Contains(got, `"point":"waiting"`) || !strings.Contains(got, `"exit":5`) || strings.Contains(got, `"failed"`) {
		t.Errorf("told: %s", got)
	}
}

// TestNewsOfPrune: a prune is no run, and is told all the same.
func TestNewsOfPrune(t *testing.T) {
	a := teller(t, "prune")
	out := filepath.Join(t.TempDir(), "out")
	a.conf.Notify = []tell.Target{{Exec: []string{"/bin/sh", "-c", `cat >>"$0"`, out}}}
	a.conf.Metrics.Dir = t.TempDir()
	last := prune.Last{Time: time.Now().UTC(), Owner: "hashi", GraphRoot: "/srv/storage", Seconds: 2, ExitCode: exitFailed, Freed: 12}
	if err := last.Write(a.stateDir, "0-x"); err != nil {
		t.Fatal(err)
	}
	a.tellPrune(t.Context(), pruneMessage{Owner: "hashi", GraphRoot: "/srv/storage", Freed: 12}, last, errors.New("one is in use"))
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"point":"failed"`, `"error":"one is in use"`, `"command":"prune"`, `"exit":1`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
	if b, err = os.ReadFile(filepath.Join(a.conf.Metrics.Dir, tell.MetricsFile(os.Getuid()))); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`storagectl_prune_last_freed_bytes{owner="hashi",store="/srv/storage"} 12`, `storagectl_command_last_exit_code{command="prune"} 1`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
	if e := a.entries(t); len(e) != 1 || e[0].Event != "prune" || e[0].By == nil || *e[0].Exit != exitFailed || !strings.Contains(string(e[0].Detail), `"freed_bytes":12`) {
		t.Errorf("%+v", e)
	}
	if err := a.verifyAudit(); err != nil {
		t.Error(err)
	}
}

// TestNewsNobody: where nothing can be told, the run goes on as ever, and says so.
func TestNewsNobody(t *testing.T) {
	a := teller(t, "migrate")
	var out strings.Builder
	a.out.err = &out
	a.conf.Audit.File, a.conf.Metrics.Dir = "/dev/full", "/dev/full"
	j, steps := a.begun(t)
	a.act(t, j, steps, func(r *engine.Run) error { return r.Forward(t.Context(), false) })
	if j.State().Phase != engine.PhaseFinished {
		t.Errorf("the run is %s", j.State().Phase)
	}
	for _, want := range []string{"cannot write the audit", "tells the rest", "not a directory"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %s", want, out.String())
		}
	}
	// And what the audit lacks, it gets.
	a = &app{stdout: io.Discard, stderr: io.Discard, stateDir: a.stateDir, command: "rollback", out: a.out}
	a.act(t, a.taken(t), steps, func(r *engine.Run) error { return r.Rollback(t.Context()) })
	if got := events(a.entries(t)); got != "begin finished end taken-up rolling-back rolled-back end" {
		t.Errorf("the audit has %s", got)
	}
}

// TestAuditAfterCrash: wherever a process ends, the next command on the run has each
// record told once, and who did it is known.
func TestAuditAfterCrash(t *testing.T) {
	t.Parallel()
	type cut struct{}
	for at := 1; ; at++ {
		a := teller(t, "migrate")
		n, whole := 0, true
		point := func(string) {
			if n++; n == at {
				panic(cut{})
			}
		}
		j, steps := a.begun(t)
		run := j.State().Header.Run
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if r := recover(); r != nil {
					if _, is := r.(cut); !is {
						panic(r)
					}
					whole = false
				}
			}()
			j, err := engine.Open(a.dir().RunPath(run), engine.Options{Point: point})
			if err != nil {
				t.Fatal(err)
			}
			a.act(t, j, steps, func(r *engine.Run) error { return r.Forward(t.Context(), false) })
		}()
		if err := a.verifyAudit(); err != nil {
			t.Fatalf("cut at point %d: %v", at, err)
		}
		a.command, a.news = "resume", nil
		a.act(t, a.taken(t), steps, func(r *engine.Run) error {
			return errors.Join(r.Forward(t.Context(), false), r.Forward(t.Context(), true))
		})
		if err := a.verifyAudit(); err != nil {
			t.Fatalf("cut at point %d, and resumed: %v", at, err)
		}
		count := map[string]int{}
		for _, e := range a.entries(t) {
			count[e.Event]++
			if want := map[bool]string{true: "migrate", false: "resume"}[e.At < findTaken(a, t)]; e.By == nil || e.By.Command != want {
				t.Errorf("cut at point %d: %+v, want it by %s", at, e, want)
			}
		}
		if count["begin"] != 1 || count["taken-up"] != 1 || count["finished"] != 1 || count["committed"] != 1 || count["end"] < 1 {
			t.Fatalf("cut at point %d: %v", at, count)
		}
		if whole {
			if at < 20 {
				t.Errorf("only %d points", at)
			}
			return
		}
	}
}

// findTaken is the record at which resume took the run up.
func findTaken(a *app, t *testing.T) int {
	t.Helper()
	_, st, err := a.find("")
	if err != nil {
		t.Fatal(err)
	}
	return st.Records[slices.IndexFunc(st.Records, func(r engine.Record) bool { return r.Actor != nil && r.Actor.Command == "resume" })].Seq
}

// TestAuditJudged: a tail that was cut, an audit that is gone, and a journal that was
// changed are found; a run that was begun before there was an audit is no fault.
func TestAuditJudged(t *testing.T) {
	t.Parallel()
	a := teller(t, "migrate")
	j, steps := a.begun(t)
	a.act(t, j, steps, func(r *engine.Run) error { return r.Forward(t.Context(), false) })
	path := a.audit().Path
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	judge := func(text []byte, want string) {
		t.Helper()
		err := os.Remove(path)
		if text != nil {
			err = os.WriteFile(path, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		err = a.verifyAudit()
		var broken *tell.BrokenError
		if !errors.As(err, &broken) || !strings.Contains(err.Error(), want) || exitCode(err) != exitJournal || hint(err, exitJournal) == "" {
			t.Errorf("%v, want %q", err, want)
		}
	}
	lines := strings.SplitAfter(string(whole), "\n")
	judge([]byte(lines[0]+lines[1]), "it was cut, or begun anew")
	judge(nil, "it was cut, or begun anew")
	judge([]byte(strings.Replace(string(whole), `"uid":`, `"uid":1`, 1)), "is broken at line 1")
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.verifyAudit(); err != nil {
		t.Error(err)
	}

	// The same run with another journal.
	dir := a.dir().RunPath(j.State().Header.Run)
	journal, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	b := teller(t, "migrate")
	h := j.State().Header
	h.Actor = &engine.Actor{Command: "migrate", UID: 4711, LoginUID: 4711}
	if err := os.MkdirAll(b.dir().RunPath(h.Run), 0o700); err != nil {
		t.Fatal(err)
	}
	other, err := engine.Create(b.dir().RunPath(h.Run), h, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	forged, err := os.ReadFile(filepath.Join(b.dir().RunPath(h.Run), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "journal"), forged, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.verifyAudit(); err == nil || !strings.Contains(err.Error(), "broken at line 1: the journal of run "+h.Run+" is not the one") {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "journal"), journal, 0o600); err != nil {
		t.Fatal(err)
	}

	old := teller(t, "migrate")
	h.Actor = nil
	if err := os.MkdirAll(old.dir().RunPath(h.Run), 0o700); err != nil {
		t.Fatal(err)
	}
	oj, err := engine.Create(old.dir().RunPath(h.Run), h, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer oj.Close()
	if err := old.verifyAudit(); err != nil {
		t.Error(err)
	}
}

// TestAuditElsewhere: while the configuration cannot be used no audit is told; and of an
// audit only that is asked which it was told itself.
func TestAuditElsewhere(t *testing.T) {
	t.Parallel()
	a := teller(t, "migrate")
	dir := t.TempDir()
	with := func(command, file string) *app {
		b := &app{stdout: io.Discard, stderr: io.Discard, stateDir: a.stateDir, command: command}
		b.out = newOutput(b)
		b.conf.Audit.File = file
		return b
	}
	judge := func(file string, pending int, others ...string) {
		t.Helper()
		m, err := with("history", file).judgeAudit()
		if err != nil || len(m.Pending) != pending || !slices.Equal(m.Others, others) {
			t.Errorf("%s: %+v, %v", file, m, err)
		}
	}
	first, second := filepath.Join(dir, "first.jsonl"), filepath.Join(dir, "second.jsonl")
	a.conf.Audit.File = first
	j, steps := a.begun(t)
	a.act(t, j, steps, func(r *engine.Run) error { return r.Forward(t.Context(), false) })
	judge(first, 0)
	judge(second, 0, first)

	deaf := with("resume", "")
	deaf.configFile = filepath.Join(dir, "none.toml")
	deaf.configureAnyhow()
	deaf.act(t, deaf.taken(t), steps, func(r *engine.Run) error { return r.Forward(t.Context(), false) })
	if _, err := os.Stat(deaf.audit().Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another audit was told: %v", err)
	}
	judge(first, 1)

	next := with("commit", second)
	next.act(t, next.taken(t), steps, func(r *engine.Run) error { return r.Forward(t.Context(), true) })
	judge(second, 0, first)
	judge(first, 0, second)
	judge("", 0, first, second)
	for _, file := range []string{first, second} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b[:bytes.IndexByte(b, '\n')+1], 0o600); err != nil {
			t.Fatal(err)
		}
		var broken *tell.BrokenError
		if _, err := with("history", file).judgeAudit(); !errors.As(err, &broken) || !strings.Contains(err.Error(), "it was cut, or begun anew") {
			t.Errorf("%s: %v", file, err)
		}
	}
}
