package prune

import (
	"strings"
	"testing"
)

func TestAsked(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("0123456789abcdef", 4)
	img := func(names ...string) Img {
		return Img{ID: id, Names: names, Digests: []string{"sha256:" + strings.Repeat("d", 64)}}
	}
	redis := img("docker.io/library/redis:7")
	for _, c := range []struct {
		ref  string
		img  Img
		want bool
	}{
		{"redis:7", redis, true},
		{"docker.io/redis:7", redis, true}, // as jobs spell it; podman stores it with library/
		{"docker://docker.io/redis:7", redis, true},
		{"index.docker.io/redis:7", redis, true},
		{"docker.io/redis", redis, false},
		{"docker.io/redis:${tag}", redis, true},
		{"docker.io/redis@sha256:" + strings.Repeat("d", 64), redis, true},
		{"docker.io/team/redis:7", redis, false},
		{"library/redis:7", redis, true},
		{"docker://docker.io/library/redis:7", redis, true},
		{"index.docker.io/library/redis:7", redis, true},
		{"redis", redis, false}, // that is latest
		{"redis", img("docker.io/library/redis:latest"), true},
		{"redis", img("quay.io/team/redis:latest"), true}, // by podman's list of registries
		{"quay.io/team/redis", img("docker.io/team/redis:latest"), false},
		{"team/redis", img("quay.io/team/redis:latest"), true},
		{"edis:7", redis, false},
		{"localhost:5000/x:1", img("localhost:5000/x:1"), true},
		{"localhost:5000/x", img("localhost:5000/x:latest"), true},
		{"localhost/x:1", img("docker.io/localhost/x:1"), false},
		{"redis:${meta.version}", redis, true},
		{"${meta.image}", redis, true},
		{"registry.example/${NOMAD_META_APP}:1", img("registry.example/a:1"), true},
		{"registry.example/${NOMAD_META_APP}:1", img("other.example/a:1"), false},
		{"redis@sha256:" + strings.Repeat("d", 64), redis, true},
		{"redis@sha256:" + strings.Repeat("e", 64), redis, false},
		{"redis:7@sha256:" + strings.Repeat("d", 64), redis, true},
		{id[:12], redis, true},
		{"sha256:" + id, redis, true},
		{id[:11], redis, false},
		{"oci-archive:/x/redis:7", redis, false},
		{"/usr/bin/redis", redis, false},
		{"--rm", redis, false},
		{"", redis, false},
		{"redis:7", img(), false},
	} {
		if got := asked(c.ref, c.img); got != c.want {
			t.Errorf("%q asks for %v: %v", c.ref, c.img.Names, got)
		}
	}
}

func TestNamed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, pattern string
		want          bool
	}{
		{"docker.io/library/redis:7", "redis", true},
		{"docker.io/library/redis:7", "redis:7", true},
		{"docker.io/library/redis:7", "redis:8", false},
		{"docker.io/library/redis:7", "docker.io/redis", true},
		{"docker.io/library/redis:7", "docker.io/redis:7", true},
		{"docker.io/library/redis:7", "docker.io/redis:8", false},
		{"docker.io/library/redis:7", "docker.io/red*", true},
		{"docker.io/library/redis:7", "index.docker.io/redis", true},
		{"docker.io/team/app:1", "team/app:1", true},
		{"quay.io/library/redis:7", "docker.io/redis", false},
		{"docker.io/library/redis:7", "docker.io/library/*", true},
		{"docker.io/library/redis:7", "*", true},
		{"docker.io/team/app:1", "team/app", true},
		{"localhost/lab/base:1", "localhost/lab/base:1", true},
		{"localhost/lab/base:1", "lab", false},
		{"web", "web", true},
		{"web", "we", false},
		{"web-1", "web-*", true},
	} {
		if got := named(c.name, []string{"nothing", c.pattern}); got != c.want {
			t.Errorf("%q is named by %q: %v", c.name, c.pattern, got)
		}
	}
}

func FuzzAsked(f *testing.F) {
	for _, s := range []string{"redis:7", "a/b@sha256:x", "${a", "x}y${z}", "://", ":", "@", "localhost:5000/a:b:c"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, ref, name string) {
		i := Img{ID: "0123456789abcdef", Names: []string{name}}
		asked(ref, i)
		named(name, []string{ref})
		// Whoever asks for an image by its whole name gets it.
		if r, ok := parse(name); ok && r.repo != "" && !strings.ContainsAny(name, "*$") && r.digest == "" && !asked(name, i) {
			t.Errorf("%q does not ask for itself", name)
		}
	})
}
