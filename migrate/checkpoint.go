package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
)

// With --containers checkpoint what runs is frozen by CRIU instead of stopped, and
// goes on from there. Podman keeps a checkpoint in the container's own folder of the
// store, which the conversion carries over like the rest; the old store has it, too,
// so that a rollback goes on from the same moment.

// checkpointDeadline bounds one checkpoint or restore: the container's memory is
// written to the store, or read from it.
const checkpointDeadline = 30 * time.Minute

// keeping reports whether containers live on.
func (r Request) keeping() bool { return r.Containers == Keep || r.Containers == Checkpoint }

// checkpoints refuses --containers checkpoint where it cannot be, and says what is
// missing. running are the containers that would be checkpointed.
func (a *Assessment) checkpoints(ctx context.Context, cli podman.CLI, running []podman.Container) error {
	const keep = "say --containers keep: they are stopped and started again"
	if !a.Inputs.Owner.Rootful() {
		a.refuse("checkpoint", keep, "rootless podman has no checkpoints: CRIU needs root")
		return nil
	}
	env := a.Inputs.Owner.Env()
	_, err := cli.Runner.Run(ctx, host.Cmd{Argv: []string{"criu", "check"}, Env: env, Timeout: time.Minute})
	var failed *host.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		a.refuse("checkpoint", "install CRIU (package criu); or "+keep, "there is no criu on this host")
	case errors.As(err, &failed):
		text := strings.TrimSpace(failed.Stderr)
		if i := strings.LastIndexByte(text, '\n'); i >= 0 {
			text = text[i+1:]
		}
		a.refuse("checkpoint", "see criu check, another version of criu may do it; or "+keep, "CRIU cannot work on this kernel: %s", text)
	case err != nil:
		return err
	}
	// As podman finds out whether its runtime has checkpoints.
	rt := a.Info.Host.OCIRuntime
	_, err = cli.Runner.Run(ctx, host.Cmd{Argv: []string{rt.Path, "checkpoint", "--help"}, Env: env, Timeout: time.Minute})
	if err != nil {
		a.refuse("checkpoint", "use a runtime that has them, such as runc, or a crun that was built with CRIU; or "+keep,
			"the OCI runtime %s (%s) has no checkpoints", rt.Name, rt.Path)
	}
	for _, c := range running {
		out, err := cli.Run(ctx, nil, "container", "inspect", "--format", "{{len .Dependencies}}", c.ID)
		if err != nil {
			return err
		}
		if c.Pod != "" || strings.TrimSpace(string(out)) != "0" {
			a.refuse("checkpoint", "stop it yourself first; or "+keep, "the container %s shares namespaces with another, in a pod or by --network container:…, and cannot be checkpointed alone", c.Name())
		}
	}
	return nil
}

// freeze checkpoints running containers. One that fails runs on, and refuses the
// run: those before it go on from their checkpoints.
func (s *Session) freeze(ctx context.Context, running []podman.Container) error {
	if s.Inputs.Request.Containers != Checkpoint || s.journal.State().Phase != engine.PhaseRunning {
		return nil
	}
	cli := s.cli
	cli.Limit = checkpointDeadline
	for _, c := range running {
		if _, err := cli.Run(ctx, nil, "container", "checkpoint", "--file-locks", c.ID); err != nil {
			return &Refusal{ID: "checkpoint", Text: fmt.Sprintf("the container %s cannot be checkpointed: %v", c.Name(), err),
				Hint: "say --containers keep: it is stopped and started again"}
		}
		s.point("before after-checkpoint")
	}
	return nil
}

// thaw has a container go on from its checkpoint. Done is false where it has none:
// somebody started it since, or the power was cut before it was frozen.
func (s *Session) thaw(ctx context.Context, r Ran) (done bool, err error) {
	out, err := s.cli.Run(ctx, nil, "container", "inspect", "--format", "{{.State.Checkpointed}}", r.ID)
	if err != nil {
		return false, err
	}
	if strings.TrimSpace(string(out)) != "true" {
		return false, s.note("container %s has no checkpoint: it is started anew", r.Name)
	}
	if slices.Contains(s.facts.Thawed, r.ID) {
		// What it wrote since to volumes is newer than its memory.
		out, err := s.cli.Run(ctx, nil, "container", "inspect", "--format", "{{len .Mounts}}", r.ID)
		if err != nil {
			return false, err
		}
		if strings.TrimSpace(string(out)) != "0" {
			return false, s.note("container %s has run since its checkpoint, which does not fit its volumes any more: it is started anew", r.Name)
		}
	}
	if s.journal.State().Phase == engine.PhaseRunning {
		st := s.Inputs.Store
		args := bundleArgs{GraphRoot: st.GraphRoot, RunRoot: st.RunRoot, From: st.Driver, To: s.Inputs.Request.To, ID: r.ID}
		if _, err := ask[none](ctx, s, opBundle, args); err != nil {
			return false, err
		}
	}
	cli := s.cli
	cli.Limit = checkpointDeadline
	_, err = cli.Run(ctx, nil, "container", "restore", "--file-locks", r.ID)
	return true, err
}

// noteThawed notes what has run since its checkpoint, by podman's databases, before a
// saved one that does not know it is put back.
func (s *Session) noteThawed(dbs []libpoddb.Facts) error {
	now := thawed(s.facts.Thawed, s.facts.Ran, dbs)
	if len(now) == len(s.facts.Thawed) {
		return nil
	}
	return s.learn(func(f *Facts) { f.Thawed = now })
}

// thawed adds to known the containers that a database has no checkpoint of any more:
// they were started or restored, or removed, or there was a boot.
func thawed(known []string, ran []Ran, dbs []libpoddb.Facts) []string {
	now := slices.Clone(known)
	for _, r := range ran {
		for _, db := range dbs {
			still := slices.ContainsFunc(db.Containers, func(c libpoddb.Container) bool { return c.ID == r.ID && c.Checkpointed })
			if r.Frozen && !still && !slices.Contains(now, r.ID) {
				now = append(now, r.ID)
			}
		}
	}
	return now
}

type bundleArgs struct {
	GraphRoot string `json:"graphRoot"`
	RunRoot   string `json:"runRoot"`
	From      string `json:"from"`
	To        string `json:"to"`
	ID        string `json:"id"`
}

// moveBundle has a container's runtime bundle name the folders of the new driver.
// Podman makes a bundle at each start; only a restore uses the one that is there.
func moveBundle(_ context.Context, a bundleArgs, _ func(any)) (none, error) {
	path := filepath.Join(a.GraphRoot, a.To+"-containers", a.ID, "userdata", "config.json")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none{}, nil // the restore will say so
	}
	if err != nil {
		return none{}, fmt.Errorf("cannot read a container's bundle: %w", err)
	}
	after, err := a.move(b)
	if err != nil || after == nil {
		return none{}, err
	}
	if err := renameio.WriteFile(path, after, 0o600, renameio.WithTempDir(filepath.Dir(path)), renameio.WithExistingPermissions()); err != nil {
		return none{}, fmt.Errorf("cannot write a container's bundle: %w", err)
	}
	return none{}, syncDirs(filepath.Dir(path))
}

// move gives a bundle's configuration with its root and the sources of its mounts
// where the new driver has them; nil if nothing changes. What is not known here
// stays as it is.
func (a bundleArgs) move(bundle []byte) ([]byte, error) {
	var spec, root map[string]json.RawMessage
	var mounts []map[string]json.RawMessage
	if err := json.Unmarshal(bundle, &spec); err != nil {
		return nil, fmt.Errorf("cannot read a container's bundle: %w", err)
	}
	for key, into := range map[string]any{"root": &root, "mounts": &mounts} {
		if err := json.Unmarshal(spec[key], into); err != nil {
			return nil, fmt.Errorf("cannot read the %s of a container's bundle: %w", key, err)
		}
	}
	changed := false
	swap := func(in map[string]json.RawMessage, key string) error {
		var path string
		if in[key] == nil {
			return nil
		}
		if err := json.Unmarshal(in[key], &path); err != nil {
			return fmt.Errorf("cannot read the paths of a container's bundle: %w", err)
		}
		moved := a.path(path)
		if moved == path {
			return nil
		}
		changed = true
		text, err := json.Marshal(moved)
		in[key] = text
		return err
	}
	errs := []error{swap(root, "path")}
	for _, m := range mounts {
		errs = append(errs, swap(m, "source"))
	}
	if err := errors.Join(errs...); err != nil || !changed {
		return nil, err
	}
	for key, from := range map[string]any{"root": root, "mounts": mounts} {
		text, err := json.Marshal(from)
		if err != nil {
			return nil, fmt.Errorf("cannot write a container's bundle: %w", err)
		}
		spec[key] = text
	}
	return json.Marshal(spec)
}

func (a bundleArgs) path(p string) string {
	for _, root := range []string{a.GraphRoot, a.RunRoot} {
		if rest, ok := strings.CutPrefix(p, filepath.Join(root, a.From+"-containers")+"/"); ok {
			return filepath.Join(root, a.To+"-containers", rest)
		}
	}
	before, after := layerMount(a.GraphRoot, a.From)
	if layer, ok := strings.CutPrefix(p, before); ok && strings.HasSuffix(layer, after) {
		newBefore, newAfter := layerMount(a.GraphRoot, a.To)
		return newBefore + strings.TrimSuffix(layer, after) + newAfter
	}
	return p
}

// layerMount is where a driver shows a layer: before its id, and after.
func layerMount(root, driver string) (before, after string) {
	if driver == "vfs" {
		return filepath.Join(root, "vfs", "dir") + "/", ""
	}
	return filepath.Join(root, driver) + "/", "/merged"
}
