package verify

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestManifestEncodeDecode(t *testing.T) {
	m := manifestOf(t, testStore(t, "vfs"))
	m.Podman = PodmanPart{Version: "4.3.1", Driver: "vfs", Objects: []Object{
		{Kind: "volume", ID: "v<1>", Name: "v<1>", Fields: map[string]any{"Driver": "local", "Labels": map[string]any{"b": "1", "a": "2"}}},
		{Kind: "secret", ID: "s"},
	}}
	var one, two bytes.Buffer
	if err := m.Encode(&one); err != nil {
		t.Fatal(err)
	}
	back, err := DecodeManifest(bytes.NewReader(one.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(back.Store.Images)
	slices.Reverse(back.Podman.Objects)
	if d := Diff(m, back); len(d) != 0 {
		t.Errorf("differences %v", d)
	}
	if err := back.Encode(&two); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Errorf("not stable:\n%s\n%s", one.Bytes(), two.Bytes())
	}
	lines := strings.SplitAfter(one.String(), "\n")
	for name, text := range map[string]string{
		"empty":         "",
		"cut":           strings.Join(lines[:len(lines)-3], ""),
		"torn":          one.String()[:one.Len()-9],
		"not a header":  strings.Join(lines[1:], ""),
		"other schema":  strings.Replace(one.String(), `"schema":1`, `"schema":2`, 1),
		"unknown kind":  strings.Replace(one.String(), `{"record":"layer","layer":`, `{"record":"brick","brick":`, 1),
		"second header": one.String() + lines[0],
	} {
		if _, err := DecodeManifest(strings.NewReader(text)); err == nil {
			t.Errorf("%s: read without an error", name)
		}
	}
}

func TestDifferenceText(t *testing.T) {
	long := id("image", 0)
	for want, d := range map[string]Difference{
		"image " + long[:12] + " (a, b) is missing": {Kind: "image", ID: long, Name: "a, b", Before: "present"},
		"volume v was not there before":             {Kind: "volume", ID: "v", Name: "v", After: "present"},
		`secret s: Driver is "b", was "a"`:          {Kind: "secret", ID: "s", Field: "Driver", Before: `"a"`, After: `"b"`},
		`layer l: diff_digest is missing, was "x"`:  {Kind: "layer", ID: "l", Field: "diff_digest", Before: `"x"`},
	} {
		if got := d.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestDiffLetsLayersLearn(t *testing.T) {
	before := Manifest{Store: StorePart{Driver: "vfs", Layers: []Layer{{ID: "l", Tree: true}}}}
	after := Manifest{Store: StorePart{Driver: "overlay", Layers: []Layer{{ID: "l", Tree: true, TarSplit: true, DiffDigest: "sha256:1", DiffSize: 9}}}}
	if d := Diff(before, after); len(d) != 0 {
		t.Errorf("learned: %v", d)
	}
	if d := Diff(after, before); len(d) != 3 {
		t.Errorf("forgotten: %v", d)
	}
	after.Store.Layers[0].Parent = "p"
	if d := Diff(before, after); len(d) != 1 || d[0].Field != "parent" {
		t.Errorf("parent: %v", d)
	}
}

func TestPodmanManifest(t *testing.T) {
	p := newPodman(t, "vfs")
	img := importImage(t, p, "localhost/mine:1")
	p.must(t, "tag", img, "localhost/mine:2")
	p.must(t, "volume", "create", "--label", "a=b", "v1")
	p.must(t, "volume", "create", "v2")
	if _, err := p.run(t.Context(), strings.NewReader("x"), "secret", "create", "s1", "-"); err != nil {
		t.Fatal(err)
	}
	p.must(t, "pod", "create", "--infra=false", "--name", "p1")
	p.must(t, "create", "--name", "c1", "--pod", "p1", "--network", "none", img, "/x")
	store, err := StoreManifest(t.Context(), p.ref)
	if err != nil {
		t.Fatal(err)
	}
	take := func() Manifest {
		m, err := Take(t.Context(), p.run, store)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := take()
	var kinds []string
	for _, o := range m.Podman.Objects {
		kinds = append(kinds, o.Kind+" "+o.label())
	}
	want := []string{"container c1", "image localhost/mine:1, localhost/mine:2", "network podman", "pod p1", "secret s1", "volume v1", "volume v2"}
	if !slices.Equal(kinds, want) {
		t.Errorf("%q", kinds)
	}
	if m.Podman.Version == "" || m.Podman.Driver != "vfs" {
		t.Errorf("%+v", m.Podman)
	}
	if d := Diff(m, take()); len(d) != 0 {
		t.Errorf("nothing was changed, and yet %v", d)
	}
	p.must(t, "rm", "c1")
	p.must(t, "pod", "rm", "p1")
	p.must(t, "volume", "rm", "v1")
	p.must(t, "volume", "create", "v3")
	p.must(t, "secret", "rm", "s1")
	p.must(t, "untag", img, "localhost/mine:2")
	var got []string
	for _, d := range Diff(m, take()) {
		got = append(got, strings.SplitN(d.String(), " is ", 2)[0])
	}
	if len(got) != 6 {
		t.Errorf("%q", got)
	}
}

func TestOlderThan(t *testing.T) {
	for v, want := range map[string]bool{"3.0.1": true, "3.0.1+dfsg1": true, "3.1.0": false, "4.3.1": false, "2.9": true, "5.8.6-dev": false, "odd": false} {
		if olderThan(v, secretsSince()) != want {
			t.Errorf("%s: %v", v, !want)
		}
	}
}
