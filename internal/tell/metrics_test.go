package tell

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// sampled has something of everything that is measured.
func sampled() Metrics {
	on := true
	return Metrics{Version: "v1",
		Stores: []StoreMetrics{{Owner: "hashi", Store: "/srv/a\xffb", Driver: "overlay", Size: 10, Used: 4, Free: 5, Reclaimable: 3, Mounted: &on,
			Run: "0001-migrate-aaaa", Job: "migrate", Phase: "finished", Phases: []string{"running", "finished"}, Uncommitted: true,
			Began: time.Unix(1700000000, 0), Last: time.Unix(1700000001, 500_000_000), Copied: 7, CopiedTotal: 9}},
		Commands: []CommandMetrics{{Command: "migrate", Attempt: time.Unix(1700000000, 0), Seconds: 1.5, Exit: 1}},
		Checks:   []CheckMetrics{{Check: "linger", Owner: "hashi", Outcome: "warning", At: time.Unix(1700000000, 0)}},
		Prunes:   []PruneMetrics{{Owner: "hashi", Store: "/srv/a", At: time.Unix(1700000000, 0), Freed: 12}},
		Nodes:    []NodeMetrics{{Name: "n1", Held: true}},
		Windows:  []WindowMetrics{{Run: "0001-migrate-aaaa", Open: true}},
	}
}

// TestMetrics: they are in Prometheus's good form, with units and help, and say what
// they were given.
func TestMetrics(t *testing.T) {
	t.Parallel()
	problems, err := testutil.GatherAndLint(sampled().Registry())
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	text := written(t, sampled())
	for _, want := range []string{
		`storagectl_build_info{goversion="go`, `storagectl_store_info{driver="overlay",owner="hashi",store="/srv/a�b"} 1`,
		`storagectl_store_filesystem_free_bytes{owner="hashi",store="/srv/a�b"} 5`,
		`storagectl_run_phase{owner="hashi",phase="finished",store="/srv/a�b"} 1`, `storagectl_run_phase{owner="hashi",phase="running",store="/srv/a�b"} 0`,
		`storagectl_run_last_checkpoint_timestamp_seconds{owner="hashi",store="/srv/a�b"} 1.7000000015e+09`,
		`storagectl_command_last_exit_code{command="migrate"} 1`, `storagectl_command_failed{command="migrate"} 0`, `storagectl_command_last_duration_seconds{command="migrate"} 1.5`,
		`storagectl_doctor_check_status{check="linger",outcome="warning",owner="hashi"} 1`, `storagectl_node_drained{node="n1"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, "storagectl_command_last_success_timestamp_seconds{") {
		t.Error("a success that never was is told")
	}
}

func written(t *testing.T, m Metrics) string {
	t.Helper()
	dir := t.TempDir()
	if err := WriteMetrics(dir, MetricsFile(0), m.Registry()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "storagectl.prom")
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", fi, err)
	}
	if es, err := os.ReadDir(dir); err != nil || len(es) != 1 {
		t.Errorf("%v, %v", es, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestMetricsAfterCrash: what a process that was killed has left is removed once it is
// old; what another writes now, and files of others, are not.
func TestMetricsAfterCrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, age := range map[string]time.Duration{".x.prom123": 2 * time.Hour, ".x.prom456": time.Minute, ".x.promise": 2 * time.Hour, ".x.prom": 2 * time.Hour, "x.prom7": 2 * time.Hour} {
		path := filepath.Join(dir, name)
		at := time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteMetrics(dir, "x.prom", Metrics{}.Registry()); err != nil {
		t.Fatal(err)
	}
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	if want := []string{".x.prom", ".x.prom456", ".x.promise", "x.prom", "x.prom7"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

// TestMetricsElsewhere: root writes to no folder that another can write to, and
// follows no link.
func TestMetricsElsewhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/tmp", link); err != nil {
		t.Fatal(err)
	}
	bad := []string{link, filepath.Join(dir, "none"), "/proc/self"}
	if os.Getuid() == 0 {
		open := filepath.Join(dir, "open")
		if err := os.Mkdir(open, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(open, 0o777); err != nil {
			t.Fatal(err)
		}
		bad = append(bad, open)
	}
	for _, d := range bad {
		if err := WriteMetrics(d, "x.prom", Metrics{}.Registry()); err == nil || strings.Contains(err.Error(), "/fd/") {
			t.Errorf("%s: %v", d, err)
		}
	}
	if MetricsFile(2000) == MetricsFile(0) {
		t.Error("a user's runs write root's file")
	}
}

// TestAlerts: each metric of the example rules is one that there is, and each that
// there is, is in the documents.
func TestAlerts(t *testing.T) {
	t.Parallel()
	families, err := sampled().Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	names = append(names, "storagectl_command_last_success_timestamp_seconds")
	rules, err := os.ReadFile("../../docs/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range regexp.MustCompile(`\bstoragectl_[a-z_]+`).FindAllString(string(rules), -1) {
		n++
		if !slices.Contains(names, name) {
			t.Errorf("docs/alerts.yml goes by %s, which there is not", name)
		}
	}
	if n < 8 {
		t.Errorf("%d metrics in docs/alerts.yml", n)
	}
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/metrics.md does not tell of %s", name)
		}
	}
}
