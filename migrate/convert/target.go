package convert

import (
	"errors"
	"os"
	"path/filepath"
)

// target makes the layers of the staged store, as its driver keeps them.
type target interface {
	// create makes what a layer needs to be filled; its parent has it already.
	create(l *layer, parent string) error
	// put has an empty folder filled and makes it the layer's.
	put(l *layer, fill func(dest string) error) error
	// whole reports whether a layer has what the driver needs of it.
	whole(id string) bool
	// sweep removes every layer that keep does not name, and what an interrupted run
	// was filling. It tells the layers removed.
	sweep(keep map[string]bool) ([]string, error)
	// clearStaging removes the folders in which layers were filled.
	clearStaging() error
	Close() error
}

func openTarget(o *Options) (target, error) {
	if o.to() == vfs {
		return openVfs(o)
	}
	return openDriver(o)
}

// wholeStaged reports whether the staged store has a layer's folder.
func (o *Options) wholeStaged(id string) bool {
	if o.to() == vfs {
		return exists(filepath.Join(vfsDirs(o.vfsHome()), id))
	}
	return wholeLayer(o.overlayHome(), id)
}

// stagedVfs is a staged vfs store. Its driver keeps nothing but a tree for each
// layer (containers/storage, drivers/vfs), so the driver itself is not needed.
type stagedVfs struct{ home string }

func vfsDirs(home string) string { return filepath.Join(home, "dir") }

func openVfs(o *Options) (*stagedVfs, error) {
	v := &stagedVfs{home: o.vfsHome()}
	for _, dir := range []string{v.home, vfsDirs(v.home)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func (v *stagedVfs) staging() string { return filepath.Join(v.home, ".staging") }

func (v *stagedVfs) create(*layer, string) error { return nil }

// put fills the tree beside its place: where a layer has a folder it is whole.
func (v *stagedVfs) put(l *layer, fill func(dest string) error) error {
	half := filepath.Join(v.staging(), l.ID)
	if err := errors.Join(os.MkdirAll(v.staging(), 0o700), os.RemoveAll(half), os.Mkdir(half, 0o700)); err != nil {
		return err
	}
	if err := fill(half); err != nil {
		return err
	}
	return os.Rename(half, filepath.Join(vfsDirs(v.home), l.ID))
}

func (v *stagedVfs) whole(id string) bool { return exists(filepath.Join(vfsDirs(v.home), id)) }

func (v *stagedVfs) sweep(keep map[string]bool) ([]string, error) {
	if err := v.clearStaging(); err != nil {
		return nil, err
	}
	names, err := os.ReadDir(vfsDirs(v.home))
	if err != nil {
		return nil, err
	}
	var dropped []string
	for _, n := range names {
		if keep[n.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(vfsDirs(v.home), n.Name())); err != nil {
			return nil, err
		}
		dropped = append(dropped, n.Name())
	}
	return dropped, nil
}

func (v *stagedVfs) clearStaging() error { return os.RemoveAll(v.staging()) }

func (v *stagedVfs) Close() error { return v.clearStaging() }
