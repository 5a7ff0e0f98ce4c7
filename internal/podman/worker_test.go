package podman

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	os.Exit(m.Run())
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

// TestWorkerEndsWithItsMaster shows that a request under way is given up when
// whoever asked is gone.
func TestWorkerEndsWithItsMaster(t *testing.T) {
	w := start(t, testOwner(t))
	go func() { _ = w.Call(context.Background(), "wait", "", nil, nil) }()
	time.Sleep(200 * time.Millisecond)
	begin := time.Now()
	_ = w.in.Close() // as the kernel does for a killed master
	done := make(chan error, 1)
	go func() { done <- w.cmd.Wait() }()
	select {
	case <-done:
		if d := time.Since(begin); d > 5*time.Second {
			t.Fatalf("took %s", d)
		}
	case <-time.After(20 * time.Second):
		_ = w.cmd.Process.Kill()
		t.Fatal("the worker lives on")
	}
}

func TestMaps(t *testing.T) {
	m := maps(2000, []IDRange{{100000, 65536}, {300000, 1000}})
	if len(m) != 3 || m[0].HostID != 2000 || m[1].ContainerID != 1 || m[2].ContainerID != 65537 || m[2].HostID != 300000 {
		t.Fatalf("%+v", m)
	}
}
