package prune

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/drain"
)

// Choose tells of each thing of the kinds that r asks for whether it is to be removed:
// first what is, in the order in which that is to be done, then what is kept, and why.
// It changes nothing, and the same state gives the same answer.
func Choose(s State, r Rules) []Thing {
	c := &choice{s: s, r: r, gone: map[string]bool{}, kids: map[string][]string{}}
	c.caches()
	c.externals()
	c.containers()
	c.images()
	c.volumes()
	c.weigh()
	return append(c.remove, c.keep...)
}

// Shown keeps of a choice what was not to be removed, or spared, in the one before that
// somebody has agreed to.
func Shown(things, before []Thing) []Thing {
	goes := func(t Thing) bool { return t.Verdict == Remove || t.Verdict == Spare }
	for i, t := range things {
		if goes(t) && !slices.ContainsFunc(before, func(b Thing) bool { return b.Kind == t.Kind && b.ID == t.ID && goes(b) }) {
			things[i].Verdict, things[i].Why = Keep, "it was not shown"
		}
	}
	return things
}

// choice is a choice that is being made.
type choice struct {
	s      State
	r      Rules
	remove []Thing
	keep   []Thing
	gone   map[string]bool     // ids of what is to be removed
	kids   map[string][]string // by image, the images that are built on it
}

func (c *choice) put(t Thing, why string) {
	if why != "" {
		t.Verdict, t.Why = Keep, why
		c.keep = append(c.keep, t)
		return
	}
	t.Verdict = Remove
	c.remove, c.gone[t.ID] = append(c.remove, t), true
}

// filtered says why the filters keep a thing, "" if they do not. labels may be nil: it
// has none. What has a label that cannot be seen is kept by any filter of labels.
func (c *choice) filtered(used time.Time, labels map[string]string, seen bool, names ...string) string {
	for _, n := range names {
		if named(n, c.r.Keep) {
			return "--keep names it"
		}
	}
	switch {
	case !seen && len(c.r.Label)+len(c.r.LabelNot) > 0:
		return "its labels are not known"
	case len(c.r.Label) > 0 && !drain.Matches(labels, c.r.Label):
		return "it has no such label"
	case drain.Matches(labels, c.r.LabelNot):
		return "its label says so"
	}
	if c.r.Older <= 0 {
		return ""
	}
	if used.IsZero() {
		return "it is not known when it was used"
	}
	if age := c.s.Now.Sub(used); age < c.r.Older {
		return "used " + ago(age)
	}
	return ""
}

func (c *choice) caches() {
	if !c.r.Cache {
		return
	}
	for _, d := range byAge(c.s.Caches, func(d Dir) (time.Time, string) { return d.Used, d.Path }) {
		t := Thing{Kind: Cache, ID: d.Path, Name: d.Path, Used: d.Used, Bytes: d.Bytes}
		c.put(t, cmp.Or(c.building(), c.filtered(d.Used, nil, false, d.Path)))
	}
}

func (c *choice) building() string {
	if c.s.Building == "" {
		return ""
	}
	return "an image is being built (" + c.s.Building + ")"
}

func (c *choice) externals() {
	if !c.r.External {
		return
	}
	for _, x := range byAge(c.s.Externals, usedOfCtr) {
		c.put(Thing{Kind: External, ID: x.ID, Name: x.Name, Used: x.Used}, cmp.Or(engines(x), c.building(), c.filtered(x.Used, nil, false, x.Name)))
	}
}

// engineMade is why a container is kept that podman does not know, and a build did not
// make: those leave nothing in the metadata of its record, and engines do.
const engineMade = "podman or another engine made it, and podman does not know it: look why"

func engines(x Ctr) string {
	if x.Engine {
		return engineMade
	}
	return ""
}

func (c *choice) containers() {
	if !c.r.Containers {
		return
	}
	for _, x := range byAge(c.s.Containers, usedOfCtr) {
		c.put(Thing{Kind: Container, ID: x.ID, Name: x.Name, Used: x.Used}, cmp.Or(c.needed(x), c.filtered(x.Used, x.Labels, true, x.Name)))
	}
}

// Over reports whether a container of this status may be removed without force.
func over(status string) bool {
	return slices.Contains([]string{"exited", "stopped", "created", "configured"}, status)
}

// needed says who may want a container, "" if nobody is known.
func (c *choice) needed(x Ctr) string {
	switch {
	case x.Status == "running":
		return "it runs"
	case !over(x.Status):
		return fmt.Sprintf("it is %q", x.Status)
	case x.Nomads:
		return "it is Nomad's"
	case x.Pod != "":
		return "it is in a pod"
	case x.Labels["PODMAN_SYSTEMD_UNIT"] != "":
		return x.Labels["PODMAN_SYSTEMD_UNIT"] + " has made it"
	case x.Restarts == "always" || x.Restarts == "unless-stopped":
		return "it is to be started again (--restart " + x.Restarts + ")"
	}
	// What people live in between two sessions.
	for _, label := range []string{"com.github.containers.toolbox", "com.github.debarshiray.toolbox"} {
		if x.Labels[label] != "" {
			return "it is a toolbox"
		}
	}
	if x.Labels["manager"] == "distrobox" {
		return "it is a distrobox"
	}
	for _, w := range c.s.Wanted {
		if drain.Like(anything(w.Name), x.Name) || len(w.Name) >= 12 && strings.HasPrefix(x.ID, w.Name) {
			return w.By + " names it"
		}
	}
	return ""
}

func (c *choice) volumes() {
	if c.r.Volumes == "" {
		return
	}
	for _, v := range byAge(c.s.Volumes, func(v Vol) (time.Time, string) { return v.Used, v.Name }) {
		c.put(Thing{Kind: Volume, ID: v.Name, Name: v.Name, Used: v.Used, Bytes: v.Bytes}, cmp.Or(c.fills(v), c.filtered(v.Used, v.Labels, true, v.Name)))
	}
}

// fills says who needs a volume, "" if nobody is known.
func (c *choice) fills(v Vol) string {
	for _, x := range c.s.Containers {
		if !c.gone[x.ID] && slices.Contains(x.VolumesOf, v.Name) {
			return "container " + x.Name + " has it"
		}
	}
	switch {
	case c.s.Uncommitted != "":
		return "run " + c.s.Uncommitted + " is not committed, and its rollback brings back containers that may have it"
	case v.Driver != "" && v.Driver != "local":
		return "the driver " + v.Driver + " keeps its data"
	case v.Options:
		return "its data is somewhere else"
	case !v.Anonymous && c.r.Volumes != All:
		return "somebody named it"
	}
	for _, w := range c.s.Wanted {
		name, _, _ := strings.Cut(anything(w.Name), ":")
		if v.Anonymous && strings.Contains(name, "*") {
			continue // nobody can have its name in mind
		}
		if name, is := strings.CutSuffix(name, ".volume"); is && drain.Like("systemd-"+name, v.Name) {
			return w.By + " names it"
		}
		if drain.Like(name, v.Name) {
			return w.By + " names it"
		}
	}
	return ""
}

// weigh estimates what each removal frees if all before it are done: a layer goes with
// the last that needs it. From the thing on before whose turn enough is free, all are
// spared.
func (c *choice) weigh() {
	users := map[string]int{}
	held := map[string]map[string]bool{} // by the id of a thing
	hold := func(id string, tops ...string) {
		held[id] = map[string]bool{}
		for _, top := range tops {
			for l := top; l != "" && !held[id][l]; l = c.s.Layers[l].Parent {
				held[id][l] = true
			}
		}
		for l := range held[id] {
			users[l]++
		}
	}
	for _, x := range slices.Concat(c.s.Containers, c.s.Externals) {
		hold(x.ID, x.Layer)
	}
	for _, i := range c.s.Images {
		hold(i.ID, append(slices.Clone(i.Tops), top(i))...)
	}
	free := c.s.Free
	for n := range c.remove {
		t := &c.remove[n]
		for l := range maps.Keys(held[t.ID]) {
			if users[l]--; users[l] == 0 && !c.s.Layers[l].ReadOnly {
				t.Bytes += c.s.Layers[l].Bytes
			}
		}
		if c.r.Floor > 0 && free >= c.r.Floor {
			t.Verdict, t.Why = Spare, "enough is free without it"
			continue
		}
		free += t.Bytes
	}
}

func top(i Img) string {
	if len(i.Chain) == 0 {
		return ""
	}
	return i.Chain[0]
}

func usedOfCtr(x Ctr) (time.Time, string) { return x.Used, x.ID }

// byAge gives a sorted copy, what was not used for longest first.
func byAge[T any](list []T, key func(T) (time.Time, string)) []T {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b T) int {
		at, an := key(a)
		bt, bn := key(b)
		return cmp.Or(at.Compare(bt), cmp.Compare(an, bn))
	})
	return list
}

// ago tells an age in words.
func ago(d time.Duration) string {
	switch {
	case d < 0:
		return "in the future, as the clock is now"
	case d < time.Minute:
		return "just now"
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", d/time.Hour)
	}
	return fmt.Sprintf("%d days ago", d/(24*time.Hour))
}
