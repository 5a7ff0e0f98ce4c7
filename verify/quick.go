package verify

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/asm"
	tarstorage "github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

// QuickReport is what a short look at the files of layers found.
type QuickReport struct {
	Layers int      `json:"layers"` // that have a list of their files
	Looked int      `json:"looked"` // of these, in the time there was
	Files  int      `json:"files"`
	Damage []string `json:"damage,omitempty"` // at most ten
}

// Quick compares the files of image layers with the lists that the store keeps of
// them, by type and size; no content is read. It ends when the time is over, and
// takes layers in an order of chance, so that many quick looks see all. It only
// reads.
func Quick(ctx context.Context, ref StoreRef, budget time.Duration) (QuickReport, error) {
	rec, err := readRecords(ctx, ref)
	if err != nil {
		return QuickReport{}, fmt.Errorf("cannot list store %s: %w", ref.GraphRoot, err)
	}
	var layers []Layer
	for _, l := range rec.part().Layers {
		if l.TarSplit && l.Tree && !l.Writable && l.ReadOnlyStore == "" {
			layers = append(layers, l)
		}
	}
	rand.Shuffle(len(layers), func(i, j int) { layers[i], layers[j] = layers[j], layers[i] })
	r := QuickReport{Layers: len(layers)}
	limit, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	for _, l := range layers {
		if limit.Err() != nil || len(r.Damage) >= 10 {
			break
		}
		if err := quickLayer(limit, ref, l.ID, &r); err != nil {
			return r, err
		}
		if limit.Err() == nil {
			r.Looked++
		}
	}
	return r, ctx.Err()
}

func quickLayer(ctx context.Context, ref StoreRef, id string, r *QuickReport) error {
	f, err := openQuietly(filepath.Join(ref.dir(ref.GraphRoot, "layers"), id+".tar-split.gz"))
	if err != nil {
		return gone(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		r.damaged(id, "", "its list cannot be read: "+err.Error())
		return nil
	}
	defer z.Close()
	dir, err := unix.Open(ref.tree(ref.GraphRoot, id), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return gone(err)
	}
	defer unix.Close(dir)
	over := errors.New("over")
	last := map[string]int64{} // a tar may have a name twice, and its last entry counts
	err = asm.IterateHeaders(tarstorage.NewJSONUnpacker(z), func(h *tar.Header) error {
		if ctx.Err() != nil {
			return over
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "/"))
		if h.Typeflag == tar.TypeReg && !strings.HasPrefix(path.Base(name), ".wh.") {
			last[name] = h.Size
		} else {
			delete(last, name)
		}
		return nil
	})
	if err != nil && !errors.Is(err, over) && !errors.Is(err, io.EOF) {
		r.damaged(id, "", "its list cannot be read: "+err.Error())
	}
	for name, size := range last {
		if ctx.Err() != nil || len(r.Damage) >= 10 {
			break
		}
		r.Files++
		r.compare(dir, id, name, size)
	}
	return nil
}

// gone takes a layer that podman removed meanwhile for no error.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// compare looks whether a file of the list is there as it says.
func (r *QuickReport) compare(dir int, id, name string, size int64) {
	fd, err := openIn(dir, name, unix.O_PATH)
	if err != nil {
		r.damaged(id, name, "cannot be found: "+reason(err))
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	switch err := unix.Fstat(fd, &st); {
	case err != nil:
		r.damaged(id, name, "cannot be looked at: "+reason(err))
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		r.damaged(id, name, "is no file any more")
	case st.Size != size:
		r.damaged(id, name, fmt.Sprintf("has %d bytes instead of %d", st.Size, size))
	}
}

func (r *QuickReport) damaged(id, name, what string) {
	if len(r.Damage) < 10 {
		r.Damage = append(r.Damage, strings.TrimSpace(fmt.Sprintf("layer %.12s: %s %s", id, name, what)))
	}
}
