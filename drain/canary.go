package drain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/internal/brief"
)

// CanaryOptions say what the canary runs. Its image must have /bin/busybox or
// the given shell words, and be there already: nothing is pulled.
type CanaryOptions struct {
	Image     string
	Shell     []string // what runs a script: /bin/sh -c if empty
	Namespace string
	Driver    string // podman if empty
	Limit     time.Duration
	Variants  []Variant // of DefaultVariants if nil
}

// Variant is a way in which people's jobs run containers.
type Variant struct {
	Name string `json:"name"`
	// Config is merged over the task's driver configuration.
	Config map[string]any `json:"config,omitempty"`
}

// CanaryResult is what one variant did.
type CanaryResult struct {
	Variant string  `json:"variant"`
	OK      bool    `json:"ok"`
	Exit    int     `json:"exit"`
	Log     string  `json:"log,omitempty"`
	Why     string  `json:"why,omitempty"`
	Seconds float64 `json:"seconds"` // of the last try
	Tries   int     `json:"tries,omitempty"`
}

// DefaultVariants are the plain canary, first, and the options of people's jobs.
func DefaultVariants(shell []string) []Variant {
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	// The driver's entrypoint is one word; the rest goes to command and args.
	rest := append(slices.Clone(shell[1:]), canaryScript)
	return []Variant{
		{Name: "plain", Config: map[string]any{"network_mode": "none"}},
		{Name: "entrypoint", Config: map[string]any{"network_mode": "none", "entrypoint": shell[0], "command": rest[0], "args": rest[1:]}},
		{Name: "keep-id", Config: map[string]any{"network_mode": "none", "userns": "keep-id"}},
		{Name: "bridge", Config: map[string]any{"network_mode": "bridge"}},
		{Name: "host", Config: map[string]any{"network_mode": "host"}},
	}
}

// canaryScript tells that it ran, where, and by an odd exit code that the code
// comes through.
const (
	canaryScript = `echo "canary $NOMAD_ALLOC_ID"; exit 7`
	canaryExit   = 7

	canaryTries = 4
	canaryPause = 10 * time.Second
)

func canaryJob(id string, n Node, o CanaryOptions, v Variant) *api.Job {
	shell := o.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	driver := o.Driver
	if driver == "" {
		driver = "podman"
	}
	config := map[string]any{"image": o.Image, "command": shell[0], "args": append(slices.Clone(shell[1:]), canaryScript)}
	if driver != "podman" {
		delete(config, "image")
	}
	maps.Copy(config, v.Config)
	zero, small, size, off := 0, 32, 10, false
	task := &api.Task{Name: "canary", Driver: driver, Config: config,
		Resources: &api.Resources{CPU: new(20), MemoryMB: &small},
		LogConfig: &api.LogConfig{MaxFiles: new(1), MaxFileSizeMB: new(1)}}
	group := &api.TaskGroup{Name: new("canary"), Count: new(1), Tasks: []*api.Task{task},
		EphemeralDisk:    &api.EphemeralDisk{SizeMB: &size},
		RestartPolicy:    &api.RestartPolicy{Attempts: &zero, Mode: new("fail")},
		ReschedulePolicy: &api.ReschedulePolicy{Attempts: &zero, Unlimited: &off}}
	job := api.NewBatchJob(id, id, "", 50).AddTaskGroup(group).
		Constrain(api.NewConstraint("${node.unique.id}", "=", n.ID))
	job.Region = nil
	job.Datacenters = []string{"*"}
	if n.Pool != "" {
		job.NodePool = &n.Pool
	}
	if o.Namespace != "" {
		job.Namespace = &o.Namespace
	}
	return job
}

// Canary runs each variant as a batch job on the node and reads its exit code
// and log. The jobs are purged. The error says that a variant could not be
// tried; one that was tried and failed is told in its result.
func (c *Client) Canary(ctx context.Context, n Node, o CanaryOptions) ([]CanaryResult, error) {
	if o.Variants == nil {
		o.Variants = DefaultVariants(o.Shell)
	}
	results, errs := make([]CanaryResult, len(o.Variants)), make([]error, len(o.Variants))
	// The first alone, and again where the driver did not take it: a driver whose
	// last look found no podman may panic at its first task (0.4.1: "plugin is shut
	// down"), and Nomad starts another one only when it is needed.
	for try := 1; ; try++ {
		if results[0], errs[0] = c.canary(ctx, n, o, o.Variants[0]); errs[0] != nil {
			return results[:1], errs[0]
		}
		results[0].Tries = try
		if results[0].OK || results[0].Exit >= 0 || try == canaryTries {
			break
		}
		select {
		case <-ctx.Done():
			return results[:1], ctx.Err()
		case <-time.After(canaryPause): // Nomad's own pause between two starts of a driver
		}
	}
	if !results[0].OK {
		return results[:1], nil
	}
	var wg sync.WaitGroup
	for i, v := range o.Variants {
		if i == 0 {
			continue
		}
		wg.Go(func() { results[i], errs[i] = c.canary(ctx, n, o, v) })
	}
	wg.Wait()
	return results, errors.Join(errs...)
}

func (c *Client) canary(ctx context.Context, n Node, o CanaryOptions, v Variant) (_ CanaryResult, err error) {
	began := time.Now()
	r := CanaryResult{Variant: v.Name, Exit: -1}
	id := fmt.Sprintf("storagectl-canary-%s-%s", v.Name, randomID()[:8])
	ns := o.Namespace
	if ns == "" {
		ns = "default"
	}
	wo := c.change(ctx, "canary")
	wo.Namespace = ns
	if _, _, err := c.api.Jobs().Register(canaryJob(id, n, o, v), wo); err != nil {
		return r, fmt.Errorf("cannot run the canary: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
		defer cancel()
		wo := c.change(ctx, "canary-purge")
		wo.Namespace = ns
		if _, _, bad := c.api.Jobs().Deregister(id, true, wo); bad != nil {
			err = errors.Join(err, fmt.Errorf("cannot remove the canary %s: %w", id, bad))
		}
	}()
	waiting, cancel := context.WithTimeout(ctx, o.Limit)
	defer cancel()
	var alloc *api.AllocationListStub
	var index uint64
	for alloc == nil || !terminal(alloc.ClientStatus) {
		q := query(waiting)
		q.Namespace, q.WaitIndex, q.WaitTime = ns, index, 30*time.Second
		allocs, meta, err := c.api.Jobs().Allocations(id, true, q)
		if err != nil && waiting.Err() == nil {
			return r, fmt.Errorf("cannot watch the canary: %w", err)
		}
		if waiting.Err() != nil {
			r.Why = "it did not end within " + brief.Time(o.Limit)
			if alloc == nil {
				r.Why = "Nomad did not place it within " + brief.Time(o.Limit)
			}
			r.Seconds = time.Since(began).Seconds()
			return r, ctx.Err()
		}
		index = meta.LastIndex
		if len(allocs) > 0 {
			alloc = allocs[0]
		}
	}
	r.Seconds = time.Since(began).Seconds()
	ended := false
	if t := alloc.TaskStates["canary"]; t != nil {
		for _, e := range t.Events {
			if e.Type == api.TaskTerminated {
				r.Exit, ended = e.ExitCode, true
			}
			switch e.Type {
			case api.TaskDriverFailure, api.TaskFailedValidation, api.TaskSetupFailure, api.TaskArtifactDownloadFailed:
				r.Why = e.Type + ": " + e.DisplayMessage
			}
		}
	}
	if !ended {
		if r.Why == "" {
			r.Why = "the allocation is " + alloc.ClientStatus
		}
		return r, nil
	}
	if r.Log, err = c.log(ctx, ns, alloc.ID); err != nil {
		r.Why = err.Error()
		return r, nil
	}
	switch {
	case r.Exit != canaryExit:
		r.Why = fmt.Sprintf("it exited with %d instead of %d", r.Exit, canaryExit)
	case !strings.Contains(r.Log, "canary "+alloc.ID):
		r.Why = "its log does not have what it wrote"
	default:
		r.OK, r.Why = true, ""
	}
	return r, nil
}

func terminal(s string) bool {
	return s == api.AllocClientStatusComplete || s == api.AllocClientStatusFailed || s == api.AllocClientStatusLost
}

// log reads the canary's stdout. The driver may bring it a moment after the end.
func (c *Client) log(ctx context.Context, ns, alloc string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	for {
		q := query(ctx)
		q.Namespace = ns
		q.Params = map[string]string{"task": "canary", "type": "stdout", "origin": "start", "plain": "true"}
		body, err := c.api.Raw().Response("/v1/client/fs/logs/"+alloc, q)
		var text []byte
		if err == nil {
			text, err = io.ReadAll(io.LimitReader(body, 4096))
			_ = body.Close()
		}
		if err != nil && (forbidden(err) || !passing(err)) {
			return "", fmt.Errorf("cannot read the canary's log: %w", err)
		}
		if bytes.Contains(text, []byte("canary")) {
			return strings.TrimSpace(string(text)), nil
		}
		select {
		case <-ctx.Done():
			return strings.TrimSpace(string(text)), err
		case <-time.After(500 * time.Millisecond): // the log has no end that one could wait for
		}
	}
}
