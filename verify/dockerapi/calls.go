package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"

	"github.com/storagectl/storagectl/verify/smoke"
)

func (r *replay) version(ctx context.Context) (string, error) {
	first, err := r.client.ServerVersion(ctx)
	if err != nil {
		return "", err
	}
	second, err := r.client.ServerVersion(ctx)
	if err != nil {
		return "", err
	}
	if first.Version != second.Version {
		return "", fmt.Errorf("it is %s, then %s", first.Version, second.Version)
	}
	saw := fmt.Sprintf("%s, API %s", first.Version, first.APIVersion)
	var major int
	if _, err := fmt.Sscanf(first.Version, "%d.", &major); err == nil && major < 20 {
		saw += "; a worker takes it for a Docker before 20.10 and adds no host.docker.internal"
	}
	return saw, nil
}

func (r *replay) present(ctx context.Context) (string, error) {
	i, err := r.client.ImageInspect(ctx, r.image)
	if err != nil {
		return "", err
	}
	return i.ID, nil
}

func (r *replay) absent(ctx context.Context) (string, error) {
	_, err := r.client.ImageInspect(ctx, missing)
	if err == nil {
		return "", errors.New("an image that nobody has is there")
	}
	if !errdefs.IsNotFound(err) {
		return "", fmt.Errorf("not a 404: %w", err)
	}
	return "404", nil
}

// createMissing is what the policy Never comes to: clients take the image for
// missing by the status, docker-py also by its words.
func (r *replay) createMissing(ctx context.Context) (string, error) {
	c := r.config(r.nonce, "0")
	c.Image = missing
	_, err := r.client.ContainerCreate(ctx, c, nil, nil, nil, r.name+"-missing")
	switch {
	case err == nil:
		return "", errors.New("a container was made of an image that nobody has")
	case !errdefs.IsNotFound(err):
		return "", fmt.Errorf("not a 404: %w", err)
	case !strings.Contains(err.Error(), "No such image"): // podman begins it in lower case
		return "404, but without the words \"No such image\": docker-py's run() does not go on to pull then: " + err.Error(), errOdd
	}
	return "404", nil
}

func tail(b []byte) []byte { return b[max(0, len(b)-300):] }

func (r *replay) labels() map[string]string {
	return map[string]string{Label: r.nonce, smoke.Label: "replay"}
}

func (r *replay) makeNetworks(ctx context.Context) (string, error) {
	for i := range r.networks {
		n, err := r.client.NetworkCreate(ctx, fmt.Sprintf("%s-%d", r.name, i+1), network.CreateOptions{Labels: r.labels()})
		if err != nil {
			return "", err
		}
		r.networks[i] = n.ID
	}
	return "", nil
}

func (r *replay) config(args ...string) *container.Config {
	return &container.Config{Image: r.image, Cmd: args, Labels: r.labels(), Env: []string{"PREFECT_API_URL=http://127.0.0.1", "REPLAY=" + r.nonce}}
}

func (r *replay) create(ctx context.Context) (string, error) {
	h := &container.HostConfig{
		NetworkMode: container.NetworkMode(r.name + "-1"), ExtraHosts: []string{"worker:127.0.0.1"}, Binds: []string{r.name + ":/data"},
	}
	c, err := r.client.ContainerCreate(ctx, r.config(r.nonce, fmt.Sprint(exitWanted), "worker"), h, nil, nil, r.name)
	r.id = c.ID
	return "", err
}

func (r *replay) clash(ctx context.Context) (string, error) {
	_, err := r.client.ContainerCreate(ctx, r.config(r.nonce, "0"), nil, nil, nil, r.name)
	const lost = ": a worker of Prefect's does not try another name then, and its run fails: "
	switch {
	case err == nil:
		return "", errors.New("two containers have one name")
	case !errdefs.IsConflict(err): // podman 4.3.1 answers 500
		return "it is refused, but not by a 409" + lost + err.Error(), errOdd
	case !strings.Contains(strings.ToLower(err.Error()), "container name"):
		return "409, but without the words \"container name\"" + lost + err.Error(), errOdd
	}
	return "409", nil
}

func (r *replay) created(ctx context.Context) (string, error) {
	c, err := r.client.ContainerInspect(ctx, r.id)
	switch {
	case err != nil:
		return "", err
	case c.State == nil || c.Config == nil || c.HostConfig == nil:
		return "", errors.New("the answer has no state or configuration")
	case c.State.Status != "created":
		return "", fmt.Errorf("its status is %q", c.State.Status)
	case c.Config.Labels[Label] != r.nonce:
		return "", errors.New("its labels are not those that it was made with")
	case !strings.Contains(strings.Join(c.Config.Env, "\n"), "REPLAY="+r.nonce):
		return "", errors.New("its environment is not what it was made with")
	case !slices.ContainsFunc(c.Mounts, func(m container.MountPoint) bool { return m.Name == r.name && m.Destination == "/data" }):
		return "", errors.New("its volume is not there")
	case !slices.Contains(c.HostConfig.ExtraHosts, "worker:127.0.0.1"):
		return "", errors.New("its extra host is not there")
	}
	return "", nil
}

func (r *replay) join(ctx context.Context) (string, error) {
	if _, err := r.client.NetworkInspect(ctx, r.networks[1], network.InspectOptions{}); err != nil {
		return "", err
	}
	if err := r.client.NetworkConnect(ctx, r.networks[1], r.id, nil); err != nil {
		return "", err
	}
	c, err := r.client.ContainerInspect(ctx, r.id)
	if err != nil {
		return "", err
	}
	if c.NetworkSettings == nil || len(c.NetworkSettings.Networks) != 2 {
		return "", errors.New("it does not have both networks then")
	}
	return "", nil
}

func (r *replay) logs(ctx context.Context) (string, error) {
	other, err := r.connect()
	if err != nil {
		return "", err
	}
	defer func() { _ = other.Close() }() // only idle connections
	if _, err := other.ContainerInspect(ctx, r.id); err != nil {
		return "", err
	}
	s, err := other.ContainerLogs(ctx, r.id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Follow: true})
	if err != nil {
		return "", err
	}
	defer func() { _ = s.Close() }() // it was read
	out, errs, err := readFrames(s)
	if err != nil {
		return "", err
	}
	r.out = out
	if !strings.Contains(r.out, r.nonce) {
		return "", fmt.Errorf("the log does not have what the container wrote: %q %q", tail([]byte(out)), tail([]byte(errs)))
	}
	return "", nil
}

// inside compares what the container saw with what was asked for.
func (r *replay) inside(context.Context) (string, error) {
	got := map[string][]string{}
	for line := range strings.Lines(r.out) {
		if k, v, is := strings.Cut(strings.TrimSpace(line), "="); is {
			got[k] = append(got[k], v)
		}
	}
	nets := slices.DeleteFunc(got["net"], func(n string) bool { return n == "lo" })
	switch {
	case !slices.Equal(got["env"], []string{r.nonce}):
		return "", errors.New("it did not get its environment")
	case !slices.Equal(got["volume"], []string{r.nonce}):
		return "", fmt.Errorf("it cannot write to its volume: %s", strings.Join(got["volume"], " "))
	case !slices.ContainsFunc(got["host"], func(l string) bool { return strings.HasPrefix(l, "127.0.0.1") }):
		return "", errors.New("its /etc/hosts does not have the extra host")
	case len(nets) != 2:
		return "", fmt.Errorf("it has %d networks instead of 2: %s", len(nets), strings.Join(nets, " "))
	}
	return "networks " + strings.Join(nets, " "), nil
}

func (r *replay) exited(ctx context.Context) (string, error) {
	c, err := r.client.ContainerInspect(ctx, r.id)
	switch {
	case err != nil:
		return "", err
	case c.State == nil:
		return "", errors.New("the answer has no state")
	case c.State.Status == "stopped" && c.State.ExitCode == exitWanted: // podman 4.3.1, until its clean-up has come by
		return "it has its code, but is \"stopped\" and not yet exited: who looks for that word has to wait", errOdd
	case c.State.Status != "exited" || c.State.ExitCode != exitWanted:
		return "", fmt.Errorf("it is %q with code %d, not exited with %d: a worker would report another result", c.State.Status, c.State.ExitCode, exitWanted)
	}
	return fmt.Sprint(exitWanted), nil
}

func (r *replay) wait(ctx context.Context) (string, error) {
	return r.waitFor(ctx, r.id, exitWanted)
}
