package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containers/storage"
	"github.com/containers/storage/types"
)

// viewer shows the merged files of images.
type viewer struct {
	rec   records
	dir   string        // the scratch store's folder; empty on vfs
	store storage.Store // nil on vfs
}

// openViewer prepares to look into images. Overlay images are mounted by the
// real driver, as the roots of containers of a scratch store to which the live
// store is an additional, read-only image store: containers/storage then opens
// the live store with read locks and writes nothing there. It can do so only
// in a process that has not opened the live store for writing: it keeps one
// kind of lock for each path.
func openViewer(rec records, scratch string) (*viewer, error) {
	v := &viewer{rec: rec}
	if rec.ref.Driver == "vfs" {
		return v, nil
	}
	dir, err := os.MkdirTemp(scratch, "sample-")
	if err != nil {
		return nil, err
	}
	v.dir = dir
	driver := rec.ref.Driver
	options := append([]string{}, rec.ref.Options...)
	for _, s := range append([]string{rec.ref.GraphRoot}, rec.ref.ImageStores...) {
		options = append(options, driver+".imagestore="+s)
	}
	// The scratch store's folder must not stay mounted on itself.
	options = append(options, driver+".skip_mount_home=true")
	v.store, err = storage.GetStore(types.StoreOptions{
		GraphRoot:          filepath.Join(dir, "root"),
		RunRoot:            filepath.Join(dir, "run"),
		GraphDriverName:    driver,
		GraphDriverOptions: options,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening a scratch store: %w", err), os.RemoveAll(dir))
	}
	return v, nil
}

// view calls look with the image's files. They are there until look returns.
func (v *viewer) view(ctx context.Context, image string, look func(tree) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	img, known := v.rec.imageByID(image)
	if !known {
		return storage.ErrImageUnknown
	}
	var dir string
	if v.store == nil {
		dir = v.rec.ref.tree(v.rec.layers[img.TopLayer].root, img.TopLayer)
	} else {
		c, err := v.store.CreateContainer("", nil, image, "", "", &storage.ContainerOptions{
			IDMappingOptions: types.IDMappingOptions{HostUIDMapping: true, HostGIDMapping: true},
		})
		if err != nil {
			return fmt.Errorf("preparing a mount: %w", err)
		}
		mounted := false
		defer func() { err = errors.Join(err, v.drop(c.ID, mounted)) }()
		if dir, err = v.store.Mount(c.ID, ""); err != nil {
			return fmt.Errorf("mounting: %w", err)
		}
		mounted = true
	}
	t, err := openTree(dir)
	if err != nil {
		return err
	}
	// Before the unmount, which it would keep busy.
	defer func() { err = errors.Join(err, t.close()) }()
	return look(t)
}

// drop unmounts and removes a container of the scratch store.
func (v *viewer) drop(id string, mounted bool) error {
	if mounted {
		if _, err := v.store.Unmount(id, true); err != nil {
			return fmt.Errorf("unmounting: %w", err)
		}
	}
	return v.store.DeleteContainer(id)
}

// vanished looks whether the live store has lost the image since it was read.
func (v *viewer) vanished(ctx context.Context, image string) bool {
	now, err := readRecords(ctx, v.rec.ref)
	if err != nil {
		return false
	}
	_, known := now.imageByID(image)
	return !known
}

// close removes the scratch store.
func (v *viewer) close() error {
	if v.store == nil {
		return nil
	}
	if _, err := v.store.Shutdown(true); err != nil {
		return fmt.Errorf("closing the scratch store: %w", err)
	}
	// A mount that was left would be emptied by RemoveAll, with the upper
	// folder only: images' files are below read-only layers.
	return os.RemoveAll(v.dir)
}
