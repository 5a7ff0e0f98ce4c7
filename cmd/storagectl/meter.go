package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/migrate"
)

// metricsEvery is how often a run writes metrics at most, but for its end.
const metricsEvery = 5 * time.Second

// meter writes the metrics beside a run, so that a slow disk does not hold it up. A nil
// meter writes none.
type meter struct {
	a    *app
	dir  string // of the run
	want chan struct{}
	done chan struct{}

	writing sync.Mutex // one at a time: the last to look is the last to write

	mu  sync.Mutex
	far *progressFile
}

// progressFile is how far a run has come with its bytes. It stands in the run's folder,
// so that another process can tell it, too.
type progressFile struct {
	Step  string    `json:"step"`
	Phase string    `json:"phase"`
	Done  int64     `json:"done"`
	Total int64     `json:"total"`
	Time  time.Time `json:"time"`
}

const progressName = "progress.json"

func (a *app) newMeter(dir string) *meter {
	if a.conf.Metrics.Dir == "" {
		return nil
	}
	m := &meter{a: a, dir: dir, want: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(m.done)
		for range m.want {
			_ = m.write() // the last one tells
			time.Sleep(metricsEvery)
		}
	}()
	return m
}

// poke has the metrics written soon.
func (m *meter) poke() {
	if m == nil {
		return
	}
	select {
	case m.want <- struct{}{}:
	default: // they will be anyhow
	}
}

// progress takes how far a step is with its bytes.
func (m *meter) progress(p migrate.Progress) {
	if m == nil || p.Unit != "bytes" || p.Total == 0 {
		return
	}
	m.mu.Lock()
	m.far = &progressFile{Step: p.Step, Phase: p.Phase, Done: p.Done, Total: p.Total, Time: time.Now().UTC()}
	m.mu.Unlock()
	m.poke()
}

func (m *meter) write() error {
	m.writing.Lock()
	defer m.writing.Unlock()
	m.mu.Lock()
	far := m.far
	m.mu.Unlock()
	var err error
	if far != nil {
		var b []byte
		if b, err = json.Marshal(far); err == nil {
			err = renameio.WriteFile(filepath.Join(m.dir, progressName), b, 0o600)
		}
	}
	return errors.Join(err, m.a.writeMetrics(context.Background()))
}

// readProgress returns nil where nothing was told.
func readProgress(dir string) *progressFile {
	b, err := os.ReadFile(filepath.Join(dir, progressName))
	var p progressFile
	if err != nil || json.Unmarshal(b, &p) != nil {
		return nil
	}
	return &p
}

// close writes the metrics a last time, unless ctx ends before.
func (m *meter) close(ctx context.Context) error {
	if m == nil {
		return nil
	}
	last := make(chan error, 1)
	go func() { last <- m.write() }()
	select {
	case err := <-last:
		return err
	case <-ctx.Done():
		return errors.New("the metrics could not be written in time")
	}
}

// writeMetrics writes the file for node_exporter.
func (a *app) writeMetrics(ctx context.Context) error {
	m, err := a.gather(ctx)
	if err != nil {
		return err
	}
	return tell.WriteMetrics(a.conf.Metrics.Dir, tell.MetricsFile(os.Getuid()), m.Registry())
}
