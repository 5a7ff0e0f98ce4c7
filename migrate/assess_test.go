package migrate

import (
	"testing"

	"github.com/storagectl/storagectl/verify/smoke"
)

// TestTestable: a binary that has no test image is found out before anything is
// changed, and not when podman is down.
func TestTestable(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		req     Request
		missing error
		refused bool
	}{
		{"it has one", Request{}, nil, false},
		{"it has none", Request{}, smoke.ErrNotBuilt, true},
		{"it has none, and the store has", Request{SmokeImage: "base"}, smoke.ErrNotBuilt, false},
		{"the calls of Docker's API take it", Request{SmokeImage: "base", Outage: Outage{DockerAPI: true}}, smoke.ErrNotBuilt, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := &Assessment{Inputs: Inputs{Request: c.req}}
			a.testable(c.missing)
			if refused := len(a.Refusals) == 1 && a.Refusals[0].ID == "smoke-image"; refused != c.refused {
				t.Errorf("refused %v, want %v: %v", refused, c.refused, a.Refusals)
			}
		})
	}
}
