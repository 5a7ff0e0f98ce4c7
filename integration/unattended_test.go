package integration

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
	"github.com/storagectl/storagectl/integration/lab/nomad"
)

// byJob are the runs of the node's state directory as history tells them, by job.
func (w *world) byJob() map[string][]string {
	w.t.Helper()
	runs := map[string][]string{}
	for line := range strings.Lines(w.must("history", "--json").stdout) {
		var m struct {
			Type string `json:"message_type"`
			Job  string `json:"job"`
			Run  string `json:"run"`
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			w.t.Fatalf("%v: %s", err, line)
		}
		if m.Type == "run" {
			runs[m.Job] = append(runs[m.Job], m.Run)
		}
	}
	return runs
}

// until waits for something to be so; what it last saw is told if it never is.
func (w *world) until(what string, limit time.Duration, so func() (bool, string)) {
	w.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		ok, seen := so()
		if ok {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("not within %s: %s\n%s\n%s", limit, what, seen, w.script("root", "journalctl --no-pager -o short-monotonic -t storagectl | tail -60"))
		}
	}
}

// service waits until a service of ours has come to its end, and tells which.
func (w *world) service(unit string) string {
	w.t.Helper()
	ask := func(property string) string {
		return strings.TrimSpace(w.script("root", "systemctl show -P "+property+" "+unit))
	}
	w.until(unit+" has ended", 5*time.Minute, func() (bool, string) {
		now := ask("ActiveState")
		return (now == "inactive" || now == "failed") && ask("ExecMainStartTimestamp") != "", now
	})
	return ask("ActiveState") + " " + ask("Result") + " " + ask("ExecMainStatus")
}

// cutPower cuts the node's power once a journal of its runs has this text in it, and
// turns it on again.
func (w *world) cutPower(job, text string) {
	w.t.Helper()
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(2 * time.Millisecond) {
		found, _ := filepath.Glob(w.node.HostPath(stateDir) + "/runs/*-" + job + "-*/journal")
		if slices.ContainsFunc(found, func(path string) bool {
			b, err := os.ReadFile(path)
			return err == nil && strings.Contains(string(b), text)
		}) {
			break
		}
		if time.Now().After(end) {
			w.t.Fatalf("no journal of a %s has %s\n%s", job, text, w.script("root", "journalctl --no-pager -t storagectl | tail -60"))
		}
	}
	if err := w.node.Kill(w.ctx); err != nil {
		w.t.Fatal(err)
	}
	if err := w.node.Start(w.ctx); err != nil {
		w.t.Fatal(err)
	}
}

// install installs vfs-to-overlay in a window that opens soon.
func (w *world) install(more ...string) {
	w.t.Helper()
	now := time.Now().UTC()
	opens := now.Truncate(time.Minute).Add(time.Minute)
	if opens.Sub(now) < 30*time.Second { // it has to be installed by then
		opens = opens.Add(time.Minute)
	}
	args := append([]string{"runbook", "install", "vfs-to-overlay", "--param", "user=" + lab.Owner,
		"--window", "daily " + opens.Format("15:04") + " 2h UTC", "--delay", "0s"}, more...)
	if r := w.must(args...); !strings.Contains(r.stdout, opens.Format("2006-01-02 15:04")) {
		w.t.Errorf("it does not say when it runs: %s", r)
	}
}

// unattendedNomad is the same on a node of Nomad's, which is drained for it: it takes
// work again, and the service on the other node was never down.
func unattendedNomad(t *testing.T) {
	w := newNomadWorld(t, nomad.Options{})
	web := nomad.ServiceJob("web", "localhost/lab/base:1", 2).Constrain(&api.Constraint{Operand: api.ConstraintDistinctHosts})
	if err := w.RunJob(w.ctx, web, 2); err != nil {
		t.Fatal(err)
	}
	low := w.least("web")
	w.a.script("root", "umask 077; mkdir -p -m 755 /etc/storagectl; cat >/etc/storagectl/environment <<'EOF'\n"+strings.Join(w.Env(w.at, ""), "\n")+"\nEOF")
	w.a.install("--param", "drain_deadline=1m")
	w.a.cutPower("migrate", `"kind":"done","step":"stop"`)
	if end := w.a.service("storagectl-resume.service"); end != "inactive success 0" {
		t.Errorf("storagectl-resume.service ended %s", end)
	}
	w.settled("overlay")
	if n := low(); n < 1 {
		t.Errorf("the service dropped to %d", n)
	}
}

// units are the files of the system's manager. It removes a folder that became empty
// itself.
func (w *world) units() inventory {
	w.t.Helper()
	inv := w.tree("/etc/systemd/system")
	maps.DeleteFunc(inv, func(_, text string) bool { return strings.HasPrefix(text, "dir ") })
	return inv
}

// TestUnattended: an installed runbook runs when its window opens, loses power while
// podman is stopped for it, and goes on at boot, all by itself. So it does when its timer
// was missed, and when systemd's watchdog has killed it. STORAGECTL_SWEEP=full: also on a
// node of Nomad's.
func TestUnattended(t *testing.T) {
	t.Parallel()
	if os.Getenv("STORAGECTL_SWEEP") == "full" {
		t.Run("nomad", unattendedNomad)
	}
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	before, units := w.manifest(), w.units()
	w.install()
	w.script("root", `cd /etc/systemd/system; out=$(systemd-analyze verify storagectl-* 2>&1 | grep storagectl || true); test -z "$out" || { echo "$out" >&2; exit 1; }
test "$(systemctl is-enabled storagectl-resume.service storagectl-runbook-vfs-to-overlay.timer)" = "enabled
enabled"`)
	installed := w.units()
	w.refused("other-state-dir", "runbook", "install", "--resume-only", "--state-dir", "/var/lib/other")
	w.refused("other-state-dir", "runbook", "install", "vfs-to-overlay", "--as", "other", "--param", "user="+w.user, "--window", "sat 02:00 1h", "--state-dir", "/var/lib/other")
	w.same("the units", installed, w.units())

	w.cutPower("migrate", `"kind":"done","step":"stop"`)
	if end := w.service("storagectl-resume.service"); end != "inactive success 0" {
		t.Errorf("storagectl-resume.service ended %s", end)
	}
	w.migrated(before)
	if runs := w.byJob(); len(runs["runbook"]) != 1 || len(runs["migrate"]) != 1 {
		t.Errorf("there are the runs %v", runs)
	}
	if r := w.must("status", "1"); !strings.Contains(r.stdout, "finished") && !strings.Contains(r.stdout, "committed") {
		t.Errorf("the run of the runbook is not over: %s", r)
	}
	w.must("history", "--verify")
	if page := w.must("report", "2", "--format", "md").stdout; !strings.Contains(page, "localhost/lab/base:1") {
		t.Errorf("the report is %s", page)
	}
	if m := w.must("metrics").stdout; !strings.Contains(m, `storagectl_store_info{driver="overlay"`) {
		t.Errorf("the metrics are %s", m)
	}
	// Another boot has nothing to do.
	if r := w.must("resume", "--boot"); !strings.Contains(r.stdout, "nothing") {
		t.Error(r)
	}
	w.missed(before)
	w.ahead(before)
	w.hung(before)
	w.must("runbook", "remove", "vfs-to-overlay")
	w.same("what systemd knows", units, w.units())
	if left := w.tree("/etc/storagectl/installed"); len(left) > 1 {
		t.Errorf("left: %v", left)
	}
}

// bookUnit is the service of an installed runbook.
func bookUnit(name string) string { return "storagectl-runbook-" + name + ".service" }

// opening installs a runbook in a window that opens in so long every day, or has opened,
// for three hours. Its timer ran two days ago, as far as systemd knows.
func (w *world) opening(name string, in time.Duration, more ...string) {
	w.t.Helper()
	w.must(append([]string{"runbook", "install", name, "--delay", "0s",
		"--window", "daily " + time.Now().UTC().Add(in).Format("15:04") + " 3h UTC"}, more...)...)
	w.script("root", "cd /var/lib/systemd/timers; touch -d '2 days ago' stamp-storagectl-runbook-"+name+".timer; sync -f .")
}

// missed: the timer elapsed while the machine was off, and the window is over. After the
// boot the run stages, and leaves podman alone.
func (w *world) missed(before inventory) {
	w.t.Helper()
	w.must("rollback")
	w.opening("vfs-to-overlay", -12*time.Hour, "--param", "user="+w.user)
	// The user's manager is late.
	w.script("root", `mkdir -p /etc/systemd/system/user@2000.service.d
printf '[Service]\nExecStartPre=+/bin/sleep 4\n' >/etc/systemd/system/user@2000.service.d/late.conf
sync -f /etc/systemd/system; sync -f `+w.graphroot())
	w.powerCut()
	w.script("root", "rm -r /etc/systemd/system/user@2000.service.d; systemctl daemon-reload")
	if end := w.service(bookUnit("vfs-to-overlay")); end != "inactive success 5" {
		w.t.Errorf("the service ended %s: %s", end, w.script("root", "journalctl --no-pager -o short-monotonic -b -t storagectl | tail -60"))
	}
	if w.leftovers(".storagectl-*") == "" {
		w.t.Error("nothing is staged")
	}
	w.isOn("vfs", before)
	w.must("rollback")
}

// ahead: what is installed to begin before its window stages, and waits for the window
// with podman up. It can be stopped meanwhile.
func (w *world) ahead(before inventory) {
	w.t.Helper()
	w.opening("vfs-to-overlay", 20*time.Hour, "--param", "user="+w.user, "--stage-before", "24h")
	w.script("root", "systemctl restart storagectl-runbook-vfs-to-overlay.timer")
	w.eventually("a run that waits for its window", func() bool {
		is := w.runs()
		b, _ := os.ReadFile(filepath.Join(is[len(is)-1], "journal"))
		return strings.Contains(string(b), "waiting for the maintenance window, which opens at ")
	})
	w.isOn("vfs", before)
	if r := w.ctl("runbook", "remove", "vfs-to-overlay"); r.code != exitRefused || !strings.Contains(r.stderr, "it is at work now") {
		w.t.Errorf("while it waits: %s", r)
	}
	w.script("root", "systemctl stop "+bookUnit("vfs-to-overlay"))
	if r := w.must("status"); !strings.Contains(r.stdout, "running, stopped") {
		w.t.Error(r)
	}
	w.must("rollback")
	w.isOn("vfs", before)
}

// hung: the run falls silent while podman is stopped for it, and so does the command of
// its task. systemd's watchdog kills it, and it is gone on with at once.
func (w *world) hung(before inventory) {
	w.t.Helper()
	w.book("hangs", `
[hooks]
after-stop = [["sh", "-c", "test -e /root/hung || { touch /root/hung; pkill -STOP -x exe; pkill -STOP -x storagectl; }"]]
`)
	w.opening("hangs", -time.Hour)
	runs, unit := len(w.runs()), bookUnit("hangs")
	w.script("root", `mkdir -p /run/systemd/system/`+unit+`.d
printf '[Service]\nWatchdogSec=10s\nRestartSec=1s\n' >/run/systemd/system/`+unit+`.d/soon.conf
systemctl daemon-reload
systemctl start --no-block `+unit)
	w.until("the watchdog has it begin again", 5*time.Minute, func() (bool, string) {
		n := strings.TrimSpace(w.script("root", "systemctl show -P NRestarts "+unit))
		return n == "1", n
	})
	if end := w.service(unit); end != "inactive success 0" {
		w.t.Errorf("%s ended %s", unit, end)
	}
	if out := w.script("root", "journalctl --no-pager -u "+unit); !strings.Contains(out, "Watchdog timeout") || !strings.Contains(out, "of this runbook is not over: it is gone on with") {
		w.t.Error(out)
	}
	w.migrated(before)
	if n := len(w.runs()); n != runs+2 {
		w.t.Errorf("there are %d runs, want %d", n, runs+2)
	}
	w.must("runbook", "remove", "hangs")
}
