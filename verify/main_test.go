package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containers/storage/pkg/reexec"
	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

func TestMain(m *testing.M) {
	if reexec.Init() { // containers/storage runs this program again for some mounts
		return
	}
	if os.Getenv(inside) == "" {
		os.Exit(enter())
	}
	if os.Getenv(inside) == asOwner {
		os.Exit(m.Run())
	}
	if err := arrange(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const (
	inside  = "STORAGECTL_TEST_INSIDE"
	asOwner = "user namespace" // of an unprivileged store owner
)

// enter runs the tests again in a mount namespace of their own, so that no
// mount of a store stays on the machine.
func enter() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig counts from the thread
	if err := cmd.Run(); err != nil {
		if code := cmd.ProcessState.ExitCode(); code > 0 {
			return code
		}
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// arrange gives the mount namespace a pure cgroup v2: crun refuses the hybrid
// hierarchy that some machines have.
func arrange() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private (the tests need root): %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil || fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return err
	}
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("cannot mount cgroup2: %w", err)
	}
	return nil
}

// testPodman is real podman on a store of its own.
type testPodman struct {
	ref StoreRef
	env []string
	arg []string
}

func newPodman(t *testing.T, driver string) testPodman {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "containers.conf")
	// The machine's cgroups may have no controllers, and its limits may be
	// lower than podman's own.
	text := "[containers]\npids_limit = 0\ncgroups = \"disabled\"\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n" +
		"[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := testPodman{
		ref: StoreRef{GraphRoot: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"), Driver: driver},
		env: append(os.Environ(), "CONTAINERS_CONF="+conf),
	}
	p.arg = []string{"--root", p.ref.GraphRoot, "--runroot", p.ref.RunRoot, "--tmpdir", filepath.Join(dir, "tmp"), "--storage-driver", driver}
	return p
}

func (p testPodman) run(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	var r host.Runner
	return r.Run(ctx, host.Cmd{Argv: slices.Concat([]string{"podman"}, p.arg, args), Env: p.env, Stdin: stdin})
}

func (p testPodman) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := p.run(t.Context(), nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// What works for root must work for the owner of a rootless store, in the user
// namespace that podman makes for them.
func TestAsUnprivilegedOwner(t *testing.T) {
	if os.Getenv(inside) == asOwner {
		return // this is the inner run
	}
	dir := t.TempDir()
	if err := errors.Join(os.Chown(dir, 2000, 2000), os.Chmod(filepath.Dir(dir), 0o711)); err != nil {
		t.Fatal(err)
	}
	ids := func(first int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 65536}}
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^(TestSample|TestStoreManifest|TestCheck)", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+asOwner, "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: ids(2000), GidMappings: ids(2000), GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestSampleOfDeepImage") || !strings.Contains(string(out), "--- PASS: TestCheck") {
		t.Errorf("%v\n%s", err, out)
	}
}

var errTest = errors.New("broken by the test")
