package podman

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// WorkerCommand is the hidden subcommand under which storagectl starts itself
// as an owner worker.
const WorkerCommand = "owner-worker"

// mapArg tells a worker of an unprivileged caller to wait until its user
// namespace has its id map.
const mapArg = "await-map"

// Worker is a running owner worker. Its methods may be called from one
// goroutine at a time.
type Worker struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *io.LimitedReader
	dec     *json.Decoder
	stderr  *host.Tail
	point   func(string)
	broken  error
	calls   int
	release func()        // of the thread that started it
	silence time.Duration // how long it may say nothing to a request
	silent  atomic.Bool   // it said nothing for as long
}

// StartWorker starts the owner worker for o: this same program, as root inside
// the owner's user namespace (for a rootful store, as root), in a mount
// namespace of its own, with the owner's environment and nothing of ours.
//
// As root it writes the namespace's map itself; an unprivileged owner needs
// newuidmap and newgidmap, as podman does.
func StartWorker(ctx context.Context, o Owner, point func(string), extraEnv ...string) (*Worker, error) {
	// /proc/self/exe: the owner need not be able to reach our path.
	cmd := exec.Command("/proc/self/exe", WorkerCommand, strconv.FormatUint(uint64(o.UID), 10)) //nolint:noctx // it lives as long as the run; Close ends it
	cmd.Env, cmd.Dir = o.Env(extraEnv...), "/"
	// A session of its own, without root's terminal.
	attr := &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNS}
	self := uint32(os.Getuid())
	selfMap := false
	switch {
	case o.Rootful():
		if self != 0 {
			return nil, fmt.Errorf("cannot work in the store of root as user %d", self)
		}
	case self == 0:
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings, attr.GidMappings = maps(o.UID, o.SubUIDs), maps(o.GID, o.SubGIDs)
		attr.GidMappingsEnableSetgroups = true
		attr.Credential = &syscall.Credential{Uid: 0, Gid: 0}
	case self == o.UID:
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		selfMap = true
		cmd.Args = append(cmd.Args, mapArg)
	default:
		return nil, fmt.Errorf("cannot work in the store of %s as user %d", o.Name, self)
	}
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start the owner worker: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start the owner worker: %w", err)
	}
	answers := &io.LimitedReader{R: out}
	w := &Worker{cmd: cmd, in: in, answers: answers, dec: json.NewDecoder(bufio.NewReader(answers)), stderr: &host.Tail{}, point: point, silence: silence}
	if w.point == nil {
		w.point = func(string) {}
	}
	cmd.Stderr, cmd.WaitDelay = w.stderr, lastWords
	if w.release, err = host.StartFor(cmd, !o.Rootful() && !selfMap); err != nil {
		return nil, fmt.Errorf("cannot start the owner worker: %w", err)
	}
	if selfMap {
		if err := w.writeMaps(ctx, o); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return w, nil
}

// PID is the worker's process.
func (w *Worker) PID() int { return w.cmd.Process.Pid }

// writeMaps gives the worker's user namespace its maps through the setuid
// helpers and lets the worker go on.
func (w *Worker) writeMaps(ctx context.Context, o Owner) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for _, m := range []struct {
		tool string
		maps []syscall.SysProcIDMap
	}{{"newuidmap", maps(o.UID, o.SubUIDs)}, {"newgidmap", maps(o.GID, o.SubGIDs)}} {
		args := []string{strconv.Itoa(w.cmd.Process.Pid)}
		for _, r := range m.maps {
			args = append(args, strconv.Itoa(r.ContainerID), strconv.Itoa(r.HostID), strconv.Itoa(r.Size))
		}
		c := exec.CommandContext(ctx, m.tool, args...)
		c.Env = basePath()
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("cannot map the ids of %s with %s: %w: %s", o.Name, m.tool, err, out)
		}
	}
	if _, err := w.in.Write([]byte{'\n'}); err != nil {
		return fmt.Errorf("cannot start the owner worker: %w", err)
	}
	return nil
}

// WorkerMain prepares a process that was started as owner worker: it waits for
// its id map if args say so, becomes root of its namespace, and takes care that
// its mounts stay its own. It returns the owner's uid as the machine numbers
// users, when requests may be served.
func WorkerMain(args []string) (uid int, err error) {
	if len(args) == 0 {
		return 0, errNotForPeople
	}
	if uid, err = strconv.Atoi(args[0]); err != nil {
		return 0, errNotForPeople
	}
	if len(args) > 1 && args[1] == mapArg {
		var b [1]byte
		if _, err := io.ReadFull(os.Stdin, b[:]); err != nil {
			return 0, fmt.Errorf("cannot start as owner worker: no id map came: %w", err)
		}
		if err := errors.Join(syscall.Setresgid(0, 0, 0), syscall.Setresuid(0, 0, 0)); err != nil {
			return 0, fmt.Errorf("cannot start as owner worker: %w", err)
		}
		// Only an exec as root of the namespace gives its capabilities.
		return 0, syscall.Exec("/proc/self/exe", []string{os.Args[0], WorkerCommand, args[0]}, os.Environ())
	}
	if os.Getuid() != 0 {
		return 0, errNotForPeople
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SLAVE, ""); err != nil {
		return 0, fmt.Errorf("cannot make the worker's mounts its own: %w", err)
	}
	// One that is stopped does not see the end of its input. Its caller's thread
	// lives as long as it does (host.StartFor).
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return 0, fmt.Errorf("cannot bind the worker's life to its caller's: %w", err)
	}
	syscall.Umask(0o022)
	return uid, nil
}

var errNotForPeople = errors.New("cannot start as owner worker: storagectl starts it, not a person")

// Call sends one request and waits for its reply, which it stores in result
// (nil: not wanted). When ctx ends the worker is told to give up, and what it
// answers then is returned. An error that the worker sent is a [*Fault].
func (w *Worker) Call(ctx context.Context, op string, args, result any, progress func(json.RawMessage)) error {
	if w.broken != nil {
		return w.broken
	}
	raw, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("cannot ask the owner worker: %w", err)
	}
	w.point("before worker " + op)
	w.calls++
	err = w.call(ctx, request{ID: w.calls, Op: op, Args: raw}, result, progress)
	w.point("after worker " + op)
	return err
}

func (w *Worker) call(ctx context.Context, q request, result any, progress func(json.RawMessage)) error {
	// The worker is the owner's: it may say anything, but not for ever.
	w.answers.N = maxAnswer
	enc := json.NewEncoder(w.in)
	done := make(chan struct{})
	defer close(done)
	turn := w.watch(done)
	turn()
	if err := enc.Encode(q); err != nil {
		return w.broke(err)
	}
	stop := context.AfterFunc(ctx, func() {
		_ = enc.Encode(request{ID: q.ID, Cancel: true}) // a worker that is gone shows below
		select {
		case <-done:
		case <-time.After(cancelGrace):
			_ = w.cmd.Process.Kill()
		}
	})
	defer stop()
	for {
		var r reply
		if err := w.dec.Decode(&r); err != nil {
			return w.broke(err)
		}
		turn()
		switch {
		case r.Alive:
		case r.Done && r.Fault != nil:
			return r.Fault
		case r.Done && result == nil:
			return nil
		case r.Done:
			if err := json.Unmarshal(r.Result, result); err != nil {
				return fmt.Errorf("cannot read the owner worker's answer to %s: %w", q.Op, err)
			}
			return nil
		case progress != nil:
			progress(r.Progress)
		}
		turn()
	}
}

// watch kills the worker when it has said nothing for w.silence, of the time in
// which it is waited for, until done is closed. It returns what is to be called
// when a wait begins, and when one ends: that this process was stopped itself
// (Ctrl-Z), or is held up by its own terminal, is not the worker's silence.
func (w *Worker) watch(done <-chan struct{}) (turn func()) {
	var turns atomic.Int64 // odd: it is waited for
	const looks = 12
	every := w.silence / looks
	go func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for missed, last := 0, int64(0); missed < looks; missed++ {
			select {
			case <-done:
				return
			case <-t.C:
			}
			if now := turns.Load(); now != last || now%2 == 0 {
				missed, last = 0, now
			}
		}
		w.silent.Store(true)
		_ = w.cmd.Process.Kill() // it ends a stopped process, too
	}()
	return func() { turns.Add(1) }
}

// broke ends a worker that does not answer as it must. It waits for it, since
// its last words may come after the end of its answers.
func (w *Worker) broke(err error) error {
	_ = w.in.Close()
	t := time.AfterFunc(lastWords, func() { _ = w.cmd.Process.Kill() })
	_ = w.cmd.Wait() // how it ended matters less than what it said
	t.Stop()
	w.release()
	if w.silent.Load() {
		err = fmt.Errorf("it gave no sign of life for %s, and was killed: %w", w.silence, err)
	}
	said := ""
	if s := w.stderr.String(); s != "" {
		said = ": it said: " + strings.TrimSpace(s)
	}
	w.broken = fmt.Errorf("the owner worker ended: %w%s", err, said)
	return w.broken
}

// Close ends the worker and waits for it: it sees the end of its input, and is
// killed if it does not end within ten seconds.
func (w *Worker) Close() error {
	if w.broken != nil {
		return nil // it was waited for
	}
	_ = w.in.Close()
	t := time.AfterFunc(10*time.Second, func() { _ = w.cmd.Process.Kill() })
	defer t.Stop()
	defer w.release()
	if err := w.cmd.Wait(); err != nil {
		return fmt.Errorf("the owner worker ended badly: %w: %s", err, w.stderr.String())
	}
	return nil
}

const (
	// maxAnswer bounds what a worker may say to one request, progress included.
	maxAnswer = 512 << 20
	// cancelGrace is how long a worker has to give up a request.
	cancelGrace = 30 * time.Second
	// lastWords is how long a worker that broke off may take to end, and after
	// its end a child of its that still holds its stderr.
	lastWords = 2 * time.Second
)
