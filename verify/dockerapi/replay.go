// Package dockerapi does on podman's socket what a worker of Prefect's does there,
// call by call, in its order and with Docker's own client: so what it finds is what
// such a worker would.
package dockerapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"github.com/storagectl/storagectl/verify/smoke"
)

// Options say what is replayed.
type Options struct {
	Socket string `json:"socket"` // path
	// Pull is an image to be pulled from its registry (policies IfNotPresent and
	// Always), and to be removed again if it was not there; empty: nothing is pulled.
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

// Label is on all that a replay makes, beside that of smoke tests.
const Label = "io.storagectl.replay"

// namePrefix begins the names of containers, networks and volumes of a replay.
const namePrefix = "storagectl-replay-"

// missing is an image that nobody has.
const missing = "localhost/storagectl-replay/no-such-image:1"

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
// off has left: containers, networks, volumes, and the tiny image that comes along.
// The error says that it could not be tried; calls that fail are told in the list.
func Replay(ctx context.Context, o Options) ([]Call, error) {
	r, err := begin(o)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.client.Close() }() // only idle connections
	steps := r.steps()
	calls := []Call{steps[0].call(ctx)}
	if !calls[0].OK { // nobody answers: nothing was made, and nothing can be removed
		return calls, ctx.Err()
	}
	if err := r.sweep(ctx); err != nil {
		return calls, fmt.Errorf("cannot remove what an earlier replay has left: %w", err)
	}
	for _, s := range steps[1:] {
		c := s.call(ctx)
		calls = append(calls, c)
		if !c.OK {
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

// Sweep removes what a replay that was cut off has left. An image that it pulled
// stays: nothing tells it from others.
func Sweep(ctx context.Context, o Options) error {
	r, err := begin(o)
	if err != nil {
		return err
	}
	defer func() { _ = r.client.Close() }() // only idle connections
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return r.sweep(ctx)
}

func begin(o Options) (*replay, error) {
	name, archive, err := smoke.Image()
	if err != nil {
		return nil, err
	}
	r := &replay{opts: o, image: name, archive: archive, nonce: rand.Text()}
	r.name = namePrefix + strings.ToLower(r.nonce[:12])
	r.client, err = r.connect()
	return r, err
}

// call makes one call.
func (s step) call(ctx context.Context) Call {
	c := Call{Name: s.name, What: s.what}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var err error
	c.Saw, err = s.do(ctx)
	c.Took = time.Since(began)
	switch {
	case errors.Is(err, errLeft):
		c.Left, c.OK = true, true
	case errors.Is(err, errOdd):
		c.Odd, c.OK = true, true
	case err != nil:
		c.Saw = err.Error()
	default:
		c.OK = true
	}
	return c
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
	out      string // what the container wrote
	pulled   bool   // the image of the options was not there before
}

func (r *replay) connect() (*client.Client, error) {
	return client.NewClientWithOpts(client.WithHost("unix://"+r.opts.Socket), client.WithAPIVersionNegotiation(),
		client.WithDialContext(func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := dial(ctx, r.opts.Socket)
			if err != nil {
				return nil, err
			}
			return &scantConn{c, mostSaid}, nil
		}))
}

type step struct {
	name, what string
	do         func(context.Context) (string, error)
}

func (r *replay) steps() []step {
	return []step{
		{"version", "GET /version, twice: the client asks, then the worker", r.version},
		{"load", "POST /images/load: the image of the test", r.load},
		{"image", "GET /images/IMAGE/json (pull policies IfNotPresent, Never)", r.present},
		{"image-missing", "GET /images/MISSING/json: 404 (IfNotPresent goes on to pull)", r.absent},
		{"create-missing", "POST /containers/create of MISSING: 404 (Never ends here)", r.createMissing},
		{"pull-missing", "GET json, and where that is a 404 POST /images/create (IfNotPresent)", r.pullMissing},
		{"pull", "POST /images/create, its stream to the end, GET json (Always)", r.pullAlways},
		{"pull-error", "POST /images/create of a tag that the registry has not: it must fail", r.pullError},
		{"networks", "POST /networks/create, twice", r.makeNetworks},
		{"create", "POST /containers/create: labels, environment, a volume, a network, extra hosts", r.create},
		{"name-clash", "POST /containers/create with the same name: 409, in the words that a worker looks for", r.clash},
		{"inspect", "GET /containers/ID/json: created", r.created},
		{"connect", "GET /networks/ID, POST /networks/ID/connect: the second network", r.join},
		{"start", "POST /containers/ID/start", func(ctx context.Context) (string, error) {
			return "", r.client.ContainerStart(ctx, r.id, container.StartOptions{})
		}},
		{"logs", "a new client: GET json, GET /containers/ID/logs followed to its end", r.logs},
		{"inside", "what the container saw: environment, volume, extra host, both networks", r.inside},
		{"exit-code", "GET /containers/ID/json at once after the log's end: exited, with its code", r.exited},
		{"wait", "POST /containers/ID/wait", r.wait},
		{"stop", "a second container: start, GET json, POST stop with a grace of 2 s", r.stop},
		{"auto-remove", "a third one with AutoRemove: gone by itself after its end", r.autoRemove},
		{"memory", "one with a limit of memory and swap: start, wait, and what the kernel has for it", r.memory},
	}
}
