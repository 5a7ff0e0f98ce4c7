package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/integration/lab/nomad"
)

// on is the same cluster seen from another of its nodes.
func (w *nomadWorld) on(cl *nomad.Client) *nomadWorld {
	v := *w
	v.at, v.a = cl, &world{t: w.t, ctx: w.ctx, node: cl.Node, user: w.a.user}
	return &v
}

// hookScript is what an operator may hang on: it tells what it sees of the node
// and the store, and keeps it.
const hookScript = `#!/bin/sh
e=$(curl -sf %[1]s/v1/node/%[2]s | jq -r .SchedulingEligibility)
echo "$STORAGECTL_HOOK $1: $e" | tee -a /run/hooks >&2
env | grep -c NOMAD_ && echo "the token may be here" >>/run/hooks
exit 0
`

// TestNomadWork: hooks, work that is not Nomad's, and slots, on one cluster,
// one after the other.
func TestNomadWork(t *testing.T) {
	t.Parallel()
	w := newNomadWorld(t, nomad.Options{})
	a, b := w.Clients[0], w.Clients[1]
	other := w.on(b)
	admin, err := w.API("")
	if err != nil {
		t.Fatal(err)
	}
	w.a.script("root", fmt.Sprintf("cat >'/usr/local/bin/tell me' <<'EOF'\n"+hookScript+"EOF\nchmod 755 '/usr/local/bin/tell me'", a.Addr, a.ID))
	hooks := func() string { return w.a.script("root", "cat /run/hooks; rm -f /run/hooks") }
	tell := []string{"--hook-before", `'tell me' "pause it"`, "--hook-before", `["tell me", "twice"]`, "--hook-after", `"tell me" go\ on`}
	const busy = "podman run -d --name %[1]s --rm -v vol1:/v --label io.prefect.flow-run-id=1 --network=none localhost/lab/base:1 " +
		`/bin/busybox sh -c 'trap "echo term >/v/term; exit" TERM; while :; do sleep 0.2; done' </dev/null >/dev/null`
	untouched := func(v *nomadWorld) {
		t.Helper()
		if d := v.a.driver(); d != "vfs" {
			t.Errorf("podman is on %s", d)
		}
		if !v.eligible(v.at) {
			t.Error("the node was not given back")
		}
		if left := v.a.script("root", "ls -d "+v.a.graphroot()+"/.storagectl-* 2>/dev/null || true"); left != "" {
			t.Errorf("left in the store: %s", left)
		}
	}

	t.Run("a hook that fails", func(t *testing.T) {
		w := w.under(t)
		for how, args := range map[string][]string{
			"exited with 3":         {"--hook-before", `sh -c "echo 'no pool'; exit 3"`},
			"not end within 10s":    {"--hook-before", "sleep 60", "--hook-timeout", "10s"},
			"it exited with 127":    {"--hook-before", "/no/such/command"},
			"put it into a script":  {"--hook-before", "echo a | tee /run/x"},
			"a quote is not closed": {"--hook-before", "echo 'a"},
		} {
			r := w.ctl("", w.migrate(append(args, tell[4:]...)...)...)
			want := exitRefused
			if strings.Contains(how, "quote") || strings.Contains(how, "script") {
				want = exitUsage
			}
			if r.code != want || !strings.Contains(r.stderr, how) {
				t.Errorf("%v: want exit %d and %q: %s", args, want, how, r)
			}
			if n, err := w.Node(a); err != nil || n.LastDrain != nil {
				t.Errorf("%v: the node was drained: %v", args, err)
			}
			untouched(w)
		}
		if r := w.must("", "history", "--json"); strings.Count(r.stdout, "rolled-back") != 3 {
			t.Errorf("not three runs that were undone: %s", r)
		}
		// What the hook said is kept, and what it may have paused goes on.
		w.a.script("root", "grep -q 'sh said: no pool' /var/lib/storagectl/runs/*/journal")
		if got := hooks(); strings.Count(got, "rollback go on: eligible\n") != 3 || strings.Contains(got, "token") {
			t.Errorf("the hook after, on the way back: %s", got)
		}
	})

	t.Run("busy, refuse", func(t *testing.T) {
		w := w.under(t)
		w.a.script("hashi", fmt.Sprintf(busy, "task"))
		r := w.ctl("", w.migrate("--busy-label", "io.prefect.*", "--busy-deadline", "1s", "--busy-then", "refuse")...)
		if r.code != exitRefused || !strings.Contains(r.stderr, "still at work: task") {
			t.Errorf("want a refusal: %s", r)
		}
		if n, err := w.Node(a); err != nil || n.LastDrain == nil {
			t.Errorf("not drained before: %v", err)
		}
		untouched(w)
		if got := w.a.podman("ps", "--format", "{{.Names}} {{.Status}}"); !strings.HasPrefix(got, "task Up") {
			t.Errorf("the work was touched: %q", got)
		}
	})

	// The task still works, past every deadline: the first node is held by it.
	t.Run("one slot for two nodes", func(t *testing.T) {
		w := w.under(t)
		slot := []string{"--slots", "1"}
		first := w.background(w.migrate(append(append(slot, tell...), "--busy-label", "io.prefect.*", "--busy-deadline", "1s", "--busy-then", "wait")...)...)
		w.until(t, first, "wait-busy", "begun")
		began := time.Now()

		r := other.ctl("", other.migrate(append(slot, "--slot-wait", "10s")...)...)
		if r.code != exitRefused || !strings.Contains(r.stderr, "held by root@") {
			t.Errorf("the second node: %s", r)
		}
		untouched(other)
		second := other.background(other.migrate(append(slot, "--slot-wait", "3m")...)...)
		other.until(t, second, "slot", "begun")
		time.Sleep(time.Until(began.Add(5 * time.Second))) // five times the deadline
		if now := w.step("wait-busy"); now != "begun" {
			t.Errorf("the first node did not wait on: %s", now)
		}

		// Somebody takes the slot away from the first; the second gets it.
		var ref struct{ Path, Lock string }
		if err := json.Unmarshal([]byte(w.a.script("root", "cat /var/lib/storagectl/runs/*/slot.json")), &ref); err != nil {
			t.Fatal(err)
		}
		_, _, err := admin.Variables().ReleaseLock(&api.Variable{Namespace: "default", Path: ref.Path, Lock: &api.VariableLock{ID: ref.Lock}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r := <-second; r.code != exitDone {
			t.Errorf("the second node: %s", r)
		}
		if d := other.a.driver(); d != "overlay" || !other.eligible(b) {
			t.Errorf("the second node is on %s", d)
		}
		w.a.podman("rm", "-f", "-t", "0", "task")
		if r := <-first; r.code != exitFailed || !strings.Contains(r.stderr, "the maintenance slot is lost") {
			t.Errorf("went on without its slot: %s", r)
		}
		if now := w.step("stop"); now != "" {
			t.Errorf("went on to stop podman: %s", now)
		}
		if w.eligible(a) {
			t.Error("the node takes work, though the run is not over")
		}
		if r := w.must("", "status", "--cluster"); strings.Contains(r.stdout, "held by") {
			t.Errorf("a slot is held: %s", r)
		}
		w.must("", "resume")
		if d := w.a.driver(); d != "overlay" || !w.eligible(a) {
			t.Errorf("podman is on %s after the resume", d)
		}
		if got := hooks(); got != "before pause it: eligible\nbefore twice: eligible\nafter go on: eligible\n" {
			t.Errorf("hooks: %s", got)
		}
		w.must("", "rollback")
		untouched(w)
		if got := hooks(); got != "rollback pause it: eligible\nrollback twice: eligible\nrollback go on: eligible\n" {
			t.Errorf("hooks on the way back: %s", got)
		}
		if r := w.must("", "status", "--cluster"); strings.Contains(r.stdout, "held by") {
			t.Errorf("a slot is held: %s", r)
		}
	})

	t.Run("busy, stop", func(t *testing.T) {
		w := w.under(t)
		w.a.script("hashi", fmt.Sprintf(busy, "task"))
		w.must("", w.migrate("--busy-label", "io.prefect.flow-run-id=1", "--busy-deadline", "1s", "--busy-then", "stop", "--busy-grace", "20s")...)
		if d := w.a.driver(); d != "overlay" || !w.eligible(a) {
			t.Errorf("podman is on %s", d)
		}
		if got := strings.TrimSpace(w.a.script("hashi", inside+"inside -v vol1:/v localhost/lab/base:1 /bin/busybox cat /v/term")); got != "term" {
			t.Errorf("the work was not given its grace: %q", got)
		}
	})
}
