package main

import (
	"cmp"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
)

func median(all []measured, of func(measured) float64) float64 {
	values := make([]float64, len(all))
	for i, m := range all {
		values[i] = of(m)
	}
	slices.Sort(values)
	if len(values) == 0 {
		return 0
	}
	return values[len(values)/2]
}

func seconds(m measured) float64 { return m.seconds }

// ratio says how many times quicker the first is than the second: in the median
// of the rounds, and in the worst and the best of them. A disk that is slow for a
// while is slow for both.
func (b *bench) ratio(first, second string) string {
	var all []float64
	for i, m := range b.runs[first] {
		all = append(all, b.runs[second][i].seconds/m.seconds)
	}
	if len(all) == 0 {
		return "–"
	}
	slices.Sort(all)
	return fmt.Sprintf("%.2f (%.2f to %.2f)", all[len(all)/2], all[0], all[len(all)-1])
}

func (b *bench) title() string {
	if b.pool != nil {
		return "an image of Ceph"
	}
	return "another filesystem"
}

func (b *bench) how() string {
	if b.pool != nil {
		return "make bench-relocate-rbd"
	}
	return "make bench-relocate"
}

// cache tells what is cold before each run.
func (b *bench) cache() string {
	if b.pool != nil {
		return `From ext4, on a loop device whose image is a sparse file, to an empty XFS on an image of a Ceph with one OSD
on this machine, which keeps its data in memory; the image is mapped by mapper fuse (librbd, FUSE, a loop device).
Before each run both are unmounted, the file dropped from memory, the image unmapped, and both mounted anew.`
	}
	return `From ext4 to an empty XFS, each on a loop device (direct I/O) whose image is a sparse file on the same disk. Before
each run both are unmounted, their images dropped from memory, and mounted anew.`
}

func (b *bench) markdown() string {
	var out strings.Builder
	fmt.Fprintf(&out, `# Copying a store to %s

`+"`%s`"+` (here -files %d -large %d -rounds %d) wrote this on %s. Machine: %s.
1-minute load before it %s, after it %s (what it makes itself is about 2).
%s Methods alternating, medians of %d; the time
ends when all is on the disk (syncfs).

The tree: %.2f GB, %d thousand entries (half the files below 4 KB, a tenth of the entries links or whiteouts,
%d of 100 to 160 MB), %d folders.

| method | seconds | all runs | CPU s | CPU s in all | peak MiB | MB used |
| --- | --- | --- | --- | --- | --- | --- |
`, b.title(), b.how(), b.files, b.large, b.rounds, time.Now().UTC().Format("2006-01-02"), lab.Machine(), b.before, load(), b.cache(), b.rounds,
		float64(b.tree.bytes)/1e9, b.tree.files/1000, b.large, b.tree.folders)
	for _, name := range b.order {
		if !strings.Contains(name, " files,") && !strings.Contains(name, "large") && !strings.HasPrefix(name, "dd") {
			b.row(&out, name)
		}
	}
	fmt.Fprintf(&out, `
Peak: resident memory of the largest process (rsync and tar have several), %.0f MiB at least: a process begins with
the size of the shell that starts it. CPU: of the processes, not of kernel
threads; in all: of the whole machine, whose processors give %d a second. Used: of the destination, its log and metadata included. rsync is run with --delete. treecopy's own
time includes its hash of all that it reads and its durable index; rsync, cp and tar prove nothing.
After the last pass of each round rsync (-aHAXni --delete) found nothing to change in treecopy's copy.

| | ×, median of the rounds | the design's target |
| --- | --- | --- |
| copy, against rsync | %s | 2.5 |
| copy, against cp -a | %s | |
| copy, against tar \| tar | %s | |
| nothing changed, against rsync | %s | 6 |
| 1 %% changed, against rsync | %s | |
| verify of the whole copy, against rsync -c | %s | 5 |
| rate on large files, of dd's | %s | 0.9 |

## Large files

%.1f GB in files of 512 MiB.

| method | seconds | all runs | CPU s | CPU s in all | peak MiB | MB used |
| --- | --- | --- | --- | --- | --- | --- |
`, b.floor(), runtime.NumCPU(), b.ratio("treecopy", "rsync -aHAX --numeric-ids"), b.ratio("treecopy", "cp -a"), b.ratio("treecopy", "tar | tar"),
		b.ratio("treecopy, nothing changed", "rsync, nothing changed"), b.ratio("treecopy, 1 % changed", "rsync, 1 % changed"),
		b.ratio("treecopy, verify", "rsync -c"), b.ratio("treecopy, large files", "dd bs=1M"), float64(b.largeBytes)/1e9)
	b.row(&out, "dd bs=1M")
	b.row(&out, "treecopy, large files")
	if len(b.flats) > 0 {
		out.WriteString("\n## Memory\n\nEmpty files, ten to a folder; one run.\n\n| files | copy, MiB | nothing changed, MiB | verify, MiB |\n| --- | --- | --- | --- |\n")
	}
	for _, n := range b.flats {
		fmt.Fprintf(&out, "| %d |", n)
		for _, what := range []string{"copy", "nothing changed", "verify"} {
			m := b.runs[fmt.Sprintf("%d files, %s", n, what)]
			fmt.Fprintf(&out, " %.0f |", median(m, func(m measured) float64 { return float64(m.peak) / (1 << 20) }))
		}
		out.WriteString("\n")
	}
	return out.String()
}

func (b *bench) row(out *strings.Builder, name string) {
	runs := b.runs[name]
	var all []string
	for _, m := range slices.SortedFunc(slices.Values(runs), func(x, y measured) int { return cmp.Compare(x.seconds, y.seconds) }) {
		all = append(all, fmt.Sprintf("%.1f", m.seconds))
	}
	fmt.Fprintf(out, "| %s | %.1f | %s | %.1f | %.1f | %.0f | %.0f |\n", strings.ReplaceAll(name, "|", `\|`), median(runs, seconds), strings.Join(all, " "),
		median(runs, func(m measured) float64 { return m.cpu }), median(runs, func(m measured) float64 { return m.all }), median(runs, func(m measured) float64 { return float64(m.peak) / (1 << 20) }),
		median(runs, func(m measured) float64 { return float64(m.used) / 1e6 }))
}

// floor is the least that was seen as a peak.
func (b *bench) floor() float64 {
	least := math.Inf(1)
	for _, runs := range b.runs {
		for _, m := range runs {
			least = min(least, float64(m.peak)/(1<<20))
		}
	}
	return least
}
