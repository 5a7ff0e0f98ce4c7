package host

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain lets this binary be a login that has a key and a priority, what root
// runs in it, and a program of a user that looks for these.
func TestMain(m *testing.M) {
	switch os.Getenv("ROLE") {
	case "login":
		fmt.Fprintln(os.Stderr, login())
		os.Exit(1)
	case "user":
		fmt.Println(inherited())
		os.Exit(0)
	}
	os.Exit(apart(m))
}

const keyName = "storagectl-test"

// login becomes a test in a session like the one that sshd and pam_keyinit make
// for root, with a key in it.
func login() error {
	runtime.LockOSThread() // an exec takes the calling thread's
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil {
		return err
	}
	if _, err := unix.AddKey("user", keyName, []byte("secret"), unix.KEY_SPEC_SESSION_KEYRING); err != nil {
		return err
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -5); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, 1, 0, 2<<13); errno != 0 {
		return errno
	}
	return unix.Exec("/proc/self/exe", []string{"test", "-test.run=^TestApart$", "-test.v"}, []string{"ROLE=root", "PATH=/usr/bin:/bin"})
}

// inherited is what a process can do with root's: read a key, be nice -5.
func inherited() string {
	said := fmt.Sprintf("uid %d", os.Getuid())
	key := "no key"
	if id, err := unix.KeyctlSearch(unix.KEY_SPEC_SESSION_KEYRING, "user", keyName, 0); err == nil {
		b := make([]byte, 64)
		n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, b, 0)
		key = fmt.Sprintf("key %q %v", b[:max(n, 0)], err)
	}
	nice, _ := unix.Getpriority(unix.PRIO_PROCESS, 0) // the kernel's 20 - nice
	io, _, _ := unix.Syscall(unix.SYS_IOPRIO_GET, 1, 0, 0)
	return fmt.Sprintf("%s, %s, nice %d, io %d/%d", said, key, 20-nice, io>>13, io&7)
}

// TestApart: a process of another user has not root's session keyring, whose
// keys it could read, nor root's priority.
func TestApart(t *testing.T) {
	if os.Getenv("ROLE") != "root" {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Env = append(os.Environ(), "ROLE=login")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS: TestApart") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if got := inherited(); got != `uid 0, key "secret" <nil>, nice -5, io 2/0` {
		t.Fatalf("the session is not what it must be for this test: %s", got)
	}
	out, err := run(t, Cmd{Argv: []string{"/proc/self/exe"}, Env: []string{"ROLE=user"}, As: &User{UID: 2000, GID: 2000}})
	if err != nil {
		t.Fatal(err)
	}
	if out != "uid 2000, no key, nice 0, io 0/4" && out != "uid 2000, no key, nice 0, io 0/0" {
		t.Errorf("a user's process: %s", out)
	}
	// What is root's own stays as it is, on every thread.
	if out, err = run(t, Cmd{Argv: []string{"/proc/self/exe"}, Env: []string{"ROLE=user"}}); err != nil || !strings.Contains(out, `key "secret" <nil>, nice -5`) {
		t.Errorf("root's process: %s %v", out, err)
	}
	if got := inherited(); !strings.Contains(got, `key "secret"`) {
		t.Errorf("afterwards: %s", got)
	}
}
