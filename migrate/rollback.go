package migrate

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
	"github.com/storagectl/storagectl/verify"
)

// unstage removes the run's folder from the store, unless it holds the only copy
// of something: what was made or changed in the new store after the cutover.
func (s *Session) unstage(ctx context.Context) error {
	if err := s.lookBack(ctx); err != nil {
		return err
	}
	kept := s.facts.KeptNew
	if s.facts.Before != nil { // asked of the folder itself, whatever was noted before
		gone, err := ask[bool](ctx, s, opGone, pathArg{s.swap().new(s.Inputs.Request.To + "-layers")})
		if err != nil {
			return err
		}
		if !gone {
			ref := s.storeRef(s.Inputs.Request.To)
			ref.GraphRoot = s.swap().new("")
			fresh, err := s.changedSince(ctx, ref)
			if err != nil {
				return err
			}
			for _, f := range fresh {
				if !slices.Contains(kept, f) {
					kept = append(kept, f)
				}
			}
		}
	}
	if len(kept) == 0 {
		if _, err := ask[none](ctx, s, opRunForget, s.runState("")); err != nil {
			return err
		}
		_, err := ask[none](ctx, s, opRemove, pathArg{s.folder()})
		return err
	}
	if len(kept) > len(s.facts.KeptNew) {
		if err := s.learn(func(f *Facts) { f.KeptNew = kept }); err != nil {
			return err
		}
	}
	return s.note("%s is kept, with podman's database of then in db/: it holds what was made or changed after the cutover: %s", s.folder(), strings.Join(kept, ", "))
}

// madeSince names what the live new store and podman's database have that the
// manifest from before does not have, or has otherwise.
func (s *Session) madeSince(ctx context.Context) ([]string, error) {
	fresh, err := s.changedSince(ctx, s.storeRef(s.Inputs.Request.To))
	if err != nil {
		return nil, err
	}
	before, err := s.readManifest()
	if err != nil {
		return nil, err
	}
	had := map[string]bool{}
	for _, o := range before.Podman.Objects {
		had[o.Kind+o.Name] = true
	}
	db, err := s.database(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range db.Volumes {
		if !had["volume"+v] {
			fresh = append(fresh, fmt.Sprintf("volume %s (its files stay where they are: podman volume create %s takes them up)", v, v))
		}
	}
	for _, p := range db.Pods {
		if !had["pod"+p] {
			fresh = append(fresh, "pod "+p)
		}
	}
	return fresh, nil
}

// changedSince names the images and containers of a new store that the manifest
// from before does not have, or has otherwise. What is gone from it is not
// missed: the old store has it.
func (s *Session) changedSince(ctx context.Context, ref verify.StoreRef) ([]string, error) {
	before, err := s.readManifest()
	if err != nil {
		return nil, err
	}
	part, err := ask[verify.StorePart](ctx, s, opManifest, ref)
	if err != nil {
		return nil, err
	}
	after := verify.Manifest{Store: part}
	had := verify.Manifest{Store: before.Store}
	leaveOut(&had, &after)
	fresh := []string{}
	for _, d := range verify.Diff(had, after) {
		gone := !d.Added() && d.Field == ""
		// What a smoke test left behind when it was killed is ours to throw
		// away; a layer goes with its image or container.
		if gone || d.Kind == "layer" || strings.Contains(d.Name, smokeName) {
			continue
		}
		text := strings.Join(strings.Fields(d.Kind+" "+d.Name+" "+d.ID), " ")
		if d.Field != "" {
			text += " (" + d.Field + ")"
		}
		fresh = append(fresh, text)
	}
	return fresh, nil
}

// keepChanged notes the containers that were used since the cutover, once the
// stores are back in their places and before anything runs: the new store has
// their files and logs of then.
func (s *Session) keepChanged(ctx context.Context) error {
	if s.facts.Before == nil || s.journal.State().Steps[stepStart].Mark == engine.MarkNone {
		return nil
	}
	ids, err := ask[[]string](ctx, s, opChanged, s.convertOptions(true))
	if err != nil {
		return err
	}
	before, err := s.readManifest()
	if err != nil {
		return err
	}
	kept := slices.Clone(s.facts.KeptNew)
	for _, c := range before.Store.Containers {
		text := strings.Join(append([]string{"container"}, c.Names...), " ") + " (its files and log)"
		if slices.Contains(ids, c.ID) && !slices.Contains(kept, text) {
			kept = append(kept, text)
		}
	}
	if len(kept) == len(s.facts.KeptNew) {
		return nil
	}
	return s.learn(func(f *Facts) { f.KeptNew = kept })
}

// restoreDB puts the saved database back. Before that it notes what was made in
// the new store since the cutover: the run's folder is kept for it.
func (s *Session) restoreDB(ctx context.Context) error {
	saved, err := ask[bool](ctx, s, opDBSaved, s.db())
	if err != nil {
		return err
	}
	if !saved {
		if !s.journal.State().Steps[stepRepoint].Done.IsZero() {
			return fmt.Errorf("cannot restore podman's database: its saved copy is not in %s", s.db().Saved)
		}
		return nil // not saved: not touched either
	}
	all, err := ask[[]libpoddb.Facts](ctx, s, opDBFind, dbFindArgs{s.Inputs.Store.GraphRoot})
	if err != nil {
		return err
	}
	if err := s.noteThawed(all); err != nil {
		return err
	}
	in, err := ask[bool](ctx, s, opNewLive, s.swap())
	if err != nil {
		return err
	}
	ours := slices.ContainsFunc(all, func(f libpoddb.Facts) bool {
		return f.Path == s.dbPath() && (f.GraphDriver == s.Inputs.Request.To || f.GraphDriver == "")
	})
	if in && ours && s.facts.KeptNew == nil {
		fresh, err := s.madeSince(ctx)
		if err != nil {
			return err
		}
		if err := s.learn(func(f *Facts) { f.KeptNew = fresh }); err != nil {
			return err
		}
	}
	// Podman may have moved to another kind of database since, or made one.
	for _, f := range all {
		if f.Path == s.dbPath() || f.GraphDriver != s.Inputs.Request.To || s.Inputs.Unfusing() {
			continue // of one that names both drivers nothing tells when it was made
		}
		if err := s.learn(func(k *Facts) { k.KeptNew = append(slices.Clone(k.KeptNew), "podman's database "+f.Path) }); err != nil {
			return err
		}
		if _, err := ask[none](ctx, s, opDBAside, dbArgs{Path: f.Path, Saved: s.db().Saved}); err != nil {
			return err
		}
	}
	_, err = ask[none](ctx, s, opDBRestore, s.db())
	return err
}

// lookBack looks, before a rollback removes anything, whether the old store is
// in its place and podman's database names its driver.
func (s *Session) lookBack(ctx context.Context) error {
	if s.journal.State().Steps[stepSwap].Begun.IsZero() {
		return nil
	}
	out, err := ask[bool](ctx, s, opSwapOut, s.swap())
	if err != nil {
		return err
	}
	db, err := s.database(ctx)
	if err != nil {
		return err
	}
	if from := s.Inputs.Store.Driver; !out || db.GraphDriver != from && db.GraphDriver != "" {
		return fmt.Errorf("cannot end the rollback: the store is not whole on %s again (podman's database names %q)", from, db.GraphDriver)
	}
	return nil
}

// unclear brings the old driver's run state back; the new one's goes aside, and
// with the folder.
func (s *Session) unclear(ctx context.Context) error {
	if err := s.quiet(ctx); err != nil {
		return err
	}
	if _, err := ask[none](ctx, s, opRunClear, s.runState(s.Inputs.Request.To)); err != nil {
		return err
	}
	_, err := ask[none](ctx, s, opRunRestore, s.runState(s.Inputs.Store.Driver))
	return err
}

// putBack starts what ran before a run that is rolled back. Containers that were
// given up had freed their locks, which the restored database takes for theirs.
func (s *Session) putBack(ctx context.Context) error {
	if s.facts.Dropped != nil {
		if _, err := s.cli.Run(ctx, nil, "system", "renumber"); err != nil {
			if err := s.note("podman system renumber failed: run it when no container runs: %v", err); err != nil {
				return err
			}
		}
	}
	return s.startUnits(ctx)
}
