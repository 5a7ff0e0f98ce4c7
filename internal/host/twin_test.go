package host

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTwins: a shell that runs itself once more, beside another child.
func TestTwins(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `sleep 60 & if test -z "$TWIN"; then TWIN=1 sh -c "$0" "$0" & fi; wait`)
	cmd.Args = append(cmd.Args, cmd.Args[2])
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
	}()
	var fds []int
	for end := time.Now().Add(5 * time.Second); len(fds) == 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		fds = twinsOf(cmd.Process.Pid)
	}
	if len(fds) != 1 {
		t.Fatalf("%d twins", len(fds))
	}
	fd, err := unix.Dup(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	endTwins(fds)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000); n != 1 || err != nil {
		t.Errorf("the twin lives: %d, %v", n, err)
	}
	if err := unix.Kill(cmd.Process.Pid, 0); err != nil {
		t.Errorf("its parent was ended, too: %v", err)
	}
}
