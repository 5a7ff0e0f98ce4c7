package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containers/storage"
	"github.com/containers/storage/types"
)

// CheckReport is what containers/storage itself found wrong in a store.
type CheckReport struct {
	Images int      `json:"images"`
	Layers int      `json:"layers"`
	Damage []string `json:"damage,omitempty"` // at most twenty, by layer and image
}

// Check has containers/storage check the images and layers of a store: whether
// records name each other rightly, and data items are there, can be read, and have
// their sizes. Its checks by digest are left to [ReadData], and those that mount or
// write to nobody: the store is opened as a read-only image store of another one, in
// memory below scratch, which must be a folder of a filesystem that goes with this
// process. So containers are not looked at.
//
// It waits for podman's locks, and keeps podman from writing while it reads records,
// which takes moments. A process that has opened the store for writing cannot do it.
func Check(ctx context.Context, ref StoreRef, scratch string) (CheckReport, error) {
	type answer struct {
		r   CheckReport
		err error
	}
	done := make(chan answer, 1)
	go func() { // nothing ends a wait for a lock but the end of the process
		r, err := check(ctx, ref, scratch)
		done <- answer{r, err}
	}()
	select {
	case a := <-done:
		if a.err != nil {
			return a.r, fmt.Errorf("cannot check store %s: %w", ref.GraphRoot, a.err)
		}
		return a.r, nil
	case <-ctx.Done():
		return CheckReport{}, ctx.Err()
	}
}

func check(ctx context.Context, ref StoreRef, scratch string) (r CheckReport, err error) {
	rec, err := readRecords(ctx, ref)
	if err != nil {
		return r, err
	}
	var options []string
	for _, s := range append([]string{ref.GraphRoot}, ref.ImageStores...) {
		options = append(options, ref.Driver+".imagestore="+s)
	}
	if ref.Driver == "overlay" {
		// With a program for mounts nothing is tried on the folder in memory, which may
		// hold no overlay; and nothing is mounted, so that it is never run.
		options = append(options, "overlay.skip_mount_home=true", "overlay.mount_program=/proc/self/exe")
	}
	dir, err := os.MkdirTemp(scratch, "check-")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	st, err := storage.GetStore(types.StoreOptions{
		GraphRoot: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"),
		GraphDriverName: ref.Driver, GraphDriverOptions: options,
	})
	if err != nil {
		return r, fmt.Errorf("opening it: %w", err)
	}
	defer func() {
		_, e := st.Shutdown(true)
		err = errors.Join(err, e)
	}()
	found, err := st.Check(&storage.CheckOptions{LayerData: true, ImageData: true})
	if err != nil {
		return r, err
	}
	r.Images, r.Layers = len(rec.images), len(rec.layers)
	r.Damage = rec.damage(found)
	return r, nil
}

// damage tells what was found by layer and by image, an image without what is its
// layers' already.
func (rec records) damage(found storage.CheckReport) []string {
	var lines []string
	add := func(what string, errs []error) {
		for _, e := range errs {
			text := strings.TrimPrefix(e.Error(), "read-only ")
			if _, after, is := strings.Cut(text, ": "); is && (strings.HasPrefix(text, "image ") || strings.HasPrefix(text, "layer ")) {
				text = after
			}
			if line := what + ": " + text; !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	layers := map[string]bool{}
	for _, all := range []map[string][]error{found.Layers, found.ROLayers} {
		for id, errs := range all {
			add(fmt.Sprintf("layer %.12s", id), errs)
			for _, e := range errs {
				layers[e.Error()] = true
			}
		}
	}
	for _, all := range []map[string][]error{found.Images, found.ROImages} {
		for id, errs := range all {
			name := fmt.Sprintf("%.12s", id)
			if i, known := rec.imageByID(id); known && len(i.Names) > 0 {
				name = i.Names[0]
			}
			add("image "+name, slices.DeleteFunc(slices.Clone(errs), func(e error) bool { return layers[e.Error()] }))
		}
	}
	slices.Sort(lines)
	return lines[:min(len(lines), mostDamage)]
}
