package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
)

func (r *replay) waitFor(ctx context.Context, id string, want int64) (string, error) {
	done, failed := r.client.ContainerWait(ctx, id, container.WaitConditionNotRunning)
	select {
	case err := <-failed:
		return "", err
	case d := <-done:
		if d.Error != nil {
			return "", errors.New(d.Error.Message)
		}
		if d.StatusCode != want {
			return "", fmt.Errorf("it says %d, not %d", d.StatusCode, want)
		}
		return fmt.Sprint(d.StatusCode), nil
	}
}

func (r *replay) stop(ctx context.Context) (string, error) {
	c, err := r.client.ContainerCreate(ctx, r.config(r.nonce, "0", "stay"), &container.HostConfig{NetworkMode: "none"}, nil, nil, r.name+"-stop")
	if err != nil {
		return "", err
	}
	if err := r.client.ContainerStart(ctx, c.ID, container.StartOptions{}); err != nil {
		return "", err
	}
	if s, err := r.client.ContainerInspect(ctx, c.ID); err != nil {
		return "", err
	} else if s.State == nil || !s.State.Running {
		return "", errors.New("it does not run after its start")
	}
	grace, began := 2, time.Now()
	if err := r.client.ContainerStop(ctx, c.ID, container.StopOptions{Timeout: &grace}); err != nil {
		return "", err
	}
	s, err := r.client.ContainerInspect(ctx, c.ID)
	if err != nil {
		return "", err
	}
	if s.State == nil || s.State.Running || s.State.Status != "exited" {
		return "", errors.New("it is not exited after its stop")
	}
	if s.State.ExitCode != 128+9 { // it minds no SIGTERM
		return "", fmt.Errorf("it exited with %d, not killed when its grace was over", s.State.ExitCode)
	}
	return fmt.Sprintf("exited with %d, %.1f s after the call", s.State.ExitCode, time.Since(began).Seconds()), nil
}

func (r *replay) autoRemove(ctx context.Context) (string, error) {
	c, err := r.client.ContainerCreate(ctx, r.config(r.nonce, "0"), &container.HostConfig{NetworkMode: "none", AutoRemove: true}, nil, nil, r.name+"-auto")
	if err != nil {
		return "", err
	}
	if err := r.client.ContainerStart(ctx, c.ID, container.StartOptions{}); err != nil {
		return "", err
	}
	var last error
	for {
		_, err := r.client.ContainerInspect(ctx, c.ID)
		switch {
		case errdefs.IsNotFound(err) && last != nil:
			return "gone; but while it went, the answer was not a 404: " + last.Error(), errOdd
		case errdefs.IsNotFound(err):
			return "", nil
		case err != nil && ctx.Err() == nil: // podman 4.3.1 answers 500 in the moment of the removal
			last = err
		}
		select {
		case <-ctx.Done():
			return "", errors.Join(errors.New("it is still there"), last)
		case <-time.After(100 * time.Millisecond): // an engine may tell of its end before it is gone
		}
	}
}

// The limits that a container is given: mem_limit and memswap_limit, of which the
// second is both together.
const (
	memoryLimit = 64 << 20
	swapLimit   = 96 << 20
)

// memory starts a container with limits and asks it what the kernel has for it. That
// needs the memory controller, delegated to the user where podman is rootless; on a
// host without, only who sets limits fails.
func (r *replay) memory(ctx context.Context) (string, error) {
	const lost = "a worker that sets mem_limit fails here: "
	h := &container.HostConfig{NetworkMode: "none", Resources: container.Resources{Memory: memoryLimit, MemorySwap: swapLimit}}
	c, err := r.client.ContainerCreate(ctx, r.config(r.nonce, "0", "memory"), h, nil, nil, r.name+"-memory")
	if err == nil {
		err = r.client.ContainerStart(ctx, c.ID, container.StartOptions{})
	}
	switch {
	case ctx.Err() != nil:
		return "", err
	case err != nil:
		return lost + err.Error(), errOdd
	}
	if _, err := r.waitFor(ctx, c.ID, 0); err != nil {
		return "", err
	}
	s, err := r.client.ContainerLogs(ctx, c.ID, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		return "", err
	}
	defer func() { _ = s.Close() }() // it was read
	out, _, err := readFrames(s)
	if err != nil {
		return "", err
	}
	return limits(out)
}

// limits judges what a container saw of its limits.
func limits(out string) (string, error) {
	line := func(key string) string {
		for l := range strings.Lines(out) {
			if v, is := strings.CutPrefix(strings.TrimSpace(l), key+"="); is {
				return v
			}
		}
		return ""
	}
	memory, swap := line("memory.max"), line("memory.swap.max")
	switch {
	case memory == "": // a cgroup of version 1 shows it elsewhere
		return "it starts, but has no memory.max to see its limit by", errOdd
	case memory != fmt.Sprint(memoryLimit):
		return fmt.Sprintf("it starts, but its memory.max is %s, not %d: it has no limit", memory, memoryLimit), errOdd
	case swap == "":
		return "memory 64 MiB; the kernel has no limit of swap", nil
	case swap != fmt.Sprint(swapLimit-memoryLimit):
		return fmt.Sprintf("its memory.swap.max is %s, not %d", swap, swapLimit-memoryLimit), errOdd
	}
	return "memory 64 MiB, swap 32 MiB", nil
}
