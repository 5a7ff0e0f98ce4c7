package prune

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/storagectl/storagectl/verify"
)

// TestInspected: what releases of podman tell of a container.
func TestInspected(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"ended": `{"Id":"` + strings.Repeat("a", 64) + `","Name":"job","Image":"i1","Created":"2026-11-01T10:00:00.5+01:00","Pod":"",
"State":{"Status":"exited","StartedAt":"2026-11-02T10:00:00Z","FinishedAt":"2026-11-03T10:00:00Z"},
"Mounts":[{"Type":"volume","Name":"data"},{"Type":"bind"}],"Config":{"Labels":{"a":"b"}},"HostConfig":{"RestartPolicy":{"Name":"always"}}}`,
		"never started, Labels null": `{"Id":"b","Name":"x","Image":"sha256:i1","Created":"2026-11-03T10:00:00Z","Config":{"Labels":null},
"State":{"Status":"created","StartedAt":"0001-01-01T00:00:00Z","FinishedAt":"0001-01-01T00:00:00Z"}}`,
	} {
		var i inspected
		if err := json.Unmarshal([]byte(text), &i); err != nil {
			t.Fatal(err)
		}
		c := i.ctr()
		if !c.Used.Equal(time.Date(2026, 11, 3, 10, 0, 0, 0, time.UTC)) || c.Image != "i1" || !over(c.Status) {
			t.Errorf("%s: %+v", name, c)
		}
		if name == "ended" && (len(c.VolumesOf) != 1 || c.Restarts != "always" || c.Labels["a"] != "b") {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// TestState: who uses what is put together from podman and the store.
func TestState(t *testing.T) {
	t.Parallel()
	old, young := days(30), days(3)
	part := verify.StorePart{Driver: "vfs",
		Layers: []verify.Layer{{ID: "b", DiffSize: 10, Created: old}, {ID: "a", Parent: "b", DiffSize: 5, Created: young}, {ID: "w", Parent: "a", DiffSize: -1}},
		Images: []verify.Image{{ID: "base", Chain: []string{"b"}, Created: days(900)}, {ID: "app", Chain: []string{"a", "b"}, ReadOnlyStore: "/ro"}},
		Containers: []verify.Container{{ID: "c1", Image: "app", Layer: "w"}, {ID: "x1", Names: []string{"app-working-container"}, Image: "base", Layer: "w2", Created: young},
			{ID: "x2", Layer: "w3", Metadata: "{}"}}}
	st := state(seen{Store: part, Arrived: map[string]time.Time{"base": days(20)}}, verify.StoreRef{Driver: "vfs"}, []Ctr{{ID: "c1", Name: "web", Status: "running"}}, nil)
	if len(st.Externals) != 2 || st.Externals[0].Engine || !st.Externals[1].Engine || st.Externals[0].Name != "app-working-container" || st.Containers[0].Layer != "w" || st.Containers[0].Image != "app" {
		t.Errorf("%+v %+v", st.Containers, st.Externals)
	}
	// Made long ago, it came 20 days ago; and 3 days ago somebody made a container of it.
	if !st.Images[0].Used.Equal(young) || !st.Images[1].Used.Equal(young) || !st.Images[1].ReadOnly {
		t.Errorf("%+v", st.Images)
	}
	// On vfs a layer has all that is below it.
	if st.Layers["a"].Bytes != 15 || st.Layers["w"].Bytes != 15 || st.Layers["b"].Bytes != 10 {
		t.Errorf("%+v", st.Layers)
	}
}

// TestImageChanged: an image that came into use, or that has another name, is left.
func TestImageChanged(t *testing.T) {
	t.Parallel()
	thing := Thing{ID: "i", Names: []string{"a:1", "a:2"}}
	img := verify.Image{ID: "i", Names: []string{"a:2"}, Chain: []string{"l"}}
	for name, c := range map[string]struct {
		part verify.StorePart
		want string
	}{
		"as it was":         {verify.StorePart{Images: []verify.Image{img}}, ""},
		"gone":              {verify.StorePart{}, whyGone},
		"used":              {verify.StorePart{Images: []verify.Image{img}, Containers: []verify.Container{{ID: "c", Names: []string{"web"}, Image: "i"}}}, "container web uses it"},
		"named":             {verify.StorePart{Images: []verify.Image{{ID: "i", Names: []string{"b:1"}}}}, "it has another name now: b:1"},
		"built on":          {verify.StorePart{Images: []verify.Image{img, {ID: "k", Chain: []string{"m", "l"}}}}, "another image is built on it"},
		"one with the same": {verify.StorePart{Images: []verify.Image{img, {ID: "k", Chain: []string{"l"}}}}, ""},
	} {
		if got := imageChanged(c.part, thing); got != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestExternalNow: one that somebody works in, or that podman or another engine made, is left.
func TestExternalNow(t *testing.T) {
	t.Parallel()
	thing := Thing{Kind: External, ID: "x", Used: days(3)}
	bud := verify.Container{ID: "x", Layer: "l", Created: days(9)}
	pods := bud
	pods.Metadata = `{"image-name":"a","name":"web"}`
	for name, c := range map[string]struct {
		ctrs     []verify.Container
		building string
		known    []Ctr
		w        weight
		want     string
	}{
		"as it was":    {[]verify.Container{bud}, "", nil, weight{Changed: days(3)}, ""},
		"gone":         {nil, "", nil, weight{}, whyGone},
		"a build":      {[]verify.Container{bud}, "buildah, process 7", nil, weight{Changed: days(3)}, "an image is being built (buildah, process 7)"},
		"worked in":    {[]verify.Container{bud}, "", nil, weight{Changed: days(2)}, "it was used meanwhile"},
		"podman's now": {[]verify.Container{bud}, "", []Ctr{{ID: "x"}}, weight{Changed: days(3)}, "podman knows it now"},
		"podman's":     {[]verify.Container{pods}, "", nil, weight{Changed: days(3)}, engineMade},
	} {
		part := verify.StorePart{Containers: c.ctrs}
		if got := externalNow(seen{Store: part, Building: c.building}, c.known, c.w, thing); got != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestImageOrders: an image goes by its id, and never by a name, which may be another's.
func TestImageOrders(t *testing.T) {
	t.Parallel()
	part := verify.StorePart{Images: []verify.Image{{ID: "x"}, {ID: "one", Names: []string{"a:1"}}, {ID: "many", Names: []string{"b:1", "b:2", "b@sha256:d"}}}}
	for _, c := range []struct {
		id      string
		parents bool
		want    string
	}{
		{"x", false, "rmi --no-prune x"},
		{"one", false, "rmi --no-prune one"},
		{"one", true, "rmi one"},
		{"many", false, "untag many b:1; untag many b:2; rmi --no-prune many"},
		{"gone", false, "rmi --no-prune gone"},
	} {
		var got []string
		for _, args := range imageOrders(part, c.id, c.parents) {
			got = append(got, strings.Join(args, " "))
		}
		if text := strings.Join(got, "; "); text != c.want {
			t.Errorf("%s: %s", c.id, text)
		}
	}
}

// TestVolumeNow: a volume that was used since it was chosen is left, also if nobody has it
// any more; so is another of its name, and one that podman may take another for.
func TestVolumeNow(t *testing.T) {
	t.Parallel()
	row := volumeRow{Name: "pg", Driver: "local", CreatedAt: days(9)}
	made := row
	made.CreatedAt = days(1)
	thing := Thing{Kind: Volume, ID: "pg", Used: days(3)}
	was := weight{Changed: days(3)}
	for name, c := range map[string]struct {
		rows []volumeRow
		ctrs []Ctr
		w    weight
		want string
	}{
		"as it was":        {[]volumeRow{row, {Name: "data"}, {Name: "my-pg"}}, []Ctr{{Name: "web", VolumesOf: []string{"data"}}}, was, ""},
		"gone":             {[]volumeRow{{Name: "pgdata"}}, nil, weight{}, whyGone},
		"has a container":  {[]volumeRow{row}, []Ctr{{Name: "web", VolumesOf: []string{"pg"}}}, was, "container web has it now"},
		"written to":       {[]volumeRow{row}, nil, weight{Changed: days(2)}, "it was used meanwhile"},
		"another":          {[]volumeRow{made}, nil, weight{Changed: days(3)}, "it was used meanwhile"},
		"an empty one":     {[]volumeRow{row}, nil, weight{}, "it was used meanwhile"},
		"a part of a name": {[]volumeRow{row, {Name: "pgdata"}}, nil, was, "the name of volume pgdata begins as its own, which podman may take for it"},
	} {
		if got := volumeNow(c.rows, c.ctrs, c.w, thing); got != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestCacheFolder: the build cache is reached through no link, and only if it is the
// owner's.
func TestCacheFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if r, err := openCache(dir, 7); r != nil || err != nil {
		t.Errorf("none: %v %v", r, err)
	}
	if err := os.Symlink("/etc", filepath.Join(dir, cacheFolder(7))); err != nil {
		t.Fatal(err)
	}
	if r, err := openCache(dir, 7); r != nil || err != nil {
		t.Errorf("a link: %v %v", r, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, cacheFolder(8), "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := openCache(dir, 8)
	if err != nil || r == nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"/var/tmp/buildah-cache-8", "/var/tmp/buildah-cache-8/..", "/var/tmp/buildah-cache-8/x/y", "/var/tmp/buildah-cache-9/x", "/etc"} {
		if err := removeCache(path, 8); err == nil {
			t.Errorf("%s would be removed", path)
		}
	}
}

// TestWorkedIn: a container that podman did not make is as young as what was written in it.
func TestWorkedIn(t *testing.T) {
	t.Parallel()
	st := State{Layers: map[string]Layer{"l": {}, "m": {}}, Externals: []Ctr{{ID: "x", Layer: "l", Used: days(9)}, {ID: "y", Layer: "m", Used: days(9)}}}
	paths := map[string]weight{"/l": {Bytes: 7, Changed: days(1)}, "/m": {Changed: days(90)}}
	weighed(&st, func(layer string) string { return "/" + layer }, paths)
	if !st.Externals[0].Used.Equal(days(1)) || !st.Externals[1].Used.Equal(days(9)) || st.Layers["l"].Bytes != 7 {
		t.Errorf("%+v %+v", st.Externals, st.Layers)
	}
}

// TestWeigh counts a file with several names once, and tells the youngest change.
func TestWeigh(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := filepath.Join(dir, "a")
	if err := os.WriteFile(a, make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	one, err := weigh(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Link(a, filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	two, err := weigh(t.Context(), dir)
	if err != nil || two.Bytes != one.Bytes || two.Bytes < 100_000 || time.Since(two.Changed) > time.Hour {
		t.Errorf("%+v, then %+v: %v", one, two, err)
	}
	// What cannot be looked at may have changed just now; what was removed has not.
	w := weight{Changed: days(9)}
	if err := w.missed(&fs.PathError{Err: fs.ErrNotExist}); err != nil || !w.Changed.Equal(days(9)) {
		t.Errorf("removed meanwhile: %v, %v", w, err)
	}
	if err := w.missed(&fs.PathError{Err: syscall.EIO}); err == nil {
		t.Error("a disk that cannot be read is passed over")
	}
	if err := w.missed(&fs.PathError{Err: syscall.EACCES}); err != nil || time.Since(w.Changed) > time.Hour {
		t.Errorf("closed: %v, %v", w, err)
	}
	if none, err := weigh(t.Context(), filepath.Join(dir, "none")); err != nil || none.Bytes != 0 {
		t.Errorf("%+v %v", none, err)
	}
}

// TestLast: what a prune leaves is read again, and remembers what was seen in use.
func TestLast(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if l, err := ReadLast(dir, "k"); err != nil || !l.Time.IsZero() {
		t.Errorf("%+v %v", l, err)
	}
	l := Last{Owner: "x", Seen: map[string]time.Time{"old": days(9), "gone": days(9)}}
	l.See(State{Now: now(), Images: []Img{{ID: "old"}, {ID: "app"}, {ID: "idle"}}, Containers: []Ctr{{Image: "app", Status: "running"}, {Image: "idle", Status: "exited"}}})
	if err := l.Write(dir, "k"); err != nil {
		t.Fatal(err)
	}
	l, err := ReadLast(dir, "k")
	if err != nil || len(l.Seen) != 2 || !l.Seen["old"].Equal(days(9)) || !l.Seen["app"].Equal(now()) {
		t.Errorf("%+v %v", l, err)
	}
}
