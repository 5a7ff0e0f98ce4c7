package drain

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/podman"
)

// What is done with busy containers at the deadline.
const (
	BusyWait   = "wait"   // wait on
	BusyStop   = "stop"   // stop them, with a grace
	BusyRefuse = "refuse" // fail with a [*BusyError]
)

// BusyOptions say which containers are waited for. A pattern is a label's name
// or label=value; "*" in either stands for any text (io.prefect.*).
type BusyOptions struct {
	Labels   []string             `json:"labels"`
	Deadline time.Duration        `json:"deadline"`
	Then     string               `json:"then"`            // BusyWait, BusyStop or BusyRefuse
	Grace    time.Duration        `json:"grace,omitempty"` // of a stop
	Progress func(names []string) `json:"-"`
}

// BusyError reports containers that still work at the deadline.
type BusyError struct{ Containers []string }

func (e *BusyError) Error() string {
	return "containers are still at work: " + strings.Join(e.Containers, ", ")
}

// Matches says whether one of the patterns is about these labels.
func Matches(labels map[string]string, patterns []string) bool {
	for _, p := range patterns {
		key, value, valued := strings.Cut(p, "=")
		for k, v := range labels {
			if Like(key, k) && (!valued || Like(value, v)) {
				return true
			}
		}
	}
	return false
}

// Like says whether a text fits a pattern, in which only "*" is special.
func Like(pattern, text string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == text
	}
	text, ok := strings.CutPrefix(text, parts[0])
	for _, part := range parts[1 : len(parts)-1] {
		if ok {
			_, text, ok = strings.Cut(text, part)
		}
	}
	return ok && strings.HasSuffix(text, parts[len(parts)-1])
}

// CheckPatterns refuses patterns that can match nothing.
func CheckPatterns(patterns []string) error {
	for _, p := range patterns {
		if key, _, _ := strings.Cut(p, "="); key == "" {
			return fmt.Errorf("cannot use the label pattern %q", p)
		}
	}
	return nil
}

// WaitBusy waits until no running container of the store carries one of the
// labels.
func WaitBusy(ctx context.Context, cli podman.CLI, o BusyOptions) error {
	deadline := time.NewTimer(o.Deadline)
	defer deadline.Stop()
	tick := time.NewTicker(time.Second) // the store may have no service that sends events
	defer tick.Stop()
	stopped := false
	for last := ""; ; {
		ids, names, err := busy(ctx, cli, o.Labels)
		if err != nil || len(ids) == 0 {
			return err
		}
		if now := strings.Join(names, " "); now != last && o.Progress != nil {
			last = now
			o.Progress(names)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			continue
		case <-deadline.C:
		}
		switch {
		case o.Then == BusyWait:
		case o.Then == BusyStop && !stopped:
			stopped = true
			if err := stop(ctx, cli, ids, o.Grace); err != nil {
				return err
			}
			deadline.Reset(o.Grace + 30*time.Second)
		default:
			return &BusyError{Containers: names}
		}
	}
}

// NotBusy is one look of WaitBusy: a [*BusyError] if any container is at work.
func NotBusy(ctx context.Context, cli podman.CLI, labels []string) error {
	_, names, err := busy(ctx, cli, labels)
	if err == nil && len(names) > 0 {
		return &BusyError{Containers: names}
	}
	return err
}

func busy(ctx context.Context, cli podman.CLI, labels []string) (ids, names []string, err error) {
	list, err := cli.Containers(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot see which containers work: %w", err)
	}
	for _, c := range list {
		if Running(c.State) && Matches(c.Labels, labels) {
			ids, names = append(ids, c.ID), append(names, c.Name())
		}
	}
	return ids, names, nil
}

// Running says whether a container in this state of podman's has a process.
func Running(state string) bool {
	switch strings.ToLower(state) {
	case "running", "paused", "stopping", "removing":
		return true
	}
	return false
}

func stop(ctx context.Context, cli podman.CLI, ids []string, grace time.Duration) error {
	args := append([]string{"stop", "--time", fmt.Sprint(int(grace.Seconds()))}, ids...)
	cli.Limit = grace + time.Minute
	if _, err := cli.Run(ctx, nil, args...); err != nil {
		return fmt.Errorf("cannot stop the containers at work: %w", err)
	}
	return nil
}
