package host

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestUsers: whoever has something open in a folder is found, also after the
// folder was renamed, and nobody else is.
func TestUsers(t *testing.T) {
	top := t.TempDir()
	dir, moved := filepath.Join(top, "store"), filepath.Join(top, "store.aside")
	if err := os.MkdirAll(filepath.Join(dir, "v"), 0o755); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, script := range []string{`exec 7>v/log; cd /; exec sleep 60`, `cd v; exec sleep 60`, `cd /; exec sleep 60`} {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
		cmd.Dir = dir
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, cmd.Process.Pid)
	}
	for _, at := range []string{dir, moved} {
		found := map[int]string{}
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			users, err := Users(at)
			if err != nil {
				t.Fatal(err)
			}
			clear(found)
			for _, u := range users {
				found[u.PID] = u.How
			}
			if found[pids[0]] == "file" && found[pids[1]] == "folder" && found[pids[2]] == "" {
				break
			}
		}
		if found[pids[0]] != "file" || found[pids[1]] != "folder" || found[pids[2]] != "" {
			t.Errorf("in %s: %v of %v", at, found, pids)
		}
		if users, err := Users(at, pids[0]); err != nil || len(users) >= len(found) {
			t.Errorf("the excepted one is there: %v %v", users, err)
		}
		if at == dir {
			if err := os.Rename(dir, moved); err != nil {
				t.Fatal(err)
			}
		}
	}
}
