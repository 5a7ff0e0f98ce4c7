package images

import (
	"archive/tar"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
)

// Filler describes bulk for benchmarks.
type Filler struct {
	Name  string
	Seed  uint64 // another seed, other bytes
	Files int    // of all layers together
	Bytes int64  // about, of all layers together
	Under []Layer
	Over  int // number of layers the files are spread over; at least 1
}

// Image makes the image. Sizes are log-normal (median a few KB, a long tail),
// as in /usr of a distribution; contents are random, so nothing compresses.
func (f Filler) Image() Image {
	over := max(f.Over, 1)
	img := Image{Names: []string{f.Name}, Cmd: []string{"/none"}, Layers: append([]Layer(nil), f.Under...)}
	for i := range over {
		img.Layers = append(img.Layers, f.layer(i, f.Files/over, f.Bytes/int64(over)))
	}
	return img
}

func (f Filler) layer(n, files int, total int64) Layer {
	return func(tw *tar.Writer) error {
		var key [32]byte
		binary.LittleEndian.PutUint64(key[:], f.Seed)
		binary.LittleEndian.PutUint64(key[8:], uint64(n))
		src := rand.NewChaCha8(key)
		sizes := lognormal(rand.New(src), files, total)
		var buf []byte
		for i, size := range sizes {
			if i%50 == 0 { // some 50 files a folder
				if err := (Entry{Path: fmt.Sprintf("fill%d/%d/", n, i/50)}).write(tw); err != nil {
					return err
				}
			}
			if int64(cap(buf)) < size {
				buf = make([]byte, size)
			}
			buf = buf[:size]
			_, _ = src.Read(buf) // never fails
			if err := (Entry{Path: fmt.Sprintf("fill%d/%d/%d", n, i/50, i), Data: buf}).write(tw); err != nil {
				return err
			}
		}
		return nil
	}
}

// lognormal draws n sizes that sum up to about total.
func lognormal(r *rand.Rand, n int, total int64) []int64 {
	raw := make([]float64, n)
	var sum float64
	for i := range raw {
		raw[i] = math.Exp(2 * r.NormFloat64())
		sum += raw[i]
	}
	sizes := make([]int64, n)
	for i := range raw {
		sizes[i] = int64(raw[i] / sum * float64(total))
	}
	return sizes
}
