package convert

import (
	"os"
	"testing"

	"github.com/vbatts/tar-split/archive/tar"
)

// BenchmarkLists reads the lists of a real store, named by the environment.
func BenchmarkLists(b *testing.B) {
	root := os.Getenv("CONVERT_BENCH_STORE")
	snap, err := readSnapshot(b.Context(), Store{GraphRoot: root})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		n := 0
		for _, l := range snap.layers {
			if err := eachHeader(l.list(), nil, func(*tar.Header) error { n++; return nil }); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(n), "entries")
	}
}
