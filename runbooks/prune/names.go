package prune

import (
	"slices"
	"strings"

	"github.com/storagectl/storagectl/drain"
)

// reference is an image's name in its parts.
type reference struct {
	repo   string // with its registry
	tag    string // "" with a digest
	digest string
	short  bool // it names no registry
}

// parse reads a name as podman and its driver for Nomad do: what names no registry is
// docker.io's, what has no tag is latest. What is asked for by the name of a file is
// no name: ok is false.
func parse(name string) (r reference, ok bool) {
	name = strings.TrimPrefix(name, "docker://")
	name = strings.TrimPrefix(name, "containers-storage:")
	if name == "" || strings.HasPrefix(name, "/") || strings.HasPrefix(name, "-") {
		return r, false
	}
	for _, t := range []string{"oci-archive:", "docker-archive:", "oci:", "dir:", "http:", "https:"} {
		if strings.HasPrefix(name, t) {
			return r, false
		}
	}
	name, r.digest, _ = strings.Cut(name, "@")
	slash := strings.LastIndexByte(name, '/')
	if colon := strings.LastIndexByte(name, ':'); colon > slash {
		name, r.tag = name[:colon], name[colon+1:]
	}
	switch {
	case r.digest != "":
		r.tag = ""
	case r.tag == "" && strings.HasSuffix(name, "*"):
		r.tag = "*" // what is filled in may have one
	case r.tag == "":
		r.tag = "latest"
	}
	first, rest, deep := strings.Cut(name, "/")
	switch {
	case deep && first == "index.docker.io":
		name = "docker.io/" + rest
	case !deep || !strings.ContainsAny(first, ".:*") && first != "localhost":
		r.short = true
		if !deep {
			name = "library/" + name
		}
		name = "docker.io/" + name
	}
	r.repo = name
	return r, name != ""
}

// asked reports whether who asks for ref may get the image. In doubt it does: a part
// that is filled in later (${…} in a job of Nomad's) stands for any text, and a name
// without a registry for any registry.
func asked(ref string, img Img) bool {
	ref = anything(ref)
	if id := strings.TrimPrefix(ref, "sha256:"); len(id) >= 12 && strings.HasPrefix(img.ID, id) {
		return true
	}
	want, ok := parse(ref)
	if !ok {
		return false
	}
	for _, n := range img.Names {
		have, ok := parse(n)
		if !ok {
			continue
		}
		bare := strings.TrimPrefix(strings.TrimPrefix(want.repo, "docker.io/"), "library/")
		if !drain.Like(want.repo, have.repo) && !drain.Like(want.repo, hubName(have.repo)) && (!want.short || !drain.Like("*/"+bare, have.repo)) {
			continue
		}
		switch {
		case want.digest != "":
			if have.digest == want.digest || slices.ContainsFunc(img.Digests, func(d string) bool { return drain.Like(want.digest, d) }) {
				return true
			}
		case have.digest == "" && drain.Like(want.tag, have.tag):
			return true
		}
	}
	return false
}

// hubName is what docker.io/library/NAME is called, too: docker.io/NAME. Podman stores
// only the former.
func hubName(repo string) string {
	if rest, is := strings.CutPrefix(repo, "docker.io/library/"); is {
		return "docker.io/" + rest
	}
	return repo
}

// anything puts * for each ${…}.
func anything(s string) string {
	for {
		before, rest, found := strings.Cut(s, "${")
		if !found {
			return s
		}
		_, after, closed := strings.Cut(rest, "}")
		if !closed {
			return before + "*"
		}
		s = before + "*" + after
	}
}

// named reports whether one of the patterns fits a name: the whole of it, an image's
// without its tag, or the last part of that.
func named(name string, patterns []string) bool {
	forms := []string{name}
	if r, ok := parse(name); ok && strings.Contains(name, "/") {
		last := r.repo[strings.LastIndexByte(r.repo, '/')+1:]
		short := strings.TrimPrefix(strings.TrimPrefix(r.repo, "docker.io/"), "library/")
		forms = append(forms, r.repo, last, last+":"+r.tag, short, short+":"+r.tag, hubName(r.repo), hubName(r.repo)+":"+r.tag)
	}
	return slices.ContainsFunc(patterns, func(p string) bool {
		p = strings.TrimPrefix(p, "docker://")
		if strings.HasPrefix(p, "index.docker.io/") {
			p = strings.TrimPrefix(p, "index.")
		}
		return slices.ContainsFunc(forms, func(f string) bool { return drain.Like(p, f) })
	})
}

// repositories are those of an image's names.
func repositories(img Img) []string {
	var all []string
	for _, n := range img.Names {
		if r, ok := parse(n); ok && !slices.Contains(all, r.repo) {
			all = append(all, r.repo)
		}
	}
	return all
}
