package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// receipt is written beside the staged store when a layer is whole. It counts
// while the machine stays up, as the page cache does; after a reboot only a
// layer that the staged layers.json names is believed, for that file is
// written after everything before it was flushed.
type receipt struct {
	Identity string   `json:"identity"`
	Boot     string   `json:"boot"`
	Counts   Counts   `json:"counts"`
	Damage   []Damage `json:"damage,omitempty"`
	// Proven says that what was copied to another filesystem was read back, and
	// is what the source has.
	Proven bool `json:"proven,omitempty"`
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

func readReceipt(o *Options, id string) (receipt, bool) {
	var r receipt
	data, err := os.ReadFile(filepath.Join(o.receipts(), id+".json"))
	return r, err == nil && json.Unmarshal(data, &r) == nil
}

func writeReceipt(o *Options, id string, r receipt) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := filepath.Join(o.receipts(), id+".json")
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// stager fills the layers of one Sync.
type stager struct {
	o      *Options
	snap   *snapshot
	target target
	boot   string
	read   atomic.Int64
	seen   atomic.Int64
	copied atomic.Int64
	done   atomic.Int64
	pace   host.Pace
}

// create makes the layer's folder; its parent's is there already.
func (s *stager) create(l *layer) error {
	parent := ""
	if p := s.snap.below(l); p != nil {
		parent = p.ID
	}
	if err := s.target.create(l, parent); err != nil {
		return fmt.Errorf("making layer %s: %w", short(l.ID), err)
	}
	return nil
}

// layer fills one layer and what belongs to it, and writes its receipt.
func (s *stager) layer(ctx context.Context, l *layer) (receipt, error) {
	r := receipt{Identity: l.identity(), Boot: s.boot}
	if exists(l.dir()) {
		err := s.target.put(l, func(dest string) (err error) {
			r.Counts, r.Damage, err = s.fill(ctx, l, dest)
			return err
		})
		if err != nil {
			return r, fmt.Errorf("filling layer %s: %w", short(l.ID), err)
		}
	} else if !s.o.KeepDamaged {
		return r, &DamageError{[]Damage{{Kind: MissingLayerFolder, Layer: l.ID, Path: l.dir()}}}
	}
	if err := s.layerFiles(ctx, l); err != nil {
		return r, fmt.Errorf("taking over the data of layer %s: %w", short(l.ID), err)
	}
	s.copied.Add(r.Counts.Bytes)
	return r, writeReceipt(s.o, l.ID, r)
}

// layerFiles takes over the layer's list and its big data. The list is linked:
// containers/storage replaces it by rename and never writes into it.
func (s *stager) layerFiles(ctx context.Context, l *layer) error {
	dir := s.o.stagedFile("layers", "")
	name := filepath.Base(l.list())
	err := linkOrCopy(ctx, filepath.Dir(l.list()), dir, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !exists(l.bigData()) {
		return nil
	}
	return copyTree(ctx, l.bigData(), filepath.Join(dir, l.ID))
}

func linkOrCopy(ctx context.Context, from, to, name string) error {
	src, err := openDir(unix.AT_FDCWD, from)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := openDir(unix.AT_FDCWD, to)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	if err := unix.Unlinkat(dst, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	err = unix.Linkat(src, name, dst, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	c := copier{ctx: ctx, pace: &host.Pace{}, clone: true}
	return c.copy(src, dst, name, &st)
}

// CopyTree copies a folder whole, with all that an entry has but its times of
// change and access, in place of whatever is at to.
func CopyTree(ctx context.Context, from, to string) error {
	if err := copyTree(ctx, from, to); err != nil {
		return fmt.Errorf("cannot copy %s: %w", from, err)
	}
	return nil
}

// copyTree copies a folder whole, in place of whatever is at to.
func copyTree(ctx context.Context, from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	f, err := newFiller(ctx, from, to, "", Reflink)
	if err != nil {
		return err
	}
	if err := f.putTree(""); err != nil {
		f.close()
		return err
	}
	return f.done()
}

// fill brings the layer's files into dest: a whole tree, what another program's
// diff has, or a diff made of a tree.
func (s *stager) fill(ctx context.Context, l *layer, dest string) (Counts, []Damage, error) {
	switch {
	case s.o.to() == vfs:
		return s.fillWhole(ctx, l, dest)
	case s.o.unfusing():
		return s.fillTranslated(ctx, l, dest)
	}
	return s.fillDiff(ctx, l, dest)
}

// fillDiff makes a layer's diff: from its list where that explains the tree, else by
// comparing trees.
func (s *stager) fillDiff(ctx context.Context, l *layer, dest string) (Counts, []Damage, error) {
	parent := s.snap.parent(l)
	byList := !l.container && !l.remapped(parent) && (parent != nil || l.Parent == "") && exists(l.list())
	var found []Damage
	if byList {
		f, err := s.fillOnce(ctx, l, parent, dest, true)
		switch {
		case err == nil:
			return s.verdict(f)
		case errors.Is(err, errDoubt):
			found = f.damage
		default:
			var bad *listError
			if !errors.As(err, &bad) {
				return Counts{}, nil, err
			}
			found = []Damage{{Kind: BadList, Layer: l.ID, Detail: bad.Error()}}
		}
		if !s.o.KeepDamaged {
			return Counts{}, found, &DamageError{found}
		}
		if err := emptyDir(dest); err != nil {
			return Counts{}, nil, err
		}
	}
	f, err := s.fillOnce(ctx, l, parent, dest, false)
	if err != nil {
		return Counts{}, nil, err
	}
	f.damage = append(found, f.damage...)
	return s.verdict(f)
}

func (s *stager) verdict(f *filler) (Counts, []Damage, error) {
	if len(f.damage) > 0 && !s.o.KeepDamaged {
		return f.counts, f.damage, &DamageError{f.damage}
	}
	return f.counts, f.damage, nil
}

func emptyDir(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o700)
}

func (s *stager) fillOnce(ctx context.Context, l, parent *layer, dest string, byList bool) (*filler, error) {
	method := Link
	if l.container {
		method = Reflink // written in place, so never shared by name
	}
	f, err := newFiller(ctx, l.dir(), dest, l.ID, method)
	if err != nil {
		return nil, err
	}
	f.seen, f.pace = &s.seen, &s.pace
	below := -1
	if parent != nil {
		if below, err = openDir(unix.AT_FDCWD, parent.dir()); err != nil {
			f.close()
			return nil, &pathError{"open", parent.dir(), err}
		}
		defer unix.Close(below)
	}
	if byList {
		err = fillFromList(f, l, below, &s.read)
	} else {
		err = fillFromTrees(f, below, s.madeAt(l))
	}
	if err != nil {
		f.close()
		return f, err
	}
	return f, f.done()
}

// madeAt tells when a container was recorded: its layer was a fresh copy of
// its parent then. Zero for any other layer.
func (s *stager) madeAt(l *layer) time.Time {
	for _, c := range s.snap.containers {
		if c.LayerID == l.ID {
			return c.Created
		}
	}
	return time.Time{}
}
