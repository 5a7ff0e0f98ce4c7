package verify

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
)

// SampleOptions bound a sample. Zero values mean the defaults.
type SampleOptions struct {
	// Images are the ids of the images to choose from; empty: all of the
	// store's own.
	Images []string `json:"images,omitempty"`
	// Seed decides the choice: the same store, options and seed give the same
	// sample.
	Seed      string `json:"seed"`
	MaxImages int    `json:"max_images,omitempty"` // default 8
	MaxFiles  int    `json:"max_files,omitempty"`  // entries of all kinds, default 64
	MaxBytes  int64  `json:"max_bytes,omitempty"`  // read and hashed, default 32 MiB
}

// maxFileBytes is how much of one file is hashed; its size is compared too.
const maxFileBytes = 4 << 20

// Sample is what a choice of entries of some images' root filesystems looked
// like: content and everything else that a container sees of a file.
type Sample struct {
	Driver  string        `json:"driver"`
	Entries []SampleEntry `json:"entries"` // by image, then path
}

// SampleEntry is one file, folder or other entry of an image.
type SampleEntry struct {
	Image string `json:"image"`
	Path  string `json:"path"` // in the image, without a leading slash
	Type  string `json:"type"` // file, dir, symlink, char, block, fifo, socket, missing
	// Mode is the permission bits with setuid, setgid and sticky, in octal.
	Mode string `json:"mode,omitempty"`
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
	// Size is in bytes and MTime in nanoseconds since 1970; both 0 for folders.
	Size   int64             `json:"size"`
	MTime  int64             `json:"mtime_ns"`
	Rdev   uint64            `json:"rdev,omitempty"`
	Target string            `json:"target,omitempty"` // of a symlink
	Xattrs map[string]string `json:"xattrs,omitempty"` // values in hex
	// Hashed is how many bytes from the start SHA256 is of.
	Hashed int64  `json:"hashed,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// Bytes is how many bytes were hashed, for reports.
func (s Sample) Bytes() int64 {
	var n int64
	for _, e := range s.Entries {
		n += e.Hashed
	}
	return n
}

// TakeSample chooses entries of the store's images and reads them through the
// store's driver: on vfs from the top layer's folder, on overlay from a mount
// of the image. It prefers what a conversion gets wrong most easily: setuid,
// extended attributes, symlinks, hard links, devices, and files of upper
// layers. The live store is not altered; what the
// overlay driver needs to write goes to a folder made below scratch and
// removed again, which must be on a filesystem that overlay can use. Nothing
// is left mounted. An overlay store must not have been opened for writing
// through containers/storage by this process.
//
// An image that vanishes meanwhile is left out. A store without images gives
// an empty sample.
func TakeSample(ctx context.Context, ref StoreRef, scratch string, opts SampleOptions) (Sample, error) {
	opts = opts.withDefaults()
	s, err := takeSample(ctx, ref, scratch, opts)
	if err != nil {
		return Sample{}, fmt.Errorf("cannot sample store %s: %w", ref.GraphRoot, err)
	}
	return s, nil
}

func (o SampleOptions) withDefaults() SampleOptions {
	if o.MaxImages <= 0 {
		o.MaxImages = 8
	}
	if o.MaxFiles <= 0 {
		o.MaxFiles = 64
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 32 << 20
	}
	return o
}

func takeSample(ctx context.Context, ref StoreRef, scratch string, opts SampleOptions) (Sample, error) {
	rec, err := readRecords(ctx, ref)
	if err != nil {
		return Sample{}, err
	}
	s := Sample{Driver: ref.Driver}
	images := rec.chooseImages(opts)
	if len(images) == 0 {
		return s, nil
	}
	v, err := openViewer(rec, scratch)
	if err != nil {
		return Sample{}, err
	}
	budget := opts.MaxBytes
	for i, img := range images {
		files := (opts.MaxFiles - len(s.Entries)) / (len(images) - i)
		err := v.view(ctx, img.ID, func(t tree) error {
			for _, path := range rec.choosePaths(ctx, img, t, opts.Seed, files) {
				if err := ctx.Err(); err != nil {
					return err
				}
				e, err := t.entry(img.ID, path, min(maxFileBytes, budget))
				if err != nil {
					return err
				}
				budget -= e.Hashed
				s.Entries = append(s.Entries, e)
			}
			return nil
		})
		if err != nil && !v.vanished(ctx, img.ID) {
			return Sample{}, errors.Join(fmt.Errorf("image %s: %w", short(img.ID), err), v.close())
		}
	}
	s.sort()
	return s, v.close()
}

// Again reads the entries of s anew, through the driver of ref. An entry that
// is no longer there has the type "missing"; so has each of an image that is
// no longer there.
func (s Sample) Again(ctx context.Context, ref StoreRef, scratch string) (Sample, error) {
	again, err := s.again(ctx, ref, scratch)
	if err != nil {
		return Sample{}, fmt.Errorf("cannot sample store %s again: %w", ref.GraphRoot, err)
	}
	return again, nil
}

func (s Sample) again(ctx context.Context, ref StoreRef, scratch string) (Sample, error) {
	rec, err := readRecords(ctx, ref)
	if err != nil {
		return Sample{}, err
	}
	out := Sample{Driver: ref.Driver}
	if len(s.Entries) == 0 {
		return out, nil
	}
	v, err := openViewer(rec, scratch)
	if err != nil {
		return Sample{}, err
	}
	byImage := map[string][]SampleEntry{}
	var ids []string
	for _, e := range s.Entries {
		if _, known := byImage[e.Image]; !known {
			ids = append(ids, e.Image)
		}
		byImage[e.Image] = append(byImage[e.Image], e)
	}
	for _, id := range ids {
		if _, known := rec.imageByID(id); !known {
			for _, e := range byImage[id] {
				out.Entries = append(out.Entries, SampleEntry{Image: id, Path: e.Path, Type: typeMissing})
			}
			continue
		}
		err := v.view(ctx, id, func(t tree) error {
			for _, e := range byImage[id] {
				if err := ctx.Err(); err != nil {
					return err
				}
				// As many bytes as then, whatever the size is now.
				limit := e.Hashed
				if e.SHA256 == "" {
					limit = -1
				}
				got, err := t.entry(id, e.Path, limit)
				if err != nil {
					return err
				}
				out.Entries = append(out.Entries, got)
			}
			return nil
		})
		if err != nil {
			return Sample{}, errors.Join(fmt.Errorf("image %s: %w", short(id), err), v.close())
		}
	}
	out.sort()
	return out, v.close()
}

// DiffSamples compares a sample with the same taken again.
func DiffSamples(before, after Sample) []Difference {
	return diffLists("file", present(before.Entries), present(after.Entries), func(e SampleEntry) (string, string) {
		return short(e.Image) + ":/" + e.Path, ""
	})
}

func present(entries []SampleEntry) []SampleEntry {
	return slices.DeleteFunc(slices.Clone(entries), func(e SampleEntry) bool { return e.Type == typeMissing })
}

func (s *Sample) sort() {
	sortBy(s.Entries, func(e SampleEntry) string { return e.Image + "\x00" + e.Path })
}

func (rec records) imageByID(id string) (imageRecord, bool) {
	i := slices.IndexFunc(rec.images, func(img imageRecord) bool { return img.ID == id })
	if i < 0 {
		return imageRecord{}, false
	}
	return rec.images[i], true
}

// rank orders things by chance that the seed decides.
func rank(seed string, parts ...string) [sha256.Size]byte {
	h := sha256.New()
	for _, p := range append([]string{seed}, parts...) {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return [sha256.Size]byte(h.Sum(nil))
}
