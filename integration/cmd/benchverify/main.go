// Command benchverify measures verify --read-data against sha256sum over the same
// files, on a real node with a filesystem of its own, cold caches, methods
// alternating. It prints a table and writes docs/benchmarks-verify.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

func main() {
	rounds := flag.Int("rounds", 5, "runs of each method; the table has the median")
	size := flag.Float64("size", 1, "gigabytes of the vfs store that the overlay store is made of; of that, two fifths are files of images")
	out := flag.String("out", "docs/benchmarks-verify.md", "the report")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Hour)
	defer cancel()
	if err := bench(ctx, *rounds, *size, *out); err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

// list writes the files of all layers, each inode once, as the store has them in
// its lists: what one layer links twice it lists once.
const list = `cd ` + lab.GraphRoot + `/overlay
find ./*/diff -type f -size +0 -printf '%D:%i\t%p\0' | sort -z -u -t "$(printf '\t')" -k 1,1 | cut -z -f 2 >/root/files
xargs -0 stat -c %s </root/files | awk '{ n++; s += $1 } END { print n, s }'`

// A method is one way to read everything; the seconds are of all its runs.
type method struct {
	name    string
	seconds []float64
}

func bench(ctx context.Context, rounds int, gigabytes float64, out string) (err error) {
	seed, err := images.Bulk(ctx, "bookworm", lab.Owner, gigabytes, 0)
	if err != nil {
		return err
	}
	n, err := lab.Boot(ctx, lab.Options{Release: "bookworm", Seed: seed, FS: "ext4", Size: "20G"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if _, err := n.Run(ctx, "root", "storagectl", "migrate", "--to", "overlay", "--user", lab.Owner, "--yes", "--commit"); err != nil {
		return err
	}
	text, err := n.Script(ctx, "root", list)
	if err != nil {
		return err
	}
	var files, bytes int64
	if _, err := fmt.Sscan(text, &files, &bytes); err != nil {
		return fmt.Errorf("cannot read %q: %w", text, err)
	}
	sum := func(how string) func() (float64, error) {
		return func() (float64, error) {
			began := time.Now()
			_, err := n.Script(ctx, "root", "cd "+lab.GraphRoot+"/overlay; xargs -0 "+how+" sha256sum </root/files >/dev/null")
			return time.Since(began).Seconds(), err
		}
	}
	var data []float64
	ways := []func() (float64, error){
		sum(""), sum(fmt.Sprintf("-P %d -n 256", runtime.NumCPU())),
		func() (float64, error) {
			began := time.Now()
			got, err := readData(ctx, n)
			took := time.Since(began).Seconds()
			if err == nil && (got.Files != files || got.Bytes != bytes) {
				err = fmt.Errorf("it read %d files with %d bytes, and there are %d with %d", got.Files, got.Bytes, files, bytes)
			}
			data = append(data, got.seconds)
			return took, err
		},
	}
	methods := []method{{name: "`sha256sum` of all files"}, {name: fmt.Sprintf("`sha256sum`, %d at a time", runtime.NumCPU())}, {name: "`verify --read-data`, all its proofs"}}
	for round := range rounds {
		for i, way := range ways {
			if err := cold(); err != nil {
				return err
			}
			s, err := way()
			if err != nil {
				return fmt.Errorf("cannot measure %s: %w", methods[i].name, err)
			}
			fmt.Fprintf(os.Stderr, "round %d: %s: %.2f s\n", round+1, methods[i].name, s)
			methods[i].seconds = append(methods[i].seconds, s)
		}
	}
	methods = append(methods, method{"of that the reading of the files", data})
	report := markdown(methods, rounds, files, bytes)
	fmt.Print(report)
	return os.WriteFile(out, []byte(report), 0o644)
}

// reading is what verify says of its proof of the files.
type reading struct {
	Files, Bytes int64
	seconds      float64
}

func readData(ctx context.Context, n *lab.Node) (reading, error) {
	out, err := n.Run(ctx, "root", "storagectl", "verify", "--user", lab.Owner, "--read-data", "--json")
	if err != nil {
		return reading{}, err
	}
	for line := range strings.Lines(out) {
		var m struct {
			Check, Outcome, Saw string
			Seconds             float64
			Read                *struct{ Files, Bytes int64 }
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			return reading{}, err
		}
		if m.Check == "data" && m.Outcome == "ok" && m.Read != nil {
			return reading{m.Read.Files, m.Read.Bytes, m.Seconds}, nil
		}
	}
	return reading{}, fmt.Errorf("nothing was read: %s", out)
}

// cold empties the machine's caches.
func cold() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

func median(values []float64) float64 {
	return slices.Sorted(slices.Values(values))[len(values)/2]
}

func markdown(methods []method, rounds int, files, bytes int64) string {
	var b strings.Builder
	load, _ := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(load), " ")
	fmt.Fprintf(&b, `# How fast verify reads

`+"`make bench-verify`"+` wrote this on %s, with a 1-minute load of %s at its end. Machine: %s.
A Debian bookworm node with podman 4.3.1, rootless; an overlay store on an ext4 of its own, with %d thousand
files, %.2f GB. Caches dropped before each run, methods alternating, medians of %d.

| | seconds | × sha256sum | slowest run |
| --- | --- | --- | --- |
`, time.Now().UTC().Format(time.DateOnly), one, lab.Machine(), files/1000, float64(bytes)/1e9, rounds)
	for _, m := range methods {
		fmt.Fprintf(&b, "| %s | %.2f | %.2f | %.2f |\n", m.name, median(m.seconds), median(m.seconds)/median(methods[0].seconds), slices.Max(m.seconds))
	}
	b.WriteString(`
Both read the same files: their numbers and bytes are compared. The other proofs (podman, records, a container that runs)
do not grow with the files. Aimed at is 1.3 × sha256sum. Where the load is not near 0, others had the machine, too: the
ratios say more than the seconds then.
`)
	return b.String()
}
