package libpoddb

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
)

// SetDriver makes the database at path name the driver to instead of from, and
// every container's paths lie below <to>-containers. It is one transaction,
// synced: after a crash the file holds the old state or the new. All else stays
// byte for byte. A database that names no driver gets one. Where all is as
// wanted already, nothing is written.
//
// Errors: ErrSchema, ErrDamaged, ErrBusy, ErrDriver; then nothing was changed.
func SetDriver(ctx context.Context, path, from, to string, moves Moves) error {
	// What has to change is looked up read-only first, so that a database that
	// is right already is not touched at all.
	changes, err := Preview(ctx, path, from, to, moves)
	if err != nil || len(changes) == 0 {
		return err
	}
	kind, err := kindOf(path)
	if err != nil {
		return err
	}
	m := newMover(from, to, moves)
	if kind == BoltDB {
		err = setBolt(ctx, path, m)
	} else {
		err = setSQLite(ctx, path, m)
	}
	if err != nil {
		return fmt.Errorf("cannot set graph driver %s in libpod database %s: %w", to, path, err)
	}
	return nil
}

// Preview gives what SetDriver would change, and its refusals, without changing
// anything. An empty list means that all is as wanted.
func Preview(ctx context.Context, path, from, to string, moves Moves) ([]Change, error) {
	kind, err := kindOf(path)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil && info.Size() == 0 {
		return nil, nil // podman has not filled it: it names nothing
	}
	m := newMover(from, to, moves)
	if kind == BoltDB {
		err = previewBolt(ctx, path, m)
	} else {
		err = previewSQLite(ctx, path, m)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot plan graph driver %s for libpod database %s: %w", to, path, err)
	}
	return m.changes, nil
}

func newMover(from, to string, moves Moves) *mover {
	m := &mover{from: from, to: to}
	for _, r := range moves.Roots {
		m.addRoot(r)
	}
	return m
}

// record is one container's row; the new fields are nil where nothing changes.
type record struct {
	id                  string
	config, state       []byte
	newConfig, newState []byte
	blobConfig          bool // SQLite: stored as BLOB, as podman's own rewrite does
	blobState           bool
}

// driver judges the driver on record and says whether it is to be set.
func (m *mover) driver(now string) (bool, error) {
	switch now {
	case m.to:
		return false, nil
	case m.from, "":
		m.changes = append(m.changes, Change{Field: "graph driver", Old: now, New: m.to})
		return true, nil
	}
	return false, fmt.Errorf("%w: it is %q, not %q", ErrDriver, now, m.from)
}

// all fills in the new records: first the roots are learned from every
// container, since one's record may point into another's directory.
func (m *mover) all(records []record) error {
	for _, r := range records {
		var config struct {
			StaticDir string `json:"staticDir"`
		}
		if err := json.Unmarshal(r.config, &config); err != nil {
			return damaged("container %s: config: %v", r.id, err)
		}
		var state struct {
			RunDir string `json:"runDir"`
		}
		if err := json.Unmarshal(r.state, &state); err != nil {
			return damaged("container %s: state: %v", r.id, err)
		}
		m.learn(r.id, config.StaticDir, state.RunDir)
	}
	for i := range records {
		r := &records[i]
		config, state, err := m.container(r.id, r.config, r.state)
		if err != nil {
			return err
		}
		if !bytes.Equal(config, r.config) {
			r.newConfig = config
		}
		if !bytes.Equal(state, r.state) {
			r.newState = state
		}
	}
	return nil
}
