package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// sweepTable is how the table of docs/sweep.md begins.
const sweepTable = "| release | store of | way on | points in a run | killed at | ended as they must | seconds | on |"

// sweepReport collects rows of the table of docs/sweep.md.
type sweepReport struct {
	mu   sync.Mutex
	rows []string
}

// newSweepReport is written when the test is over, if that takes whole sweeps.
func newSweepReport(t *testing.T) *sweepReport {
	r := &sweepReport{}
	t.Cleanup(func() {
		if mode := os.Getenv("STORAGECTL_SWEEP"); mode != "full" && mode != "half" {
			return
		}
		if err := r.write(filepath.Join(root(t), "docs", "sweep.md")); err != nil {
			t.Errorf("cannot write the table: %v; its rows are\n%s", err, strings.Join(r.rows, "\n"))
		}
	})
	return r
}

// add is a row: of how many points there are, at how many it was killed, and how many
// of these ended as they must.
func (r *sweepReport) add(release, store, way string, points, tried, well int, start time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, fmt.Sprintf("| %s | %s | %s | %d | %d | %d | %.0f | %s |", release, store, way, points, tried, well,
		time.Since(start).Seconds(), start.UTC().Format(time.DateOnly)))
}

// write puts the rows into the table of the page. What was not swept this time stays, and
// so does all that stands around the table.
func (r *sweepReport) write(path string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.rows) == 0 {
		return nil
	}
	page, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer page.Close()
	// Other sweeps end at the same time.
	if err := syscall.Flock(int(page.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := withRows(string(old), r.rows)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// withRows is a page with new rows in its table: they take the place of those of the
// same release, store and way.
func withRows(page string, rows []string) (string, error) {
	lines := strings.Split(page, "\n")
	head := slices.Index(lines, sweepTable)
	if head < 0 {
		return "", fmt.Errorf("there is no table that begins %q", sweepTable)
	}
	first := min(head+2, len(lines)) // below the rule
	end := first
	for end < len(lines) && strings.HasPrefix(lines[end], "|") {
		end++
	}
	of := func(row string) string { return strings.Join(strings.SplitN(row, "|", 5)[:4], "|") }
	all := slices.Clone(rows)
	for _, line := range lines[first:end] {
		if !slices.ContainsFunc(rows, func(row string) bool { return of(row) == of(line) }) {
			all = append(all, line)
		}
	}
	slices.Sort(all)
	return strings.Join(slices.Concat(lines[:first], all, lines[end:]), "\n"), nil
}

// TestSweepReport: a sweep changes its rows of docs/sweep.md and nothing else.
func TestSweepReport(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join(root(t), "docs", "sweep.md"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "sweep.md")
	if err := os.WriteFile(path, page, 0o600); err != nil {
		t.Fatal(err)
	}
	r := &sweepReport{}
	r.add("bookworm", "hashi", "resume", 3, 2, 1, time.Now())
	r.add("bookworm", "a new one", "resume", 3, 3, 3, time.Now())
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	was, is := strings.Split(string(page), "\n"), strings.Split(string(now), "\n")
	if len(is) != len(was)+1 {
		t.Errorf("%d lines became %d", len(was), len(is))
	}
	for _, line := range was {
		if n := slices.Index(is, line); n >= 0 {
			is = slices.Delete(is, n, n+1)
		} else if !strings.HasPrefix(line, "| bookworm | hashi | resume |") {
			t.Errorf("lost: %s", line)
		}
	}
	slices.Sort(is)
	if slices.Sort(r.rows); !slices.Equal(is, r.rows) {
		t.Errorf("added: %q", is)
	}
}
