package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Staged looks whether <Stage>/new holds just what the source holds now: every
// record byte for byte, every layer whole, every item of image data as large
// as recorded. It reads records and a few names for each layer, never a tree,
// and writes nothing. When the answer is no the reasons say what Sync would do.
func Staged(ctx context.Context, o Options) (bool, []string, error) {
	if err := o.check(); err != nil {
		return false, nil, err
	}
	snap, err := readSnapshot(ctx, o.Source)
	if err != nil {
		return false, nil, err
	}
	reasons, err := stagedReasons(&o, snap)
	if err != nil {
		return false, nil, fmt.Errorf("cannot look at the staged store: %w", err)
	}
	return len(reasons) == 0, reasons, nil
}

func stagedReasons(o *Options, snap *snapshot) ([]string, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	s := &stager{o: o, snap: snap, boot: boot}
	sealed, err := s.sealedLayers()
	if err != nil {
		return nil, err
	}
	var why []string
	want := snap.wanted(o.Containers)
	known := map[string]bool{"l": true}
	for _, l := range want {
		known[l.ID] = true
		rc, ok := readReceipt(o, l.ID)
		switch {
		case !ok || rc.Identity != l.identity():
			why = append(why, "layer "+short(l.ID)+" is not staged")
		case sealed[l.ID] != rc.Identity:
			why = append(why, "layer "+short(l.ID)+" is not recorded")
		case !o.wholeStaged(l.ID):
			why = append(why, "layer "+short(l.ID)+" is not whole")
		case len(rc.Damage) > 0 && !o.KeepDamaged:
			why = append(why, "layer "+short(l.ID)+" is damaged")
		case exists(l.list()) != exists(o.stagedFile("layers", l.ID+".tar-split.gz")):
			why = append(why, "the list of layer "+short(l.ID)+" is not staged")
		}
		for _, key := range l.BigDataNames {
			if exists(filepath.Join(l.bigData(), bigDataFile(key))) != exists(filepath.Join(o.stagedFile("layers", l.ID), bigDataFile(key))) {
				why = append(why, fmt.Sprintf("data %q of layer %s is not staged", key, short(l.ID)))
			}
		}
	}
	for _, i := range snap.images {
		if d := checkImageData(o.stagedFile("images", i.ID), i); len(d) > 0 && !o.KeepDamaged {
			why = append(why, d[0].String())
		}
	}
	for _, f := range wantedRecords(o, snap, want) {
		data, err := os.ReadFile(f.path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if !bytes.Equal(data, joinRecords(f.list)) && (err == nil || len(f.list) > 0) {
			why = append(why, filepath.Base(f.path)+" differs from the source's")
		}
	}
	home := o.overlayHome()
	if o.to() == vfs {
		home = vfsDirs(o.vfsHome())
	}
	names, err := os.ReadDir(home)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, n := range names {
		if n.Name() == mountProgramFlag || n.IsDir() && !known[n.Name()] {
			why = append(why, o.to()+"/"+n.Name()+" does not belong")
		}
	}
	return why, nil
}
