package dockerapi

import (
	"context"
	"errors"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
)

// sweep removes all that replays have made.
func (r *replay) sweep(ctx context.Context) error {
	ours := filters.NewArgs(filters.Arg("label", Label))
	cs, err := r.client.ContainerList(ctx, container.ListOptions{All: true, Filters: ours})
	if err != nil {
		return err
	}
	var errs []error
	drop := func(err error) {
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	for _, c := range cs {
		drop(r.client.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true}))
		for _, m := range c.Mounts {
			if strings.HasPrefix(m.Name, namePrefix) {
				drop(r.client.VolumeRemove(ctx, m.Name, true))
			}
		}
	}
	if r.id != "" {
		drop(r.client.VolumeRemove(ctx, r.name, true))
	}
	ns, err := r.client.NetworkList(ctx, network.ListOptions{Filters: ours})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, n := range ns {
		drop(r.client.NetworkRemove(ctx, n.ID))
	}
	if r.pulled {
		_, err := r.client.ImageRemove(ctx, r.opts.Pull, image.RemoveOptions{})
		drop(err)
	}
	_, err = r.client.ImageRemove(ctx, r.image, image.RemoveOptions{Force: true})
	drop(err)
	return errors.Join(errs...)
}
