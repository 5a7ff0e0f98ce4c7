package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/migrate/treecopy"
)

// copyArgs are what the worker is asked to copy, or to read back.
type copyArgs struct {
	From string `json:"from,omitempty"`
	To   string `json:"to"`
	Run  string `json:"run"`
	Rate int64  `json:"rate,omitempty"`
	Idle bool   `json:"idle,omitempty"` // beside live work: only with what input and output is free
	Last bool   `json:"last,omitempty"` // read back only what the last copy wrote
	// Strict makes a change under the copy's hands an error: nobody uses the store.
	Strict bool `json:"strict,omitempty"`
	// Converted are entries of the store that the conversion makes on the target:
	// they are not copied, and those that are there are left alone.
	Converted []string `json:"converted,omitempty"`
}

// indexFolder is where a run keeps the copy's index: on the target, which has
// room, and where a power cut can take neither without the other.
func (a copyArgs) indexFolder() string { return runFolder(a.To, a.Run) }

func (a copyArgs) index() string { return filepath.Join(a.indexFolder(), "index") }

// leftBehind reports whether an entry of a graphroot is not copied: it is converted,
// or it belongs to a run or to a filesystem, not to podman.
func (a copyArgs) leftBehind(rel string) bool {
	return slices.Contains(a.Converted, rel) || strings.HasPrefix(rel, asideMark) && !strings.Contains(rel, "/") || host.IsMarker(rel) || rel == "lost+found"
}

// copyTree copies a store. It runs in the worker.
func copyTree(ctx context.Context, a copyArgs, progress func(any)) (treecopy.Report, error) {
	var none treecopy.Report
	src, err := openUncovered(a.From)
	if err != nil {
		return none, err
	}
	defer src.Close()
	dst, err := openFolder(a.To)
	if err != nil {
		return none, err
	}
	defer dst.Close()
	if err := os.MkdirAll(a.indexFolder(), 0o700); err != nil {
		return none, fmt.Errorf("cannot keep the copy's index: %w", err)
	}
	o := treecopy.Options{Index: a.index(), Skip: a.leftBehind, Strict: a.Strict,
		BytesPerSecond: a.Rate, IdleIO: a.Idle, Progress: func(p treecopy.Progress) { progress(p) }}
	if !a.Strict { // later passes know it
		if o.Expect, err = treecopy.Scan(ctx, src, a.leftBehind, 0); err != nil {
			return none, faulty(err)
		}
	}
	r, err := treecopy.Copy(ctx, src, dst, o)
	return r, faulty(err)
}

// readBack compares a copy with what was noted when it was made.
func readBack(ctx context.Context, a copyArgs, progress func(any)) (treecopy.VerifyReport, error) {
	dst, err := openFolder(a.To)
	if err != nil {
		return treecopy.VerifyReport{}, err
	}
	defer dst.Close()
	r, err := treecopy.Verify(ctx, dst, treecopy.VerifyOptions{Index: a.index(), Skip: a.leftBehind, LastOnly: a.Last,
		Progress: func(p treecopy.Progress) { progress(p) }})
	if errors.Is(err, treecopy.ErrDiffers) {
		return r, nil // the report tells
	}
	return r, faulty(err)
}

// openUncovered opens a store's folder without what podman has mounted in it: the
// merged folders of containers, and the overlay driver's home on itself. What
// lies below is what is to be copied.
func openUncovered(path string) (*os.File, error) {
	dir, err := openFolder(path)
	if err != nil {
		return nil, err
	}
	alone, err := treecopy.Uncovered(dir)
	if errors.Is(err, unix.EINVAL) {
		return dir, nil // mounts that are not the owner's to lift: the copy says so if it meets one
	}
	return alone, errors.Join(err, dir.Close())
}

func openFolder(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// uncover takes away, in this worker's mount namespace alone, what podman has
// mounted in its store: the merged folders of containers, and the overlay
// driver's home on itself. What lies below is what is to be copied.
func uncover(store string) error {
	for range 20 { // mounts lie on mounts
		mounts, err := mountsBelow(store)
		if err != nil {
			return err
		}
		gone := false
		for _, m := range mounts {
			if m != store && unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
				gone = true
			}
		}
		if !gone {
			return nil // the rest is not ours to take; the copy does not cross into it
		}
	}
	return nil
}

// emptyTarget removes what a run made, if the folder bears the run's marker.
func emptyTarget(a copyArgs) error {
	dir, err := ownTarget(a)
	if err != nil || dir == nil { // it was never begun, or is empty again
		return err
	}
	defer dir.Close()
	if err := removeEntries(a.To); err != nil {
		return err
	}
	return host.RemoveMarker(dir) // last: until then a retry knows it
}

// emptyCopy removes what a run copied, the copy's index first. What it converted
// stays: that has a word of its own for what a power cut leaves.
func emptyCopy(a copyArgs) error {
	dir, err := ownTarget(a)
	if err != nil || dir == nil {
		return err
	}
	defer dir.Close()
	if len(a.Converted) == 0 {
		return removeEntries(a.To)
	}
	if err := os.Remove(a.index()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot remove the copy's index: %w", err)
	}
	return removeEntries(a.To, filepath.Base(a.indexFolder()))
}

// ownTarget opens a target that bears the run's marker. Nil: it bears none;
// another's is an error.
func ownTarget(a copyArgs) (*os.File, error) {
	dir, err := openFolder(a.To)
	if err != nil {
		return nil, err
	}
	m, err := host.ReadMarker(dir)
	if err == nil && m.Run == a.Run {
		return dir, nil
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, dir.Close()
	}
	if err == nil {
		err = fmt.Errorf("cannot remove the copy in %s: it is of run %q, not %s", a.To, m.Run, a.Run)
	}
	return nil, errors.Join(err, dir.Close())
}

// removeEntries removes all that is in a target, but for its marker and some.
func removeEntries(dir string, but ...string) error {
	es, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cannot remove the copy in %s: %w", dir, err)
	}
	for _, e := range es {
		if n := e.Name(); host.IsMarker(n) || n == "lost+found" || slices.Contains(but, n) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("cannot remove the copy in %s: %w", dir, err)
		}
	}
	return nil
}

// emptyAside removes what is in a store that was moved aside.
func emptyAside(path string) error {
	if !strings.Contains(filepath.Base(path), asideMark) {
		return fmt.Errorf("cannot remove %s: it is not a store that was moved aside", path)
	}
	there, err := exists(path)
	if err != nil || !there {
		return err
	}
	if err := uncover(path); err != nil {
		return err
	}
	if mounted, err := mountsBelow(path); err != nil {
		return err
	} else if len(mounted) > 0 {
		return fmt.Errorf("cannot remove %s: %s is mounted in it", path, strings.Join(mounted, ", "))
	}
	es, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("cannot remove the old store: %w", err)
	}
	for _, e := range es {
		if err := os.RemoveAll(filepath.Join(path, e.Name())); err != nil {
			return fmt.Errorf("cannot remove the old store: %w", err)
		}
	}
	return nil
}

// The rest is the job's side.

func (s *Session) copyArgs() copyArgs {
	return copyArgs{From: s.Inputs.Store.GraphRoot, To: s.targetFolder(), Run: s.ID, Converted: s.Inputs.converted()}
}

// copyLive copies the store while podman works on it. What changes meanwhile is
// caught up with once podman is stopped.
func (s *Session) copyLive(ctx context.Context) error {
	args := s.copyArgs()
	args.Rate, args.Idle = s.Inputs.Request.Relocate.Rate, true
	r, err := s.copy(ctx, stepCopy, args)
	if err != nil || s.facts.Copied != nil {
		return err
	}
	sizes := s.facts.Sizes // of a store that is converted they are known by now
	if sizes == nil {
		if sizes, err = s.measure(ctx); err != nil {
			return err
		}
	}
	return s.learn(func(f *Facts) { f.Copied, f.Sizes = &r, sizes })
}

func (s *Session) readBack(ctx context.Context) error {
	if same, err := s.thisBoot(); err != nil {
		return err
	} else if !same { // better now than while podman is down
		if err := s.copyLive(ctx); err != nil {
			return err
		}
	}
	return s.compareCopy(ctx, stepReadBack, s.copyArgs())
}

// bootID tells one boot from another (random(4)).
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot tell this boot from others: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// thisBoot reports whether the copy was last worked on in this boot.
func (s *Session) thisBoot() (bool, error) {
	id, err := bootID()
	n := len(s.facts.Boots)
	return n > 0 && s.facts.Boots[n-1] == id, err
}

// sameBoot has the copy begin anew after a boot. The filesystem of the store may
// have come back from a power cut with new data in an old file and the old ctime
// (XFS does, seen): no look at times can see that.
func (s *Session) sameBoot(ctx context.Context) error {
	if same, err := s.thisBoot(); err != nil || same {
		return err
	}
	id, err := bootID()
	if err != nil {
		return err
	}
	if len(s.facts.Boots) > 0 {
		if _, err := ask[none](ctx, s, opEmptyCopy, s.copyArgs()); err != nil {
			return err
		}
	}
	return s.learn(func(f *Facts) { f.Boots = append(slices.Clone(f.Boots), id) })
}

// copyRest makes the copy equal to the store, which nobody can use any more, and
// reads back what that wrote.
func (s *Session) copyRest(ctx context.Context) error {
	args := s.copyArgs()
	args.From, args.Strict = s.aside(), true
	// What a try that was cut off wrote is no part of the last copy, and what a boot
	// made begin anew was not read back: then all is read.
	same, err := s.thisBoot()
	if err != nil {
		return err
	}
	args.Last = !s.facts.RestBegun && same
	if !s.facts.RestBegun {
		if err := s.learn(func(f *Facts) { f.RestBegun = true }); err != nil {
			return err
		}
	}
	r, err := s.copy(ctx, stepCopyRest, args)
	if err != nil {
		return err
	}
	if err := s.compareCopy(ctx, stepCopyRest, args); err != nil || s.facts.Rest != nil {
		return err
	}
	return s.learn(func(f *Facts) { f.Rest = &r })
}

func (s *Session) copy(ctx context.Context, step string, args copyArgs) (CopyFact, error) {
	if err := s.sameBoot(ctx); err != nil {
		return CopyFact{}, err
	}
	var r treecopy.Report
	err := s.onTarget(ctx, opCopy, args, &r, s.copyProgress(step))
	if faultKind(err) == faultNoRoom {
		return CopyFact{}, noRoomThere(err)
	}
	return CopyFact{Files: r.Copied, Bytes: r.CopiedBytes, Seconds: r.Seconds}, err
}

func noRoomThere(err error) *Refusal {
	return &Refusal{ID: "no-room", Text: fmt.Sprintf("the store finds no room on the target: %v", err),
		Hint: "make the target larger, or free some space in the store"}
}

func (s *Session) compareCopy(ctx context.Context, step string, args copyArgs) error {
	if err := s.settle(ctx); err != nil {
		return err
	}
	var r treecopy.VerifyReport
	if err := s.onTarget(ctx, opReadBack, args, &r, s.copyProgress(step)); err != nil {
		return err
	}
	if r.Differing == 0 {
		return nil
	}
	var first []string
	for _, d := range r.Examples[:min(5, len(r.Examples))] {
		first = append(first, fmt.Sprintf("%q: %s", d.Path, d.What))
	}
	return fmt.Errorf("%w: %s in the copy: %s", ErrVerification, Count(r.Differing, "difference", "differences"), strings.Join(first, "; "))
}

func (s *Session) copyProgress(step string) func(json.RawMessage) {
	return func(raw json.RawMessage) {
		var c treecopy.Progress
		if s.env.Progress == nil || json.Unmarshal(raw, &c) != nil {
			return
		}
		s.env.Progress(Progress{Step: step, Phase: c.Phase, Done: c.Bytes, Total: c.TotalBytes, Unit: "bytes",
			Note: Count(c.Files, "file", "files")})
	}
}

// copyHandlers are the worker's answers to a relocate job.
func copyHandlers() map[string]podman.Handler {
	return map[string]podman.Handler{
		opCopy:     podman.Handle(copyTree),
		opReadBack: podman.Handle(readBack),
		opEmptyTarget: podman.Handle(func(_ context.Context, a copyArgs, _ func(any)) (none, error) {
			return none{}, emptyTarget(a)
		}),
		opEmptyCopy: podman.Handle(func(_ context.Context, a copyArgs, _ func(any)) (none, error) {
			return none{}, emptyCopy(a)
		}),
		opEmptyAside: podman.Handle(func(_ context.Context, a pathArg, _ func(any)) (none, error) {
			return none{}, emptyAside(a.Path)
		}),
		opEmptyOld: podman.Handle(func(_ context.Context, a pathArg, _ func(any)) ([]string, error) {
			return emptyOld(a.Path)
		}),
		opMakeHome: podman.Handle(func(_ context.Context, a homeArgs, _ func(any)) (none, error) {
			return none{}, faulty(makeHome(a))
		}),
		opProbe: podman.Handle(probeTarget),
		opWeigh: podman.Handle(weighRest),
	}
}
