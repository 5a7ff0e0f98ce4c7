package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/prometheus/common/expfmt"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/verify/doctor"
)

func newMetrics(a *app) *cobra.Command {
	var write bool
	cmd := &cobra.Command{
		Use:   "metrics",
		Short: "Tell the metrics of the runs and stores of this host",
		Long: `metrics writes what Prometheus can collect of the runs of this state directory and of
their stores, to stdout; with --write to the folder that the configuration names
(metrics.dir), where node_exporter reads it. Each run writes it there by itself; a timer
that runs this keeps it fresh between them. It asks nothing of podman, and changes
nothing else. docs/metrics.md has the list.

` + exitHelp,
		Example: "  storagectl metrics\n  storagectl metrics --write",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.configure(); err != nil {
				return err
			}
			if write {
				if a.conf.Metrics.Dir == "" {
					return &migrate.Refusal{ID: "config", Text: "cannot write metrics: the configuration names no folder for metrics", Hint: "set dir under [metrics] in " + cmp.Or(a.configFile, defaultConfig())}
				}
				err := a.writeMetrics(cmd.Context())
				if errors.Is(err, fs.ErrNotExist) {
					return &hintedError{fmt.Errorf("cannot write metrics: %w", err), "metrics.dir of the configuration is a folder that is there already: node_exporter's"}
				}
				return err
			}
			m, err := a.gather(cmd.Context())
			if err != nil {
				return err
			}
			return a.tellMetrics(m)
		},
	}
	cmd.Flags().BoolVar(&write, "write", false, "write them to the folder of node_exporter that the configuration names")
	return cmd
}

// sample is one metric as a message.
type sample struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Value  float64           `json:"value"`
}

func (a *app) tellMetrics(m tell.Metrics) error {
	families, err := m.Registry().Gather()
	if err != nil {
		return fmt.Errorf("cannot tell the metrics: %w", err)
	}
	var text strings.Builder
	var samples []sample
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			return fmt.Errorf("cannot tell the metrics: %w", err)
		}
		for _, v := range f.GetMetric() {
			s := sample{Name: f.GetName(), Labels: map[string]string{}, Value: v.GetGauge().GetValue()}
			for _, l := range v.GetLabel() {
				s.Labels[l.GetName()] = l.GetValue()
			}
			samples = append(samples, s)
		}
	}
	if a.json {
		a.out.result("metrics", struct {
			Samples []sample `json:"samples"`
		}{samples}, "")
		return nil
	}
	_, err = fmt.Fprint(a.stdout, text.String()) // no line of it may be wrapped
	return err
}

// gather looks up what is measured. What cannot be found out is left out.
func (a *app) gather(ctx context.Context) (tell.Metrics, error) {
	m := tell.Metrics{Version: version}
	runs, err := a.dir().List()
	if err != nil {
		return m, err
	}
	stores, commands, drained := map[string]tell.StoreMetrics{}, map[string]tell.CommandMetrics{}, map[string]bool{}
	for _, run := range runs {
		st, err := engine.Read(a.dir().RunPath(run))
		if err != nil {
			continue
		}
		commandMetrics(commands, st)
		if in, err := migrate.DecodeInputs(st); err == nil {
			stores[st.Header.Store] = a.storeMetrics(run, st, in)
			nodes(drained, st, in)
			if w := in.Request.Window; w != nil && !st.Phase.Over() {
				_, open := w.At(time.Now())
				m.Windows = append(m.Windows, tell.WindowMetrics{Run: run, Open: open})
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(stores)) {
		s := stores[key]
		if !s.Down && s.Phase != string(engine.PhaseRollingBack) { // a look at it could be in the way of its mount
			s.Size, s.Used, s.Free = room(ctx, s.Store)
		}
		m.Stores = append(m.Stores, s)
	}
	m.Prunes = a.pruneMetrics(commands)
	for _, name := range slices.Sorted(maps.Keys(commands)) {
		m.Commands = append(m.Commands, commands[name])
	}
	if h, err := a.readHeld(); err == nil && h != nil {
		for _, n := range h.Use.Nodes {
			drained[n.Name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(drained)) {
		m.Nodes = append(m.Nodes, tell.NodeMetrics{Name: name, Held: drained[name]})
	}
	m.Checks = a.checkMetrics()
	return m, nil
}

// commandMetrics learns from a run's journal when commands went on with it, and how
// they ended.
func commandMetrics(all map[string]tell.CommandMetrics, st engine.State) {
	var now *engine.Record          // the command at work
	tries := map[string]time.Time{} // the last one of each command at this run
	for _, r := range st.Records {
		who := r.Actor
		if r.Header != nil {
			who = r.Header.Actor
		}
		switch {
		case who != nil:
			c := all[who.Command]
			c.Command = who.Command
			if !r.Time.Before(c.Attempt) {
				c.Attempt, c.Seconds, c.Failed = r.Time, -1, false
			}
			all[who.Command], tries[who.Command] = c, r.Time
			now = &r
			now.Actor = who
		case r.Exit != nil && now != nil:
			c := all[now.Actor.Command]
			if c.Attempt.Equal(now.Time) {
				c.Seconds, c.Exit, c.Failed = r.Time.Sub(now.Time).Seconds(), *r.Exit, failure(*r.Exit)
			}
			if *r.Exit == exitOK && r.Time.After(c.Success) {
				c.Success = r.Time
			}
			all[now.Actor.Command] = c
			for name, at := range tries { // what failed at this run is done by now, or taken back
				if c := all[name]; *r.Exit == exitOK && c.Attempt.Equal(at) {
					c.Failed = false
					all[name] = c
				}
			}
			now = nil
		}
	}
}

// failure reports whether a command that ended so has failed: not one that a person has
// stopped, nor one that waits for its window.
func failure(code int) bool { return code != exitOK && code != exitWindow && code != exitInterrupted }

func (a *app) storeMetrics(run string, st engine.State, in migrate.Inputs) tell.StoreMetrics {
	s := tell.StoreMetrics{Owner: in.Owner.Name, Store: in.Store.GraphRoot, Driver: in.Store.Driver,
		Run: run, Job: st.Header.Job, Phase: string(st.Phase), Down: migrate.PodmanDown(st) && st.Phase != engine.PhaseRolledBack,
		Uncommitted: st.Phase == engine.PhaseFinished, Began: st.Started(), Last: st.Last()}
	for _, p := range []engine.Phase{engine.PhaseRunning, engine.PhaseFinished, engine.PhaseCommitted, engine.PhaseRollingBack, engine.PhaseRolledBack} {
		s.Phases = append(s.Phases, string(p))
	}
	there := st.Phase == engine.PhaseFinished || st.Phase == engine.PhaseCommitted
	if there {
		s.Driver = cmp.Or(in.Request.To, in.Store.Driver)
	}
	var err error
	if s.Active, _, err = a.dir().AtWork(st.Header.Store, run); err != nil {
		s.Active = false // it cannot be seen
	}
	if in.Target != nil && in.Target.Kind != migrate.KindHome && there {
		if mounts, err := host.Mounts(); err == nil {
			_, is := mounts.At(in.Store.GraphRoot)
			s.Mounted = &is
		}
	}
	if p := readProgress(a.dir().RunPath(run)); p != nil {
		s.Copied, s.CopiedTotal = p.Done, p.Total
	}
	var f migrate.Facts
	if st.LoadFacts(&f) == nil && f.Copied != nil && (there || s.CopiedTotal == 0) {
		s.Copied = f.Copied.Bytes
		if f.Rest != nil {
			s.Copied += f.Rest.Bytes
		}
		s.CopiedTotal = s.Copied
	}
	if b, err := os.ReadFile(filepath.Join(a.dir().RunPath(run), reclaimName)); err == nil && s.Uncommitted {
		_ = json.Unmarshal(b, &s.Reclaimable) // else nothing is known
	}
	return s
}

// nodes notes which Nomad nodes a run is about, and whether it holds them.
func nodes(all map[string]bool, st engine.State, in migrate.Inputs) {
	if in.Nomad == nil {
		return
	}
	held := migrate.HeldNodes(st, in)
	for _, n := range in.Nomad.Nodes {
		all[n.Name] = !st.Phase.Over() && slices.Contains(held, n.Name)
	}
}

// reclaimName is a file in a run's folder with what its commit frees, in bytes, as it
// was when the run was finished: to look it up takes a walk through the old store.
const reclaimName = "reclaimable.json"

// rememberReclaim keeps what a commit frees, for the metrics.
func (a *app) rememberReclaim(run string, n uint64) {
	if a.conf.Metrics.Dir == "" {
		return
	}
	if err := renameio.WriteFile(filepath.Join(a.dir().RunPath(run), reclaimName), fmt.Append(nil, n), 0o600); err != nil {
		a.out.note(fmt.Sprintf("the metrics will not tell what a commit frees: %v", err))
	}
}

// lookLimit is how long a filesystem may take to tell of itself: one whose disk or
// cluster is gone never does.
const lookLimit = 3 * time.Second

// room is the size of the filesystem that a path lies on, what is used of it, and what
// is free for who is not root; zeros: it cannot be found out.
func room(ctx context.Context, path string) (size, used, free uint64) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	got := make(chan unix.Statfs_t, 1)
	go func() {
		var s unix.Statfs_t
		d, err := host.OpenDir(path)
		if err == nil {
			err = errors.Join(unix.Fstatfs(int(d.Fd()), &s), d.Close())
		}
		if err == nil {
			got <- s
		}
		close(got)
	}()
	select {
	case s := <-got:
		unit := uint64(s.Bsize)
		return s.Blocks * unit, (s.Blocks - s.Bfree) * unit, s.Bavail * unit
	case <-ctx.Done():
		return 0, 0, 0
	}
}

// checksFile is what doctor found last about the store of a user.
type checksFile struct {
	Owner  string            `json:"owner"`
	Time   time.Time         `json:"time"`
	Checks map[string]string `json:"checks"` // outcome by check
}

// rememberChecks keeps what doctor found, for the metrics, where there are any.
func (a *app) rememberChecks(ctx context.Context, h *doctor.Host, results []doctor.Result) {
	if a.conf.Metrics.Dir == "" {
		return
	}
	f := checksFile{Owner: h.Owner.Name, Time: time.Now().UTC(), Checks: map[string]string{}}
	for _, r := range results {
		f.Checks[r.Check] = string(r.Outcome)
	}
	b, err := json.Marshal(f)
	if err == nil {
		err = os.MkdirAll(a.doctorDir().Path, 0o700)
	}
	if err == nil {
		err = renameio.WriteFile(filepath.Join(a.doctorDir().Path, fmt.Sprintf("last-%d.json", h.Owner.UID)), b, 0o600)
	}
	if err == nil {
		err = a.writeMetrics(ctx)
	}
	if err != nil {
		a.out.note(fmt.Sprintf("the metrics are not told of it: %v", err))
	}
}

func (a *app) checkMetrics() []tell.CheckMetrics {
	var all []tell.CheckMetrics
	for f := range readAll[checksFile](filepath.Join(a.doctorDir().Path, "last-*.json")) {
		for _, check := range slices.Sorted(maps.Keys(f.Checks)) {
			all = append(all, tell.CheckMetrics{Check: check, Owner: f.Owner, Outcome: f.Checks[check], At: f.Time})
		}
	}
	return all
}

// pruneMetrics also tells of prune as a command: it is no run, and has no journal.
func (a *app) pruneMetrics(commands map[string]tell.CommandMetrics) []tell.PruneMetrics {
	var all []tell.PruneMetrics
	for f := range readAll[pruneFile](filepath.Join(a.stateDir, "prune", "*.json")) {
		if f.Time.IsZero() {
			continue
		}
		c := commands["prune"]
		c.Command = "prune"
		if began := f.Time.Add(-time.Duration(f.Seconds * float64(time.Second))); began.After(c.Attempt) {
			c.Attempt, c.Seconds, c.Exit, c.Failed = began, f.Seconds, f.ExitCode, failure(f.ExitCode)
		}
		if f.ExitCode == exitOK && f.Time.After(c.Success) {
			c.Success = f.Time
		}
		commands["prune"] = c
		all = append(all, tell.PruneMetrics{Owner: f.Owner, Store: f.GraphRoot, At: f.Time, Freed: uint64(max(0, f.Freed))})
	}
	return all
}

// readAll reads the JSON files that a pattern names. One that cannot be read is left out.
func readAll[T any](pattern string) func(func(T) bool) {
	return func(yield func(T) bool) {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return
		}
		for _, path := range paths {
			var v T
			b, err := os.ReadFile(path)
			if err == nil && json.Unmarshal(b, &v) == nil && !yield(v) {
				return
			}
		}
	}
}
