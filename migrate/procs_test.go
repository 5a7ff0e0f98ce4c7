package migrate

import (
	"bytes"
	"testing"
)

// TestCalled: a process is told by what it does, and nothing else of its command
// line is told.
func TestCalled(t *testing.T) {
	for argv, want := range map[string]string{
		"podman build -t x .":                               "podman build (pid 7)",
		"podman --log-level debug run -e PASSWORD=secret x": "podman run (pid 7)",
		"podman":        "podman (pid 7)",
		"buildah bud .": "buildah bud (pid 7)",
		"skopeo --debug copy --src-creds a:b docker://x dir:y": "skopeo copy (pid 7)",
		"conmon --api-version 1 -c 0123 -n web -r crun":        "conmon of web (pid 7)",
		"conmon -n": "conmon (pid 7)",
	} {
		words := bytes.Fields([]byte(argv))
		if p, ok := classify(7, string(words[0]), words); !ok || p.String() != want {
			t.Errorf("%s: %v %s, want %s", argv, ok, p, want)
		}
	}
}
