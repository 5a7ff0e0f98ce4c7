package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
)

type report struct {
	Date    string   `json:"date"`
	Machine string   `json:"machine"`
	Rounds  int      `json:"rounds"`
	Store   content  `json:"store"`
	Methods []method `json:"methods"`
	Down    []down   `json:"down"`
}

// content is what is in a store.
type content struct {
	Bytes   int64 `json:"bytes"`
	Entries int   `json:"entries"`
	Images  int   `json:"images"`
}

// method is one way to an overlay store; the numbers are medians.
type method struct {
	Name    string    `json:"name"`
	Seconds float64   `json:"seconds"`
	Runs    []float64 `json:"runs"`
	Written int64     `json:"bytesWritten"` // to the filesystem's device, synced
	Peak    int64     `json:"peakBytes"`    // resident memory of its processes
	Prove   float64   `json:"proveSeconds,omitempty"`
}

// down is how long podman was stopped in a migration.
type down struct {
	Gigabytes float64            `json:"gigabytes"`
	Asked     int                `json:"asked,omitempty"` // entries; 0: as many as the size has mostly
	Store     content            `json:"store"`
	Seconds   float64            `json:"seconds"` // from the stop to verified
	Total     float64            `json:"total"`   // the whole job
	Runs      []float64          `json:"runs"`
	Steps     map[string]float64 `json:"steps"` // medians
}

func median[T cmp.Ordered](values []T) T {
	s := slices.Sorted(slices.Values(values))
	return s[len(s)/2]
}

func (r report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Benchmarks

`+"`make bench-migrate`"+` wrote this on %s. Machine: %s. A Debian bookworm node with podman 4.3.1, rootless;
the store on an ext4 of its own. Caches dropped before each run, methods alternating, medians of %d.

## Making the overlay store

From a vfs store of %.1f GB, %d thousand entries, %d images. Written: by the filesystem's device, after a sync.
Peak: resident memory of the program's processes together (podman: with the one that holds the namespace).

| method | seconds | × storagectl | MB written | peak MB |
| --- | --- | --- | --- | --- |
`, r.Date, r.Machine, r.Rounds, float64(r.Store.Bytes)/1e9, r.Store.Entries/1000, r.Store.Images)
	for _, m := range r.Methods {
		fmt.Fprintf(&b, "| %s | %.1f | %.1f | %.0f | %.0f |\n", m.Name, m.Seconds, m.Seconds/r.Methods[0].Seconds, float64(m.Written)/1e6, float64(m.Peak)/(1<<20))
	}
	fmt.Fprintf(&b, `
storagectl then compares each entry of each image with what vfs shows, which no other method does: %.1f s more.
Both happen beside the live store, while podman works.
`, r.Methods[0].Prove)
	b.WriteString(`
Where the rest of the time and the bytes go is in [profile.md](profile.md).

## Seconds down

From podman's stop to podman verified on overlay; the job in all, with staging and its own checks.
`)
	downTable(&b, migrating(), r.Down)
	return b.String()
}

// downMarkdown is the report of a relocation's time down.
func (r report) downMarkdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# How long a relocation stops podman

`+"`make bench-relocate-down`"+` wrote this on %s, with a 1-minute load of %s at its end. Machine: %s. A Debian bookworm
node with podman 4.3.1, rootless; a vfs store on an ext4, moved to an XFS on a loop device on the same disk. Caches dropped
before each run, medians of %d.

From podman's stop to podman verified on the new filesystem; the job in all, with the copy beside the live store and
its reading back.
`, r.Date, load(), r.Machine, r.Rounds)
	downTable(&b, relocating(), r.Down)
	if s := slope(r.Down, "copy-rest"); s > 0 {
		fmt.Fprintf(&b, "\nWhat grows is copy-rest, by about %.1f s for each 100 thousand entries, all of which are looked at again, and verify.\n", s)
	}
	return b.String()
}

// slope is by how many seconds a step grows for each 100 thousand entries, from the store
// with the fewest to that with the most.
func slope(downs []down, step string) float64 {
	if len(downs) == 0 {
		return 0
	}
	byEntries := func(a, b down) int { return cmp.Compare(a.Store.Entries, b.Store.Entries) }
	few, many := slices.MinFunc(downs, byEntries), slices.MaxFunc(downs, byEntries)
	if few.Store.Entries == many.Store.Entries {
		return 0
	}
	return (many.Steps[step] - few.Steps[step]) / float64(many.Store.Entries-few.Store.Entries) * 1e5
}

func downTable(b *strings.Builder, j job, downs []down) {
	b.WriteString("\n| store, GB | entries | seconds down | seconds in all | the steps while down |\n| --- | --- | --- | --- | --- |\n")
	for _, d := range downs {
		var steps []string
		for _, name := range j.down {
			if s, ok := d.Steps[name]; ok {
				steps = append(steps, fmt.Sprintf("%s %.2f", name, s))
			}
		}
		fmt.Fprintf(b, "| %.1f | %d | %.1f | %.1f | %s |\n", float64(d.Store.Bytes)/1e9, d.Store.Entries, d.Seconds, d.Total, strings.Join(steps, ", "))
	}
}

// load is how busy the machine was in the last minute.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	one, _, _ := strings.Cut(string(text), " ")
	return one
}
