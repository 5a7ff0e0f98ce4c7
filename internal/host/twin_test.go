package host

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// twinned starts a copy of the shell, of that name, that runs itself once more,
// beside another child, and returns its pid.
func twinned(t *testing.T, name string) int {
	t.Helper()
	shell, err := os.ReadFile("/bin/dash")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, shell, 0o755); err != nil {
		t.Fatal(err)
	}
	// A child is a twin, too, until it runs its own program.
	const script = `sleep 60 & until read -r c </proc/$!/comm && test "$c" = sleep; do :; done; if test -z "$TWIN"; then TWIN=1 "$1" -c "$0" "$0" "$1" & fi; echo; wait`
	cmd := exec.CommandContext(t.Context(), path, "-c", script, script, path)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
	})
	// Each of the two says a line when it has all its children.
	for n := 0; n < 2; {
		got, err := out.Read(make([]byte, 2))
		if n += got; err != nil {
			t.Fatal(err)
		}
	}
	return cmd.Process.Pid
}

// TestTwins: the twin of podman is found and ended, of all its children.
func TestTwins(t *testing.T) {
	main := twinned(t, "podman")
	fds := twinsOf(main)
	if len(fds) != 1 {
		t.Fatalf("%d twins", len(fds))
	}
	fd, err := unix.Dup(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	endTwins(fds)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(5*time.Second/time.Millisecond)); n != 1 || err != nil {
		t.Errorf("the twin lives: %d, %v", n, err)
	}
	if err := unix.Kill(main, 0); err != nil {
		t.Errorf("its parent was ended, too: %v", err)
	}
}

// TestTwinsOfOthers: a service that is not podman ends its children as it likes.
func TestTwinsOfOthers(t *testing.T) {
	if fds := twinsOf(twinned(t, "server")); len(fds) > 0 {
		endTwins(fds)
		t.Errorf("%d twins", len(fds))
	}
}
