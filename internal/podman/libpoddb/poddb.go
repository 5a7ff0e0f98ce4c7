// Package libpoddb reads and repoints the libpod database, the file in which
// podman keeps its containers, pods and volumes and the storage settings it was
// first started with. Those settings outrank storage.conf, so a store that
// changes its driver needs the database changed too.
//
// Two formats are known: BoltDB (libpod/bolt_state.db, the only one before
// podman 4.5 and the default before 4.8) and SQLite (db.sql, schema 1, podman
// 4.5 to 6). Anything else is refused before a byte is changed.
//
// Every function works on paths as the calling process sees them and is meant
// to run as the store's owner while no podman runs, except Find, Read, Driver
// and Preview, which only read and wait for a running podman's lock. Within one
// process they must not run on one database at the same time: SQLite's locks
// belong to the process, and closing the file anywhere in it drops them.
package libpoddb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Kind names the format of a libpod database as `podman info` does in
// databaseBackend.
type Kind string

// The formats podman has used.
const (
	BoltDB Kind = "boltdb"
	SQLite Kind = "sqlite"
	None   Kind = "none" // no database: podman has not run on this store
)

var (
	// ErrSchema: the database is of a form this package does not know; the
	// message names the first thing not known. Nothing was changed.
	ErrSchema = errors.New("unknown libpod database schema")
	// ErrDamaged: the file is no readable database, or a saved copy does not
	// match its record. Nothing was changed.
	ErrDamaged = errors.New("libpod database damaged")
	// ErrBusy: another process kept the database locked until the deadline.
	ErrBusy = errors.New("libpod database in use")
	// ErrBoth: two databases of one store hold objects, so it is not known
	// which of them is true.
	ErrBoth = errors.New("two libpod databases hold objects")
	// ErrBackend: the podman named cannot use the database found.
	ErrBackend = errors.New("podman cannot use this libpod database")
	// ErrDriver: the database names a driver that is neither the old nor the
	// new one. Nothing was changed.
	ErrDriver = errors.New("unexpected graph driver in libpod database")
)

// lockWait is how long a lock is waited for when the context sets no deadline.
// Podman holds its locks for milliseconds.
const lockWait = 20 * time.Second

// Facts is what one database holds.
type Facts struct {
	Kind          Kind   `json:"kind"`
	Path          string `json:"path"`
	SchemaVersion int    `json:"schema_version"` // SQLite: DBConfig.SchemaVersion; BoltDB has none: 0

	// The settings recorded when the database was made. Empty: not recorded,
	// and podman then takes them from its configuration.
	OS          string `json:"os,omitempty"`
	GraphDriver string `json:"graph_driver,omitempty"`
	GraphRoot   string `json:"graph_root,omitempty"`
	RunRoot     string `json:"run_root,omitempty"`
	StaticDir   string `json:"static_dir,omitempty"`
	TmpDir      string `json:"tmp_dir,omitempty"`
	VolumeDir   string `json:"volume_dir,omitempty"`

	Containers []Container `json:"containers"`
	Pods       []string    `json:"pods"`    // names, sorted
	Volumes    []string    `json:"volumes"` // names, sorted
}

// Objects counts what would be lost with the database.
func (f Facts) Objects() int { return len(f.Containers) + len(f.Pods) + len(f.Volumes) }

// Container is one container as the database records it; podman may not yet
// have noticed that a process died.
type Container struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	State   string `json:"state"`         // as `podman ps` names it
	Pod     string `json:"pod,omitempty"` // pod id
	PodName string `json:"pod_name,omitempty"`
	Infra   bool   `json:"infra,omitempty"`
	Init    string `json:"init,omitempty"`  // "always" or "once": runs before a pod's other containers, and ends
	Image   string `json:"image,omitempty"` // image id; empty with --rootfs
	Mounted bool   `json:"mounted,omitempty"`
	// Checkpointed: it was stopped by a checkpoint, and neither started nor restored since.
	Checkpointed bool `json:"checkpointed,omitempty"`
	// ExitCommand: the record holds its own clean-up command, as podman
	// before 4 wrote it.
	ExitCommand bool `json:"exit_command,omitempty"`
}

// stateNames are the values of podman's container states in their order in
// libpod/define/containerstate.go (unchanged from 3.0.1 to 5.8).
func stateName(n int) string {
	names := []string{"unknown", "configured", "created", "running", "stopped", "paused", "exited", "removing", "stopping"}
	if n < 0 || n >= len(names) {
		return fmt.Sprintf("state %d", n)
	}
	return names[n]
}

// Find reads every libpod database of a store: at the places podman 3.0 to 5.8
// looks (libpod/runtime.go, libpod/sqlite_state.go) below graphRoot and, when
// not empty, staticDir. No database gives an empty list. It creates and changes
// nothing in the store; a busy database is waited for until ctx's deadline.
func Find(ctx context.Context, graphRoot, staticDir string) ([]Facts, error) {
	places := []struct {
		kind Kind
		path string
	}{
		{SQLite, filepath.Join(graphRoot, "db.sql")},
		{SQLite, filepath.Join(graphRoot, "libpod", "db.sql")},
		{BoltDB, filepath.Join(graphRoot, "libpod", "bolt_state.db")},
	}
	if staticDir != "" {
		places = append(places, places[0], places[2])
		places[3].path = filepath.Join(staticDir, "db.sql")
		places[4].path = filepath.Join(staticDir, "bolt_state.db")
	}
	found := []Facts{}
	var seen []fs.FileInfo
	for _, p := range places {
		info, err := os.Stat(p.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot look for the libpod database: %w", err)
		}
		if sameAsAny(info, seen) {
			continue
		}
		seen = append(seen, info)
		facts, err := Read(ctx, p.path)
		if err != nil {
			return nil, err
		}
		found = append(found, facts)
	}
	return found, nil
}

func sameAsAny(info fs.FileInfo, seen []fs.FileInfo) bool {
	for _, s := range seen {
		if os.SameFile(info, s) {
			return true
		}
	}
	return false
}

// Read reads the one database at path, as Find does.
func Read(ctx context.Context, path string) (Facts, error) {
	kind, err := kindOf(path)
	if err != nil {
		return Facts{}, err
	}
	var facts Facts
	switch kind {
	case BoltDB:
		facts, err = readBolt(ctx, path)
	default:
		facts, err = readSQLite(ctx, path)
	}
	if err != nil {
		return Facts{}, fmt.Errorf("cannot read libpod database %s: %w", path, err)
	}
	return facts, nil
}

// Driver gives the graph driver that the database at path names; empty means
// that it names none and podman takes the one from its configuration.
func Driver(ctx context.Context, path string) (string, error) {
	facts, err := Read(ctx, path)
	return facts.GraphDriver, err
}

// kindOf tells a database's format from its content: a SQLite file starts with
// a fixed string (sqlite.org/fileformat.html), a bolt file has the magic number
// 0xED0CDAED in its first meta page. An empty file is told by its name: both
// libraries take it for a new database.
func kindOf(path string) (Kind, error) {
	f, err := os.Open(path)
	if err != nil {
		return None, fmt.Errorf("cannot open libpod database: %w", err)
	}
	defer f.Close()
	head := make([]byte, 32)
	n, err := f.ReadAt(head, 0)
	if n == 0 {
		switch filepath.Base(path) {
		case "db.sql":
			return SQLite, nil
		case "bolt_state.db":
			return BoltDB, nil
		}
	}
	if n < len(head) {
		return None, fmt.Errorf("cannot read libpod database %s: %w: %d bytes long (%w)", path, ErrDamaged, n, err)
	}
	switch {
	case string(head[:16]) == "SQLite format 3\x00":
		return SQLite, nil
	case isBoltMeta(head):
		return BoltDB, nil
	case filepath.Base(path) == "bolt_state.db":
		// The first of bolt's two meta pages may be torn; bolt then uses
		// the second.
		return BoltDB, nil
	}
	return None, fmt.Errorf("cannot read libpod database %s: %w: neither BoltDB nor SQLite", path, ErrDamaged)
}

// deadline gives ctx's deadline, or lockWait from now.
func deadline(ctx context.Context) time.Time {
	if d, ok := ctx.Deadline(); ok {
		return d
	}
	return time.Now().Add(lockWait)
}
