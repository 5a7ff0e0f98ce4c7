package migrate

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
	"github.com/storagectl/storagectl/migrate/treecopy"
	"github.com/storagectl/storagectl/verify"
)

// A relocation can bring the store to another driver on its way: the conversion of
// a migrate job, staged on the target, stands in for the copy of what is converted.
// The old store is never written to, its database included: what is pointed to the
// new driver is the copy, before it is in the store's place. So a way back needs
// nothing of the conversion, but for storage.conf and the run state.

// stepPlace is the name of the step that moves the converted store to where it
// belongs on the target.
const stepPlace = "place"

// conversion is what a relocation does besides, at three points of it; nothing
// where the driver stays.
type conversion struct{ live, rest, mounted []engine.Step }

func (s *Session) conversion(ready, stopped []string) conversion {
	if !s.Inputs.Converting() {
		return conversion{}
	}
	return conversion{
		live: []engine.Step{
			{Name: stepStage, Title: "convert the store onto the target, beside the live one", Pausable: true, Needs: ready,
				Do: s.stage},
			{Name: stepProve, Title: "read back what was converted", Pausable: true, Needs: ready,
				Do: s.prove},
		},
		rest: []engine.Step{
			{Name: stepStageRest, Title: "convert what changed since", Needs: stopped,
				Do: s.convertRest},
			{Name: stepPlace, Title: "put the converted store in its place on the target", Needs: stopped,
				Holds: s.placed, Do: s.placeNew},
			{Name: stepRepoint, Title: "point the copy of podman's database to the new driver", Needs: stopped,
				Holds: s.copyRepointed, Do: s.repointCopy},
		},
		// They do not need the mount: their way back must not.
		mounted: append(s.unitFileSteps(), []engine.Step{
			{Name: stepConf, Title: "write storage.conf", Needs: []string{stepStop},
				Holds: s.configured, Do: s.configure, Undo: s.unconfigure},
			{Name: stepClear, Title: "clear the old driver's run state", Needs: []string{stepStop},
				Holds: s.cleared, Do: s.clear, Undo: s.unclear},
		}...),
	}
}

// convertRest makes the converted store equal to the old one, which is aside and
// used by nobody, and reads back what that wrote. Of images that were compared
// before, only what was made anew is compared again.
func (s *Session) convertRest(ctx context.Context) error {
	args := s.compareArgs(true, nil)
	args.Source.GraphRoot = s.aside()
	if _, err := s.sync(ctx, stepStageRest, args.Options); err != nil {
		return err
	}
	s.point("before after-convert-rest")
	ref := s.storeRef(s.Inputs.Store.Driver)
	ref.GraphRoot = s.aside()
	part, err := ask[verify.StorePart](ctx, s, opManifest, ref)
	if err != nil {
		return err
	}
	if len(part.Containers) > 0 {
		if err := s.compare(ctx, stepStageRest, args); err != nil {
			return err
		}
	}
	if args.Images, args.Known = imageIDs(part), s.facts.Checked; len(args.Images) == 0 {
		return nil
	}
	return s.compare(ctx, stepStageRest, args)
}

func (s *Session) placed(ctx context.Context) (bool, error) {
	return ask[bool](ctx, s, opPlaced, s.swap())
}

// placeNew moves the converted store from the run's folder to the top of the target.
func (s *Session) placeNew(ctx context.Context) error {
	return s.shift(ctx, opPlace)
}

// copiedDB is the copy of podman's database, until it is in the store's place.
func (s *Session) copiedDB() (string, error) {
	st := s.Inputs.Store
	rel, err := filepath.Rel(st.GraphRoot, st.Database)
	if err != nil {
		return "", fmt.Errorf("cannot find the copy of podman's database: %w", err)
	}
	return filepath.Join(s.targetFolder(), rel), nil
}

// copyRepointed observes that the copied database names the new driver.
func (s *Session) copyRepointed(ctx context.Context) (bool, error) {
	path, err := s.copiedDB()
	if err != nil {
		return false, err
	}
	all, err := ask[[]libpoddb.Facts](ctx, s, opDBFind, dbFindArgs{s.targetFolder()})
	if err != nil {
		return false, err
	}
	for _, f := range all {
		if f.Path == path {
			return f.GraphDriver == s.Inputs.Request.To || f.GraphDriver == "", nil
		}
	}
	return false, nil
}

// repointCopy sets the driver, and the containers' paths, in the copied database.
func (s *Session) repointCopy(ctx context.Context) error {
	args := s.db()
	var err error
	if args.Path, err = s.copiedDB(); err != nil {
		return err
	}
	_, err = ask[none](ctx, s, opDBSet, args)
	return err
}

// convertWhat tells what the steps of the conversion come to.
func (a *Assessment) convertWhat(what map[string]string) {
	st, e, to := a.Inputs.Store, a.Estimate, a.Inputs.Request.To
	what[stepStage] = fmt.Sprintf("%s, %s, %s: of %s that the store has on %s become about %s on %s, with all that is copied; while podman works",
		Count(e.Images, "image", "images"), Count(e.Layers, "layer", "layers"), Count(e.Entries, "entry", "entries"), Bytes(a.Need), st.Driver, Bytes(a.Room), to)
	if to == DriverVFS {
		what[stepStage] += ", which keeps the whole tree of each layer; " + copyTime(e.BytesNeeded-e.ContainerBytes)
		if e.ContainerBytes > 0 {
			what[stepStageRest] = fmt.Sprintf("images that came or went meanwhile, and containers, whole: %s, %s", Bytes(e.ContainerBytes), copyTime(e.ContainerBytes))
		}
	}
	what[stepProve] = fmt.Sprintf("every file of every layer, from the disk, against the store's; every entry of every image, as %s shows it and as %s does", to, st.Driver)
	what[stepCopy] = "the rest of " + st.GraphRoot + ": volumes, secrets, networks, podman's database, while podman works"
	what[stepPlace] = fmt.Sprintf("renames %s* out of the run's folder on the target", to)
	what[stepRepoint] = fmt.Sprintf("on the target: graph driver %s becomes %s; the old store's own stays as it is", st.Driver, to)
}

// weighRest counts the disk space of what a conversion leaves to be copied.
func weighRest(ctx context.Context, a copyArgs, _ func(any)) (int64, error) {
	src, err := openUncovered(a.From)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	t, err := treecopy.Scan(ctx, src, a.leftBehind, 0)
	return t.Allocated, faulty(err)
}
