package integration

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestContainersLive: containers of every kind are what they were after a
// migration, after a rollback from a store that they were used on, and after the
// commit of another migration. STORAGECTL_MATRIX=full takes every release of
// podman that the lab has, looks at each container in full, and writes what it saw
// to docs/compatibility.md.
func TestContainersLive(t *testing.T) {
	full := os.Getenv("STORAGECTL_MATRIX") == "full"
	releases := []string{"bookworm", "trixie"}
	if full {
		releases = []string{"bullseye", "bookworm", "trixie", "forky"}
		results := &matrix{}
		t.Cleanup(func() {
			if err := results.write(root(t)); err != nil {
				t.Error(err)
			}
		})
		for _, release := range releases {
			for _, user := range []string{lab.Owner, "root"} {
				t.Run(release+"/"+user, func(t *testing.T) {
					t.Parallel()
					results.add(t, release, user)
				})
			}
		}
		return
	}
	for _, release := range releases {
		for _, user := range []string{lab.Owner, "root"} {
			t.Run(release+"/"+user, func(t *testing.T) {
				t.Parallel()
				(&cell{Release: release, Owner: ownerKind(user)}).run(t, user, false)
			})
		}
	}
}

// A cell is what was seen of one release and owner.
type cell struct {
	Release  string             `json:"release"`
	Owner    string             `json:"owner"` // rootless, rootful
	Podman   string             `json:"podman"`
	Database string             `json:"database"`
	Networks string             `json:"networks"`
	Down     float64            `json:"seconds_down"`
	Date     string             `json:"date"`
	Machine  string             `json:"machine"`
	Stopped  string             `json:"stopped,omitempty"` // why the run did not come to its end
	Kinds    map[string]outcome `json:"kinds"`
}

// An outcome is what became of a kind.
type outcome struct {
	What string `json:"what"`
	Why  string `json:"why,omitempty"`
}

// What becomes of a kind.
const (
	same    = "same"
	anew    = "anew"     // its unit made it anew, as it does at each start
	differs = "differs"  // Why: what
	refused = "refused"  // Why: the refusal's id
	notHere = "not here" // Why: what podman said
	unseen  = "not seen" // the run did not come so far
)

// storeItself is the row of all that is no container.
const storeItself = "images, volumes, secrets, networks"

func (c *cell) run(t testing.TB, user string, full bool) {
	c.Date, c.Machine, c.Kinds = time.Now().UTC().Format(time.DateOnly), lab.Machine(), map[string]outcome{}
	for _, k := range kinds() {
		c.Kinds[k.name] = outcome{What: unseen}
	}
	seed := images.Small
	if c.Release == "bookworm" || c.Release == "trixie" {
		seed = images.Containers
	}
	w := newWorld(t, c.Release, user, seed)
	made, without := w.makeKinds()
	for name, why := range without {
		c.Kinds[name] = outcome{notHere, why}
	}
	left, no, plan := w.planOfKinds(made)
	for name, id := range no {
		c.Kinds[name] = outcome{refused, id}
	}
	for _, k := range kinds() {
		if o := c.Kinds[k.name]; o.What != unseen && !k.known(c.Release, user) {
			t.Errorf("%s: %s: %s", k.name, o.What, o.Why)
		}
	}
	c.Podman = strings.TrimPrefix(w.podman("--version"), "podman version ")
	c.Networks = w.networks()
	if plan == nil {
		c.Database, c.Kinds[storeItself] = "not looked at", outcome{refused, "old-podman"}
		if w.driver() != "vfs" || w.leftovers("overlay*") != "" {
			t.Errorf("a refusal left %s", w.leftovers("*"))
		}
		return
	}
	if db, ok := plan["database"].(map[string]any); ok {
		c.Database = fmt.Sprint(db["kind"])
	}
	(&cellRun{cell: c, world: w, kinds: left, full: full, seen: map[string]outcome{}}).live()
}

// networks names what podman makes networks with.
func (w *world) networks() string {
	w.t.Helper()
	return strings.TrimSpace(w.script(w.user, `podman info --format '{{.Host.NetworkBackend}}' 2>/dev/null || echo cni # the only one before podman 4`))
}

// A cellRun takes the kinds of one cell through it all.
type cellRun struct {
	*cell
	*world
	kinds []kind
	full  bool
	seen  map[string]outcome

	before, store inventory
	up            []string
}

func (r *cellRun) live() {
	r.t.Helper()
	r.before, r.up = r.containers(r.kinds, r.full), r.running()
	if r.full {
		r.store = r.things()
	}
	result := jsonLines(r.t, r.must(r.migrate("--json")...).stdout)
	r.Down, _ = result[len(result)-1]["seconds_down"].(float64)
	r.compare("after the migration", "overlay")

	// What they do now is theirs alone: the old store keeps what it had.
	var use strings.Builder
	for _, name := range r.up {
		if !strings.HasSuffix(name, "-infra") && !r.isAnew(name) {
			fmt.Fprintf(&use, "podman exec -u 0 %s /bin/busybox sh -c 'echo later >>/later'\n", name)
		}
	}
	r.script(r.user, "cd\n"+use.String())
	back := r.must("rollback")
	if !strings.Contains(back.stdout+back.stderr, "container running") {
		r.t.Errorf("the rollback does not say that a container was used: %s", back)
	}
	r.compare("after the rollback", "vfs")

	r.must(r.migrate("--commit")...)
	r.compare("after the commit", "overlay")
	if left := r.leftovers("vfs*"); left != "" && !strings.Contains(left, ".storagectl-0001") {
		r.t.Errorf("left in the store: %s", left)
	}
	r.script(r.user, `podman exec running /bin/busybox sh -c 'test "$(cat /f)" = written && test ! -e /home && cat /v/file'`)
	r.remove()
	for _, k := range r.kinds {
		o, ok := r.seen[k.name]
		switch {
		case ok:
			r.t.Errorf("%s: %s", k.name, o.Why)
		case k.anew:
			o.What = anew
		default:
			o.What = same
		}
		r.Kinds[k.name] = o
	}
	if r.full {
		o, ok := r.seen[storeItself]
		if !ok {
			o.What = same
		}
		r.Kinds[storeItself] = o
	}
}

func (r *cellRun) running() []string {
	return strings.Fields(r.podman("ps", "--format", "{{.Names}}", "--sort", "names"))
}

func (r *cellRun) isAnew(container string) bool {
	return slices.ContainsFunc(r.kinds, func(k kind) bool { return k.anew && slices.Contains(k.has, container) })
}

// things is the manifest without the containers, which are looked at by kind.
func (r *cellRun) things() inventory {
	inv := r.manifest()
	for key := range inv {
		if strings.HasPrefix(key, "containers ") {
			delete(inv, key)
		}
	}
	return inv
}

// compare notes for each kind the first thing that is not what it was.
func (r *cellRun) compare(when, driver string) {
	r.t.Helper()
	if d := r.driver(); d != driver {
		r.t.Fatalf("podman is on %s %s", d, when)
	}
	now, up := r.containers(r.kinds, r.full), r.running()
	r.same("the containers "+when, r.before, now)
	for _, k := range r.kinds {
		of := func(inv inventory) inventory {
			mine := inventory{}
			for key, text := range inv {
				name, _, _ := strings.Cut(key, " ")
				if slices.Contains(k.has, strings.TrimSuffix(name, "-infra")) {
					mine[key] = text
				}
			}
			return mine
		}
		if d := diff(of(r.before), of(now)); d != "" {
			r.note(k.name, when+": "+strings.SplitN(d, "\n", 2)[0])
		}
		for _, name := range k.has {
			if slices.Contains(r.up, name) && !slices.Contains(up, name) {
				r.note(k.name, when+": "+name+" does not run")
			}
		}
	}
	if !slices.Equal(up, r.up) {
		r.t.Errorf("%s there run %q, and ran %q", when, up, r.up)
	}
	if r.full {
		things := r.things()
		r.same("the store "+when, r.store, things)
		if d := diff(r.store, things); d != "" {
			r.note(storeItself, when+": "+strings.SplitN(d, "\n", 2)[0])
		}
	}
}

func (r *cellRun) note(kind, what string) {
	if _, ok := r.seen[kind]; !ok {
		r.seen[kind] = outcome{differs, short(what)}
	}
}

// remove removes the containers of each kind; the last made go first, as they may
// depend on others.
func (r *cellRun) remove() {
	r.t.Helper()
	for _, k := range slices.Backward(r.kinds) {
		script := prelude
		if k.unit != "" {
			script += "ctl stop " + k.unit + "\n"
		}
		for _, name := range k.has {
			script += fmt.Sprintf(`if podman pod exists %[1]s; then podman pod stop -t 5 %[1]s; podman pod rm %[1]s
elif podman container exists %[1]s; then podman stop -t 5 %[1]s || :; podman rm %[1]s # podman 3.0 stops none that never ran
fi >/dev/null
`, name)
		}
		if res := r.exec(r.user, "bash", "-euo", "pipefail", "-c", script); res.code != 0 {
			r.note(k.name, "rm: "+reason(res.stderr))
		}
	}
	if left := r.podman("ps", "-a", "-q"); left != "" {
		r.t.Errorf("containers are left: %s", left)
	}
}
