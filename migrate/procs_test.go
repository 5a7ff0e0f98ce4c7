package migrate

import (
	"bytes"
	"testing"
)

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		comm, argv string // argv in words
		want       string // "" if the process has nothing to do with podman
		pause      bool
	}{
		{comm: "podman", argv: "podman build -t x .", want: "podman build (pid 7)"},
		{comm: "podman", argv: "/usr/bin/podman --log-level debug run -e PASSWORD=secret x", want: "podman run (pid 7)"},
		{comm: "podman", argv: "podman system service", want: "podman system (pid 7)"},
		{comm: "podman", argv: "podman", want: "podman (pid 7)"},
		{comm: "buildah", argv: "buildah bud .", want: "buildah bud (pid 7)"},
		{comm: "skopeo", argv: "skopeo --debug copy --src-creds a:b docker://x dir:y", want: "skopeo copy (pid 7)"},
		{comm: "conmon", argv: "/usr/bin/conmon --api-version 1 -c 0123 -n web -r crun", want: "conmon of web (pid 7)"},
		{comm: "conmon", argv: "conmon -n", want: "conmon (pid 7)"},
		{comm: "podman pause", argv: "podman", want: "podman pause (pid 7)", pause: true},
		{comm: "catatonit", argv: "catatonit -P", want: "catatonit (pid 7)", pause: true},
		{comm: "catatonit", argv: "catatonit -- sleep"},
		{comm: "podman", argv: ""}, // a zombie
		{comm: "bash", argv: "bash -c podman"},
	} {
		p, ok := classify(7, c.comm, bytes.Split([]byte(c.argv), []byte{' '}))
		if ok != (c.want != "") || ok && (p.String() != c.want || p.Pause != c.pause) {
			t.Errorf("%s: %v %v %v", c.argv, ok, p, p.Pause)
		}
	}
}
