package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	inside = "STORAGECTL_TEST_INSIDE"
	inNode = "STORAGECTL_TEST_NODE" // which part: the tests that need a systemd run in a node of the lab only
)

// apart runs the tests again in a mount namespace of their own, so that no mount
// stays on the machine.
func apart(m *testing.M) int {
	if os.Getenv(inNode) != "" {
		return m.Run() // with the machine's own mounts, which are the matter
	}
	if os.Getenv(inside) == "" {
		return enter()
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Fprintf(os.Stderr, "cannot make mounts private (the tests need root): %v\n", err)
		return 1
	}
	return m.Run()
}

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

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func command(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return strings.TrimSpace(string(out))
}

// loopDevice gives a block device of a size.
func loopDevice(t *testing.T, size int64) (dev, img string) {
	t.Helper()
	img = filepath.Join(t.TempDir(), "img")
	must(t, os.WriteFile(img, nil, 0o600), os.Truncate(img, size))
	return attachLoop(t, img), img
}

func attachLoop(t *testing.T, img string) string {
	t.Helper()
	dev := command(t, "losetup", "--show", "-f", img)
	t.Cleanup(func() { command(t, "losetup", "-d", dev) })
	return dev
}

func openDir(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// mountAt mounts with mount(2), until the test ends.
func mountAt(t *testing.T, source, at, kind string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, at, kind, flags, data); err != nil {
		t.Fatalf("mount %s: %v", at, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
}

func mkdir(t *testing.T, parts ...string) string {
	t.Helper()
	path := filepath.Join(parts...)
	must(t, os.MkdirAll(path, 0o755))
	return path
}

// mountedAt tells the sources stacked at a path, topmost first.
func mountedAt(t *testing.T, path string) []string {
	t.Helper()
	table, err := Mounts()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, m := range table.Stack(path) {
		all = append(all, m.Source)
	}
	return all
}
