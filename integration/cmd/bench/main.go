// Command bench measures migrate --to overlay against what people use today, on
// a real node with a filesystem of its own, cold caches, methods alternating,
// and how long podman is down for stores of several sizes. It prints tables and
// writes docs/benchmarks.md and docs/benchmarks.json.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
)

func main() {
	rounds := flag.Int("rounds", 5, "runs of each method; the table has the median")
	size := flag.Float64("size", 5, "gigabytes of the store that the methods are compared on; 0: keep the last report but for the sizes of -down")
	sizes := flag.String("down", "0.2,2,8", "the stores that the time down is measured on, by gigabytes, or GIGABYTES/ENTRIES (else 50 thousand a gigabyte); empty: none")
	relocate := flag.Bool("relocate", false, "measure only -down, of relocate --path, and write docs/benchmarks-relocate-down.md")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 4*time.Hour)
	defer cancel()
	run := func() error { return bench(ctx, *rounds, *size, *sizes) }
	if *relocate {
		run = func() error { return benchRelocate(ctx, *rounds, *sizes) }
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, rounds int, size float64, sizes string) error {
	r := report{Machine: lab.Machine(), Date: time.Now().UTC().Format("2006-01-02"), Rounds: rounds}
	var err error
	if size > 0 {
		if r.Store, r.Methods, err = compare(ctx, rounds, size); err != nil {
			return err
		}
	} else if err := r.keep(); err != nil {
		return err
	}
	downs, err := migrating().downtimes(ctx, rounds, sizes)
	if err != nil {
		return err
	}
	for _, d := range downs {
		r.Down = slices.DeleteFunc(r.Down, func(old down) bool { return old.Gigabytes == d.Gigabytes && old.Asked == d.Asked })
		r.Down = append(r.Down, d)
		slices.SortFunc(r.Down, func(a, b down) int { return cmp.Compare(a.Gigabytes, b.Gigabytes) })
	}
	fmt.Print(r.markdown())
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile("docs/benchmarks.json", append(b, '\n'), 0o644); err != nil {
		return err
	}
	// The section of `make bench-nomad` is the last one.
	old, err := os.ReadFile("docs/benchmarks.md")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot keep Nomad's section: %w", err)
	}
	text := r.markdown()
	if i := bytes.Index(old, []byte("\n## A Nomad node ")); i >= 0 {
		text += string(old[i:])
	}
	return os.WriteFile("docs/benchmarks.md", []byte(text), 0o644)
}

func benchRelocate(ctx context.Context, rounds int, sizes string) error {
	r := report{Machine: lab.Machine(), Date: time.Now().UTC().Format("2006-01-02"), Rounds: rounds}
	var err error
	if r.Down, err = relocating().downtimes(ctx, rounds, sizes); err != nil {
		return err
	}
	fmt.Print(r.downMarkdown())
	return os.WriteFile("docs/benchmarks-relocate-down.md", []byte(r.downMarkdown()), 0o644)
}

func (j job) downtimes(ctx context.Context, rounds int, sizes string) ([]down, error) {
	var all []down
	for s := range strings.SplitSeq(sizes, ",") {
		if s == "" {
			continue
		}
		size, many, asked := strings.Cut(s, "/")
		entries := 0
		gb, err := strconv.ParseFloat(size, 64)
		if err == nil && asked {
			entries, err = strconv.Atoi(many)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the sizes: %w", err)
		}
		d, err := j.downtime(ctx, rounds, gb, entries)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// keep takes over what the last report has, so that a part of it can be measured
// again.
func (r *report) keep() error {
	b, err := os.ReadFile("docs/benchmarks.json")
	if err != nil {
		return fmt.Errorf("cannot keep the last report: %w", err)
	}
	var last report
	if err := json.Unmarshal(b, &last); err != nil {
		return fmt.Errorf("cannot keep the last report: %w", err)
	}
	r.Store, r.Methods, r.Down = last.Store, last.Methods, last.Down
	return nil
}
