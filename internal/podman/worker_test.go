package podman

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// TestMain lets this binary be the worker that StartWorker starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == WorkerCommand {
		if _, err := WorkerMain(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if err := Serve(context.Background(), os.Stdin, os.Stdout, testHandlers()); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "caller" {
		fmt.Fprintln(os.Stderr, caller())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// caller starts a worker, stops it, tells its pid, and does nothing more.
func caller() error {
	w, err := StartWorker(context.Background(), Owner{Name: "nobody-special", UID: 2000, GID: 2000, Home: "/"}, nil)
	if err != nil {
		return err
	}
	if err := w.Call(context.Background(), "echo", "", nil, nil); err != nil {
		return err
	}
	if err := syscall.Kill(w.cmd.Process.Pid, syscall.SIGSTOP); err != nil {
		return err
	}
	fmt.Println(w.cmd.Process.Pid)
	time.Sleep(time.Minute)
	return errors.New("it was left alone")
}

type seen struct {
	UID, GID int
	Groups   []int
	Shadow   string // what opening /etc/shadow says
	Mknod    string
	Chown    string
	Env      []string
	Keyring  int // of the session
}

func testHandlers() map[string]Handler {
	return map[string]Handler{
		"see": Handle(func(_ context.Context, dir string, _ func(any)) (seen, error) {
			s := seen{UID: os.Getuid(), GID: os.Getgid(), Env: os.Environ()}
			s.Groups, _ = os.Getgroups()
			s.Keyring, _ = unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
			_, err := os.ReadFile("/etc/shadow")
			s.Shadow = fmt.Sprint(err)
			s.Mknod = fmt.Sprint(syscall.Mknod(filepath.Join(dir, "w"), syscall.S_IFCHR, 0))
			s.Chown = fmt.Sprint(os.Lchown(filepath.Join(dir, "w"), 5, 5))
			return s, nil
		}),
		"wait": Handle(func(ctx context.Context, _ string, progress func(any)) (string, error) {
			progress("waiting")
			<-ctx.Done()
			return "", ctx.Err()
		}),
		"fault": Handle(func(context.Context, string, func(any)) (string, error) {
			return "", fmt.Errorf("outer: %w", &Fault{Kind: "odd", Text: "it is odd", Detail: json.RawMessage(`[1]`)})
		}),
		"echo": Handle(func(_ context.Context, s string, _ func(any)) (string, error) { return s, nil }),
		"die": Handle(func(context.Context, string, func(any)) (string, error) {
			fmt.Fprintln(os.Stderr, "last words")
			os.Exit(7)
			return "", nil
		}),
	}
}

// owner is a user that need not be in passwd.
func testOwner(t *testing.T) Owner {
	t.Helper()
	return Owner{Name: "nobody-special", UID: 2000, GID: 2000, Home: t.TempDir(),
		SubUIDs: []IDRange{{100000, 65536}}, SubGIDs: []IDRange{{100000, 65536}}}
}

func start(t *testing.T, o Owner) *Worker {
	t.Helper()
	w, err := StartWorker(t.Context(), o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestWorkerHasTheOwnersRights shows that root's worker for a user is root of
// the user's namespace only: it makes whiteouts and mapped owners, and cannot
// read what the user cannot.
func TestWorkerHasTheOwnersRights(t *testing.T) {
	t.Setenv("STORAGECTL_TEST_SECRET", "x")
	dir, err := os.MkdirTemp("/tmp", "worker")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chown(dir, 2000, 2000); err != nil {
		t.Fatal(err)
	}
	w := start(t, testOwner(t))
	var s seen
	if err := w.Call(t.Context(), "see", dir, &s, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if s.UID != 0 || s.GID != 0 || len(s.Groups) != 0 {
		t.Errorf("uid %d gid %d groups %v", s.UID, s.GID, s.Groups)
	}
	if !strings.Contains(s.Shadow, "permission denied") {
		t.Errorf("/etc/shadow: %s", s.Shadow)
	}
	if s.Mknod != "<nil>" || s.Chown != "<nil>" {
		t.Errorf("mknod %s, chown %s", s.Mknod, s.Chown)
	}
	var st syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(dir, "w"), &st); err != nil || st.Uid != 100004 {
		t.Errorf("owner outside is %d %v, want 100004", st.Uid, err)
	}
	if own, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); err != nil || own == s.Keyring || s.Keyring == 0 {
		t.Errorf("the worker's session keyring is %d, ours %d %v", s.Keyring, own, err)
	}
	for _, e := range s.Env {
		if strings.Contains(e, "SECRET") {
			t.Errorf("our environment reached the worker: %s", e)
		}
	}
}

func TestCalls(t *testing.T) {
	w := start(t, testOwner(t))
	var got string
	if err := w.Call(t.Context(), "echo", "hello", &got, nil); err != nil || got != "hello" {
		t.Fatalf("%q %v", got, err)
	}
	var f *Fault
	if err := w.Call(t.Context(), "fault", "", nil, nil); !errors.As(err, &f) || f.Kind != "odd" || string(f.Detail) != "[1]" {
		t.Fatalf("%v", err)
	}
	if err := w.Call(t.Context(), "nonsense", "", nil, nil); err == nil {
		t.Fatal("an unknown request was answered")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var told atomic.Int32
	err := w.Call(ctx, "wait", "", nil, func(json.RawMessage) { told.Add(1); cancel() })
	if !errors.Is(err, context.Canceled) || told.Load() != 1 {
		t.Fatalf("cancelled: %v, progress %d", err, told.Load())
	}
	if err := w.Call(t.Context(), "echo", "again", &got, nil); err != nil || got != "again" {
		t.Fatalf("after a cancelled request: %q %v", got, err)
	}
	if err := w.Call(t.Context(), "die", "", nil, nil); err == nil || !strings.Contains(err.Error(), "last words") {
		t.Fatalf("a dead worker: %v", err)
	}
	if err := w.Call(t.Context(), "echo", "x", &got, nil); err == nil {
		t.Fatal("a dead worker answers")
	}
	_ = w.Close()
}

// TestCancelledAtOnce: a request is given up also when that is told before the
// worker has begun with it.
func TestCancelledAtOnce(t *testing.T) {
	w := start(t, testOwner(t))
	for range 100 {
		ctx, end := context.WithCancel(t.Context())
		end()
		if err := w.Call(ctx, "wait", "", nil, nil); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// TestWorkerEndsWithItsMaster shows that a request under way is given up when
// whoever asked is gone.
func TestWorkerEndsWithItsMaster(t *testing.T) {
	w := start(t, testOwner(t))
	var began time.Time
	err := w.Call(t.Context(), "wait", "", nil, func(json.RawMessage) {
		began = time.Now()
		_ = w.in.Close() // as the kernel does for a killed master
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the request: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	// One that does not heed the end of its input ends itself after 15 s.
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("took %s", d)
	}
}

// TestStoppedWorker: a worker's owner may stop it. It is given up after a while.
func TestStoppedWorker(t *testing.T) {
	w := start(t, testOwner(t))
	var got string
	if err := w.Call(t.Context(), "echo", "hello", &got, nil); err != nil {
		t.Fatal(err)
	}
	w.silence = 600 * time.Millisecond // its start may take longer
	if err := syscall.Kill(w.cmd.Process.Pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	// More than a pipe holds: it must not wait for ever on its own words either.
	err := w.Call(t.Context(), "echo", strings.Repeat("x", 1<<20), &got, nil)
	if err == nil || !strings.Contains(err.Error(), "no sign of life") || time.Since(began) > 30*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// TestBusyWorker: a worker that has nothing to tell of its work is not given up,
// nor one that waits for a caller who takes his time with what it told.
func TestBusyWorker(t *testing.T) {
	toWorker, asks := io.Pipe()
	answers, fromWorker := io.Pipe()
	served := make(chan error, 1)
	work := map[string]Handler{"work": Handle(func(_ context.Context, d time.Duration, progress func(any)) (string, error) {
		progress("begun")
		time.Sleep(d)
		return "done", nil
	})}
	go func() { served <- serve(context.Background(), toWorker, fromWorker, work, 20*time.Millisecond) }()
	limited := &io.LimitedReader{R: answers}
	sleeper := exec.Command("sleep", "60") // what would be killed
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() }()
	w := &Worker{cmd: sleeper, in: asks, answers: limited, dec: json.NewDecoder(limited), stderr: &host.Tail{},
		point: func(string) {}, release: func() {}, silence: 240 * time.Millisecond}
	var got string
	err := w.Call(t.Context(), "work", time.Second, &got, func(json.RawMessage) { time.Sleep(time.Second) })
	if err != nil || got != "done" || w.silent.Load() {
		t.Errorf("%q %v, silent %v", got, err, w.silent.Load())
	}
	if err := errors.Join(asks.Close(), <-served); err != nil {
		t.Error(err)
	}
}

// TestStoppedWorkerOfTheDead: a worker that is stopped ends with its caller, so
// that it does not keep the store locked.
func TestStoppedWorkerOfTheDead(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "caller")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	state := func() string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return "gone"
		}
		return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[0]
	}
	for end := time.Now().Add(5 * time.Second); state() != "T"; time.Sleep(time.Millisecond) { // a stop takes effect in its own time
		if time.Now().After(end) {
			t.Fatalf("the worker is %q", state())
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		s := state()
		if s == "gone" || s == "Z" {
			return
		}
		if time.Now().After(end) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("the worker is %q", s)
		}
	}
}

func TestMaps(t *testing.T) {
	m := maps(2000, []IDRange{{100000, 65536}, {300000, 1000}})
	if len(m) != 3 || m[0].HostID != 2000 || m[1].ContainerID != 1 || m[2].ContainerID != 65537 || m[2].HostID != 300000 {
		t.Fatalf("%+v", m)
	}
}
