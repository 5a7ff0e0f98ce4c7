package dockerapi

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestUntagged(t *testing.T) {
	for ref, want := range map[string]string{
		"localhost:5000/a/b:1": "localhost:5000/a/b", "localhost:5000/a/b": "localhost:5000/a/b", "a:1": "a", "a/b@sha256:00": "a/b", "a:1@sha256:00": "a",
	} {
		if got := untagged(ref); got != want {
			t.Errorf("%s gives %s, not %s", ref, got, want)
		}
	}
}

func TestReadStream(t *testing.T) {
	for text, want := range map[string]string{
		`{"status":"a"}` + "\n" + `{"status":"b"}`:        "",
		`{"status":"a"}` + "\n" + `{"error":"no tag"}`:    "no tag",
		`{"errorDetail":{"message":"no room"}}`:           "no room",
		`{"status":"a"}` + "\n" + `<html>`:                "cannot read the stream",
		`{"status":"a","progressDetail":{"current":1}}{}`: "",
	} {
		err := readStream(strings.NewReader(text))
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestLimits(t *testing.T) {
	for out, odd := range map[string]bool{
		"memory.max=67108864\nmemory.swap.max=33554432\n": false,
		"memory.max=67108864\nmemory.swap.max=\n":         false,
		"memory.max=67108864\nmemory.swap.max=max\n":      true,
		"memory.max=max\nmemory.swap.max=max\n":           true,
		"memory.max=\nmemory.swap.max=\n":                 true,
	} {
		if saw, err := limits(out); errors.Is(err, errOdd) != odd {
			t.Errorf("%q: %s, %v", out, saw, err)
		}
	}
}

// TestDial: in a user namespace, whose root passes over modes, a socket that its
// owner may not use cannot be used; the same process passes over other modes on.
func TestDial(t *testing.T) {
	if path := os.Getenv("DIAL"); path != "" {
		_, err := dial(t.Context(), path)
		_, other := os.ReadFile(path + ".closed")
		t.Logf("dial: %v; read: %v", err, other)
		return
	}
	if os.Getuid() != 0 {
		t.Fatal("the tests need root, as the lab does")
	}
	path := filepath.Join(t.TempDir(), "s")
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.WriteFile(path+".closed", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, path + ".closed"} {
		if err := os.Chown(p, 2000, 2000); err != nil {
			t.Fatal(err)
		}
	}
	child := func(mode os.FileMode) string {
		t.Helper()
		if err := errors.Join(os.Chmod(path, mode), os.Chmod(path+".closed", 0)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestDial$", "-test.v")
		cmd.Env = append(os.Environ(), "DIAL="+path)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 2000, Size: 1}}, GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 2000, Size: 1}},
			Credential: &syscall.Credential{NoSetGroups: true},
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := child(0o600); !strings.Contains(out, "dial: <nil>; read: <nil>") {
		t.Error(out)
	}
	if out := child(0); !strings.Contains(out, "permission denied; read: <nil>") {
		t.Error(out)
	}
}
