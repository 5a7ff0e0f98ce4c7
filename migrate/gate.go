package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/verify/dockerapi"
)

// StepDockerAPI makes a Docker client's calls before the host is given back.
const StepDockerAPI = "docker-api"

// replayed are the calls of a replay. Why says why it could not be tried, or not to
// its end.
type replayed struct {
	Calls []dockerapi.Call `json:"calls"`
	Why   string           `json:"why,omitempty"`
}

// dockerAPI asks for the calls of a Docker client: a host whose socket does not serve
// one gets no work. What they came to is noted; those that fail stop the run with
// podman up and the node out of service.
func (s *Session) dockerAPI(ctx context.Context) error {
	// After a boot some of it may not run.
	up, err := s.started(ctx)
	if err == nil && !up {
		err = s.startUnits(ctx)
	}
	if err != nil {
		return err
	}
	got, err := ask[replayed](ctx, s, opReplay, podmanSocket)
	if err != nil {
		return err
	}
	failed := ""
	for _, c := range got.Calls {
		if c.Left || c.OK && !c.Odd {
			continue
		}
		word := "works, but not as Docker"
		if !c.OK {
			word, failed = "does not work", c.Name+": "+c.Saw
		}
		if err := s.note("docker api, %s %s: %s", c.Name, word, c.Saw); err != nil {
			return err
		}
	}
	switch {
	case failed != "":
		return fmt.Errorf("%w: the Docker API does not serve a client: %s", ErrVerification, failed)
	case got.Why != "":
		return fmt.Errorf("%w: the Docker API could not be tried: %s", ErrVerification, got.Why)
	case s.facts.DockerAPI != nil:
		return nil
	}
	return s.learn(func(f *Facts) { f.DockerAPI = got.Calls })
}

// sweepDockerAPI removes what calls that were cut off have left in the store. What
// it cannot remove is no loss, and holds up no way back.
func (s *Session) sweepDockerAPI(ctx context.Context) error {
	if s.facts.DockerAPI != nil { // they were made to their end, and have removed it
		return nil
	}
	_, err := ask[none](ctx, s, opReplaySweep, podmanSocket)
	if err != nil && ctx.Err() == nil {
		return s.note("what a Docker client's calls have made may be left (podman ps --all --filter label=%s): %v", dockerapi.Label, err)
	}
	return err
}

// replayCalls makes the calls on the socket of a unit.
func (w *worker) replayCalls(ctx context.Context, unit string) (replayed, error) {
	path, err := w.socketPath(ctx, unit)
	if err != nil {
		return replayed{}, err
	}
	calls, err := dockerapi.Replay(ctx, dockerapi.Options{Socket: path})
	r := replayed{Calls: calls}
	if ctx.Err() != nil {
		return r, ctx.Err()
	}
	if err != nil {
		r.Why = err.Error()
	}
	return r, nil
}

func (w *worker) replaySweep(ctx context.Context, unit string) error {
	path, err := w.socketPath(ctx, unit)
	if err != nil {
		return err
	}
	return dockerapi.Sweep(ctx, dockerapi.Options{Socket: path})
}

func (w *worker) socketPath(ctx context.Context, unit string) (path string, err error) {
	if w.noUnits() {
		return "", errors.New("the owner has no systemd running")
	}
	err = w.withBus(ctx, func(b *host.Bus) (err error) { path, err = b.SocketPath(ctx, unit); return err })
	return path, err
}

// gate refuses --docker-api where no client of Docker's API is served now: the gate
// would fail for a reason that has nothing to do with the run.
func (a *Assessment) gate() {
	if !a.Inputs.Request.Outage.DockerAPI {
		return
	}
	const hint = "systemctl --user enable --now podman.socket as the store's owner (as root, for the rootful store: systemctl enable --now podman.socket), or leave --docker-api out"
	switch {
	case a.Inputs.Growing():
		a.refuse(StepDockerAPI, "leave --docker-api out; storagectl verify --docker-api can be asked at any time", "the store is on that image already, and is only made larger")
	case !a.Inputs.Systemd:
		a.refuse(StepDockerAPI, "leave --docker-api out; storagectl verify --docker-api can be asked at any time", "without systemd nobody knows which socket is to serve a Docker client")
	case !slices.Contains(a.Units.Own, podmanSocket):
		a.refuse(StepDockerAPI, hint, "podman.socket of %s is not active: no Docker client is served now", a.Inputs.Owner.Name)
	}
}
