package tell

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// Metrics is what is measured, as it was looked up now. What is not known is not told.
type Metrics struct {
	Version  string
	Stores   []StoreMetrics
	Commands []CommandMetrics
	Checks   []CheckMetrics
	Prunes   []PruneMetrics
	Nodes    []NodeMetrics
	Windows  []WindowMetrics
}

// StoreMetrics is a store, and the latest run on it.
type StoreMetrics struct {
	Owner, Store string
	Driver       string
	// Of the filesystem that it lies on; Size 0: not known.
	Size, Used, Free uint64
	Reclaimable      uint64 // what a commit frees
	Mounted          *bool  // nil: it needs no mount of its own

	Run, Job, Phase     string
	Phases              []string // all that there are
	Active, Down        bool
	Uncommitted         bool
	Began, Last         time.Time // of the run, and its last record
	Copied, CopiedTotal int64     // bytes; total 0: not known
}

// NodeMetrics is a Nomad node that a run, or the command drain, takes out of service.
type NodeMetrics struct {
	Name string
	Held bool
}

// CommandMetrics is what became of a command, of those that had a run go on.
type CommandMetrics struct {
	Command          string
	Attempt, Success time.Time // zero: never
	Seconds          float64   // of the last attempt; less than 0: not known
	Exit             int
	// Failed says that it did not end as it should, and that what it was at is not brought
	// to a good end since, by a resume or a rollback.
	Failed bool
}

// CheckMetrics is what a check of doctor found last.
type CheckMetrics struct {
	Check, Owner, Outcome string
	At                    time.Time
}

// Outcomes are what a check of doctor can find.
func Outcomes() []string { return []string{"ok", "absent", "unknown", "warning", "problem"} }

// PruneMetrics is the last prune of a store.
type PruneMetrics struct {
	Owner, Store string
	At           time.Time
	Freed        uint64
}

// WindowMetrics is a maintenance window that a run waits for.
type WindowMetrics struct {
	Run  string
	Open bool
}

// Registry has the metrics as Prometheus wants them, and nothing else.
func (m Metrics) Registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	gauge := func(name, help string, labels ...string) set {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "storagectl", Name: name, Help: help}, labels)
		r.MustRegister(g)
		return func(v float64, values ...string) {
			for i := range values { // a path may be any bytes
				values[i] = strings.ToValidUTF8(values[i], "\uFFFD")
			}
			g.WithLabelValues(values...).Set(v)
		}
	}
	gauge("build_info", "The program that wrote this.", "version", "goversion")(1, m.Version, runtime.Version())
	m.stores(gauge)
	m.runs(gauge)

	attempt := gauge("command_last_attempt_timestamp_seconds", "When the command last began to work on a run.", "command")
	success := gauge("command_last_success_timestamp_seconds", "When the command last came to its end as it should.", "command")
	took := gauge("command_last_duration_seconds", "How long the last attempt took.", "command")
	exit := gauge("command_last_exit_code", "The exit code of the last attempt.", "command")
	failed := gauge("command_failed", "Whether the last attempt failed, and no command has brought its run to a good end since.", "command")
	for _, c := range m.Commands {
		stamp(attempt, c.Attempt, c.Command)
		stamp(success, c.Success, c.Command)
		if c.Seconds >= 0 {
			took(c.Seconds, c.Command)
			exit(float64(c.Exit), c.Command)
			failed(yes(c.Failed), c.Command)
		}
	}
	check := gauge("doctor_check_status", "What the check found last: 1 for that outcome, 0 for the others.", "check", "owner", "outcome")
	looked := gauge("doctor_last_timestamp_seconds", "When the checks were made last.", "owner")
	for _, c := range m.Checks {
		for _, o := range Outcomes() {
			check(yes(o == c.Outcome), c.Check, c.Owner, o)
		}
		stamp(looked, c.At, c.Owner)
	}
	pruned := gauge("prune_last_timestamp_seconds", "When the store was last pruned.", "owner", "store")
	freed := gauge("prune_last_freed_bytes", "What the last prune freed.", "owner", "store")
	for _, p := range m.Prunes {
		stamp(pruned, p.At, p.Owner, p.Store)
		freed(float64(p.Freed), p.Owner, p.Store)
	}
	drained := gauge("node_drained", "Whether a run, or the command drain, keeps the Nomad node out of service.", "node")
	for _, n := range m.Nodes {
		drained(yes(n.Held), n.Name)
	}
	window := gauge("window_open", "Whether the maintenance window of a run that is not over is open now.", "run")
	for _, w := range m.Windows {
		window(yes(w.Open), w.Run)
	}
	return r
}

// set sets a gauge for the values of its labels.
type set func(v float64, labels ...string)

type newGauge func(name, help string, labels ...string) set

func (m Metrics) stores(gauge newGauge) {
	info := gauge("store_info", "A container store that a run was made on, and the driver it is on.", "owner", "store", "driver")
	size := gauge("store_filesystem_size_bytes", "The size of the filesystem that the store lies on.", "owner", "store")
	used := gauge("store_filesystem_used_bytes", "What is used of the filesystem that the store lies on.", "owner", "store")
	free := gauge("store_filesystem_free_bytes", "What is free on the filesystem that the store lies on, for who is not root.", "owner", "store")
	reclaim := gauge("store_reclaimable_bytes", "What a commit of the finished run frees.", "owner", "store")
	mounted := gauge("store_mounted", "Whether the filesystem that the store was moved to is mounted at its place.", "owner", "store")
	down := gauge("store_podman_down", "Whether a run has stopped podman, and not started it again.", "owner", "store")
	for _, s := range m.Stores {
		info(1, s.Owner, s.Store, s.Driver)
		if s.Size > 0 {
			size(float64(s.Size), s.Owner, s.Store)
			used(float64(s.Used), s.Owner, s.Store)
			free(float64(s.Free), s.Owner, s.Store)
		}
		reclaim(float64(s.Reclaimable), s.Owner, s.Store)
		if s.Mounted != nil {
			mounted(yes(*s.Mounted), s.Owner, s.Store)
		}
		down(yes(s.Down), s.Owner, s.Store)
	}
}

func (m Metrics) runs(gauge newGauge) {
	info := gauge("run_info", "The latest run on a store.", "owner", "store", "run", "job")
	phase := gauge("run_phase", "Where the latest run stands: 1 for its phase, 0 for the others.", "owner", "store", "phase")
	active := gauge("run_active", "Whether a process is at work on the latest run.", "owner", "store")
	open := gauge("run_uncommitted", "Whether the latest run is finished and keeps the old store for a way back.", "owner", "store")
	began := gauge("run_begin_timestamp_seconds", "When the latest run was begun.", "owner", "store")
	last := gauge("run_last_checkpoint_timestamp_seconds", "When the latest run last wrote to its journal.", "owner", "store")
	copied := gauge("run_copied_bytes", "How far the latest run is with copying or linking what it moves.", "owner", "store")
	total := gauge("run_copy_size_bytes", "How much that is as a whole.", "owner", "store")
	for _, s := range m.Stores {
		if s.Run == "" {
			continue
		}
		info(1, s.Owner, s.Store, s.Run, s.Job)
		for _, p := range s.Phases {
			phase(yes(p == s.Phase), s.Owner, s.Store, p)
		}
		active(yes(s.Active), s.Owner, s.Store)
		open(yes(s.Uncommitted), s.Owner, s.Store)
		stamp(began, s.Began, s.Owner, s.Store)
		stamp(last, s.Last, s.Owner, s.Store)
		if s.CopiedTotal > 0 {
			copied(float64(s.Copied), s.Owner, s.Store)
			total(float64(s.CopiedTotal), s.Owner, s.Store)
		}
	}
}

func yes(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// stamp sets a time, if there is one.
func stamp(g set, t time.Time, labels ...string) {
	if !t.IsZero() {
		g(float64(t.UnixMilli())/1000, labels...)
	}
}

// MetricsFile is the name of a user's file among those of node_exporter: runs of
// others never write the one of root's.
func MetricsFile(uid int) string {
	if uid == 0 {
		return "storagectl.prom"
	}
	return "storagectl-" + strconv.Itoa(uid) + ".prom"
}

// WriteMetrics writes a file for node_exporter: it reads the old one or the new one,
// never half of one. Root writes only to a folder of root's that nobody else can
// write to: in any other, a link could lead it elsewhere.
func WriteMetrics(dir, name string, r *prometheus.Registry) error {
	d, err := host.OpenDir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := closedFolder(d); err != nil {
		return fmt.Errorf("cannot write metrics: %w", err)
	}
	// By its descriptor: somebody above may rename the folder, and put a link in its place.
	if err := replaceFile(fmt.Sprintf("/proc/self/fd/%d", d.Fd()), name, r); err != nil {
		var p *os.PathError
		var l *os.LinkError
		if errors.As(err, &p) {
			err = p.Err // the path is none that says anything
		} else if errors.As(err, &l) {
			err = l.Err
		}
		return fmt.Errorf("cannot write metrics to %s: %w", dir, err)
	}
	return nil
}

// leftAfter is when a file that a writer has not put in its place was left by a crash.
const leftAfter = time.Hour

func replaceFile(dir, name string, r *prometheus.Registry) error {
	families, err := r.Gather()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			return err
		}
	}
	es, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range es {
		rest, is := strings.CutPrefix(e.Name(), "."+name)
		if fi, err := e.Info(); is && rest != "" && strings.Trim(rest, "0123456789") == "" && err == nil && time.Since(fi.ModTime()) > leftAfter {
			_ = os.Remove(filepath.Join(dir, e.Name())) // it disturbs nobody
		}
	}
	f, err := renameio.NewPendingFile(filepath.Join(dir, name), renameio.WithTempDir(dir), renameio.WithStaticPermissions(0o644))
	if err != nil {
		return err
	}
	_, err = f.Write(b.Bytes())
	if err == nil {
		err = f.CloseAtomicallyReplace() // on the disk first: a power cut leaves the old or the new
	}
	return errors.Join(err, f.Cleanup())
}

// closedFolder refuses a folder that root is to write to, and others can.
func closedFolder(dir *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return fmt.Errorf("cannot look at %s: %w", dir.Name(), err)
	}
	if os.Getuid() == 0 && (st.Uid != 0 || st.Mode&0o022 != 0) {
		return fmt.Errorf("%s is not a folder that root alone writes to", dir.Name())
	}
	return nil
}
