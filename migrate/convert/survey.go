package convert

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Survey looks at the source and tells what Sync would do. It writes nothing,
// takes no lock and makes no folder. Damage is told, it is not an error.
func Survey(ctx context.Context, o Options) (Estimate, error) {
	var e Estimate
	if err := o.check(); err != nil {
		return e, err
	}
	snap, damage, err := readChecked(ctx, &o)
	if err == nil {
		err = snap.convertible()
	}
	if err != nil {
		return e, err
	}
	e.Damage = damage
	want := snap.wanted(o.Containers)
	e.Layers, e.Images = len(want), len(snap.images)
	for _, l := range snap.layers {
		if l.container {
			e.ContainerLayers++
		}
	}
	var imageData int64
	for _, i := range snap.images {
		if len(i.Names) == 0 {
			e.Dangling++
		}
		for _, n := range i.BigDataSizes {
			imageData += n
		}
	}
	e.Containers = describeContainers(o.Source, snap)
	for _, l := range want {
		e.Bytes += max(l.UncompressedSize, 0)
		fi, err := os.Stat(l.list())
		if err != nil {
			e.WithoutList++
			continue
		}
		e.ListBytes += fi.Size()
	}
	if e.Entries, err = countEntries(ctx, o, want); err != nil {
		return e, fmt.Errorf("cannot count the store's entries: %w", err)
	}
	if err := e.how(&o); err != nil {
		return e, fmt.Errorf("cannot look at the filesystem: %w", err)
	}
	if o.to() == vfs {
		err = e.wholeTrees(ctx, snap, want, imageData)
	} else {
		err = e.written(ctx, &o, snap)
		e.needs(len(want), imageData+e.ContainerBytes)
	}
	if err != nil {
		return e, fmt.Errorf("cannot measure the store: %w", err)
	}
	e.OtherDrivers, e.ImageStores = neighbours(o.Source, snap)
	return e, nil
}

// written adds up what containers have written.
func (e *Estimate) written(ctx context.Context, o *Options, snap *snapshot) error {
	for _, l := range snap.layers {
		if !o.Containers || !l.container || !exists(l.dir()) {
			continue
		}
		var n int64
		var err error
		if o.Source.Driver == vfs {
			n, err = written(ctx, l, snap.parent(l))
		} else {
			var t treeSize
			t, err = measure(ctx, l)
			n = t.bytes
		}
		if err != nil {
			return err
		}
		e.ContainerBytes += n
	}
	return nil
}

// treeSize is what a tree holds.
type treeSize struct{ bytes, entries int64 }

// measure looks at every entry of a layer's folders. One that goes meanwhile is not
// counted.
func measure(ctx context.Context, l *layer) (t treeSize, err error) {
	for _, dir := range l.dirs() {
		err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			t.entries++
			if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
				t.bytes += info.Size()
			}
			return ctx.Err()
		})
		if err != nil {
			return t, err
		}
	}
	return t, nil
}

// wholeTrees tells the free space and inodes that a vfs store takes: each layer and
// each container has all of what lies below it, too. What hides something below
// makes it less than that.
func (e *Estimate) wholeTrees(ctx context.Context, snap *snapshot, want []*layer, imageData int64) error {
	const block = 4096
	tree := map[string]treeSize{}
	var sum treeSize
	for _, l := range want { // parents come first
		t := treeSize{bytes: max(l.UncompressedSize, 0), entries: countList(l.list())}
		if (l.container || !exists(l.list()) || l.UncompressedSize < 0) && exists(l.dir()) {
			var err error
			if t, err = measure(ctx, l); err != nil {
				return err
			}
		}
		if p := snap.parent(l); p != nil {
			t.bytes += tree[p.ID].bytes
			t.entries += tree[p.ID].entries
		}
		tree[l.ID] = t
		sum.bytes += t.bytes
		sum.entries += t.entries
		if l.container {
			e.ContainerBytes += t.bytes
		}
	}
	e.InodesNeeded = sum.entries + int64(len(want))*8 + int64(e.Images)*4 + 100
	e.BytesNeeded = sum.bytes + e.InodesNeeded*block + e.ListBytes + imageData + 1<<20
	return nil
}

// needs tells the free space and inodes that staging needs. With links, a
// folder in a diff takes a block and an inode; images have one folder in six to
// twelve entries, so a quarter is on the safe side.
func (e *Estimate) needs(layers int, imageData int64) {
	const block = 4096
	e.InodesNeeded = e.Entries/4 + int64(layers)*8 + int64(e.Images)*4 + 100
	e.BytesNeeded = e.InodesNeeded*block + imageData + 1<<20
	if e.Method != Link {
		e.InodesNeeded += e.Entries
		e.BytesNeeded += e.ListBytes + e.Bytes + e.Entries*block/2
	}
}

// how finds out whether files can be linked into the stage.
func (e *Estimate) how(o *Options) error {
	if o.Elsewhere {
		e.Method, e.MethodReason = Copy, "the new store is made on another filesystem"
		return nil
	}
	source := filepath.Join(o.Source.GraphRoot, o.Source.Driver)
	stage := o.Stage
	for !exists(stage) {
		stage = filepath.Dir(stage)
	}
	var a, b unix.Statx_t
	mask := unix.STATX_BASIC_STATS | unix.STATX_MNT_ID
	if err := unix.Statx(unix.AT_FDCWD, source, 0, mask, &a); err != nil {
		if !errors.Is(err, unix.ENOENT) {
			return &pathError{"stat", source, err}
		}
		a = b
	}
	if err := unix.Statx(unix.AT_FDCWD, stage, 0, mask, &b); err != nil {
		return &pathError{"stat", stage, err}
	}
	var sf unix.Statfs_t
	if err := unix.Statfs(stage, &sf); err != nil {
		return &pathError{"statfs", stage, err}
	}
	e.BytesFree, e.InodesFree = int64(sf.Bavail)*sf.Bsize, int64(sf.Ffree)
	if sf.Files == 0 {
		e.InodesFree = 0
	}
	sameDev := a.Dev_major == b.Dev_major && a.Dev_minor == b.Dev_minor
	sameMount := a.Mask&unix.STATX_MNT_ID == 0 || a.Mnt_id == b.Mnt_id
	switch {
	case o.to() == vfs:
		e.Method, e.MethodReason = Copy, "vfs keeps the whole tree of each layer and container"
	case sameDev && sameMount:
		e.Method, e.MethodReason = Link, "store and stage are on one filesystem"
	case sameDev, sf.Type == unix.BTRFS_SUPER_MAGIC:
		e.Method, e.MethodReason = Reflink, "links cannot cross mounts or subvolumes; blocks are shared where the filesystem can, else copied"
	default:
		e.Method, e.MethodReason = Copy, "store and stage are on different filesystems"
	}
	return nil
}

func describeContainers(src Store, snap *snapshot) []ContainerInfo {
	var out []ContainerInfo
	for _, c := range snap.containers {
		// buildah keeps its state as big data of that name.
		dir := filepath.Join(src.folder(src.GraphRoot, "containers"), c.ID)
		l := snap.byID[c.LayerID]
		out = append(out, ContainerInfo{
			Mapped: len(c.UIDMap)+len(c.GIDMap) > 0 || l != nil && len(l.UIDMap) > 0,
			// Where the driver maps ids when it mounts, it says so by a layer that has no
			// maps (containers/storage, canUseShifting).
			Shifted: src.Driver == overlay && len(c.UIDMap)+len(c.GIDMap) > 0 && l != nil && len(l.UIDMap)+len(l.GIDMap) == 0,
			ID:      c.ID, Names: c.Names, Image: c.ImageID, Layer: c.LayerID,
			Buildah: slices.Contains(c.BigDataNames, "buildah.json") || exists(filepath.Join(dir, "userdata", "buildah.json")) || exists(filepath.Join(dir, "buildah.json")),
		})
	}
	return out
}

// countEntries counts what the layers' lists name. A list that cannot be read
// to its end counts as far as it can be read: Sync tells what is wrong.
func countEntries(ctx context.Context, o Options, want []*layer) (int64, error) {
	jobs := make(chan *layer, len(want))
	for _, l := range want {
		jobs <- l
	}
	close(jobs)
	workers := o.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	var total atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for l := range jobs {
				if ctx.Err() != nil {
					return
				}
				total.Add(countList(l.list()))
			}
		})
	}
	wg.Wait()
	return total.Load(), ctx.Err()
}

// countList counts the file entries of a tar-split list: one JSON object a
// line, files being of type 1.
func countList(file string) int64 {
	f, err := os.Open(file)
	if err != nil {
		return 0
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return 0
	}
	defer z.Close()
	var n int64
	r := bufio.NewReaderSize(z, 64<<10)
	start := true
	for {
		line, err := r.ReadSlice('\n')
		if start && bytes.HasPrefix(line, []byte(filePrefix)) {
			n++
		}
		start = err == nil
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return n
		}
	}
}

// neighbours looks for other drivers' folders beside the store and at its
// additional image stores.
func neighbours(src Store, snap *snapshot) (drivers []string, stores []ImageStoreInfo) {
	names, err := os.ReadDir(src.GraphRoot)
	if err == nil {
		for _, n := range names {
			if driver, ok := strings.CutSuffix(n.Name(), "-layers"); ok && driver != src.Driver {
				drivers = append(drivers, driver)
			}
		}
	}
	sort.Strings(drivers)
	for _, path := range src.ImageStores {
		info := ImageStoreInfo{Path: path, HasOverlay: exists(filepath.Join(path, "overlay-images")), Imported: snap.imported[path]}
		if images, err := readImages(src, path); err == nil {
			info.Images = len(images)
		}
		stores = append(stores, info)
	}
	return drivers, stores
}
