package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/verify"
)

// A store may be away: its disk is not mounted after a reboot, and where it was
// is an empty folder. Podman would make a new store there, and whatever a run
// looks for would be "gone". So a run begins by looking whether it is the store
// that it knows.

// samePlace refuses a store whose filesystem is not mounted as it was.
func samePlace(in Inputs, look storeLook) error {
	was := in.Store.MountedOn
	if was == "" || was == look.MountedOn {
		return nil
	}
	if in.Request.Relocate != nil && look.MountedOn == in.Store.GraphRoot {
		return nil // the target is in the store's place: the steps look whether it is the right one
	}
	return &Refusal{ID: "store-gone", Text: fmt.Sprintf("the store %s is not there: it lay on what is mounted on %s, and now that would be %s", in.Store.GraphRoot, was, look.MountedOn),
		Hint: "mount the filesystem of the store as it was, then try again"}
}

// wholeRun refuses to go on with a run whose folder in the store should be there
// and is not.
func (s *Session) wholeRun(ctx context.Context) error {
	steps := s.journal.State().Steps
	if s.relocating() {
		return s.wholeMove()
	}
	if steps[stepStage].Mark != engine.MarkDone || steps[stepCommit].Mark != engine.MarkNone {
		return nil
	}
	gone, err := ask[bool](ctx, s, opGone, pathArg{s.folder()})
	if err != nil || !gone {
		return err
	}
	return &Refusal{ID: "store-gone", Text: "the run's folder " + s.folder() + " is not in the store",
		Hint: "see whether the right filesystem is mounted there; without that folder the run can neither go on nor be rolled back"}
}

// mayCommit refuses to remove the old store while the new one is not seen in its
// place, and before anything is removed what would make the removal fail.
func (s *Session) mayCommit(ctx context.Context) error {
	if s.relocating() {
		return s.mayCommitMoved(ctx)
	}
	fail := func(format string, args ...any) error {
		return &Refusal{ID: "no-new-store", Text: "the old store is not removed: " + fmt.Sprintf(format, args...),
			Hint: "see where the new store went; until it is back, the old one stays in " + s.folder()}
	}
	if s.facts.Before == nil {
		return errors.New("cannot commit: the run took no manifest before the cutover")
	}
	for _, n := range storeParts(s.Inputs.Request.To) {
		gone, err := ask[bool](ctx, s, opGone, pathArg{s.swap().live(n)})
		if err != nil {
			return err
		}
		if gone {
			return fail("%s of the new one is not in the graphroot", n)
		}
	}
	repointed, err := s.repointed(ctx)
	if err != nil {
		return err
	}
	if !repointed {
		return fail("podman's database does not name %s", s.Inputs.To())
	}
	if err := s.knownLayers(ctx, s.Inputs.Request.To, s.folder()); err != nil {
		return err
	}
	mounts, err := ask[[]string](ctx, s, opMounts, pathArg{s.folder()})
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return &Refusal{ID: "mount", Text: fmt.Sprintf("%s is mounted in the old store", strings.Join(mounts, ", ")), Hint: "umount " + strings.Join(mounts, " ")}
	}
	return nil
}

// knownLayers refuses a commit while the new store holds no layer of the old one.
func (s *Session) knownLayers(ctx context.Context, driver, old string) error {
	before, err := s.readManifest()
	if err != nil {
		return err
	}
	part, err := ask[verify.StorePart](ctx, s, opManifest, s.storeRef(driver))
	if err != nil {
		return err
	}
	// What the operator removed since is not missed; but not one layer of all?
	known := slices.ContainsFunc(before.Store.Layers, func(l verify.Layer) bool {
		return slices.ContainsFunc(part.Layers, func(n verify.Layer) bool { return n.ID == l.ID })
	})
	if len(before.Store.Layers) == 0 || known {
		return nil
	}
	return &Refusal{ID: "no-new-store", Text: "the old store is not removed: the new one holds no layer of it any more",
		Hint: "see where the new store went; if that is meant, remove " + old + " by hand"}
}

// wholeMove refuses to go on with a relocation whose old store should be beside
// its place and is not.
func (s *Session) wholeMove() error {
	steps := s.journal.State().Steps
	if steps[stepSwap].Mark != engine.MarkDone || steps[stepCommit].Mark != engine.MarkNone || s.env.OldLost {
		return nil
	}
	there, err := s.asideThere()
	if err != nil || there {
		return err
	}
	return &Refusal{ID: "store-gone", Text: "the old store " + s.aside() + " is not there",
		Hint: "see whether its filesystem is mounted; without it the run can neither go on nor be rolled back"}
}

// lastRun refuses to roll back a run under a later one of the same store: the store and
// the database of that would be put aside as if nobody needed them, and its way back
// would be lost.
func (s *Session) lastRun() error {
	if s.Inputs.Growing() {
		return nil
	}
	runs, err := s.env.Dir.List()
	if err != nil {
		return err
	}
	for _, run := range runs[slices.Index(runs, s.ID)+1:] {
		h, err := engine.ReadHeader(s.env.Dir.RunPath(run))
		if err != nil || h.Store != s.Inputs.StoreKey() {
			continue // what cannot be read at all is told of by history
		}
		st, err := engine.Read(s.env.Dir.RunPath(run))
		if err != nil {
			return fmt.Errorf("cannot see how far a later run of the store came: %w", err)
		}
		if st.Header.Job == JobGrow && st.Phase.Over() { // it leaves the way back as it was
			continue
		}
		if st.Phase != engine.PhaseRolledBack {
			return &Refusal{ID: "later-run", Text: fmt.Sprintf("run %s worked on the store after this one", run),
				Hint: "storagectl rollback " + run + " first, if it is not committed"}
		}
	}
	return nil
}

// PodmanDown reports whether a run has stopped podman and not started it again.
func PodmanDown(st engine.State) bool {
	stop, start := st.Steps[stepStop].Mark, st.Steps[stepStart].Mark
	return (stop == engine.MarkBegun || stop == engine.MarkDone) && start != engine.MarkDone
}

// OutOfService reports whether a run has begun to take its host out of service and not
// given it back: podman is down, a node is drained, or a hook may have paused work. Where
// it stops now, that stays so until it is resumed or rolled back.
func OutOfService(st engine.State) bool {
	for _, pair := range [][2]string{{stepHookBefore, stepHookAfter}, {stepDrain, stepUndrain}, {stepStop, stepStart}} {
		out, back := pair[0], pair[1]
		if !slices.Contains(st.Header.Steps, back) {
			back = stepStart
		}
		m := st.Steps[out].Mark
		if (m == engine.MarkBegun || m == engine.MarkDone) && st.Steps[back].Mark != engine.MarkDone {
			return true
		}
	}
	return false
}

// BeforeStop reports whether a run has not begun to stop podman.
func BeforeStop(st engine.State) bool {
	stop := st.Steps[stepStop].Mark
	return stop == engine.MarkNone || stop == engine.MarkUndone
}

// mountOf is the mount point that path lies on, or would lie on if it was there.
func mountOf(path string) (string, error) {
	at := path
	for {
		real, err := filepath.EvalSymlinks(at)
		if err == nil {
			at = real
			break
		}
		if !errors.Is(err, os.ErrNotExist) || at == "/" {
			return "", fmt.Errorf("cannot look at %s: %w", at, err)
		}
		at = filepath.Dir(at)
	}
	for {
		mounted, err := isMountpoint(at)
		if err != nil || mounted || at == "/" {
			return at, err
		}
		at = filepath.Dir(at)
	}
}
