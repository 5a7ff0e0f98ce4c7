package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// The staged records. They are the source's own, byte for byte: nothing in a
// record depends on the driver, and fields that this program does not know (of
// newer releases) are kept.

func (o *Options) stagedFile(kind, name string) string {
	return filepath.Join(o.newRoot(), o.to()+"-"+kind, name)
}

// sealedLayers reads the layers that the staged records name, with identity.
func (s *stager) sealedLayers() (map[string]string, error) {
	out := map[string]string{}
	for _, f := range []string{"layers.json", "volatile-layers.json"} {
		list, err := recordFile(s.o.stagedFile("layers", f))
		if err != nil {
			return nil, err
		}
		for _, raw := range list {
			l := &layer{}
			if err := json.Unmarshal(raw, &l.Layer); err != nil {
				return nil, fmt.Errorf("reading staged %s: %w", f, err)
			}
			out[l.ID] = l.identity()
		}
	}
	return out, nil
}

// unseal removes from the staged records what will be taken away.
func (s *stager) unseal(have map[string]bool) error {
	var less []records
	for _, f := range []string{"layers.json", "volatile-layers.json"} {
		path := s.o.stagedFile("layers", f)
		list, err := recordFile(path)
		if err != nil {
			return err
		}
		var keep []json.RawMessage
		for _, raw := range list {
			var id struct {
				ID string `json:"id"`
			}
			if err := json.Unmarshal(raw, &id); err != nil {
				return err
			}
			if have[id.ID] {
				keep = append(keep, raw)
			}
		}
		if len(keep) < len(list) {
			less = append(less, records{path, keep})
		}
	}
	_, err := writeRecords(s.o.Stage, less, false)
	return err
}

// seal takes over images and containers, flushes everything to disk, and only
// then writes the records that make it count.
func (s *stager) seal(ctx context.Context, want []*layer, r *Report) error {
	s.phase("images")
	images, err := s.images(ctx, r)
	if err != nil {
		return err
	}
	containers, err := s.containers(ctx)
	if err != nil {
		return err
	}
	// What was only taken away need not reach the disk before the records do.
	fresh := len(r.NewLayers) > 0 || images || containers
	if fresh {
		s.phase("flush")
		if err := s.target.clearStaging(); err != nil { // what is gone before the flush is not written
			return err
		}
	}
	changed, err := writeRecords(s.o.Stage, s.records(want), fresh)
	if err != nil {
		return err
	}
	r.Changed = changed || fresh || len(r.DroppedLayers)+len(r.DroppedImages) > 0
	r.Layers, r.Images = len(want), len(s.snap.images)
	if s.o.Containers {
		r.Containers = len(s.snap.containers)
	}
	return nil
}

func (s *stager) phase(name string) {
	if s.o.Progress != nil {
		s.o.Progress(Progress{Phase: name, LayersDone: int(s.done.Load()), Entries: s.seen.Load(), BytesCopied: s.copied.Load()})
	}
}

type records struct {
	path string
	list []json.RawMessage
}

// records lists every record file of the staged store with what it has to hold.
func (s *stager) records(want []*layer) []records { return wantedRecords(s.o, s.snap, want) }

func wantedRecords(o *Options, snap *snapshot, want []*layer) []records {
	out := []records{
		{path: o.stagedFile("layers", "layers.json")},
		{path: o.stagedFile("layers", "volatile-layers.json")},
		{path: o.stagedFile("images", "images.json")},
		{path: o.stagedFile("containers", "containers.json")},
		{path: o.stagedFile("containers", "volatile-containers.json")},
	}
	for _, l := range want {
		i := 0
		if l.volatile {
			i = 1
		}
		out[i].list = append(out[i].list, l.raw)
	}
	for _, i := range snap.images {
		out[2].list = append(out[2].list, i.raw)
	}
	if o.Containers {
		for _, c := range snap.containers {
			i := 3
			if c.volatile {
				i = 4
			}
			out[i].list = append(out[i].list, c.raw)
		}
	}
	return out
}

func joinRecords(list []json.RawMessage) []byte {
	var b bytes.Buffer
	b.WriteByte('[')
	for i, raw := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(raw)
	}
	b.WriteByte(']')
	return b.Bytes()
}

// writeRecords replaces the record files that do not say so already, durably.
// It tells whether one changed. Whatever a new record names is on disk before
// the record is, also what an earlier run made that was killed before its own
// flush: then, and if all is set, everything on the filesystem of stage is
// flushed first. A volatile record file that is not there is not made for
// nothing.
//
// One flush before all renames and one after them: each flush costs a journal
// commit, some 100 kB on ext4.
func writeRecords(stage string, files []records, all bool) (bool, error) {
	var changed []string
	for _, f := range files {
		data := joinRecords(f.list)
		old, err := os.ReadFile(f.path)
		switch {
		case err == nil && bytes.Equal(old, data):
			continue
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return false, err
		case err != nil && len(f.list) == 0 && filepath.Base(f.path)[0] == 'v':
			continue
		}
		all = all || slices.ContainsFunc(f.list, func(r json.RawMessage) bool { return !bytes.Contains(old, r) })
		if err := os.WriteFile(f.path+".tmp", data, 0o600); err != nil {
			return false, err
		}
		changed = append(changed, f.path)
	}
	if all {
		if err := syncfs(stage); err != nil {
			return false, err
		}
	}
	for _, path := range changed {
		if !all {
			if err := syncFile(path + ".tmp"); err != nil {
				return false, err
			}
		}
	}
	for _, path := range changed {
		if err := os.Rename(path+".tmp", path); err != nil {
			return false, err
		}
	}
	for _, path := range changed {
		if err := syncFile(filepath.Dir(path)); err != nil {
			return false, err
		}
	}
	return len(changed) > 0, nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncfs(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("flushing to disk: %w", err)
	}
	return nil
}

// images takes over the folders of images whose record is new or changed in
// more than its names, and removes those of images that are gone. It tells
// whether it copied any.
func (s *stager) images(ctx context.Context, r *Report) (bool, error) {
	list, err := recordFile(s.o.stagedFile("images", "images.json"))
	if err != nil {
		return false, err
	}
	staged := map[string]string{}
	for _, raw := range list {
		i := &image{raw: raw}
		if err := json.Unmarshal(raw, &i.Image); err != nil {
			return false, err
		}
		staged[i.ID] = i.dataKey()
	}
	dir := s.o.stagedFile("images", "")
	keep := map[string]bool{"images.json": true, "images.lock": true}
	changed := false
	for _, i := range s.snap.images {
		keep[i.ID] = true
		from, to := filepath.Join(s.o.Source.folder(s.o.Source.GraphRoot, "images"), i.ID), filepath.Join(dir, i.ID)
		if staged[i.ID] == i.dataKey() && exists(to) == exists(from) {
			continue
		}
		changed = true
		if staged[i.ID] == "" {
			r.NewImages = append(r.NewImages, i.ID)
		}
		if !exists(from) {
			continue // damage that is carried, or an image without data
		}
		if err := copyTree(ctx, from, to); err != nil {
			return changed, fmt.Errorf("taking over image %s: %w", short(i.ID), err)
		}
	}
	for id := range staged {
		if !keep[id] {
			r.DroppedImages = append(r.DroppedImages, id)
		}
	}
	return changed, removeOthers(dir, keep)
}

// dataKey names the state of an image's folder.
func (i *image) dataKey() string {
	key, err := json.Marshal([]any{i.ID, i.Created, i.BigDataNames, i.BigDataSizes, i.BigDataDigests})
	if err != nil {
		return "" // cannot be: strings, times and integers always marshal
	}
	return string(key)
}

func removeOthers(dir string, keep map[string]bool) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if keep[n.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, n.Name())); err != nil {
			return err
		}
	}
	return nil
}

// containers copies the containers' folders: nothing runs, and they are few.
func (s *stager) containers(ctx context.Context) (bool, error) {
	dir := s.o.stagedFile("containers", "")
	keep := map[string]bool{"containers.json": true, "volatile-containers.json": true, "containers.lock": true}
	changed := false
	if s.o.Containers {
		for _, c := range s.snap.containers {
			keep[c.ID] = true
			from := filepath.Join(s.o.Source.folder(s.o.Source.GraphRoot, "containers"), c.ID)
			if !exists(from) {
				continue
			}
			if err := copyTree(ctx, from, filepath.Join(dir, c.ID)); err != nil {
				return changed, fmt.Errorf("taking over container %s: %w", short(c.ID), err)
			}
			changed = true
		}
	}
	return changed, removeOthers(dir, keep)
}
