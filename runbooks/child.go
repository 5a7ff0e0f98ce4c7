package runbooks

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/host"
)

// outcome is how a command of storagectl's ended.
type outcome struct {
	code     int
	errors   []string
	hint, id string // of the last error
	told     bool   // it told of an error itself
	already  bool   // it had nothing to do
	overdue  string // it was told to stop, because it took too long
}

// failed is the error of a command that did not end well; run is what it made.
func (o outcome) failed(t PlannedTask, run string) error {
	e := &TaskError{Task: t.ID, Code: o.code, Run: run, Text: strings.Join(o.errors, "; "), Hint: o.hint}
	switch {
	case o.overdue != "":
		e.Code, e.Text, e.Hint = 1, "it "+o.overdue+", and stopped at a safe point", ""
	case e.Text == "":
		e.Text = fmt.Sprintf("its command ended with exit code %d and said nothing", o.code)
	}
	if e.Code == exitInterrupted { // not by us: somebody stopped it alone
		e.Code = 1
	}
	return e
}

// notDrained reports whether an undrain had nothing of this run's to give back.
func (o outcome) notDrained() bool { return o.code == exitRefused && o.id == "not-drained" }

// errKilled reports a command that was cut off where it stood: for want of memory, say.
var errKilled = errors.New("it was killed")

const (
	// stopLimit is how long a command may take to its safe point: longer than any
	// step that is not cut short.
	stopLimit = time.Hour
	// lookAgain is how often it is looked whether podman is up again, for a command
	// that is to be stopped then.
	lookAgain = 5 * time.Second
	// longestMessage is a bound for one line of a command's.
	longestMessage = 64 << 20
)

// command runs a command of storagectl's for a task and waits for its end. It dies
// with this process: like a crash of its own, that can be resumed. When ctx ends, or
// the task takes too long while stoppable says that it may be stopped, it is told to
// stop at its next safe point.
func (s *Session) command(ctx context.Context, t PlannedTask, argv []string, stoppable func(PlannedTask) bool) (outcome, error) {
	argv, hooks := handed(argv)
	cmd := exec.Command("/proc/self/exe", argv...) //nolint:noctx // it is told to stop, and not killed
	cmd.Args[0], cmd.Stdin = "storagectl", hooks
	cmd.Args = append(cmd.Args, "--yes", "--json", "--state-dir", s.env.Dir.Path, "--parent", Parent(s.ID, t.ID))
	if s.env.Config != "" {
		cmd.Args = append(cmd.Args, "--config", s.env.Config)
	}
	// A group of its own: Ctrl-C at the terminal is for the runbook, which tells it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	last := &host.Tail{}
	cmd.Stderr = last
	out, err := cmd.StdoutPipe()
	if err != nil {
		return outcome{}, fmt.Errorf("cannot run %s: %w", argv[0], err)
	}
	s.point("before task " + argv[0])
	release, err := host.StartFor(cmd, false)
	if err != nil {
		return outcome{}, fmt.Errorf("cannot run %s: %w", argv[0], err)
	}
	defer release()
	var o outcome
	over := make(chan struct{})
	told := make(chan string, 1)
	go s.watch(ctx, t, stoppable, cmd, over, told)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, longestMessage)
	for lines.Scan() {
		o.take(lines.Bytes())
		if s.env.Message != nil {
			s.env.Message(t.ID, lines.Bytes())
		}
	}
	err = errors.Join(lines.Err(), cmd.Wait())
	close(over)
	o.overdue = <-told
	s.point("after task " + argv[0])
	var ee *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &ee) && ee.ExitCode() >= 0:
		o.code = ee.ExitCode()
	case errors.As(err, &ee) && ctx.Err() == nil && o.overdue == "": // not by us
		return o, fmt.Errorf("cannot run %s: %w: %w", argv[0], errKilled, err)
	default:
		return o, fmt.Errorf("cannot run %s: %w", argv[0], err)
	}
	if o.code != 0 && len(o.errors) == 0 {
		if text := strings.TrimSpace(last.String()); text != "" {
			o.errors = []string{text}
		}
	}
	if o.code != 0 && ctx.Err() != nil && o.overdue == "" {
		return o, ctx.Err()
	}
	return o, nil
}

// watch tells a command to stop when it is time, and kills it if it does not. It tells
// at the end why it was stopped, "" where that was not for taking too long.
func (s *Session) watch(ctx context.Context, t PlannedTask, stoppable func(PlannedTask) bool, cmd *exec.Cmd, over <-chan struct{}, told chan<- string) {
	why := ""
	defer func() { told <- why }()
	began := time.Now()
	limit := s.mayTake(t)
	if left := time.Until(s.ends); !s.ends.IsZero() && (limit == 0 || left < limit) {
		limit = max(left, time.Second)
	}
	var due <-chan time.Time
	if limit > 0 {
		due = time.After(limit)
	}
	for waiting := true; waiting; {
		select {
		case <-over:
			return
		case <-ctx.Done():
			waiting = false
		case <-due:
			if why = s.overdue(t, began); why == "" || stoppable != nil && !stoppable(t) {
				due, why = time.After(lookAgain), ""
				continue
			}
			waiting = false
		}
	}
	_ = cmd.Process.Signal(syscall.SIGTERM) // where it has ended already, that is what is wanted
	select {
	case <-over:
	case <-time.After(stopLimit):
		_ = cmd.Process.Kill()
		<-over
	}
}

// overdue says why a task is to be told to stop now; "" while it is not: the limit of
// the runbook does not count while a drain of its holds a node, which would stay so.
func (s *Session) overdue(t PlannedTask, began time.Time) string {
	if limit := s.mayTake(t); limit > 0 && time.Since(began) >= limit {
		return fmt.Sprintf("did not end within the %s that it may take", brief.Time(t.Timeout))
	}
	if held, err := s.holdsNode(); s.ends.IsZero() || time.Now().Before(s.ends) || held || err != nil {
		return ""
	}
	return fmt.Sprintf("was under way when the %s that the runbook may take were over", brief.Time(s.Inputs.Plan.Longest))
}

// mayTake is how long a task's command may take, 0 where that does not matter. A job waits
// for its window itself.
func (s *Session) mayTake(t PlannedTask) time.Duration {
	if t.Timeout == 0 || !job(t.Run) {
		return t.Timeout
	}
	return t.Timeout + s.Inputs.Plan.WindowWait
}

// take reads a message for what decides on the task.
func (o *outcome) take(line []byte) {
	var m struct {
		Type  string `json:"message_type"`
		Error string `json:"error"`
		Hint  string `json:"hint"`
		ID    string `json:"id"`
	}
	if json.Unmarshal(line, &m) != nil {
		return
	}
	switch m.Type {
	case "error":
		o.errors, o.hint, o.id, o.told = append(o.errors, m.Error), m.Hint, m.ID, true
	case "already":
		o.already = true
	}
}

func (s *Session) point(what string) {
	if s.env.Point != nil {
		s.env.Point(what)
	}
}
