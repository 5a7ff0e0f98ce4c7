package migrate

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/podman"
)

// running judges the running containers, which a run has to stop. Those of a
// unit come and go with it.
func (a *Assessment) running(ctx context.Context, cli podman.CLI) error {
	cs, err := cli.Containers(ctx)
	if err != nil {
		return err
	}
	var running []podman.Container
	keep := a.Inputs.Request.keeping()
	for _, c := range cs {
		u := c.Labels["PODMAN_SYSTEMD_UNIT"]
		_, nomads := drain.IsNomads(c.Names, c.Labels)
		switch {
		case c.State != "running" && c.State != "paused", u != "" && slices.Contains(a.Units.all(), u), nomads && a.Inputs.Nomad != nil,
			drain.Matches(c.Labels, a.Inputs.Request.Outage.Busy.Labels): // waited for
		default:
			running = append(running, c)
			a.Running = append(a.Running, Ran{ID: c.ID, Name: c.Name()})
		}
	}
	if keep {
		r, err := unkeepable(ctx, cli, running)
		if r != nil {
			a.Refusals = append(a.Refusals, *r)
		}
		if err == nil && a.Inputs.Request.Containers == Checkpoint {
			err = a.checkpoints(ctx, cli, running)
		}
		return err
	}
	names, err := autoRemoved(ctx, cli, running)
	if len(names) > 0 {
		a.Refusals = append(a.Refusals, *autoRemoveRefusal(names))
	}
	return err
}

// atWork names the containers that --busy-label means, so that a label that means
// too many, or none, is seen before.
func (a *Assessment) atWork(ctx context.Context, cli podman.CLI) error {
	if len(a.Inputs.Request.Outage.Busy.Labels) == 0 {
		return nil
	}
	var busy *drain.BusyError
	if err := drain.NotBusy(ctx, cli, a.Inputs.Request.Outage.Busy.Labels); !errors.As(err, &busy) {
		return err
	}
	a.Busy = busy.Containers
	return nil
}

// mapped refuses containers with id maps of their own where one of the drivers gives
// their files their ids at mount, as root's overlay does where the kernel can, and
// fuse-overlayfs where one run of ids is mapped (containers/storage,
// SupportsShifting), and the other has mapped them in its copies.
func (a *Assessment) mapped() {
	if !a.Inputs.Request.keeping() {
		return
	}
	var names []string
	for _, c := range a.Estimate.Containers {
		if c.Mapped && a.Inputs.Owner.Rootful() || c.Shifted {
			names = append(names, strings.Join(c.Names, " "))
		}
	}
	if len(names) > 0 {
		a.refuse("mapped", "commit them to images and make them anew on the new store",
			"containers with id maps of their own cannot be carried over: %s", strings.Join(names, ", "))
	}
}
