// Package dockerapi does on podman's socket what a worker of Prefect's does there,
// call by call, in its order and with Docker's own client: so what it finds is what
// such a worker would.
package dockerapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/storagectl/storagectl/verify/smoke"
)

// Options say what is replayed.
type Options struct {
	Socket string `json:"socket"` // path
	// Pull is an image to be pulled from its registry (policy Always); empty:
	// nothing is pulled.
	Pull string `json:"pull,omitempty"`
}

// Call is one call, or a few that belong together.
type Call struct {
	Name string        `json:"name"`
	What string        `json:"what"` // for people
	Saw  string        `json:"saw"`
	OK   bool          `json:"ok"`
	Left bool          `json:"left,omitempty"` // not made: it does not apply here
	Odd  bool          `json:"odd,omitempty"`  // not as Docker answers, but one can live with it
	Took time.Duration `json:"took_ns"`
}

// callLimit bounds one call: a client would give up later, or never.
const callLimit = time.Minute

// label is on all that a replay makes, beside that of smoke tests.
const label = "io.storagectl.replay"

// exitWanted is the status that the container is told to end with.
const exitWanted = 43

var (
	// errLeft marks a call that does not apply.
	errLeft = errors.New("left out")
	// errOdd marks an answer that is not Docker's, and keeps no other call from
	// working.
	errOdd = errors.New("not as Docker answers")
)

// Replay makes the calls. The first one that fails ends it, since those that follow
// build on it. What it makes it removes, also what an earlier replay that was cut
// off has left: containers, networks, and the tiny image that comes along. The
// error says that it could not be tried; calls that fail are told in the list.
func Replay(ctx context.Context, o Options) ([]Call, error) {
	name, archive, err := smoke.Image()
	if err != nil {
		return nil, err
	}
	r := &replay{opts: o, image: name, archive: archive, nonce: rand.Text()}
	r.name = "storagectl-replay-" + strings.ToLower(r.nonce[:12])
	if r.client, err = r.connect(); err != nil {
		return nil, err
	}
	defer func() { _ = r.client.Close() }() // only idle connections
	if err := r.sweep(ctx); err != nil {
		return nil, fmt.Errorf("cannot remove what an earlier replay has left: %w", err)
	}
	var calls []Call
	for _, s := range r.steps() {
		c := Call{Name: s.name, What: s.what}
		began := time.Now()
		one, cancel := context.WithTimeout(ctx, callLimit)
		c.Saw, err = s.do(one)
		cancel()
		c.Took = time.Since(began)
		switch {
		case errors.Is(err, errLeft):
			c.Left, c.OK, err = true, true, nil
		case errors.Is(err, errOdd):
			c.Odd, c.OK, err = true, true, nil
		case err != nil:
			c.Saw = err.Error()
		default:
			c.OK = true
		}
		calls = append(calls, c)
		if err != nil {
			break
		}
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
	defer cancel()
	if err := r.sweep(clean); err != nil {
		return calls, fmt.Errorf("cannot remove what the replay made: %w", err)
	}
	return calls, ctx.Err()
}

type replay struct {
	opts     Options
	client   *client.Client
	image    string
	archive  []byte
	nonce    string
	name     string // of the container
	id       string
	networks [2]string
	memory   int64
}

func (r *replay) connect() (*client.Client, error) {
	return client.NewClientWithOpts(client.WithHost("unix://"+r.opts.Socket), client.WithAPIVersionNegotiation())
}

type step struct {
	name, what string
	do         func(context.Context) (string, error)
}

func (r *replay) steps() []step {
	return []step{
		{"version", "GET /version, twice: the client asks, then the worker", r.version},
		{"load", "POST /images/load: the image of the test", r.load},
		{"image", "GET /images/IMAGE/json (pull policy IfNotPresent, Never)", r.present},
		{"image-missing", "GET /images/MISSING/json: 404 (pull policy IfNotPresent goes on to pull, Never fails)", r.missing},
		{"pull", "POST /images/create, and its stream to the end (pull policy Always)", r.pull},
		{"networks", "POST /networks/create, twice", r.makeNetworks},
		{"create", "POST /containers/create: labels, environment, a volume, a network, extra hosts, memory", r.create},
		{"name-clash", "POST /containers/create with the same name: 409, in the words that a worker looks for", r.clash},
		{"inspect", "GET /containers/ID/json: created", r.created},
		{"connect", "GET /networks/ID, POST /networks/ID/connect: the second network", r.join},
		{"start", "POST /containers/ID/start", func(ctx context.Context) (string, error) {
			return "", r.client.ContainerStart(ctx, r.id, container.StartOptions{})
		}},
		{"logs", "a new client: GET json, GET /containers/ID/logs followed to its end", r.logs},
		{"exit-code", "GET /containers/ID/json at once after the log's end: exited, with its code", r.exited},
		{"wait", "POST /containers/ID/wait", r.wait},
		{"stop", "a second container: start, GET json, POST stop with a grace of 2 s", r.stop},
		{"auto-remove", "a third one with AutoRemove: gone by itself after its end", r.autoRemove},
	}
}

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

func (r *replay) load(ctx context.Context) (string, error) {
	res, err := r.client.ImageLoad(ctx, bytes.NewReader(r.archive))
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }() // it was read
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && bytes.Contains(b, []byte(`"error"`)) {
		err = fmt.Errorf("the stream says %q", b)
	}
	return r.image, err
}

func (r *replay) present(ctx context.Context) (string, error) {
	i, err := r.client.ImageInspect(ctx, r.image)
	if err != nil {
		return "", err
	}
	return i.ID, nil
}

func (r *replay) missing(ctx context.Context) (string, error) {
	_, err := r.client.ImageInspect(ctx, "localhost/storagectl-replay/no-such-image:1")
	if err == nil {
		return "", errors.New("an image that nobody has is there")
	}
	if !errdefs.IsNotFound(err) {
		return "", fmt.Errorf("not a 404: %w", err)
	}
	return "404", nil
}

func (r *replay) pull(ctx context.Context) (string, error) {
	if r.opts.Pull == "" {
		return "no image was named to be pulled", errLeft
	}
	s, err := r.client.ImagePull(ctx, r.opts.Pull, image.PullOptions{})
	if err != nil {
		return "", err
	}
	defer func() { _ = s.Close() }() // it was read
	b, err := io.ReadAll(io.LimitReader(s, 16<<20))
	if err != nil {
		return "", err
	}
	if bytes.Contains(b, []byte(`"error"`)) {
		return "", fmt.Errorf("the stream ends with %q", tail(b))
	}
	_, err = r.client.ImageInspect(ctx, r.opts.Pull)
	return r.opts.Pull, err
}

func tail(b []byte) []byte { return b[max(0, len(b)-300):] }

func (r *replay) labels() map[string]string {
	return map[string]string{label: r.nonce, smoke.Label: "replay"}
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
	info, err := r.client.Info(ctx)
	if err != nil {
		return "", err
	}
	h := &container.HostConfig{
		NetworkMode: container.NetworkMode(r.name + "-1"), ExtraHosts: []string{"worker:127.0.0.1"}, Binds: []string{r.name + ":/data"},
	}
	saw := "without a memory limit, which this host cannot set"
	if info.MemoryLimit {
		h.Memory, h.MemorySwap, saw = 64<<20, 64<<20, "with a memory limit of 64 MiB"
	}
	c, err := r.client.ContainerCreate(ctx, r.config(r.nonce, fmt.Sprint(exitWanted), "layers"), h, nil, nil, r.name)
	r.id, r.memory = c.ID, h.Memory
	return saw, err
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
	case c.Config.Labels[label] != r.nonce:
		return "", errors.New("its labels are not those that it was made with")
	case !strings.Contains(strings.Join(c.Config.Env, "\n"), "REPLAY="+r.nonce):
		return "", errors.New("its environment is not what it was made with")
	case c.HostConfig.Memory != r.memory:
		return "", fmt.Errorf("its memory limit is %d, not %d", c.HostConfig.Memory, r.memory)
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
	var out, errs bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errs, s); err != nil {
		return "", err
	}
	if !strings.Contains(out.String(), r.nonce) {
		return "", fmt.Errorf("the log does not have what the container wrote: %q %q", tail(out.Bytes()), tail(errs.Bytes()))
	}
	return "", nil
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

func (r *replay) waitFor(ctx context.Context, id string, want int64) (string, error) {
	done, failed := r.client.ContainerWait(ctx, id, container.WaitConditionNotRunning)
	select {
	case err := <-failed:
		return "", err
	case d := <-done:
		if d.Error != nil {
			return "", errors.New(d.Error.Message)
		}
		if want >= 0 && d.StatusCode != want {
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
	grace := 2
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
	return fmt.Sprintf("exited with %d", s.State.ExitCode), nil
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
