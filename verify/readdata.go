package verify

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	gohash "hash"
	"hash/crc64"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

// ReadOptions say how much of a store is read.
type ReadOptions struct {
	// Share is the part of all files that is read, from above 0 to 1.
	Share float64 `json:"share"`
	// Seed decides which: the same seed, the same files.
	Seed string `json:"seed"`
}

// ReadProgress tells how far a reading is.
type ReadProgress struct {
	Done  int64 `json:"done"` // layers
	Total int64 `json:"total"`
	Bytes int64 `json:"bytes"`
}

// ReadReport is what a reading found.
type ReadReport struct {
	Layers int   `json:"layers"`
	Files  int64 `json:"files"`
	Bytes  int64 `json:"bytes"`
	// Without are layers that cannot be judged: the store has no list of their
	// files, or does not know their digest.
	Without int      `json:"without"`
	Damage  []string `json:"damage,omitempty"` // at most twenty
	Seconds float64  `json:"seconds"`
}

const mostDamage = 20

// ReadData reads the files of all image layers of a store and compares them with
// what the store knows of them. Where all is read, each layer's tar stream is put
// together again and its SHA-256 must be the digest that the image names; of a
// share, each chosen file must have the checksum that the layer's list has of it.
// It only reads, and does not keep podman from its work; a layer that is removed
// meanwhile is passed over.
func ReadData(ctx context.Context, ref StoreRef, o ReadOptions, progress func(ReadProgress)) (ReadReport, error) {
	began := time.Now()
	rec, err := readRecords(ctx, ref)
	if err != nil {
		return ReadReport{}, fmt.Errorf("cannot list store %s: %w", ref.GraphRoot, err)
	}
	r := reading{ref: ref, opts: o}
	var layers []Layer
	for _, l := range rec.part().Layers {
		switch {
		case l.Writable || l.ReadOnlyStore != "":
		case !l.Tree:
			r.damaged(l.ID, "", "its files are gone")
		case !l.TarSplit || l.DiffDigest == "":
			r.Without++
		default:
			layers = append(layers, l)
		}
	}
	// The largest first, so that the last do not wait for one.
	slices.SortFunc(layers, func(a, b Layer) int { return int(min(1, max(-1, b.DiffSize-a.DiffSize))) })
	r.Layers = len(layers)
	todo := make(chan Layer)
	var wg sync.WaitGroup
	var failed error
	var once sync.Once
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var done atomic.Int64
	for range max(2, min(8, runtime.NumCPU())) {
		wg.Go(func() {
			buf := make([]byte, 256<<10)
			for l := range todo {
				if err := r.layer(ctx, l, buf); err != nil {
					once.Do(func() { failed = err })
					cancel()
				}
				n := done.Add(1)
				if progress != nil {
					progress(ReadProgress{n, int64(len(layers)), r.bytes.Load()})
				}
			}
		})
	}
	for _, l := range layers {
		select {
		case todo <- l:
		case <-ctx.Done():
		}
	}
	close(todo)
	wg.Wait()
	r.Files, r.Bytes, r.Seconds = r.files.Load(), r.bytes.Load(), time.Since(began).Seconds()
	slices.Sort(r.Damage)
	if failed != nil {
		return r.ReadReport, failed
	}
	return r.ReadReport, ctx.Err()
}

type reading struct {
	ReadReport
	ref          StoreRef
	opts         ReadOptions
	mu           sync.Mutex
	files, bytes atomic.Int64
}

func (r *reading) damaged(id, name, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.Damage) < mostDamage {
		r.Damage = append(r.Damage, strings.Join(strings.Fields(fmt.Sprintf("layer %.12s: %s %s", id, name, what)), " "))
	}
}

// layer reads one layer, and where its digest is not right once more, to find out
// which file it is.
func (r *reading) layer(ctx context.Context, l Layer, buf []byte) error {
	algorithm, want, _ := strings.Cut(l.DiffDigest, ":")
	if r.opts.Share < 1 || algorithm != "sha256" {
		return r.walk(ctx, l, nil, buf)
	}
	sum := sha256.New()
	before := r.found()
	if err := r.walk(ctx, l, sum, buf); err != nil {
		return err
	}
	if hex.EncodeToString(sum.Sum(nil)) == want || r.found() > before {
		return nil
	}
	whole := reading{ref: r.ref, opts: ReadOptions{Share: 1}}
	if err := whole.walk(ctx, l, nil, buf); err != nil {
		return err
	}
	if len(whole.Damage) == 0 && exists(r.ref.tree(r.ref.GraphRoot, l.ID)) {
		whole.damaged(l.ID, "", "has not the digest "+l.DiffDigest)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Damage = append(r.Damage, whole.Damage[:min(len(whole.Damage), mostDamage-min(mostDamage, len(r.Damage)))]...)
	return nil
}

func (r *reading) found() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.Damage)
}

// walk goes through a layer's list. With a sum the whole tar stream goes into it;
// without, each chosen file is compared with its checksum in the list.
func (r *reading) walk(ctx context.Context, l Layer, sum gohash.Hash, buf []byte) error {
	f, err := openQuietly(filepath.Join(r.ref.dir(r.ref.GraphRoot, "layers"), l.ID+".tar-split.gz"))
	if err != nil {
		return gone(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		r.damaged(l.ID, "", "its list cannot be read: "+err.Error())
		return nil
	}
	defer z.Close()
	dir, err := unix.Open(r.ref.tree(r.ref.GraphRoot, l.ID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return gone(err)
	}
	defer unix.Close(dir)
	up := storage.NewJSONUnpacker(z)
	crc := crc64.New(storage.CRCTable)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := up.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			r.damaged(l.ID, "", "its list cannot be read: "+err.Error())
			return nil
		}
		switch {
		case e.Type == storage.SegmentType && sum != nil:
			sum.Write(e.Payload)
		case e.Type != storage.FileType || e.Size == 0:
		case sum == nil && !r.chosen(l.ID, e.GetName()):
		default:
			into := sum
			if into == nil {
				crc.Reset()
				into = crc
			}
			n, err := readBelow(ctx, dir, e.GetName(), into, buf)
			r.files.Add(1)
			r.bytes.Add(n)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				if !exists(r.ref.tree(r.ref.GraphRoot, l.ID)) { // podman has removed it meanwhile
					return nil
				}
				r.damaged(l.ID, e.GetName(), "cannot be read: "+reason(err))
				return nil
			case n != e.Size:
				r.damaged(l.ID, e.GetName(), fmt.Sprintf("has %d bytes instead of %d", n, e.Size))
			case sum == nil && !slices.Equal(crc.Sum(nil), e.Payload):
				r.damaged(l.ID, e.GetName(), "has other content")
			}
		}
	}
}

// chosen reports whether a file is of the share that is read.
func (r *reading) chosen(layer, name string) bool {
	if r.opts.Share >= 1 {
		return true
	}
	h := sha256.Sum256([]byte(r.opts.Seed + "\x00" + layer + "\x00" + name))
	return float64(uint32(h[0])<<24|uint32(h[1])<<16|uint32(h[2])<<8|uint32(h[3])) < r.opts.Share*float64(1<<32)
}

// readBelow feeds a file of a layer into a sum. Symbolic links on the way lead
// within the layer, as they do in a container.
func readBelow(ctx context.Context, dir int, name string, into gohash.Hash, buf []byte) (int64, error) {
	fd, err := openIn(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOATIME)
	if errors.Is(err, unix.EPERM) {
		fd, err = openIn(dir, name, unix.O_RDONLY|unix.O_NONBLOCK)
	}
	if err != nil {
		return 0, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return 0, errors.Join(err, errors.New("it is no file any more"))
	}
	var n int64
	for {
		if ctx.Err() != nil {
			return n, ctx.Err()
		}
		m, err := f.Read(buf)
		into.Write(buf[:m])
		n += int64(m)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// openIn opens a path in a folder as if that were the root of all.
func openIn(dir int, name string, flags uint64) (int, error) {
	for {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: flags | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) { // a rename meanwhile
			return fd, err
		}
	}
}
