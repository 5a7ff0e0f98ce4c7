package migrate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/storagectl/storagectl/verify"
)

// ErrVerification is wrapped by every error that says the result is not what it
// must be. The node stays down, the run can be rolled back.
var ErrVerification = errors.New("verification failed")

// verify compares what podman has now with what it had before the cutover, and
// runs a container.
func (s *Session) verify(ctx context.Context) error {
	// Podman may have been used since the cutover, if the run was cut off.
	if in, err := s.swapped(ctx); err != nil {
		return err
	} else if !in && !s.Inputs.DatabaseOnly() {
		if err := s.swapIn(ctx); err != nil {
			return err
		}
	}
	part, err := ask[verify.StorePart](ctx, s, opManifest, s.storeRef(s.Inputs.Request.To))
	if err != nil {
		return err
	}
	if err := s.compareManifest(ctx, part); err != nil {
		return err
	}
	if !s.Inputs.DatabaseOnly() {
		if err := s.checkSample(ctx); err != nil {
			return err
		}
	}
	if err := s.smoke(ctx); err != nil || !s.Inputs.Unfusing() {
		return err
	}
	if r := s.facts.Smoke; !r.Overlay.Native || r.RootFS != overlay {
		return fmt.Errorf("%w: a container's root is %s, and not the kernel's overlay: %s", ErrVerification, r.RootFS, r.Overlay.Reason)
	}
	return nil
}

// compareManifest compares podman and the store, whose folders hold part now,
// with the manifest from before.
func (s *Session) compareManifest(ctx context.Context, part verify.StorePart) error {
	before, err := s.readManifest()
	if err != nil {
		return err
	}
	after, err := verify.Take(ctx, s.cli.Run, part)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrVerification, err)
	}
	leaveOut(&before, &after)
	ds := verify.Diff(before, after)
	discard := s.Inputs.Request.Containers == Discard
	given := givenUp(before.Store, after.Store, discard)
	for _, d := range ds {
		if d.Kind == "container" && given[d.ID] && !discard && d.Field == "" {
			if err := s.note("container %s was replaced by another of its name since podman was stopped", d.Name); err != nil {
				return err
			}
		}
	}
	ds = slices.DeleteFunc(ds, func(d verify.Difference) bool { return given[d.ID] || discard && d.Kind == "pod" })
	for _, d := range ds {
		// Somebody used podman in the middle of a run that was cut off. That is
		// no loss, but worth telling.
		if d.Added() && d.Kind != "layer" && !strings.Contains(d.Name, smokeName) {
			if err := s.note("made since the manifest was taken: %s", d); err != nil {
				return err
			}
		}
	}
	return unverified("the manifest", slices.DeleteFunc(ds, verify.Difference.Added))
}

// givenUp are the ids of containers, and of their layers, that need not be there:
// all that are removed anyway, or those that somebody replaced by another of the
// same name, as a unit does that a boot started in the middle of a run.
func givenUp(before, after verify.StorePart, all bool) map[string]bool {
	names := map[string]string{}
	for _, c := range after.Containers {
		for _, n := range c.Names {
			names[n] = c.ID
		}
	}
	ids := map[string]bool{}
	for _, c := range before.Containers {
		replaced := slices.ContainsFunc(c.Names, func(n string) bool { return names[n] != "" && names[n] != c.ID })
		if all || replaced {
			ids[c.ID], ids[c.Layer] = true, true
		}
	}
	return ids
}

// leaveOut takes from both manifests what lay in additional image stores: the
// job leaves them alone, and the plan said what podman will see of them. A layer
// of theirs that the store's own images stand on was carried over.
func leaveOut(before, after *verify.Manifest) {
	left := map[string]bool{}
	for _, l := range before.Store.Layers {
		left[l.ID] = left[l.ID] || l.ReadOnlyStore != ""
	}
	for _, i := range before.Store.Images {
		left[i.ID] = left[i.ID] || i.ReadOnlyStore != ""
	}
	for _, m := range []*verify.Manifest{before, after} {
		m.Store.Layers = slices.DeleteFunc(m.Store.Layers, func(l verify.Layer) bool { return left[l.ID] })
		m.Store.Images = slices.DeleteFunc(m.Store.Images, func(i verify.Image) bool { return left[i.ID] })
		m.Podman.Objects = slices.DeleteFunc(m.Podman.Objects, func(o verify.Object) bool { return o.Kind == "image" && left[o.ID] })
	}
}

// smoke runs a container on the new driver.
func (s *Session) smoke(ctx context.Context) error {
	r, err := verify.Smoke(ctx, s.cli.Run, verify.SmokeOptions{
		Driver: s.Inputs.Request.To, Run: s.ID, Image: s.Inputs.Request.SmokeImage,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrVerification, err)
	}
	if s.facts.Smoke != nil {
		return nil
	}
	return s.learn(func(f *Facts) { f.Smoke = &r })
}

// keepFile writes a file in the run's folder of the state directory. A crash
// before its fact is saved leaves a file that the next try replaces.
func (s *Session) keepFile(name string, content []byte) (FileRef, error) {
	if err := renameio.WriteFile(filepath.Join(s.env.Dir.RunPath(s.ID), name), content, 0o600); err != nil {
		return FileRef{}, fmt.Errorf("cannot keep %s: %w", name, err)
	}
	sum := sha256.Sum256(content)
	return FileRef{Name: name, SHA256: hex.EncodeToString(sum[:])}, nil
}

// keptFile reads a file that keepFile wrote, and makes sure that it is the one.
func (s *Session) keptFile(ref *FileRef) ([]byte, error) {
	if ref == nil {
		return nil, errors.New("cannot verify: the run took no manifest before")
	}
	b, err := os.ReadFile(filepath.Join(s.env.Dir.RunPath(s.ID), ref.Name))
	if err != nil {
		return nil, fmt.Errorf("cannot read what the run kept: %w", err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != ref.SHA256 {
		return nil, fmt.Errorf("cannot verify: %s was changed since it was taken", ref.Name)
	}
	return b, nil
}

func (s *Session) readManifest() (verify.Manifest, error) {
	ref := s.facts.Before
	if n := len(s.facts.BeforeAnew); n > 0 {
		ref = &s.facts.BeforeAnew[n-1]
	}
	b, err := s.keptFile(ref)
	if err != nil {
		return verify.Manifest{}, err
	}
	return verify.DecodeManifest(bytes.NewReader(b))
}

// checkSample reads the sampled files again, through the new driver.
func (s *Session) checkSample(ctx context.Context) error {
	b, err := s.keptFile(s.facts.Sample)
	if err != nil {
		return err
	}
	var before, after verify.Sample
	if err := json.Unmarshal(b, &before); err != nil {
		return fmt.Errorf("cannot read the sample of files: %w", err)
	}
	// Images that went away while podman still worked are not missed.
	manifest, err := s.readManifest()
	if err != nil {
		return err
	}
	there := imageIDs(manifest.Store)
	before.Entries = slices.DeleteFunc(before.Entries, func(e verify.SampleEntry) bool { return !slices.Contains(there, e.Image) })
	args := sampleArgs{Store: s.storeRef(s.Inputs.Request.To), Scratch: runFolder(s.Inputs.Store.GraphRoot, s.ID), Again: &before}
	if err := s.worker.Call(ctx, opSample, args, &after, nil); err != nil {
		return fmt.Errorf("%w: %w", ErrVerification, err)
	}
	return unverified("sampled files", verify.DiffSamples(before, after))
}

// unverified makes an error of differences, nil of none.
func unverified(what string, ds []verify.Difference) error {
	if len(ds) == 0 {
		return nil
	}
	lines := make([]string, 0, 5)
	for _, d := range ds[:min(5, len(ds))] {
		lines = append(lines, d.String())
	}
	return fmt.Errorf("%w: %s in %s: %s", ErrVerification, Count(len(ds), "difference", "differences"), what, strings.Join(lines, "; "))
}
