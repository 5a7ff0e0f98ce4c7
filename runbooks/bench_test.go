package runbooks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
)

// TestMain: this program is also the storagectl that tasks run.
func TestMain(m *testing.M) {
	if os.Args[0] == "storagectl" {
		os.Exit(fake(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// fake remembers that it was called, and does what the script of the state directory
// says that is called as the command is; then a rollback takes its run back.
func fake(args []string) int {
	dir := engine.Dir{Path: args[slices.Index(args, "--state-dir")+1]}
	f, err := os.OpenFile(filepath.Join(dir.Path, "called"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(f, strings.Join(args[:slices.Index(args, "--yes")], " "))
	}
	if err != nil {
		return 99
	}
	if script := filepath.Join(dir.Path, args[0]); exists(script) {
		cmd := exec.Command("sh", append([]string{script}, args...)...)
		cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir.Path, os.Stdin, os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return cmd.ProcessState.ExitCode()
		}
	}
	if args[0] != "rollback" {
		return 0
	}
	j, err := engine.Open(dir.RunPath(args[1]), engine.Options{})
	if err == nil {
		var r *engine.Run
		if r, err = engine.NewRun(j, []engine.Step{{Name: "stop"}, {Name: "start"}}, nil); err == nil {
			err = r.Rollback(context.Background())
		}
	}
	if err != nil {
		return 98
	}
	return 0
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// The scripts of a drain and an undrain that do as the real ones.
const (
	drains   = `while [ "$1" != --parent ]; do shift; done; echo "$2" >held`
	undrains = `[ -e held ] || { echo '{"message_type":"error","error":"nothing","id":"not-drained"}'; exit 3; }; rm held`
	fails    = `echo '{"message_type":"error","error":"it is ill"}'; exit 1`
	closed   = `case "$*" in *--now*) echo '{"message_type":"already"}';; *) exit 5;; esac`
)

// mornings is the window of the tests.
const mornings = "daily 00:00 12h UTC"

// bench is a state directory with the scripts of fake commands.
type bench struct {
	t   *testing.T
	env Env
}

func newBench(t *testing.T, scripts map[string]string) *bench {
	t.Helper()
	b := &bench{t: t, env: Env{Dir: engine.Dir{Path: t.TempDir()}, Runner: &host.Runner{}}}
	b.env.Held = func() (string, error) {
		by, err := os.ReadFile(b.path("held"))
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return strings.TrimSpace(string(by)), err
	}
	b.script("drain", drains)
	b.script("undrain", undrains)
	for name, text := range scripts {
		b.script(name, text)
	}
	return b
}

func (b *bench) path(name string) string { return filepath.Join(b.env.Dir.Path, name) }

func (b *bench) script(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(b.path(name), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// called are the commands that ran, in order.
func (b *bench) called() string {
	text, _ := os.ReadFile(b.path("called"))
	return strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", "; ")
}

// task is a task as a plan has it.
func task(run string, args ...string) PlannedTask {
	return PlannedTask{ID: run, Run: run, Argv: append([]string{run}, args...), Timeout: map[string]time.Duration{runExec: time.Minute}[run]}
}

// command is an exec task that runs a shell's words in the state directory.
func (b *bench) command(id, words string) PlannedTask {
	return PlannedTask{ID: id, Run: runExec, Argv: []string{"sh", "-c", "cd '" + b.env.Dir.Path + "'; " + words}, Timeout: time.Minute}
}

func plan(tasks ...PlannedTask) Plan { return Plan{Tasks: tasks, HookTimeout: time.Minute} }

func (b *bench) begin(p Plan) *Session {
	b.t.Helper()
	return b.taken(func() (*Session, error) { return Begin(b.env, Inputs{Name: "test", Plan: p}) })
}

// taken waits for the lock: a process that another test starts has it, too, until it
// runs its own program.
func (b *bench) taken(open func() (*Session, error)) *Session {
	b.t.Helper()
	s, err := open()
	for end := time.Now().Add(30 * time.Second); errors.Is(err, engine.ErrLocked) && time.Now().Before(end); s, err = open() {
		time.Sleep(time.Millisecond)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { s.Close() })
	return s
}

// again lets go of a run and takes it up again, as another process would.
func (b *bench) again(s *Session) *Session {
	b.t.Helper()
	s.Close()
	return b.taken(func() (*Session, error) { return Open(b.env, s.ID) })
}

func code(err error) int {
	var failed *TaskError
	if errors.As(err, &failed) {
		return failed.Code
	}
	return 0
}

// given sees that the run came to its end with the node given back.
func (b *bench) given(s *Session, err error) {
	b.t.Helper()
	if err != nil || s.State().Phase != engine.PhaseCommitted || exists(b.path("held")) {
		b.t.Errorf("%v; the run is %s, the node is held: %v; %s", err, s.State().Phase, exists(b.path("held")), b.called())
	}
}

// at is a clock that stands in the morning, in the window, or in the evening before.
func (b *bench) at(open func() bool) {
	b.env.Now = func() time.Time {
		if open() {
			return time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)
		}
		return time.Date(2026, 11, 21, 18, 0, 0, 0, time.UTC)
	}
}

func (b *bench) evening() { b.at(func() bool { return false }) }

// closing is a window that closes as soon as a node is held.
func (b *bench) closing() { b.at(func() bool { return !exists(b.path("held")) }) }

// run makes a run of migrate's that a task began, and lets more be done to its journal.
func (b *bench) run(parent string, more func(*engine.Journal)) string {
	b.t.Helper()
	id, err := b.env.Dir.New("migrate")
	if err != nil {
		b.t.Fatal(err)
	}
	j, err := engine.Create(b.env.Dir.RunPath(id), engine.Header{Run: id, Job: "migrate", Store: "s", Steps: []string{"stop", "start"},
		Inputs: fmt.Appendf(nil, `{"request":{"to":"overlay","parent":%q}}`, parent)}, engine.Options{})
	if err != nil {
		b.t.Fatal(err)
	}
	if more != nil {
		more(j)
	}
	if err := j.Close(); err != nil {
		b.t.Fatal(err)
	}
	return id
}
