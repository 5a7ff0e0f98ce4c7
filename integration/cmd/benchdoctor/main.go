// Command benchdoctor measures how long storagectl doctor takes on a real node with
// 100 images, rootless, on vfs and on overlay, with warm and with cold caches. It
// writes docs/benchmarks-doctor.md.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

func main() {
	rounds := flag.Int("rounds", 5, "runs of each kind; the table has the median")
	count := flag.Int("images", 100, "images of the store")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	if err := bench(ctx, *rounds, *count); err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

// row is what one kind of run took.
type row struct {
	driver, caches string
	seconds        []float64
	slowest        string // checks of the median run
}

func bench(ctx context.Context, rounds, count int) (err error) {
	began := load()
	seed, err := images.Crowd(ctx, "bookworm", lab.Owner, count)
	if err != nil {
		return err
	}
	n, err := lab.Boot(ctx, lab.Options{Release: "bookworm", Seed: seed, FS: "ext4"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	var rows []row
	for _, driver := range []string{"vfs", "overlay"} {
		if driver == "overlay" {
			if _, err := n.Run(ctx, "root", "storagectl", "migrate", "--to", "overlay", "--user", lab.Owner, "--yes", "--commit"); err != nil {
				return err
			}
		}
		out, err := n.Run(ctx, lab.Owner, "sh", "-c", "podman info --format '{{.Store.GraphDriverName}}'; podman images --quiet --no-trunc | sort -u | wc -l")
		if err != nil {
			return err
		}
		if want := fmt.Sprintf("%s %d", driver, count); strings.Join(strings.Fields(out), " ") != want {
			return fmt.Errorf("the store is %q, want %s", out, want)
		}
		cold, warm := row{driver: driver, caches: "cold"}, row{driver: driver, caches: "warm"}
		for range rounds {
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
				return err
			}
			for _, r := range []*row{&cold, &warm} {
				if err := r.run(ctx, n); err != nil {
					return err
				}
			}
		}
		rows = append(rows, warm, cold)
	}
	text := report(rows, rounds, count, began)
	fmt.Print(text)
	return os.WriteFile("docs/benchmarks-doctor.md", []byte(text), 0o644)
}

// run asks the doctor once, as root in the node.
func (r *row) run(ctx context.Context, n *lab.Node) error {
	began := time.Now()
	out, err := n.Cmd(ctx, "root", "storagectl", "doctor", "--json", "--user", lab.Owner).Output()
	seconds := time.Since(began).Seconds()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) { // what it finds is no matter here
		return err
	}
	type check struct {
		Kind    string `json:"message_type"`
		Check   string
		Seconds float64
		Outcome string
	}
	var all []check
	for line := range strings.Lines(string(out)) {
		var c check
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			return fmt.Errorf("cannot read what doctor said: %w: %s", err, line)
		}
		if c.Kind == "check" {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return fmt.Errorf("doctor did nothing: %s", out)
	}
	slices.SortFunc(all, func(a, b check) int { return cmp.Compare(b.Seconds, a.Seconds) })
	var slow []string
	for _, c := range all[:3] {
		slow = append(slow, fmt.Sprintf("%s %.2f", c.Check, c.Seconds))
	}
	fmt.Fprintf(os.Stderr, "%s, %s: %.2f s (%s)\n", r.driver, r.caches, seconds, strings.Join(slow, ", "))
	if len(r.seconds) == 0 || seconds <= median(append(r.seconds, seconds)) {
		r.slowest = strings.Join(slow, ", ")
	}
	r.seconds = append(r.seconds, seconds)
	return nil
}

func median(all []float64) float64 {
	s := slices.Sorted(slices.Values(all))
	return s[len(s)/2]
}

func report(rows []row, rounds, count int, began string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# How long doctor takes

`+"`make bench-doctor`"+` wrote this on %s: %s, 1-minute load
%s before the first run and %s after the last.
A Debian bookworm node with podman 4.3.1 and systemd, %d images of three layers in a rootless store on ext4; all
checks, as root with --user, from the start of the process to its end. Medians of %d, cold and warm runs in turn; cold:
the page cache of the machine was dropped before.

| driver | caches | median, s | all runs, s | the longest checks of one of them, s |
| --- | --- | --- | --- | --- |
`, time.Now().UTC().Format("2006-01-02"), lab.Machine(), began, load(), count, rounds)
	for _, r := range rows {
		var all []string
		for _, s := range r.seconds {
			all = append(all, fmt.Sprintf("%.2f", s))
		}
		fmt.Fprintf(&b, "| %s | %s | **%.2f** | %s | %s |\n", r.driver, r.caches, median(r.seconds), strings.Join(all, " "), r.slowest)
	}
	b.WriteString("\nChecks run side by side, and several wait for the same answer of podman: their times do not add up.\n")
	return b.String()
}

// load is how busy the machine was in the last minute.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	one, _, _ := strings.Cut(string(b), " ")
	return one
}
