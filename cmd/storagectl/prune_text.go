package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks/prune"
)

// pruneText shows what would be removed, and in short why the rest is kept.
func pruneText(m pruneMessage) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The store of %s (%s in %s, %s free)\n", m.Owner, m.Driver, oneLine(m.GraphRoot), migrate.Bytes(m.Before))
	n := 0
	for _, t := range m.Things {
		if t.Verdict != prune.Remove {
			continue
		}
		if n++; n == 1 {
			b.WriteString("\nCould be removed, in this order:\n")
		}
		fmt.Fprintf(&b, "  %-11s  %9s  used %s  %s\n", t.Kind, migrate.Bytes(t.Bytes), day(t.Used), oneLine(pruneName(t)))
	}
	if n == 0 {
		b.WriteString("\nNothing can be removed by these rules.\n")
	} else {
		fmt.Fprintf(&b, "%s; about %s in all.\n", migrate.Count(n, "thing", "things"), migrate.Bytes(m.Estimated))
	}
	keptText(&b, m)
	return b.String()
}

// keptText tells in short what stays, by reason.
func keptText(b *strings.Builder, m pruneMessage) {
	counts := map[string]int{}
	for _, t := range m.Things {
		switch t.Verdict {
		case prune.Keep, prune.Spare, prune.Left, prune.Failed:
			why := t.Why
			if t.Verdict == prune.Keep && strings.HasPrefix(why, "used ") {
				why = "used since --older"
			}
			counts[fmt.Sprintf("%s, %s: %s", t.Verdict, t.Kind, why)]++
		}
	}
	if len(counts) == 0 {
		return
	}
	b.WriteString("\nStays:\n")
	for _, why := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(b, "  %4d  %s\n", counts[why], oneLine(why))
	}
}

// prunedText tells what was removed.
func prunedText(m pruneMessage) string {
	var b strings.Builder
	n := 0
	for _, t := range m.Things {
		if t.Verdict == prune.Removed {
			n++
			fmt.Fprintf(&b, "  %-11s  %9s  %s\n", t.Kind, migrate.Bytes(t.Freed), oneLine(pruneName(t)))
		}
	}
	if n == 0 {
		b.WriteString("Nothing was removed.\n")
	} else {
		fmt.Fprintf(&b, "%s removed, about %s; free were %s, and now %s.\n", migrate.Count(n, "thing", "things"), migrate.Bytes(m.Freed), migrate.Bytes(m.Before), migrate.Bytes(m.After))
	}
	keptText(&b, m)
	return b.String()
}

// pruneName is a thing's name, and its id where the name does not tell it from others.
func pruneName(t prune.Thing) string {
	if t.Kind == prune.Image || t.Kind == prune.Container || t.Kind == prune.External {
		return t.Name + " (" + t.ID[:min(12, len(t.ID))] + ")"
	}
	return t.Name
}

func day(t time.Time) string {
	if t.IsZero() {
		return "         -"
	}
	return t.Format(time.DateOnly)
}
