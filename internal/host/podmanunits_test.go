package host

import (
	"context"
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

// TestChoose: what starts a task of podman's is stopped, the task is not.
func TestChoose(t *testing.T) {
	podman := [][]any{{"/usr/bin/podman", []string{"/usr/bin/podman", "x"}}}
	services := map[string]map[string]any{
		"podman.service":             {"ExecStart": podman, "Type": "exec"},
		"podman-auto-update.service": {"ExecStart": podman, "Type": "oneshot", "RemainAfterExit": false},
		"prune.service":              {"ExecStart": [][]any{{"/bin/sh", []string{"/bin/sh", "-c", "exec podman system prune -f"}}}, "Type": "oneshot"},
		"pod.service":                {"ExecStart": podman, "Type": "oneshot", "RemainAfterExit": true},
		"podman-restart.service":     {"ExecStart": podman, "Type": "oneshot", "RemainAfterExit": true},
		"theirs.service":             {"ExecStart": podman, "Type": "exec", "User": "eve"},
		"other.service":              {"ExecStart": [][]any{{"/bin/other", []string{"/bin/other"}}}, "Type": "oneshot"},
	}
	look := func(unit string) (use, error) { return useOf(unit, services[unit], 0, []string{""}), nil }
	triggers := func(unit string) ([]string, error) {
		name, _, _ := strings.Cut(unit, ".")
		return []string{name + ".service"}, nil
	}
	active := []string{"podman.service", "podman.socket", "podman-auto-update.timer", "podman-auto-update.service",
		"prune.timer", "pod.service", "podman-restart.service", "theirs.service", "theirs.socket", "other.timer", "other.service"}
	got, err := choose(active, look, triggers)
	want := []string{"podman-auto-update.timer", "podman.socket", "prune.timer", "pod.service", "podman.service"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v %v, want %v", got, err, want)
	}
}

func TestStartsPodman(t *testing.T) {
	for _, c := range []struct {
		argv []string
		want bool
	}{
		{[]string{"/usr/bin/podman", "system", "service"}, true},
		{[]string{"/opt/podman/podman"}, true},
		{[]string{"/bin/sh", "-c", "exec podman run x"}, true},
		{[]string{"/bin/bash", "-ec", "cd /x;/usr/bin/podman pull y"}, true},
		{[]string{"/usr/bin/env", "A=b", "podman", "run"}, true},
		{[]string{"/usr/bin/podman-exporter"}, false},
		{[]string{"/usr/bin/exporter", "--path", "/var/lib/podman"}, false},
		{[]string{"/usr/bin/backup", "--exclude", "podman"}, false},
		{[]string{"/bin/sh", "-c", "du -s /var/lib/podman"}, false},
		{[]string{"/opt/podman/x"}, false},
		{nil, false},
	} {
		path := ""
		if len(c.argv) > 0 {
			path = c.argv[0]
		}
		if startsPodman(path, c.argv) != c.want {
			t.Errorf("%q: %v", c.argv, !c.want)
		}
	}
}

// TestForeignProcess: what another user runs under podman's name does not make
// a service of root's one that uses root's store, nor does a name alone.
func TestForeignProcess(t *testing.T) {
	program, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "units")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file, link := filepath.Join(dir, "real", "conmon"), filepath.Join(dir, "conmon")
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/bin/sleep", link); err != nil {
		t.Fatal(err)
	}
	begin := func(path string, uid uint32) string {
		cmd := exec.CommandContext(context.Background(), path, "60")
		cmd.SysProcAttr = &unix.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return strconv.Itoa(cmd.Process.Pid)
	}
	for _, c := range []struct {
		what      string
		path      string
		uid       uint32
		user, run bool // of root; conmon
	}{
		{"root's conmon", file, 0, true, true},
		{"another user's", file, 2000, false, true},
		{"a name alone", link, 0, true, false},
	} {
		pid := begin(c.path, c.uid)
		if user, run := ofUser(pid, 0), runs(pid, "podman", "conmon"); user != c.user || run != c.run {
			t.Errorf("%s: of root %v, conmon %v", c.what, user, run)
		}
	}
	pid := begin(file, 2000)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	if !ofUser(pid, 2000) || !runs(pid, "conmon") {
		t.Error("a conmon whose file was replaced by an upgrade is none")
	}
}
