package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
	"github.com/storagectl/storagectl/integration/lab/nomad"
)

// pruned is what prune ends with.
type pruned struct {
	Applied   bool           `json:"applied"`
	Estimated int64          `json:"estimated_bytes"`
	Freed     int64          `json:"freed_bytes"`
	Removed   map[string]int `json:"removed"`
	Things    []struct {
		Kind, ID, Name, Verdict, Why string
		Bytes                        int64
	}
}

func (w *world) prune(args ...string) pruned {
	w.t.Helper()
	out := w.must(append([]string{"prune", "--user", w.user, "--json"}, args...)...).stdout
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var p pruned
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &p); err != nil || !strings.Contains(out, `"message_type":"prune"`) {
		w.t.Fatalf("%v: %s", err, out)
	}
	return p
}

// verdict tells what is, or was, done with a thing of this name.
func (p pruned) verdict(name string) string {
	for _, t := range p.Things {
		if t.Name == name || strings.HasPrefix(t.Name, name+", ") {
			return t.Kind + " " + t.Verdict
		}
	}
	return ""
}

// TestPrune: what goes is what nobody needs, by podman's own hand; all else is as it was,
// file by file, and runs on. STORAGECTL_MATRIX=full: on trixie, too; and on stores of every
// release and owner, on overlay, too, it is killed again and again.
func TestPrune(t *testing.T) {
	releases := []string{"bookworm"}
	if os.Getenv("STORAGECTL_MATRIX") == "full" {
		releases = []string{"bookworm", "trixie"}
		for _, c := range []struct {
			release, user string
			kind          images.Kind
		}{
			{"bullseye", lab.Owner, images.Small}, {"bullseye", "root", images.Small},
			{"bookworm", lab.Owner, images.Native}, {"bookworm", "root", images.Native}, {"bookworm", "root", images.Small},
			{"forky", lab.Owner, images.Small}, {"forky", "root", images.Small},
		} {
			t.Run(fmt.Sprintf("killed/%s/%s/%s", c.release, c.user, c.kind), func(t *testing.T) {
				t.Parallel()
				newWorld(t, c.release, c.user, c.kind).testPruneKilled()
			})
		}
	}
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			newWorld(t, release, lab.Owner, images.Containers).testPrune()
		})
	}
}

func (w *world) testPrune() {
	t := w.t
	w.script(w.user, `
podman run -d --name alive --network=none localhost/lab/base:1 /bin/busybox sleep 100000 >/dev/null
podman volume create >/dev/null
mkdir -p ~/.config/systemd/user
printf '[Service]\nExecStart=/usr/bin/podman run --rm \\\n  localhost/lab/oci:1 true\n' >~/.config/systemd/user/nightly.service`)
	anonymous := w.podman("volume", "ls", "-q", "--filter", "dangling=true")
	anonymous = strings.TrimSpace(strings.NewReplacer("vol1", "", "vol2", "").Replace(anonymous))

	rules := []string{"--older", "0", "--containers", "--external", "--build-cache", "--images", "unused", "--volumes", "anonymous", "--keep", "built"}
	before := w.untouched()
	shown := w.prune(rules...)
	w.same("the machine after a look", before, w.untouched())
	for name, want := range map[string]string{
		"alive": "container keep", "stopped": "container remove", "tricky-working-container": "external remove",
		"localhost/lab/base:1": "image keep", "localhost/lab/oci:1": "image keep", "localhost/lab/built:1": "image keep",
		"localhost/lab/tricky:1": "image remove", "localhost/lab/squashed:1": "image remove", "localhost/lab/list:1": "image keep",
		"vol1": "volume keep", "vol2": "volume keep", anonymous: "volume remove",
	} {
		if got := shown.verdict(name); got != want {
			t.Errorf("%s: %s, not %s", name, got, want)
		}
	}

	size := func() int64 {
		var n int64
		if _, err := fmt.Sscan(w.script("root", "du -s --block-size=1 "+w.graphroot()), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	had := size()
	did := w.prune(append(rules, "--apply", "--yes")...)
	chosen := map[string]bool{}
	for _, s := range shown.Things {
		chosen[s.ID] = s.Verdict == "remove"
	}
	for _, d := range did.Things {
		if want := map[bool]string{true: "removed", false: "keep"}[chosen[d.ID]]; d.Verdict != want {
			t.Errorf("%s %s (%s): %s, not %s: %s", d.Kind, d.ID, d.Name, d.Verdict, want, d.Why)
		}
	}
	if did.Removed["image"] < 8 || did.Removed["container"] != 1 || did.Removed["external"] != 1 || did.Removed["volume"] != 1 {
		t.Errorf("%+v", did.Removed)
	}
	// It is an estimate: files are rounded to blocks, and have holes.
	if gone := had - size(); did.Freed != did.Estimated || gone < did.Freed/4 || gone > did.Freed*4 {
		t.Errorf("estimated %d, freed %d by the records, and %d on disk", did.Estimated, did.Freed, gone)
	} else {
		t.Logf("estimated %d, and %d on disk", did.Estimated, gone)
	}

	// Nothing that is still there has changed, but for the lists of what there is.
	after := w.store()
	for path, was := range before {
		now, there := after[path]
		switch filepath.Base(path) {
		case "images.json", "layers.json", "containers.json", "volatile-containers.json", "volatile-layers.json":
			continue
		}
		if there && now != was {
			t.Errorf("%s was %s and is %s", path, was, now)
		}
	}
	if out := w.podman("ps", "-a", "--external", "--format", "{{.Names}}") + " " + w.podman("inspect", "--format", "{{.State.Status}}", "alive"); out != "alive running" {
		t.Errorf("containers: %s", out)
	}
	if out := strings.Fields(w.podman("volume", "ls", "-q")); !slices.Equal(out, []string{"vol1", "vol2"}) {
		t.Errorf("volumes: %v", out)
	}
	names := w.podman("images", "--format", "{{.Repository}}:{{.Tag}}")
	for _, n := range []string{"base", "oci", "built", "list"} {
		if !strings.Contains(names, "localhost/lab/"+n+":1") {
			t.Errorf("%s is gone: %s", n, names)
		}
	}
	if n := strings.Count(names, "\n") + 1; n != 4 {
		t.Errorf("images: %s", names)
	}
	w.must("verify", "--user", w.user, "--read-data")

	if again := w.prune(append(rules, "--apply", "--yes")...); len(again.Removed) != 0 {
		t.Errorf("a second time: %+v", again.Removed)
	}
	// Who holds the store is told.
	locks := w.script("root", "echo /var/lib/storagectl/locks/*")
	args := append([]string{"flock", strings.TrimSpace(locks), "storagectl", "prune", "--user", w.user, "--apply", "--yes"}, rules...)
	if r := w.exec("root", args...); r.code != exitHeld || !strings.Contains(r.stderr, "hint: ") {
		t.Errorf("while the store is held: %s", r)
	}
	if out := w.script("root", "cat /var/lib/storagectl/prune/*.json"); !strings.Contains(out, fmt.Sprintf(`"owner":%q`, w.user)) {
		t.Errorf("kept for metrics: %s", out)
	}
	if out := w.script("root", "cat /var/lib/storagectl/audit.jsonl"); strings.Count(out, `"event":"prune"`) != 2 || !strings.Contains(out, `"name":"stopped"`) {
		t.Errorf("the audit: %s", out)
	}
	w.must("history", "--verify")
}

// testPruneKilled kills prune at one point after the other, also between two removals and
// between the names of one image: the store is whole each time, and the next one goes on.
func (w *world) testPruneKilled() {
	t := w.t
	w.script(w.user, `podman run -d --name alive --network=none localhost/lab/base:1 /bin/busybox sleep 100000 >/dev/null
podman create --name stopped --network=none localhost/lab/oci:1 true >/dev/null
for i in 1 2 3; do podman commit -q --change ENV=n=$i stopped localhost/lab/more$i:1 >/dev/null; podman tag localhost/lab/more$i:1 localhost/lab/again$i:1; done`)
	rules := []string{"--older", "0", "--containers", "--external", "--images", "unused"}
	todo := func() int {
		n := 0
		for _, thing := range w.prune(rules...).Things {
			if thing.Verdict == "remove" {
				n++
			}
		}
		return n
	}
	alive := func() string {
		return w.podman("inspect", "--format", "{{.State.Status}} {{.State.Pid}}", "alive")
	}
	driver, was, left := w.driver(), alive(), todo()
	if left < 7 {
		t.Fatalf("there are but %d things to remove", left)
	}
	args := append([]string{"prune", "--user", w.user, "--apply", "--yes"}, rules...)
	kills, between := 0, 0
	for at := 1; ; at += 2 {
		hit, r := w.killed(at, args...)
		if !hit && r.code != exitDone {
			t.Fatalf("after %d kills: %s", kills, r)
		}
		now := todo()
		if now > left {
			t.Fatalf("killed at point %d: there are %d things to remove, and were %d", at, now, left)
		}
		if out := w.podman("ps", "-a", "--format", "{{.Names}}") + w.podman("images", "-a", "-q"); !strings.Contains(out, "alive") || alive() != was {
			t.Fatalf("killed at point %d: %s; %s, was %s", at, out, alive(), was)
		}
		w.must("verify", "--user", w.user)
		if !hit {
			break
		}
		if kills++; now < left && now > 0 {
			between++
		}
		left = now
	}
	if between < 3 {
		t.Errorf("of %d kills %d were between removals", kills, between)
	}
	t.Logf("%d kills, %d of them after a removal", kills, between)
	if out := w.podman("images", "-a", "--format", "{{.Repository}}:{{.Tag}}"); out != "localhost/lab/base:1" {
		t.Errorf("images: %s", out)
	}
	if out := w.podman("ps", "-a", "--format", "{{.Names}}") + " " + w.podman("volume", "ls", "-q") + " " + w.driver(); out != "alive vol1 "+driver {
		t.Errorf("containers, volumes and driver: %s", out)
	}
	if out := w.podman("exec", "alive", "/bin/busybox", "echo", "on"); out != "on" {
		t.Errorf("in the container: %s", out)
	}
	w.must("history", "--verify")
}

// prunable: with Nomad's jobs in sight prune keeps the image of one that has nothing here;
// without, it says which rights that takes, and these are enough.
func (w *nomadWorld) prunable(poor string) {
	w.t.Helper()
	if err := w.RunJob(w.ctx, nomad.ServiceJob("idle", "localhost/lab/oci:1", 0), 0); err != nil {
		w.t.Fatal(err)
	}
	args := []string{"prune", "--user", lab.Owner, "--images", "unused", "--older", "0"}
	r := w.ctl(poor, args...)
	if r.code != exitRefused || !strings.Contains(r.stderr, "list-jobs") {
		w.t.Fatalf("without list-jobs: %s", r)
	}
	_, policy, _ := strings.Cut(r.stderr, "to the token:\n")
	reader, err := w.TokenFor("reader", policy)
	if err != nil {
		w.t.Fatalf("the policy that was told: %v\n%s", err, policy)
	}
	if out := w.must(reader.SecretID, args...).stdout; !strings.Contains(out, "Nomad's job idle names it") || strings.Contains(out, "localhost/lab/oci:1") {
		w.t.Errorf("the image of a job: %s", out)
	}
}
