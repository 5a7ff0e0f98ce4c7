package podman

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/host"
)

// CLI runs podman as the owner of a store. Every call ends within its deadline:
// podman waits for locks without one (seen: a client that hung for good on
// podman 3.0.1's API).
type CLI struct {
	Owner  Owner
	Runner *host.Runner
	// Extra is added to podman's environment (CONTAINERS_STORAGE_CONF of a user
	// who runs storagectl for the own store).
	Extra []string
	// Limit is how long a call may take: two minutes if zero.
	Limit time.Duration
}

const podmanDeadline = 2 * time.Minute

// Run runs podman with args and returns what it wrote to stdout.
func (c CLI) Run(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	limit := c.Limit
	if limit == 0 {
		limit = podmanDeadline
	}
	return c.Runner.Run(ctx, host.Cmd{
		Argv: append([]string{"podman"}, args...), Env: c.Owner.Env(c.Extra...), As: c.Owner.as(),
		Stdin: stdin, Timeout: limit,
	})
}

// Other runs another command as the owner, with podman's environment and Extra.
func (c CLI) Other(ctx context.Context, limit time.Duration, argv ...string) ([]byte, error) {
	return c.Runner.Run(ctx, host.Cmd{Argv: argv, Env: c.Owner.Env(c.Extra...), As: c.Owner.as(), Timeout: limit})
}

// Free tells how many bytes the owner can still write where a folder of the owner's lies.
func (c CLI) Free(ctx context.Context, dir string) (uint64, error) {
	out, err := c.Other(ctx, 20*time.Second, "stat", "--file-system", "--format=%a %S", "--", dir)
	if err != nil {
		return 0, err
	}
	var blocks, size uint64
	if _, err := fmt.Sscan(string(out), &blocks, &size); err != nil {
		return 0, fmt.Errorf("cannot read what stat says of %s: %q", dir, out)
	}
	return blocks * size, nil
}

// Info is the part of "podman info --format json" that is read here, the same
// in 3.0 to 5.8.
type Info struct {
	Host struct {
		DatabaseBackend string `json:"databaseBackend"` // podman 4.6 and later
		OCIRuntime      struct {
			Name string `json:"name"`
			Path string `json:"path"`
		} `json:"ociRuntime"`
	} `json:"host"`
	Store struct {
		GraphDriverName string            `json:"graphDriverName"`
		GraphRoot       string            `json:"graphRoot"`
		RunRoot         string            `json:"runRoot"`
		VolumePath      string            `json:"volumePath"`
		GraphOptions    map[string]any    `json:"graphOptions"`
		GraphStatus     map[string]string `json:"graphStatus"`
	} `json:"store"`
	Version struct {
		Version string `json:"Version"`
	} `json:"version"`
}

// InfoArgs makes podman say what [DecodeInfo] reads.
func InfoArgs() []string { return []string{"info", "--format", "json"} }

// DecodeInfo reads what podman said to [InfoArgs].
func DecodeInfo(out []byte) (Info, error) {
	var i Info
	if err := json.Unmarshal(out, &i); err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return i, fmt.Errorf("cannot read podman info, which begins %q: %w", line, err)
	}
	return i, nil
}

// ErrNoPodman reports that there is no podman to run.
var ErrNoPodman = errors.New("podman is not installed")

// Version asks podman for its version without opening the store.
func (c CLI) Version(ctx context.Context) (major, minor int, text string, err error) {
	out, err := c.Run(ctx, nil, "--version")
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			err = ErrNoPodman
		}
		return 0, 0, "", err
	}
	return parseVersion(out)
}

// parseVersion reads "podman version 4.3.1". Lines before that are podman's
// complaints, of a storage.conf that it cannot read for example.
func parseVersion(out []byte) (major, minor int, text string, err error) {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	f := strings.Fields(lines[len(lines)-1])
	if len(f) < 3 {
		return 0, 0, "", fmt.Errorf("cannot read podman's version from %q", out)
	}
	text = f[2]
	parts := strings.SplitN(text, ".", 3)
	if len(parts) < 2 {
		return 0, 0, "", fmt.Errorf("cannot read podman's version from %q", out)
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, "", fmt.Errorf("cannot read podman's version from %q: %w", out, err)
	}
	return major, minor, text, nil
}

// Info asks podman what it really uses.
func (c CLI) Info(ctx context.Context) (Info, error) {
	out, err := c.Run(ctx, nil, InfoArgs()...)
	if err != nil {
		return Info{}, err
	}
	return DecodeInfo(out)
}

// Container is one container of podman, or an external one (buildah's).
type Container struct {
	ID        string   `json:"Id"`
	Names     []string `json:"Names"`
	Image     string   `json:"Image"`
	State     string   `json:"State"`
	Pod       string   `json:"Pod"`       // id; "" if it is in none
	Infra     bool     `json:"IsInfra"`   // it holds what its pod's others share
	StartedAt int64    `json:"StartedAt"` // seconds since 1970; before that: never
	Labels    map[string]string
}

// Name is what people call the container, and may type after podman: its name,
// or its id where it has none that podman would give. The owner of a store can
// write anything there.
func (c Container) Name() string {
	if len(c.Names) > 0 && plain(c.Names[0]) {
		return c.Names[0]
	}
	if id := c.ID[:min(12, len(c.ID))]; plain(id) {
		return id
	}
	return "?"
}

// plain reports whether podman takes name for a container ([a-zA-Z0-9][a-zA-Z0-9_.-]*).
func plain(name string) bool {
	const first = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	return strings.IndexFunc(name, func(r rune) bool { return !strings.ContainsRune(first+"_.-", r) }) < 0 && name != "" && strings.Contains(first, name[:1])
}

// Containers lists podman's own containers, running or not.
func (c CLI) Containers(ctx context.Context) ([]Container, error) {
	out, err := c.Run(ctx, nil, "ps", "--all", "--no-trunc", "--format", "json")
	if err != nil {
		return nil, err
	}
	var cs []Container
	if err := json.Unmarshal(out, &cs); err != nil {
		return nil, fmt.Errorf("cannot read podman ps: %w", err)
	}
	return cs, nil
}
