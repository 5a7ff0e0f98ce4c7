package prune

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
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/verify"
)

// This file is what the owner's worker does: all looks and removals in folders that the
// owner of the store can write to.

// The requests to the worker.
const (
	opLook   = "prune-look"
	opWeigh  = "prune-weigh"
	opStore  = "prune-store"
	opFree   = "prune-free"
	opRmTree = "prune-remove-cache"
)

// Handlers are the answers of an owner's worker; uid is the owner's as the machine
// numbers users.
func Handlers(uid int) map[string]podman.Handler {
	return map[string]podman.Handler{
		opLook: podman.Handle(func(ctx context.Context, a lookArgs, _ func(any)) (seen, error) { return lookAtDisk(ctx, a, uid) }),
		opWeigh: podman.Handle(func(ctx context.Context, paths []string, _ func(any)) (map[string]weight, error) {
			return weighAll(ctx, paths)
		}),
		opStore: podman.Handle(func(ctx context.Context, r verify.StoreRef, _ func(any)) (verify.StorePart, error) {
			return verify.StoreManifest(ctx, r)
		}),
		opFree: podman.Handle(func(_ context.Context, a freeArgs, _ func(any)) (uint64, error) { return freeBytes(a) }),
		opRmTree: podman.Handle(func(_ context.Context, path string, _ func(any)) (bool, error) {
			return true, removeCache(path, uid)
		}),
	}
}

type lookArgs struct {
	Store verify.StoreRef `json:"store"`
	Cache bool            `json:"cache"` // look at the build cache, too
}

// seen is what the worker saw.
type seen struct {
	Store    verify.StorePart     `json:"store"`
	Free     uint64               `json:"free"`
	Arrived  map[string]time.Time `json:"arrived"`         // by image, when its record was written
	Lists    map[string]string    `json:"lists,omitempty"` // by the digest of an image, the list that has it
	Building string               `json:"building,omitempty"`
	Wanted   []Wanted             `json:"wanted,omitempty"`
	Unread   []unitFile           `json:"unread,omitempty"` // units that are closed to the owner
	Caches   []Dir                `json:"caches,omitempty"`
}

func lookAtDisk(ctx context.Context, a lookArgs, uid int) (seen, error) {
	s := seen{Arrived: map[string]time.Time{}, Lists: map[string]string{}}
	var err error
	if s.Store, err = verify.StoreManifest(ctx, a.Store); err != nil {
		return s, err
	}
	for _, i := range s.Store.Images {
		if err := readList(a.Store, i, s.Lists); err != nil {
			return s, err
		}
		if fi, err := os.Lstat(filepath.Join(a.Store.GraphRoot, a.Store.Driver+"-images", i.ID)); err == nil {
			s.Arrived[i.ID] = fi.ModTime().UTC()
		}
	}
	if s.Free, err = freeBytes(freeArgs{Path: a.Store.GraphRoot}); err != nil {
		return s, err
	}
	s.Building = building("/proc")
	units, unread, err := readUnits(unitFolders(uid))
	if err != nil {
		return s, err
	}
	s.Wanted, s.Unread = namesInUnits(units, readHanded), unread
	if !a.Cache {
		return s, nil
	}
	s.Caches, err = caches(ctx, uid)
	return s, err
}

// readList adds the images of a list of images (podman manifest) to lists. That is an
// image without layers, whose manifest names others by digest.
func readList(ref verify.StoreRef, i verify.Image, lists map[string]string) error {
	if len(i.Chain) > 0 || i.ReadOnlyStore != "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(ref.GraphRoot, ref.Driver+"-images", i.ID, "manifest"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var m struct {
		Manifests []struct{ Digest string }
	}
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return fmt.Errorf("cannot read the manifest of image %s: %w", i.ID, err)
	}
	name := i.ID[:min(12, len(i.ID))]
	if len(i.Names) > 0 {
		name = i.Names[0]
	}
	for _, of := range m.Manifests {
		lists[of.Digest] = name
	}
	return nil
}

type freeArgs struct {
	Path string `json:"path"`
	Sync bool   `json:"sync"` // what was removed is counted when the filesystem has done it
}

func freeBytes(a freeArgs) (uint64, error) {
	f, err := os.Open(a.Path)
	if err != nil {
		return 0, fmt.Errorf("cannot see how much is free: %w", err)
	}
	defer f.Close()
	if a.Sync {
		if err := unix.Syncfs(int(f.Fd())); err != nil {
			return 0, fmt.Errorf("cannot see how much is free: %w", err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("cannot see how much is free: %w", err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// building names a process of this user namespace's owner that builds an image, "" if
// there is none. A build through podman's socket is not seen so.
func building(proc string) string {
	files, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "cmdline"))
	for _, path := range files {
		var st unix.Stat_t
		b, err := os.ReadFile(path)
		if err != nil || unix.Stat(filepath.Dir(path), &st) != nil || int(st.Uid) != os.Getuid() {
			continue // gone, or another's
		}
		argv := bytes.Split(bytes.TrimRight(b, "\x00"), []byte{0})
		name := filepath.Base(string(argv[0]))
		builds := name == "buildah" || name == "podman" && slices.ContainsFunc(argv[1:], func(a []byte) bool { return string(a) == "build" })
		if builds {
			return fmt.Sprintf("%s, process %s", name, filepath.Base(filepath.Dir(path)))
		}
	}
	return ""
}

// weight is what a tree takes on disk, and when something in it changed last.
type weight struct {
	Bytes   uint64    `json:"bytes"`
	Changed time.Time `json:"changed"`
}

// weighAll weighs trees. One that is not there weighs nothing.
func weighAll(ctx context.Context, paths []string) (map[string]weight, error) {
	all := map[string]weight{}
	for _, p := range paths {
		w, err := weigh(ctx, p)
		if err != nil {
			return nil, err
		}
		all[p] = w
	}
	return all, nil
}

// missed passes over what was removed meanwhile, and over what is closed to the owner,
// which may have changed just now.
func (w *weight) missed(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, fs.ErrPermission):
		w.Changed = time.Now().UTC()
		return nil
	}
	return err
}

func weigh(ctx context.Context, root string) (weight, error) {
	var w weight
	links := map[[2]uint64]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return w.missed(err)
		}
		fi, err := d.Info()
		if err != nil {
			return w.missed(err)
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if fi.ModTime().After(w.Changed) {
			w.Changed = fi.ModTime().UTC()
		}
		if id := [2]uint64{st.Dev, st.Ino}; !d.IsDir() && st.Nlink > 1 {
			if links[id] {
				return nil
			}
			links[id] = true
		}
		w.Bytes += uint64(st.Blocks) * 512
		return nil
	})
	if err != nil {
		return w, fmt.Errorf("cannot see what %s takes: %w", root, err)
	}
	return w, nil
}

// cacheParent is where buildah keeps what RUN --mount=type=cache has.
const cacheParent = "/var/tmp"

func cacheFolder(uid int) string { return "buildah-cache-" + strconv.Itoa(uid) }

// openCache opens the folder of the build cache; nil where there is none. Its parent is
// everybody's: it must be a folder of the owner's own, and is reached through no link.
func openCache(parent string, uid int) (*os.Root, error) {
	top, err := os.OpenRoot(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look at the build cache: %w", err)
	}
	defer func() { _ = top.Close() }()
	fi, err := top.Lstat(cacheFolder(uid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look at the build cache: %w", err)
	}
	// The owner is root in here, and root's own cache is root's.
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || !fi.IsDir() || int(st.Uid) != os.Getuid() {
		return nil, nil
	}
	r, err := top.OpenRoot(cacheFolder(uid))
	if err != nil {
		return nil, fmt.Errorf("cannot look at the build cache: %w", err)
	}
	if now, err := r.Stat("."); err != nil || !os.SameFile(fi, now) {
		return nil, errors.Join(errors.New("cannot look at the build cache: its folder was replaced"), err, r.Close())
	}
	return r, nil
}

func caches(ctx context.Context, uid int) ([]Dir, error) {
	r, err := openCache(cacheParent, uid)
	if err != nil || r == nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	es, err := fs.ReadDir(r.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("cannot look at the build cache: %w", err)
	}
	var all []Dir
	for _, e := range es {
		if !e.IsDir() {
			continue // buildah's locks
		}
		path := filepath.Join(cacheParent, cacheFolder(uid), e.Name())
		w, err := weigh(ctx, path)
		if err != nil {
			return nil, err
		}
		all = append(all, Dir{Path: path, Used: w.Changed, Bytes: w.Bytes})
	}
	return all, nil
}

// removeCache removes one folder of the build cache.
func removeCache(path string, uid int) error {
	name := filepath.Base(path)
	if filepath.Dir(path) != filepath.Join(cacheParent, cacheFolder(uid)) || !filepath.IsLocal(name) {
		return fmt.Errorf("cannot remove %s: it is not of the build cache", path)
	}
	r, err := openCache(cacheParent, uid)
	if err != nil || r == nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if err := r.RemoveAll(name); err != nil {
		return fmt.Errorf("cannot remove a folder of the build cache: %w", err)
	}
	return nil
}
