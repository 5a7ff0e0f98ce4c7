package prune

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const week = 7 * 24 * time.Hour

func now() time.Time { return time.Date(2026, 11, 20, 2, 0, 0, 0, time.UTC) }

func days(n int) time.Time { return now().Add(-time.Duration(n) * 24 * time.Hour) }

// small is a store with one of each.
func small() State {
	return State{
		Now: now(), Driver: "overlay", Free: 100,
		Layers: map[string]Layer{
			"base": {Bytes: 1000}, "app": {Parent: "base", Bytes: 100}, "old": {Parent: "base", Bytes: 50}, "lone": {Bytes: 7}, "ro": {Bytes: 9999, ReadOnly: true},
			"c1": {Parent: "app", Bytes: 5}, "c2": {Parent: "app", Bytes: 3}, "b1": {Parent: "base", Bytes: 2},
		},
		Containers: []Ctr{
			{ID: "c1", Name: "web", Image: "app", Layer: "c1", Status: "running", Used: days(30)},
			{ID: "c2", Name: "job", Image: "lone", Layer: "c2", Status: "exited", Used: days(30), VolumesOf: []string{"data"}},
		},
		Externals: []Ctr{{ID: "b1", Name: "base-working-container", Image: "base", Layer: "b1", Used: days(3)}},
		Images: []Img{
			{ID: "base", Names: []string{"localhost/base:1"}, Chain: []string{"base"}, Made: days(90), Used: days(60)},
			{ID: "app", Names: []string{"localhost/app:2"}, Chain: []string{"app", "base"}, Made: days(20), Used: days(20)},
			{ID: "old", Chain: []string{"old", "base"}, Made: days(40), Used: days(40)},
			{ID: "lone", Names: []string{"docker.io/library/lone:latest"}, Chain: []string{"lone"}, Made: days(400), Used: days(30)},
			{ID: "ro", Names: []string{"localhost/shared:1"}, Chain: []string{"ro"}, Used: days(90), ReadOnly: true},
			{ID: "list", Chain: nil, Used: days(90)},
		},
		Volumes: []Vol{
			{Name: "data", Driver: "local", Used: days(30), Bytes: 11},
			{Name: "named", Driver: "local", Used: days(30), Bytes: 12},
			{Name: strings.Repeat("ab", 32), Anonymous: true, Driver: "local", Used: days(30), Bytes: 13},
			{Name: "share", Driver: "local", Options: true, Used: days(30)},
			{Name: "far", Driver: "csi", Used: days(30)},
		},
		Caches: []Dir{{Path: "/var/tmp/buildah-cache-1/x", Used: days(10), Bytes: 21}},
	}
}

// gone are the things to be removed, by kind and name, with their bytes.
func gone(things []Thing) string {
	var all []string
	for _, t := range things {
		if t.Verdict == Remove {
			all = append(all, fmt.Sprintf("%s:%s:%d", t.Kind, t.ID, t.Bytes))
		}
	}
	return strings.Join(all, " ")
}

// why is the reason for which a thing is not removed.
func why(t *testing.T, things []Thing, id string) string {
	t.Helper()
	for _, g := range things {
		if g.ID == id {
			return g.Why
		}
	}
	t.Errorf("nothing is told of %s", id)
	return ""
}

func TestChoose(t *testing.T) {
	t.Parallel()
	anon := strings.Repeat("ab", 32)
	for name, c := range map[string]struct {
		change func(*State)
		rules  Rules
		want   string
		why    map[string]string // of what is kept
	}{
		"nothing is asked for": {},
		"dangling images":      {rules: Rules{Images: Dangling}, want: "image:old:50", why: map[string]string{"app": "container web uses it", "lone": "container job uses it", "base": "container base-working-container uses it", "list": "list of images"}},
		"unused images": {rules: Rules{Images: Unused, Containers: true, External: true},
			// base stays: app is built on it.
			want: "external:b1:2 container:c2:3 image:old:50 image:lone:7", why: map[string]string{"base": "others are built on it", "c1": "it runs"}},
		"all that can go": {rules: Rules{Images: Unused, Containers: true, External: true},
			change: func(s *State) { s.Containers[0].Status = "exited" },
			// The layer base goes with the last image that has it.
			want: "external:b1:2 container:c1:5 container:c2:3 image:old:50 image:lone:7 image:app:100 image:base:1000"},
		"young things stay": {rules: Rules{Images: Unused, Containers: true, External: true, Older: week * 5}, want: "image:old:50",
			why: map[string]string{"c2": "used 30 days ago", "b1": "used 3 days ago"}},
		"age is not known": {rules: Rules{Cache: true, Older: week}, change: func(s *State) { s.Caches[0].Used = time.Time{} },
			why: map[string]string{"/var/tmp/buildah-cache-1/x": "not known"}},
		"a clock that jumped back": {rules: Rules{Cache: true, Older: time.Hour}, change: func(s *State) { s.Now = days(20) },
			why: map[string]string{"/var/tmp/buildah-cache-1/x": "in the future"}},
		"build cache":       {rules: Rules{Cache: true, Older: week}, want: "build-cache:/var/tmp/buildah-cache-1/x:21"},
		"a build goes on":   {rules: Rules{Cache: true, External: true, Images: Dangling}, change: func(s *State) { s.Building = "buildah, process 7" }, why: map[string]string{"b1": "being built", "old": "being built"}},
		"anonymous volumes": {rules: Rules{Volumes: Anonymous}, want: "volume:" + anon + ":13", why: map[string]string{"data": "container job has it", "named": "somebody named it", "far": "driver csi", "share": "somewhere else"}},
		"all volumes":       {rules: Rules{Volumes: All}, want: "volume:" + anon + ":13 volume:named:12"},
		"a volume with its container": {rules: Rules{Volumes: All, Containers: true},
			want: "container:c2:3 volume:" + anon + ":13 volume:data:11 volume:named:12"},
		"a volume that a job names":    {rules: Rules{Volumes: All}, change: func(s *State) { s.Wanted = []Wanted{{"named:/data", "unit x"}} }, want: "volume:" + anon + ":13", why: map[string]string{"named": "unit x names it"}},
		"a volume of Quadlet's":        {rules: Rules{Volumes: All}, change: func(s *State) { s.Wanted = []Wanted{{"nam.volume:/d", "q"}}; s.Volumes[1].Name = "systemd-nam" }, want: "volume:" + anon + ":13"},
		"of another engine":            {rules: Rules{External: true}, change: func(s *State) { s.Externals[0].Engine = true }, why: map[string]string{"b1": "podman does not know it"}},
		"a run that may be undone":     {rules: Rules{Volumes: All, Containers: true}, change: func(s *State) { s.Uncommitted = "0001-migrate-a" }, want: "container:c2:3", why: map[string]string{"data": "run 0001-migrate-a is not committed", anon: "not committed"}},
		"volumes of a template":        {rules: Rules{Volumes: All}, change: func(s *State) { s.Wanted = []Wanted{{"na*:/data", "unit x@"}} }, want: "volume:" + anon + ":13", why: map[string]string{"named": "unit x@ names it"}},
		"a unit that is not read":      {rules: Rules{Volumes: All, Containers: true, Images: Unused}, change: func(s *State) { s.Wanted = []Wanted{{"*", "x, which cannot be read,"}} }, want: "image:old:50 volume:" + anon + ":13", why: map[string]string{"named": "x, which cannot be read, names it", "c2": "x", "lone": "job"}},
		"a container of a template":    {rules: Rules{Containers: true}, change: func(s *State) { s.Wanted = []Wanted{{"j*b", "j@.service"}} }, why: map[string]string{"c2": "j@.service names it"}},
		"an image that a job names":    {rules: Rules{Images: Unused, Containers: true}, change: func(s *State) { s.Wanted = []Wanted{{"lone", "Nomad's job j"}} }, want: "container:c2:3 image:old:50", why: map[string]string{"lone": "Nomad's job j names it"}},
		"--keep":                       {rules: Rules{Images: Unused, Containers: true, Keep: []string{"lo*"}}, want: "container:c2:3 image:old:50", why: map[string]string{"lone": "--keep"}},
		"--keep of a container":        {rules: Rules{Containers: true, Keep: []string{"job"}}, why: map[string]string{"c2": "--keep"}},
		"a label":                      {rules: Rules{Images: Dangling, Label: []string{"x=*"}}, change: func(s *State) { s.Images[2].Labels = map[string]string{"x": "1"} }, want: "image:old:50"},
		"no such label":                {rules: Rules{Images: Dangling, Label: []string{"x=2"}}, change: func(s *State) { s.Images[2].Labels = map[string]string{"x": "1"} }, why: map[string]string{"old": "no such label"}},
		"a label that keeps":           {rules: Rules{Images: Dangling, LabelNot: []string{"x"}}, change: func(s *State) { s.Images[2].Labels = map[string]string{"x": "1"} }, why: map[string]string{"old": "its label"}},
		"labels that cannot be seen":   {rules: Rules{External: true, Cache: true, LabelNot: []string{"x"}}, why: map[string]string{"b1": "not known"}},
		"of a list":                    {rules: Rules{Images: Dangling}, change: func(s *State) { s.Images[2].Listed = "l:1" }, why: map[string]string{"old": "the list l:1 has it"}},
		"Nomad's":                      {rules: Rules{Containers: true}, change: func(s *State) { s.Containers[1].Nomads = true }, why: map[string]string{"c2": "Nomad's"}},
		"in a pod":                     {rules: Rules{Containers: true}, change: func(s *State) { s.Containers[1].Pod = "p" }, why: map[string]string{"c2": "pod"}},
		"a unit's":                     {rules: Rules{Containers: true}, change: func(s *State) { s.Containers[1].Labels = map[string]string{"PODMAN_SYSTEMD_UNIT": "job.service"} }, why: map[string]string{"c2": "job.service"}},
		"a unit that starts it":        {rules: Rules{Containers: true}, change: func(s *State) { s.Wanted = []Wanted{{"job", "j.service"}} }, why: map[string]string{"c2": "j.service names it"}},
		"restarted":                    {rules: Rules{Containers: true}, change: func(s *State) { s.Containers[1].Restarts = "always" }, why: map[string]string{"c2": "--restart"}},
		"a toolbox":                    {rules: Rules{Containers: true}, change: func(s *State) { s.Containers[1].Labels = map[string]string{"com.github.containers.toolbox": "true"} }, why: map[string]string{"c2": "toolbox"}},
		"paused":                       {rules: Rules{Containers: true}, change: func(s *State) { s.Containers[1].Status = "paused" }, why: map[string]string{"c2": `"paused"`}},
		"the floor is reached already": {rules: Rules{Images: Dangling, Floor: 100}, why: map[string]string{"old": "enough is free"}},
		"the floor is reached on the way": {rules: Rules{Images: Unused, Containers: true, External: true, Floor: 150},
			want: "external:b1:2 container:c2:3 image:old:50", why: map[string]string{"lone": "enough is free"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := small()
			if c.change != nil {
				c.change(&s)
			}
			got := Choose(s, c.rules)
			if g := gone(got); g != c.want {
				t.Errorf("to be removed:\n got %s\nwant %s", g, c.want)
			}
			for id, text := range c.why {
				if w := why(t, got, id); !strings.Contains(w, text) {
					t.Errorf("%s stays because %q, not %q", id, w, text)
				}
			}
		})
	}
}

// TestKeepLast: the newest images of a repository stay, whatever their age; what they
// are used for does not count them out.
func TestKeepLast(t *testing.T) {
	t.Parallel()
	s := State{Now: now(), Layers: map[string]Layer{}}
	for i := range 6 {
		id := fmt.Sprintf("i%d", i)
		s.Layers[id] = Layer{Bytes: 1}
		s.Images = append(s.Images, Img{ID: id, Names: []string{fmt.Sprintf("docker.io/x/app:%d", i)}, Chain: []string{id}, Made: days(100 - i), Used: days(50)})
	}
	s.Images[1].Names = append(s.Images[1].Names, "docker.io/x/other:1")
	if g := gone(Choose(s, Rules{Images: Unused, KeepLast: 2, Older: week})); g != "image:i3:1 image:i2:1 image:i0:1" {
		t.Error(g)
	}
}

// TestParents: where podman removes with an image what it was built on, an image stays
// whose base is kept for its label.
func TestParents(t *testing.T) {
	t.Parallel()
	s := State{Now: now(), TakesParents: true, Layers: map[string]Layer{"p": {Bytes: 1}, "c": {Parent: "p", Bytes: 1}}, Images: []Img{
		{ID: "p", Chain: []string{"p"}, Labels: map[string]string{"keep": ""}, Used: days(9)},
		{ID: "c", Chain: []string{"c", "p"}, Used: days(8)},
	}}
	r := Rules{Images: Dangling, LabelNot: []string{"keep"}}
	if got := Choose(s, r); gone(got) != "" || !strings.Contains(why(t, got, "c"), "with it") {
		t.Errorf("%+v", got)
	}
	s.TakesParents = false
	if g := gone(Choose(s, r)); g != "image:c:1" {
		t.Error(g)
	}
}

// TestSameLayers: a step of a build that made no layer goes with what was built on it, and
// not before.
func TestSameLayers(t *testing.T) {
	t.Parallel()
	s := State{Now: now(), Layers: map[string]Layer{"l": {Bytes: 1}}, Images: []Img{
		{ID: "env", Chain: []string{"l"}, Made: days(9), Used: days(9)},
		{ID: "cmd", Names: []string{"localhost/app:1"}, Chain: []string{"l"}, Made: days(8), Used: days(8)},
	}}
	if got := Choose(s, Rules{Images: Dangling}); gone(got) != "" || why(t, got, "env") != "others are built on it" {
		t.Errorf("%+v", got)
	}
	if g := gone(Choose(s, Rules{Images: Unused})); g != "image:cmd:0 image:env:1" {
		t.Error(g)
	}
	s.Images[1].Names = nil
	if g := gone(Choose(s, Rules{Images: Dangling})); g != "image:cmd:0 image:env:1" {
		t.Error(g)
	}
}

// random makes a store of any shape.
func random(r *rand.Rand) (State, Rules) {
	s := State{Now: now(), Free: uint64(r.IntN(200)), TakesParents: r.IntN(2) == 0, Layers: map[string]Layer{}}
	if r.IntN(8) == 0 {
		s.Building = "buildah"
	}
	var tops []string
	for i := range r.IntN(14) {
		id := fmt.Sprintf("l%d", i)
		l := Layer{Bytes: uint64(r.IntN(50)), ReadOnly: r.IntN(12) == 0}
		if i > 0 && r.IntN(3) > 0 {
			l.Parent = tops[r.IntN(len(tops))]
		}
		s.Layers[id], tops = l, append(tops, id)
	}
	chain := func(top string) (all []string) {
		for l := top; l != ""; l = s.Layers[l].Parent {
			all = append(all, l)
		}
		return all
	}
	some := func(list ...string) string { return list[r.IntN(len(list))] }
	for i := range r.IntN(12) {
		img := Img{ID: fmt.Sprintf("image-%012d", i), Made: days(r.IntN(50)), Used: days(r.IntN(20)), ReadOnly: r.IntN(10) == 0}
		if len(tops) > 0 && r.IntN(10) > 0 {
			img.Chain = chain(tops[r.IntN(len(tops))])
		}
		for range r.IntN(3) {
			img.Names = append(img.Names, some("docker.io/library/a:", "localhost/b:", "quay.io/c/d:")+fmt.Sprint(i))
		}
		if r.IntN(3) == 0 {
			img.Labels = map[string]string{some("x", "y"): "1"}
		}
		s.Images = append(s.Images, img)
	}
	for i := range r.IntN(10) {
		c := Ctr{ID: fmt.Sprintf("ctr-%012d", i), Name: fmt.Sprintf("n%d", i), Status: some("running", "exited", "exited", "created", "paused", "initialized"), Nomads: r.IntN(6) == 0,
			Pod: some("", "", "", "p"), Restarts: some("", "", "no", "always"), Used: days(r.IntN(20)), Layer: fmt.Sprintf("w%d", i)}
		s.Layers[c.Layer] = Layer{Bytes: 3}
		if len(s.Images) > 0 {
			c.Image = s.Images[r.IntN(len(s.Images))].ID
		}
		if r.IntN(3) == 0 {
			c.VolumesOf = []string{fmt.Sprintf("v%d", r.IntN(5))}
		}
		if r.IntN(4) == 0 {
			c.Status = ""
			s.Externals = append(s.Externals, c)
		} else {
			s.Containers = append(s.Containers, c)
		}
	}
	for i := range r.IntN(5) {
		s.Volumes = append(s.Volumes, Vol{Name: fmt.Sprintf("v%d", i), Driver: some("local", "", "csi"), Options: r.IntN(5) == 0, Anonymous: r.IntN(2) == 0, Used: days(r.IntN(20)), Bytes: 5})
	}
	for i := range r.IntN(3) {
		s.Caches = append(s.Caches, Dir{Path: fmt.Sprintf("/c/%d", i), Used: days(r.IntN(20)), Bytes: 5})
	}
	for range r.IntN(3) {
		s.Wanted = append(s.Wanted, Wanted{some("n1", "b:3", "docker.io/library/a:2", "quay.io/c/*:1", "v1"), "u"})
	}
	rules := Rules{Cache: r.IntN(2) == 0, External: r.IntN(2) == 0, Containers: r.IntN(2) == 0, Images: some("", Dangling, Unused, Unused), Volumes: some("", Anonymous, All),
		Older: time.Duration(r.IntN(10)) * 24 * time.Hour, KeepLast: r.IntN(3), Floor: uint64(r.IntN(3) * r.IntN(300))}
	if r.IntN(4) == 0 {
		rules.LabelNot = []string{"x"}
	}
	if r.IntN(4) == 0 {
		rules.Keep = []string{some("n2", "b", "v2")}
	}
	return s, rules
}

// TestChoosePromises: whatever a store looks like, nothing goes that is needed.
func TestChoosePromises(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4000) {
		s, r := random(rand.New(rand.NewPCG(seed, 1))) //nolint:gosec // not for secrets
		got := Choose(s, r)
		if bad := broken(s, r, got); bad != "" {
			t.Fatalf("seed %d: %s\nstate %+v\nrules %+v\nchoice %+v", seed, bad, s, r, got)
		}
		if again := Choose(s, r); !reflect.DeepEqual(got, again) {
			t.Fatalf("seed %d: the same state gives another answer", seed)
		}
	}
}

// broken names the promise that a choice does not keep.
func broken(s State, r Rules, got []Thing) string {
	done := map[string]bool{}
	free, reached := s.Free, false
	for _, t := range got {
		if t.Verdict == Keep {
			if t.Why == "" {
				return t.ID + " is kept for no reason"
			}
			continue
		}
		if done[t.ID] {
			return t.ID + " twice"
		}
		if t.Verdict == Spare && (r.Floor == 0 || free < r.Floor) {
			return t.ID + " is spared below the floor"
		}
		if t.Verdict == Remove && r.Floor > 0 && free >= r.Floor {
			return t.ID + " goes above the floor"
		}
		if reached = reached || t.Verdict == Spare; reached && t.Verdict == Remove {
			return t.ID + " goes after one that is spared"
		}
		if t.Verdict == Remove {
			free += t.Bytes
		}
		if r.Older > 0 && now().Sub(t.Used) < r.Older {
			return t.ID + " is young"
		}
		if bad := brokenBy(s, r, t, done); bad != "" {
			return t.ID + " " + bad
		}
		done[t.ID] = true
	}
	if !s.TakesParents {
		return ""
	}
	for _, p := range s.Images { // what podman takes along is chosen, too
		taken := len(p.Names) == 0 && len(p.Chain) > 0 && !p.ReadOnly && !done[p.ID] && r.Images != ""
		kids := 0
		for _, k := range s.Images {
			if !k.ReadOnly && builtOn(k, p) {
				kids++
				taken = taken && done[k.ID]
			}
		}
		used := slices.ContainsFunc(slices.Concat(s.Containers, s.Externals), func(c Ctr) bool { return c.Image == p.ID && !done[c.ID] })
		if taken && kids > 0 && !used {
			return p.ID + " would go along, and is kept"
		}
	}
	return ""
}

func brokenBy(s State, r Rules, t Thing, done map[string]bool) string {
	switch t.Kind {
	case Cache:
		if !r.Cache || s.Building != "" {
			return "is not asked for, or in use"
		}
	case External:
		if !r.External || s.Building != "" {
			return "is not asked for, or in use"
		}
	case Container:
		c := s.Containers[slices.IndexFunc(s.Containers, func(c Ctr) bool { return c.ID == t.ID })]
		if !r.Containers || c.Nomads || c.Pod != "" || c.Restarts == "always" || c.Status != "exited" && c.Status != "created" {
			return "is needed"
		}
	case Volume:
		v := s.Volumes[slices.IndexFunc(s.Volumes, func(v Vol) bool { return v.Name == t.ID })]
		if r.Volumes == "" || v.Options || v.Driver == "csi" || r.Volumes == Anonymous && !v.Anonymous {
			return "is not asked for"
		}
		if slices.ContainsFunc(s.Containers, func(c Ctr) bool { return !done[c.ID] && slices.Contains(c.VolumesOf, v.Name) }) {
			return "is in use"
		}
	case Image:
		return brokenImage(s, r, t, done)
	}
	return ""
}

func brokenImage(s State, r Rules, t Thing, done map[string]bool) string {
	i := s.Images[slices.IndexFunc(s.Images, func(i Img) bool { return i.ID == t.ID })]
	switch {
	case r.Images == "" || i.ReadOnly || r.Images == Dangling && len(i.Names) > 0:
		return "is not asked for"
	case slices.ContainsFunc(slices.Concat(s.Containers, s.Externals), func(c Ctr) bool { return c.Image == i.ID && !done[c.ID] }):
		return "is in use"
	case slices.ContainsFunc(s.Images, func(o Img) bool { return !o.ReadOnly && builtOn(o, i) && !done[o.ID] }):
		return "has others built on it"
	case slices.ContainsFunc(s.Wanted, func(w Wanted) bool { return asked(w.Name, i) }):
		return "is wanted"
	}
	for _, repo := range repositories(i) {
		newer := 0
		for _, o := range s.Images {
			if !o.ReadOnly && o.ID != i.ID && slices.Contains(repositories(o), repo) && !o.Made.Before(i.Made) {
				newer++
			}
		}
		if newer < r.KeepLast {
			return "is one of the last of " + repo
		}
	}
	return ""
}

// TestShown: what came to be chosen after somebody agreed is kept.
func TestShown(t *testing.T) {
	t.Parallel()
	before := []Thing{{Kind: Image, ID: "a", Verdict: Remove}, {Kind: Image, ID: "b", Verdict: Keep}, {Kind: Volume, ID: "c", Verdict: Spare}}
	got := Shown([]Thing{{Kind: Image, ID: "a", Verdict: Remove}, {Kind: Image, ID: "b", Verdict: Remove}, {Kind: Volume, ID: "c", Verdict: Remove},
		{Kind: Volume, ID: "a", Verdict: Spare}, {Kind: Image, ID: "d", Verdict: Keep, Why: "used"}}, before)
	for i, want := range []Verdict{Remove, Keep, Remove, Keep, Keep} {
		if got[i].Verdict != want || got[i].Verdict == Keep && got[i].Why == "" {
			t.Errorf("%+v, not %s", got[i], want)
		}
	}
}
