package treecopy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const childEnv = "TREECOPY_TEST_CHILD"

// TestMain runs the tests in a mount namespace of their own, so that no mount is
// left behind or kept busy by others; or is a child that copies.
func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(inNamespace())
	case "tests":
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case "copy":
		os.Exit(childCopy(false))
	case "strict":
		os.Exit(childCopy(true))
	case "power":
		os.Exit(childPower())
	}
}

func inNamespace() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"=tests")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, err)
		}
		return 1
	}
	return 0
}

// childCopy copies argv[1] to argv[2] with the index argv[3]; the exit status is
// 0, or 3 for an unmapped owner, 4 for what the kernel does not permit, 1 else.
func childCopy(strict bool) int {
	src, err := os.Open(os.Args[1])
	if err == nil && len(os.Args) > 4 {
		src, err = Uncovered(src)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dst, err := os.Open(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	r, err := Copy(context.Background(), src, dst, Options{Index: os.Args[3], Strict: strict})
	if err == nil {
		_, err = Verify(context.Background(), dst, VerifyOptions{Index: os.Args[3]})
	}
	if b, e := json.Marshal(r); e == nil {
		fmt.Println(string(b))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrUnmapped):
		return 3
	case errors.Is(err, unix.EPERM):
		return 4
	}
	return 1
}

// childPower copies slowly, with a checkpoint at every turn.
func childPower() int {
	src, err := os.Open(os.Args[1])
	if err != nil {
		return 1
	}
	dst, err := os.Open(os.Args[2])
	if err != nil {
		return 1
	}
	o := Options{Index: os.Args[3], BytesPerSecond: 250 << 20, checkpoint: 20 * time.Millisecond}
	if _, err := Copy(context.Background(), src, dst, o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// child prepares a process that copies.
func (p *pair) child(mode string, extra ...string) *exec.Cmd {
	cmd := exec.CommandContext(p.t.Context(), "/proc/self/exe", append([]string{p.src, p.dst, p.idx}, extra...)...)
	cmd.Env = append(os.Environ(), childEnv+"="+mode)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// mounted makes a filesystem of this kind in a file and mounts it.
func mounted(t testing.TB, kind, dir string, size int64) (image string) {
	t.Helper()
	image = dir + ".img"
	f, err := os.Create(image)
	must(t, err, f.Truncate(size), f.Close())
	args := []string{"-q", image}
	if kind == "xfs" {
		args = []string{"-q", "-m", "bigtime=1", image}
	}
	run(t, "mkfs."+kind, args...)
	must(t, os.MkdirAll(dir, 0o755))
	mount(t, image, dir)
	t.Cleanup(func() { unmount(t, dir) })
	return image
}

// mount waits for the loop device that the image had, which goes some time after its
// mount: mount(8) would take it over, and lose it.
func mount(t testing.TB, image, dir string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); looped(t, image); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s still has its loop device", image)
		}
	}
	run(t, "mount", "-o", "loop", image, dir)
}

// looped tells whether a loop device has the image.
func looped(t testing.TB, image string) bool {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	return slices.ContainsFunc(files, func(file string) bool {
		b, _ := os.ReadFile(file) // none: it is gone by now
		return strings.TrimSpace(string(b)) == image
	})
}

// unmount tries for some time: a child of another test has all our files open
// between its fork and its exec.
func unmount(t testing.TB, dir string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Unmount(dir, 0)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(dir, err)
		}
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mountPair puts source and destination on filesystems of their own; "" is where
// the tests run.
func mountPair(t testing.TB, src, dst string, size int64) *pair {
	t.Helper()
	p := newPair(t)
	memory := filepath.Dir(filepath.Dir(p.src))
	for kind, dir := range map[string]*string{src: &p.src, dst: &p.dst} {
		if kind != "" {
			*dir = filepath.Join(memory, filepath.Base(*dir)+"-"+kind)
			mounted(t, kind, *dir, size)
			_ = os.Remove(filepath.Join(*dir, "lost+found"))
		}
	}
	return p
}

func seed(t testing.TB) uint64 {
	t.Helper()
	s := uint64(os.Getpid())
	if v := os.Getenv("TREECOPY_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		must(t, err)
		s = n
	}
	t.Logf("TREECOPY_SEED=%d repeats it", s)
	return s
}
