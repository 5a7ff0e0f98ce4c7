package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestRunbook: a hook that hangs ends with all as it was; vfs-to-overlay is killed
// with its task at work, goes on with that task's run, is rolled back as a whole, and
// done again by a runbook with hooks and a command of the owner's.
func TestRunbook(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Containers)
	before := w.manifest()

	w.book("hangs", `
[hooks]
after-stop = [["sh", "-c", "echo $STORAGECTL_HOOK >>/root/said; sleep 600 & sleep 600"]]
before-start = [["sh", "-c", "echo $STORAGECTL_HOOK >>/root/said"]]
timeout = "10s"
`)
	r := w.ctl("runbook", "run", "hangs", "--yes")
	if r.code != exitFailed || !strings.Contains(r.stderr, "did not end within 10s") {
		t.Fatal(r)
	}
	// It is killed with what it started, and what it may have paused goes on.
	if said := w.script("root", "cat /root/said; ! pgrep -x sleep"); said != "after-stop\nrollback\n" {
		t.Errorf("the hooks said %q", said)
	}
	w.isOn("vfs", before)
	w.must("rollback")

	book := []string{"runbook", "run", "vfs-to-overlay", "--param", "user=" + lab.Owner, "--yes"}
	runs := len(w.runs())
	_ = w.start(book...)
	// Until the task's run has a journal of its own, and podman is stopped by it.
	w.eventually("a task that stops podman", func() bool {
		is := w.runs()
		if len(is) < runs+2 {
			return false
		}
		b, _ := os.ReadFile(filepath.Join(is[len(is)-1], "journal"))
		return strings.Contains(string(b), `"kind":"begin","step":"stop"`)
	})
	w.signal("KILL") // of the runbook alone; its task is another program's name
	w.eventually("the end of the task's command", func() bool {
		return w.exec("root", "pgrep", "-x", "storagectl|exe").code != 0
	})
	if r := w.must("status"); !strings.Contains(r.stdout, "(runbook vfs-to-overlay)") || !strings.Contains(r.stdout, "running, stopped") {
		t.Error(r)
	}
	r = w.must("resume")
	if n := len(w.runs()); n != runs+2 {
		t.Errorf("there are %d runs, want %d: a task was begun twice: %s", n, runs+2, r)
	}
	w.migrated(before)
	if r := w.must("history"); strings.Count(r.stdout, " finished ") != 2 {
		t.Error(r)
	}

	w.must("rollback")
	w.isOn("vfs", before)

	w.script("root", "rm /root/said")
	w.book("mine", `
[[task]]
id = "whoami"
run = "exec"
user = "hashi"
argv = ["sh", "-c", "id -un; echo $XDG_RUNTIME_DIR; podman info --format '{{.Store.GraphDriverName}}'"]
[hooks]
after-stop = [["sh", "-c", "echo $STORAGECTL_HOOK >>/root/said"]]
before-start = [["sh", "-c", "echo $STORAGECTL_HOOK >>/root/said"]]
`)
	r = w.must("runbook", "run", "mine", "--yes")
	if !strings.Contains(r.stderr, fmt.Sprintf("task whoami said: %s\n  | /run/user/2000\n  | overlay", lab.Owner)) {
		t.Error(r)
	}
	if said := w.script("root", "cat /root/said"); said != "after-stop\nbefore-start\n" {
		t.Errorf("the hooks said %q", said)
	}
	w.migrated(before)
	w.must("commit")
	w.migrated(before)
	if r := w.must("history"); strings.Count(r.stdout, " committed ") != 2 || w.leftovers("vfs*") != "" {
		t.Error(r)
	}
	if r := w.must(book...); !strings.Contains(r.stdout, "left out") {
		t.Error(r)
	}
	w.restarted()
	w.nightly()
}

// restarted runs restart-podman: another socket, and all in the store is as it was.
func (w *world) restarted() {
	w.t.Helper()
	socket := func() string {
		w.t.Helper()
		return w.script(w.user, "systemctl --user show --property=ActiveState,InvocationID podman.socket")
	}
	before, was := w.manifest(), socket()
	r := w.must("runbook", "run", "restart-podman", "--param", "user="+w.user, "--yes")
	if got := outcomes(r); got != "drain left out, restart-rootless done, restart-rootful left out, verify done, undrain left out" {
		w.t.Errorf("%s: %s", got, r)
	}
	if now := socket(); now == was || !strings.HasPrefix(now, "ActiveState=active\n") {
		w.t.Errorf("podman.socket: %q, before %q", now, was)
	}
	w.same("the store", before, w.manifest())
}

// nightly runs nightly-prune: what is young stays, and what is over goes.
func (w *world) nightly() {
	w.t.Helper()
	things := func() (names []string, containers string) {
		w.t.Helper()
		names = strings.Split(w.podman("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"), "\n")
		slices.Sort(names)
		return names, w.podman("ps", "-a", "--format", "{{.Names}} {{.State}}")
	}
	book := []string{"runbook", "run", "nightly-prune", "--param", "user=" + w.user, "--yes"}
	before := w.manifest()
	w.must(append(book, "--param", "older=3650d")...) // the node's store may have been made weeks ago
	w.same("the store after a night in which nothing was old", before, w.manifest())
	images, containers := things()
	r := w.must(append(book, "--param", "older=0")...)
	if got := outcomes(r); got != "prune done" {
		w.t.Errorf("%s: %s", got, r)
	}
	imagesNow, containersNow := things()
	named := slices.DeleteFunc(slices.Clone(images), func(line string) bool { return strings.HasPrefix(line, "<none>") })
	if !slices.Equal(imagesNow, named) || len(named) == len(images) {
		w.t.Errorf("there were the images %q, and are %q", images, imagesNow)
	}
	if !strings.Contains(containers, "stopped ") || containersNow != "" {
		w.t.Errorf("there were the containers\n%s\nand are\n%s", containers, containersNow)
	}
	w.must("verify", "--user", w.user)
}

// outcomes are what became of a runbook's tasks, as its result tells it.
func outcomes(r result) string {
	var all []string
	for line := range strings.Lines(r.stdout) {
		if f := regexp.MustCompile(`^  (\S+) +(done|left out|failed|taken as done) `).FindStringSubmatch(line); f != nil {
			all = append(all, f[1]+" "+f[2])
		}
	}
	return strings.Join(all, ", ")
}

// book writes a runbook that migrates the world's store, and more.
func (w *world) book(name, more string) {
	w.t.Helper()
	w.script("root", fmt.Sprintf(`mkdir -p /etc/storagectl/runbooks.d
cat >/etc/storagectl/runbooks.d/%[1]s.toml <<'END'
name = "%[1]s"
[[task]]
id = "to-overlay"
run = "migrate"
when = { driver = "vfs" }
args = { to = "overlay", user = "%[2]s" }
%[3]sEND
`, name, w.user, more))
}

// runs are the folders of the runs that have a journal.
func (w *world) runs() []string {
	w.t.Helper()
	found, err := filepath.Glob(w.node.HostPath(stateDir) + "/runs/*/journal")
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range found {
		found[i] = filepath.Dir(found[i])
	}
	return found
}

// eventually waits for what comes by itself.
func (w *world) eventually(what string, is func() bool) {
	w.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%s did not come", what)
		}
	}
}
