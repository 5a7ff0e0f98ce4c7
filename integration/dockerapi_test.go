package integration

import (
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestDockerAPI: the calls of a worker work on podman's socket, leave nothing
// behind, and find a socket that does not answer.
func TestDockerAPI(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.script("root", "echo nameserver 127.0.0.1 >/etc/resolv.conf")
	before := w.manifest()
	r := w.ctl("verify", "--user", lab.Owner, "--docker-api")
	t.Logf("\n%s", r.stdout)
	// Podman 4.3.1 answers a name clash by 500, and calls a container that has ended
	// stopped for a moment.
	if r.code != exitFailed || !strings.Contains(r.stdout, "  warning  name-clash ") {
		t.Fatal(r)
	}
	for _, call := range []string{"version", "image-missing", "networks", "create", "connect", "start", "logs", "wait", "stop"} {
		if !strings.Contains(r.stdout, "  ok       "+call+" ") {
			t.Errorf("the call %s was not made: %s", call, r.stdout)
		}
	}
	for _, call := range []string{"exit-code", "auto-remove"} { // moments in which podman 4.3.1 may answer oddly
		if !strings.Contains(r.stdout, "  ok       "+call+" ") && !strings.Contains(r.stdout, "  warning  "+call+" ") {
			t.Errorf("the call %s did not end as it must: %s", call, r.stdout)
		}
	}
	w.same("the store after the replay", before, w.manifest())
	w.script(lab.Owner, "systemctl --user stop podman.socket")
	if r := w.ctl("verify", "--user", lab.Owner, "--docker-api"); r.code != exitUnverified {
		t.Errorf("want exit %d without a socket: %s", exitUnverified, r)
	}
}
