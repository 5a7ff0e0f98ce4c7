package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/internal/podman/libpoddb"
	"github.com/storagectl/storagectl/migrate/convert"
	"github.com/storagectl/storagectl/verify"
)

// stage builds the new store while podman works on. Images that come and go
// meanwhile are caught up with once podman is stopped.
func (s *Session) stage(ctx context.Context) error {
	o := s.convertOptions(false)
	if s.relocating() { // here it may be much that is copied
		o.BytesPerSecond, o.IdleIO = s.Inputs.Request.Relocate.Rate, true
	}
	r, err := s.sync(ctx, stepStage, o)
	if err != nil {
		return err
	}
	if s.facts.Stage != nil {
		return nil
	}
	return s.learn(func(f *Facts) {
		f.Stage = &StageFact{Layers: r.Layers, Images: r.Images, Counts: r.Counts, Damage: r.Damage}
	})
}

// prove compares each staged image, as the new driver shows it, with what the old one
// shows.
func (s *Session) prove(ctx context.Context) error {
	part, err := ask[verify.StorePart](ctx, s, opManifest, s.storeRef(s.Inputs.Store.Driver))
	if err != nil {
		return err
	}
	staged, err := s.stagedImages(ctx)
	if err != nil {
		return err
	}
	// One that came since it was staged has its turn once podman is stopped.
	ids := slices.DeleteFunc(imageIDs(part), func(id string) bool { return !slices.Contains(staged, id) })
	if len(ids) > 0 {
		if err := s.compare(ctx, stepProve, s.compareArgs(false, ids)); err != nil {
			return err
		}
	}
	if s.facts.Checked != nil {
		return nil
	}
	// To choose among the files takes time that grows with the store, so it is
	// done here; images do not change, they only go.
	sample, err := s.takeSample(ctx, ids)
	if err != nil {
		return err
	}
	sizes, err := s.measure(ctx)
	if err != nil {
		return err
	}
	return s.learn(func(f *Facts) { f.Checked, f.Sample, f.Sizes = ids, &sample, sizes })
}

// takeSample hashes some files of some images through the old driver.
func (s *Session) takeSample(ctx context.Context, images []string) (FileRef, error) {
	var files verify.Sample
	args := sampleArgs{Store: s.storeRef(s.Inputs.Store.Driver), Scratch: s.folder(), Images: images}
	args.Store.Options = programOptions(s.Inputs.Store)
	if err := s.worker.Call(ctx, opSample, args, &files, nil); err != nil {
		return FileRef{}, err
	}
	b, err := json.Marshal(files)
	if err != nil {
		return FileRef{}, fmt.Errorf("cannot keep the sample of files: %w", err)
	}
	return s.keepFile("sample-before.json", b)
}

// stagedImages are the images that the staged store holds.
func (s *Session) stagedImages(ctx context.Context) ([]string, error) {
	ref := s.storeRef(s.Inputs.Request.To)
	ref.GraphRoot, ref.ImageStores = s.swap().new(""), nil
	part, err := ask[verify.StorePart](ctx, s, opManifest, ref)
	return imageIDs(part), err
}

func (s *Session) sync(ctx context.Context, step string, o convert.Options) (convert.Report, error) {
	var r convert.Report
	err := s.onTarget(ctx, opSync, o, &r, s.progressOf(step))
	if faultKind(err) == faultNoRoom && s.relocating() {
		return r, noRoomThere(err)
	}
	if faultKind(err) == faultNoRoom {
		free := "what is free is not known"
		if l, err := ask[storeLook](ctx, s, opLook, pathArg{s.Inputs.Store.GraphRoot}); err == nil {
			free = fmt.Sprintf("%s and %d inodes are free", Bytes(l.FreeBytes), l.FreeInodes)
		}
		return r, &Refusal{ID: "no-room", Text: fmt.Sprintf("the new store finds no room beside the old one (%s): %v", free, err),
			Hint: "free some space, inodes or quota on the filesystem of " + s.Inputs.Store.GraphRoot}
	}
	if faultKind(err) == faultDamaged {
		return r, &Refusal{ID: "damaged", Text: err.Error(),
			Hint: "repair or remove the damaged images, or carry them over as they are with --keep-damaged"}
	}
	if faultKind(err) == faultUnlike {
		return r, unconvertible(err)
	}
	if faultKind(err) == faultNoNative {
		return r, &Refusal{ID: "no-native-overlay", Text: err.Error(),
			Hint: "overlay needs Linux 5.13 or later for a rootless owner and a local ext4, xfs or btrfs filesystem below"}
	}
	return r, err
}

// unconvertible refuses a store that keeps something in a way of its own.
func unconvertible(err error) *Refusal {
	return &Refusal{ID: "unconvertible", Text: err.Error(),
		Hint: "remove the image or container and pull or make it anew on the new store; or leave the store as it is"}
}

func (s *Session) convertSource() convert.Store {
	st := s.Inputs.Store
	return convert.Store{GraphRoot: st.GraphRoot, RunRoot: st.RunRoot, Driver: st.Driver, Program: st.Program, Options: st.Options, ImageStores: st.ImageStores}
}

func (s *Session) convertOptions(containers bool) convert.Options {
	return convert.Options{
		Source: s.convertSource(), To: s.Inputs.Request.To,
		Stage: s.folder(), Containers: containers, KeepDamaged: s.Inputs.Request.KeepDamaged,
	}
}

func (s *Session) compareArgs(containers bool, images []string) compareArgs {
	return compareArgs{Options: s.convertOptions(containers), Images: images}
}

// compare proves that the staged images show the files of the old ones; without
// images, that the staged containers do.
func (s *Session) compare(ctx context.Context, step string, args compareArgs) error {
	var proof convert.Proof
	if err := s.onTarget(ctx, opCompare, args, &proof, s.progressOf(step)); err != nil {
		return err
	}
	diffs := proof.Unexplained()
	if len(diffs) == 0 {
		return nil
	}
	lines := make([]string, 0, 5)
	for _, d := range diffs[:min(5, len(diffs))] {
		lines = append(lines, d.String())
	}
	return fmt.Errorf("%w: %s from the store: %s", ErrVerification, Count(len(diffs), "staged entry differs", "staged entries differ"), strings.Join(lines, "; "))
}

func (s *Session) progressOf(step string) func(json.RawMessage) {
	return func(raw json.RawMessage) {
		var c convert.Progress
		if s.env.Progress == nil || json.Unmarshal(raw, &c) != nil {
			return
		}
		p := Progress{Step: step, Phase: c.Phase, Done: c.Read, Total: c.ReadTotal, Unit: "bytes",
			Note: fmt.Sprintf("%d of %s, %s", c.LayersDone, Count(c.LayersTotal, "layer", "layers"), Count(c.Entries, "entry", "entries"))}
		if c.Phase != "layers" {
			p.Done, p.Total, p.Unit = int64(c.ImagesDone), int64(c.ImagesTotal), "images"
			p.Note = Count(c.Entries, "entry", "entries")
			if c.Phase == "compare" { // diffs of layers, and whole images
				p.Unit = "trees"
			}
		}
		s.env.Progress(p)
	}
}

// stageRest makes the staged store equal to the stopped one, and takes the
// manifest that the result is judged by.
func (s *Session) stageRest(ctx context.Context) error {
	if err := s.refuseContainers(ctx); err != nil {
		return err
	}
	if _, err := s.sync(ctx, stepStageRest, s.convertOptions(true)); err != nil {
		return err
	}
	part, err := ask[verify.StorePart](ctx, s, opManifest, s.storeRef(s.Inputs.Store.Driver))
	if err != nil {
		return err
	}
	rest := slices.DeleteFunc(imageIDs(part), func(id string) bool { return slices.Contains(s.facts.Checked, id) })
	if len(rest) > 0 {
		if err := s.compare(ctx, stepStageRest, s.compareArgs(true, rest)); err != nil {
			return err
		}
	}
	if len(part.Containers) > 0 {
		if err := s.compare(ctx, stepStageRest, s.compareArgs(true, nil)); err != nil {
			return err
		}
	}
	return s.noteManifest(ctx, part)
}

// noteManifest takes the manifest of the stopped store, whose folders hold part,
// unless the run has one.
func (s *Session) noteManifest(ctx context.Context, part verify.StorePart) error {
	if s.facts.Before != nil && !s.relocating() {
		return nil
	}
	m, err := verify.Take(ctx, s.cli.Run, part)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := m.Encode(&b); err != nil {
		return err
	}
	if s.facts.Before == nil {
		ref, err := s.keepFile("manifest-before.jsonl", b.Bytes())
		if err != nil {
			return err
		}
		return s.learn(func(f *Facts) { f.Before = &ref })
	}
	ref, err := s.keepFile(fmt.Sprintf("manifest-before-%d.jsonl", len(s.facts.BeforeAnew)+2), b.Bytes())
	if err != nil {
		return err
	}
	return s.learn(func(f *Facts) { f.BeforeAnew = append(slices.Clone(f.BeforeAnew), ref) })
}

// refuseContainers looks once more, podman being stopped: a container may have
// come since the plan was made.
func (s *Session) refuseContainers(ctx context.Context) error {
	if s.Inputs.Request.Containers != Refuse {
		return nil
	}
	db, err := s.database(ctx)
	if err != nil {
		return err
	}
	return refuseContainers(db.Containers)
}

func refuseContainers(cs []libpoddb.Container) error {
	if len(cs) == 0 {
		return nil
	}
	names := make([]string, len(cs))
	for i, c := range cs {
		names[i] = c.Name
	}
	slices.Sort(names)
	return &Refusal{ID: "containers", Text: "the store holds containers: " + strings.Join(names, ", "),
		Hint: "remove them, or say --containers discard to have them removed; images, volumes, secrets and networks stay"}
}

// database reads the libpod database of the store as it stands.
func (s *Session) database(ctx context.Context) (libpoddb.Facts, error) {
	all, err := ask[[]libpoddb.Facts](ctx, s, opDBFind, dbFindArgs{s.Inputs.Store.GraphRoot})
	if err != nil {
		return libpoddb.Facts{}, err
	}
	for _, f := range all {
		if f.Path == s.dbPath() {
			return f, nil
		}
	}
	return libpoddb.Facts{}, fmt.Errorf("cannot find podman's database %s any more", s.dbPath())
}

func (s *Session) stagedAll(ctx context.Context) (bool, error) {
	if s.facts.Before == nil {
		return false, nil
	}
	a, err := ask[stagedAnswer](ctx, s, opStaged, s.convertOptions(true))
	return a.OK, err
}

func (s *Session) swapped(ctx context.Context) (bool, error) {
	return ask[bool](ctx, s, opSwapIn, s.swap())
}

func (s *Session) swapIn(ctx context.Context) error {
	if err := s.stillOut(ctx); err != nil {
		return err
	}
	if err := s.quiet(ctx); err != nil {
		return err
	}
	return s.shift(ctx, opSwapDo)
}

// shift renames, and tells of what podman made while its store was away.
func (s *Session) shift(ctx context.Context, op string) error {
	strays, err := ask[string](ctx, s, op, s.swap())
	if err != nil || strays == "" {
		return err
	}
	return s.note("podman was used while its store was moved aside; what it made then is kept in %s", strays)
}

// swapBack takes the cutover back.
func (s *Session) swapBack(ctx context.Context) error {
	if err := s.quiet(ctx); err != nil {
		return err
	}
	if err := s.shift(ctx, opSwapUndo); err != nil {
		return err
	}
	out, err := ask[bool](ctx, s, opSwapOut, s.swap())
	if err == nil && !out {
		err = errors.New("the renames reported success, but the old store is not whole in its place")
	}
	if err != nil {
		return err
	}
	return s.keepChanged(ctx)
}

// smokeName begins the names of all that a smoke test makes.
const smokeName = "storagectl-smoke"

func (s *Session) repointed(ctx context.Context) (bool, error) {
	if s.Inputs.Unfusing() { // the driver has its name already; the containers name the program
		return ask[bool](ctx, s, opDBRight, s.db())
	}
	db, err := s.database(ctx)
	// A database that records no driver takes it from the configuration.
	return db.GraphDriver == s.Inputs.Request.To || db.GraphDriver == "", err
}

func (s *Session) repoint(ctx context.Context) error {
	if _, err := ask[none](ctx, s, opDBSave, s.db()); err != nil {
		return err
	}
	_, err := ask[none](ctx, s, opDBSet, s.db())
	return err
}

func (s *Session) runState(driver string) runArgs {
	root := s.Inputs.Store.RunRoot
	return runArgs{RunRoot: root, Driver: driver, Aside: filepath.Join(root, ".storagectl-"+s.ID), Same: s.Inputs.Unfusing()}
}

func (s *Session) cleared(ctx context.Context) (bool, error) {
	return ask[bool](ctx, s, opRunCleared, s.runState(s.Inputs.Store.Driver))
}

func (s *Session) clear(ctx context.Context) error {
	if err := s.quiet(ctx); err != nil {
		return err
	}
	args := s.runState(s.Inputs.Store.Driver)
	if s.Inputs.Request.Images != Discard {
		args.For = s.Inputs.Request.To
	}
	if _, err := ask[none](ctx, s, opRunClear, args); err != nil || args.For != "" {
		return err
	}
	_, err := ask[none](ctx, s, opRunForget, s.runState("")) // there is no way back
	return err
}

func (s *Session) folderGone(ctx context.Context) (bool, error) {
	return ask[bool](ctx, s, opGone, pathArg{s.folder()})
}

func (s *Session) removeOld(ctx context.Context) error {
	if err := s.mayCommit(ctx); err != nil { // also when it is resumed
		return err
	}
	if _, err := ask[none](ctx, s, opRunForget, s.runState("")); err != nil {
		return err
	}
	_, err := ask[none](ctx, s, opRemove, pathArg{s.folder()})
	return err
}

// imageIDs are the images of the store itself.
func imageIDs(p verify.StorePart) []string {
	ids := make([]string, 0, len(p.Images))
	for _, i := range p.Images {
		if i.ReadOnlyStore == "" {
			ids = append(ids, i.ID)
		}
	}
	return ids
}
