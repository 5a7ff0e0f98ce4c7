package integration

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/integration/lab/nomad"
)

// background starts storagectl as ctl does and returns its end.
func (w *nomadWorld) background(args ...string) <-chan result {
	done := make(chan result, 1)
	go func() {
		defer close(done) // also where ctl gave up: nobody may wait for ever
		done <- w.ctl("", args...)
	}()
	return done
}

// until waits for a step to have this mark in the latest run.
func (w *nomadWorld) until(t *testing.T, done <-chan result, step, mark string) {
	t.Helper()
	for end := time.Now().Add(4 * time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if w.step(step) == mark {
			return
		}
		select {
		case r := <-done:
			t.Fatalf("step %s was not %s at the end: %s", step, mark, r)
		default:
		}
	}
	t.Fatalf("step %s was not %s within four minutes", step, mark)
}

func (w *nomadWorld) step(name string) string {
	r := w.ctl("", "status", "--json")
	var m struct {
		Steps []struct{ Name, Mark string }
	}
	if r.code != exitDone || json.Unmarshal([]byte(r.stdout), &m) != nil {
		return ""
	}
	for _, s := range m.Steps {
		if s.Name == name {
			return s.Mark
		}
	}
	return ""
}

// TestNomadBadDays on one cluster, one after the other.
func TestNomadBadDays(t *testing.T) {
	t.Parallel()
	w := newNomadWorld(t, nomad.Options{})
	a := w.Clients[0]
	admin, err := w.API("")
	if err != nil {
		t.Fatal(err)
	}
	web := nomad.ServiceJob("web", "localhost/lab/base:1", 2)
	if err := w.RunJob(w.ctx, web, 2); err != nil {
		t.Fatal(err)
	}

	t.Run("off", func(t *testing.T) {
		w := w.under(t)
		// Without a drain Nomad's containers are in the way like any other.
		r := w.ctl("", w.migrate("--nomad", "off", "--containers", "refuse", "--dry-run")...)
		if r.code != exitRefused || !strings.Contains(r.stderr, "holds containers") {
			t.Errorf("--nomad off: %s", r)
		}
		if r := w.ctl("", w.migrate("--nomad", "http://10.77.0.99:4646", "--dry-run")...); r.code != exitRefused {
			t.Errorf("an address where nobody is: %s", r)
		}
	})

	t.Run("not a word of it", func(t *testing.T) {
		w := w.under(t)
		refused := func(id, has string) {
			t.Helper()
			r := w.ctl("", w.migrate("--json")...)
			if r.code != exitRefused || !strings.Contains(r.stdout+r.stderr, `"`+id+`"`) || !strings.Contains(r.stdout+r.stderr, has) {
				t.Errorf("not refused as %s: %s", id, r)
			}
			if n, err := w.Node(a); err != nil || n.LastDrain != nil {
				t.Errorf("the node was drained: %v", err)
			}
		}
		// A container that looks like Nomad's, and is not.
		const mine = "mine-11111111-2222-3333-4444-555555555555"
		w.a.script("hashi", "podman create --name "+mine+" --network=none localhost/lab/base:1 /bin/busybox true")
		refused("nomad-leftover", "podman rm -f "+mine)
		w.a.podman("rm", mine)
		// A process that is called like a client of Nomad, and is none of the nodes.
		pid := strings.TrimSpace(w.a.script("root", `cd /run && echo 'while sleep 0.2; do :; done' >agent
setsid bash -c 'exec -a nomad sh agent' </dev/null >/dev/null 2>&1 & p=$!
until tr '\0' ' ' </proc/$p/cmdline | grep -q '^nomad agent'; do sleep 0.05; done; echo $p`))
		refused("nomad-node", "2 processes")
		w.a.script("root", "kill "+pid)
	})

	t.Run("what doctor sees", func(t *testing.T) {
		w := w.under(t)
		sees := func(env, outcome, saw, mend string) {
			t.Helper()
			argv := append([]string{"env"}, w.Env(w.at, "")...)
			argv = append(argv, env, "storagectl", "doctor", "--json", "--user", "hashi", "--check", "nomad")
			r, all := w.a.diagnoses(w.a.exec("root", argv...))
			if d := all["nomad"]; d.Outcome != outcome || !strings.Contains(d.Saw, saw) || !strings.Contains(strings.Join(d.Mend, " "), mend) {
				t.Errorf("want %s, %q and %q: %s", outcome, saw, mend, r)
			}
		}
		sees("A=", "ok", "eligible, driver healthy", "")
		if _, err := admin.Nodes().ToggleEligibility(a.ID, false, nil); err != nil {
			t.Fatal(err)
		}
		sees("A=", "warning", "is not eligible for work", "nomad node eligibility -enable "+a.ID)
		if _, err := admin.Nodes().ToggleEligibility(a.ID, true, nil); err != nil {
			t.Fatal(err)
		}
		sees("NOMAD_ADDR=http://127.0.0.1:9", "problem", "", "")
	})

	t.Run("drain and undrain by hand", func(t *testing.T) {
		w := w.under(t)
		w.must("", "drain", "--user", "hashi", "--reason", "by hand")
		if w.eligible(a) {
			t.Error("drained, and eligible")
		}
		if left := w.a.podman("ps", "-aq"); left != "" {
			t.Errorf("containers left: %s", left)
		}
		w.must("", "undrain")
		if !w.eligible(a) {
			t.Error("not given back")
		}
		if r := w.ctl("", "undrain"); r.code != exitRefused {
			t.Errorf("a second undrain: %s", r)
		}
	})

	t.Run("drained for somebody else", func(t *testing.T) {
		w := w.under(t)
		slow := nomad.ServiceJob("slow", "localhost/lab/base:1", 1).Constrain(api.NewConstraint("${node.unique.id}", "=", a.ID))
		slow.TaskGroups[0].Tasks[0].KillTimeout = new(20 * time.Second)
		slow.TaskGroups[0].Tasks[0].Config["args"] = []string{"sh", "-c", "trap '' TERM INT; while :; do sleep 1; done"}
		if err := w.RunJob(w.ctx, slow, 1); err != nil {
			t.Fatal(err)
		}
		_, err := admin.Nodes().UpdateDrainOpts(a.ID, &api.DrainOptions{DrainSpec: &api.DrainSpec{Deadline: time.Hour}, Meta: map[string]string{"why": "kernel"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := w.ctl("", w.migrate()...)
		if r.code != exitRefused || !strings.Contains(r.stderr, "why=kernel") {
			t.Errorf("drained for somebody else: %s", r)
		}
		_, _, err = admin.Jobs().Deregister("slow", false, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := admin.Nodes().UpdateDrain(a.ID, nil, true, nil); err != nil {
			t.Fatal(err)
		}
		w.empty("slow")
	})

	// A container at work holds the run between the drain and the stop.
	const gate = "podman run -d --name gate --rm --label io.prefect.flow-run-id=1 --network=none localhost/lab/base:1 /bin/busybox sleep 1000"
	gated := w.migrate("--busy-label", "io.prefect.*", "--busy-deadline", "2m", "--slots", "1")

	t.Run("eligible again by another hand", func(t *testing.T) {
		w := w.under(t)
		w.a.script("hashi", gate+" </dev/null >/dev/null")
		done := w.background(gated...)
		w.until(t, done, "wait-busy", "begun")
		if _, err := admin.Nodes().ToggleEligibility(a.ID, true, nil); err != nil {
			t.Fatal(err)
		}
		w.a.podman("rm", "-f", "-t", "0", "gate")
		r := <-done
		if r.code == exitDone || !strings.Contains(r.stderr, "made eligible again by another hand") {
			t.Errorf("went on: %s", r)
		}
		// Seen before podman was stopped: the run is taken back by itself.
		if got := w.step("swap"); got == "done" {
			t.Error("the stores changed places")
		}
		if !strings.Contains(r.stderr, "all is as it was before") {
			t.Errorf("it does not say how things are: %s", r)
		}
		if r := w.must("", "status", "--cluster"); strings.Contains(r.stdout, "held by") {
			t.Errorf("the slot was not given back: %s", r)
		}
		if d := w.a.driver(); d != "vfs" {
			t.Errorf("podman is on %s", d)
		}
		if !w.eligible(a) {
			t.Error("not eligible after the rollback")
		}
	})

	t.Run("killed in the middle", func(t *testing.T) {
		w := w.under(t)
		w.a.script("hashi", gate+" </dev/null >/dev/null")
		done := w.background(append(slices.Clone(gated), "--docker-api")...)
		w.until(t, done, "wait-busy", "begun")
		w.a.script("root", "pkill -KILL -x storagectl; echo nameserver 127.0.0.1 >/etc/resolv.conf; "+breakNetwork)
		if r := <-done; r.code == exitDone {
			t.Fatalf("not killed: %s", r)
		}
		if w.eligible(a) {
			t.Error("the node takes work, though the run is not over")
		}
		if r := w.must("", "status"); !strings.Contains(r.stdout, "held ") {
			t.Errorf("status does not say that the node is held: %s", r)
		}
		if r := w.must("", "status", "--cluster"); !strings.Contains(r.stdout, "held by") {
			t.Errorf("the slot of a run that was just killed: %s", r)
		}
		w.a.podman("rm", "-f", "-t", "0", "gate")
		// The servers go away and come back while it goes on.
		w.StopServer(0)
		time.AfterFunc(5*time.Second, func() {
			if err := w.StartServer(w.ctx, 0); err != nil {
				t.Error(err)
			}
		})
		// No work for a node whose socket does not serve a Docker client.
		if r := w.ctl("", "resume"); r.code != exitUnverified || !strings.Contains(r.stderr, "does not serve a client: start") {
			t.Errorf("want exit %d: %s", exitUnverified, r)
		}
		if d := w.a.driver(); d != "overlay" {
			t.Errorf("podman is on %s", d)
		}
		if w.eligible(a) {
			t.Error("the node takes work, though its socket serves no Docker client")
		}
		if r := w.must("", "status"); !strings.Contains(r.stdout, "held ") {
			t.Errorf("status does not say that the node is held: %s", r)
		}
		w.a.script("root", healNetwork)
		w.must("", "resume")
		if !w.eligible(a) {
			t.Error("not given back")
		}
		if r := w.must("", "status", "--cluster"); strings.Contains(r.stdout, "held by") {
			t.Errorf("the slot was not given back: %s", r)
		}
	})
}

// empty waits until no allocation of a job runs.
func (w *nomadWorld) empty(job string) {
	w.t.Helper()
	for end := time.Now().Add(4 * time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		allocs, err := w.Allocs(job)
		alive := err != nil
		for _, a := range allocs {
			alive = alive || a.ClientStatus == api.AllocClientStatusRunning
		}
		for _, a := range allocs {
			alive = alive || strings.Contains(w.a.podman("ps", "-a", "--format", "{{.Names}}"), a.ID)
		}
		if !alive {
			return
		}
	}
	w.t.Fatalf("job %s does not end", job)
}

// TestNomadPodmanDown: podman's API is gone before the drain's deadline, and the
// containers run on. Nomad cannot stop them, and calls the drain complete all the
// same; the run must never go on.
func TestNomadPodmanDown(t *testing.T) {
	t.Parallel()
	w := newNomadWorld(t, nomad.Options{})
	if err := w.RunJob(w.ctx, nomad.ServiceJob("web", "localhost/lab/base:1", 2), 2); err != nil {
		t.Fatal(err)
	}
	// The process of the container, whatever podman or Nomad say.
	alive := func() string { return strings.TrimSpace(w.a.script("root", "pgrep -f 'sleep 100000' || true")) }
	before := alive()
	// Killed, and with its child, which is the one that serves and lives in a scope
	// of its own. Masked first, so that the socket does not start it again.
	const noAPI = `systemctl --user mask --runtime --quiet podman.socket podman.service
pkill -KILL -f '[p]odman.* system service' || true
systemctl --user stop --quiet podman.socket podman.service
! curl -s --max-time 5 --unix-socket $XDG_RUNTIME_DIR/podman/podman.sock http://d/_ping`
	w.a.script("hashi", noAPI)
	if before == "" || alive() != before {
		t.Fatalf("the container ended with podman's API: it was %q and is %q", before, alive())
	}
	b := w.on(w.Clients[1])
	b.a.script("hashi", noAPI) // seen by Nomad, and by doctor, below
	for _, args := range [][]string{
		{"migrate", "--to", "overlay", "--user", "hashi", "--yes"},
		{"drain", "--user", "hashi"},
	} {
		r := w.ctl("", append(args, "--drain-deadline", "3s", "--drain-grace", "12s")...)
		n, err := w.Node(w.Clients[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: Nomad said %s; we said: %s", args[0], n.LastDrain.Status, r.stderr)
		if n.LastDrain.Status != api.DrainStatusComplete || n.LastDrain.Meta["storagectl.run"] == "" {
			t.Errorf("%s: Nomad does not call our drain complete: the test shows nothing", args[0])
		}
		if r.code != exitFailed || !strings.Contains(r.stderr, "containers of Nomad are left") {
			t.Errorf("%s went on: %s", args[0], r)
		}
		if s := w.must("", "status"); !strings.Contains(s.stdout, "held ") || !strings.Contains(s.stdout, "containers of Nomad are left") {
			t.Errorf("status does not say why the node is held: %s", s)
		}
		if alive() != before {
			t.Errorf("%s: the container is gone: the test shows nothing", args[0])
		}
		if n.SchedulingEligibility != api.NodeSchedulingIneligible {
			t.Errorf("%s: the node takes work", args[0])
		}
	}

	// Doctor says of the other node what Nomad does, once that has noticed.
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Second) {
		r, d := b.doctorNomad("")
		if d.Outcome == "problem" && strings.Contains(d.Saw, "the driver podman is not healthy") && strings.Contains(strings.Join(d.Mend, ""), "podman.socket") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("an unhealthy driver: %s", r)
		}
	}
	b.a.script("hashi", "systemctl --user unmask --runtime --quiet podman.socket podman.service; systemctl --user start podman.socket")

	// On the other node the client is gone, and podman is well: nobody could drain
	// it, and it may be back at any moment.
	b.a.script("root", "systemctl stop --no-block nomad && systemctl kill --kill-whom=main --signal=KILL nomad")
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Second) {
		if n, err := w.Node(b.at); err == nil && n.Status == api.NodeStatusDown {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the node of a client that is gone is not down")
		}
	}
	for _, cmd := range []string{"migrate --to overlay --yes", "drain"} {
		r := b.a.exec("root", "sh", "-c", "NOMAD_ADDR=http://10.77.0.1:4646 storagectl --json "+cmd+" --user hashi")
		if r.code != exitRefused || !strings.Contains(r.stdout+r.stderr, `"nomad-node"`) {
			t.Errorf("%s on a node that is down: %s", cmd, r)
		}
	}
	if d := b.a.driver(); d != "vfs" {
		t.Errorf("podman is on %s", d)
	}
}
