package host

import (
	"os"
	"path/filepath"
	"testing"
)

func TestServiceOf(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/nomad.service\n":                                               "nomad.service",
		"0::/system.slice/system-nomad.slice/nomad@a.service/sub\n":                      "nomad@a.service",
		"0::/user.slice/user-2000.slice/user@2000.service/app.slice/nomad.service\n":     "user@2000.service",
		"0::/user.slice/user-0.slice/session-1.scope\n":                                  "",
		"0::/machine.slice/libpod-1.scope/container/system.slice/ssh.service\n":          "",
		"0::/system.slice/_cpu.service\n":                                                "cpu.service",
		"5:memory:/x.service\n1:name=systemd:/system.slice/nomad-client.service\n0::/\n": "nomad-client.service",
		"0::/\n": "", "": "", "bad\n": "",
	} {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "cgroup"), []byte(text), 0o600))
		if got := ServiceOf(dir); got != want {
			t.Errorf("%q is of %q, want %q", text, got, want)
		}
	}
}

func TestUserOf(t *testing.T) {
	if uid, ok := UserOf("/proc/self"); !ok || int(uid) != os.Geteuid() {
		t.Errorf("%d %v", uid, ok)
	}
	if uid, ok := UserOf(t.TempDir()); ok {
		t.Errorf("%d", uid)
	}
}
