package libpoddb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// sqliteSchema is the one schema version podman has had (libpod/sqlite_state.go,
// podman 4.5 to 6).
const sqliteSchema = 1

// sqliteTables gives the tables of schema 1 with their columns in order
// (createSQLiteTables in libpod/sqlite_state_internal.go).
func sqliteTables() map[string]string {
	return map[string]string{
		"DBConfig":             "ID SchemaVersion OS StaticDir TmpDir GraphRoot RunRoot GraphDriver VolumeDir",
		"IDNamespace":          "ID",
		"ContainerConfig":      "ID Name PodID JSON",
		"ContainerState":       "ID State ExitCode JSON",
		"ContainerExecSession": "ID ContainerID",
		"ContainerDependency":  "ID DependencyID",
		"ContainerVolume":      "ContainerID VolumeName",
		"ContainerExitCode":    "ID Timestamp ExitCode",
		"PodConfig":            "ID Name JSON",
		"PodState":             "ID InfraContainerID JSON",
		"VolumeConfig":         "Name StorageID JSON",
		"VolumeState":          "Name JSON",
	}
}

// querier is what *sql.Conn and *sql.Tx share.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// openSQLite opens an existing file for writing. Sidecars of an interrupted
// transaction are worked in by SQLite itself. Each commit is synced, the
// journal's removal too (synchronous=EXTRA).
func openSQLite(ctx context.Context, path string) (*sql.DB, error) {
	wait := time.Until(deadline(ctx))
	if wait <= 0 {
		return nil, fmt.Errorf("%w: %w", ErrBusy, context.DeadlineExceeded)
	}
	query := url.Values{"mode": {"rw"}, "_txlock": {"exclusive"},
		"_pragma": {"busy_timeout(" + strconv.FormatInt(wait.Milliseconds()+1, 10) + ")", "synchronous(EXTRA)", "foreign_keys(0)"}}
	name := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: query.Encode()}
	db, err := sql.Open("sqlite", name.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// sqliteError names the typed reason of an error from SQLite.
func sqliteError(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code() & 0xff { // the low byte is the primary result code
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

func readSQLite(ctx context.Context, path string) (Facts, error) {
	facts := Facts{Kind: SQLite, Path: path, Containers: []Container{}, Pods: []string{}, Volumes: []string{}}
	err := viewSQLite(ctx, path, func(q querier) error {
		fresh, err := checkSQLite(ctx, q, &facts.SchemaVersion)
		if err != nil || fresh {
			return err
		}
		return sqliteFacts(ctx, q, &facts)
	})
	return facts, sqliteError(err)
}

// checkSQLite refuses a damaged file, another schema, and tables or columns not
// known. A database without tables or without settings is fresh.
func checkSQLite(ctx context.Context, q querier, version *int) (fresh bool, err error) {
	var verdict string
	if err := q.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return false, err
	}
	if verdict != "ok" {
		return false, damaged("%s", verdict)
	}
	found := map[string]bool{}
	err = eachRow(ctx, q, "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name", func(scan func(...any) error) error {
		var kind, name string
		if err := scan(&kind, &name); err != nil {
			return err
		}
		if kind == "index" {
			return nil // an index changes no meaning
		}
		if _, ok := sqliteTables()[name]; kind != "table" || !ok {
			return unknown("%s %q", kind, name)
		}
		found[name] = true
		return nil
	})
	if err != nil || len(found) == 0 {
		return len(found) == 0, err
	}
	if !found["DBConfig"] {
		return false, unknown("table \"DBConfig\" is missing")
	}
	// The version comes first: it says most about what the rest may be.
	err = q.QueryRowContext(ctx, "SELECT SchemaVersion FROM DBConfig").Scan(version)
	if errors.Is(err, sql.ErrNoRows) {
		fresh = true
	} else if err != nil {
		return false, err
	} else if *version != sqliteSchema {
		return false, unknown("schema version %d (known: %d)", *version, sqliteSchema)
	}
	for table, want := range sqliteTables() {
		var columns []string
		err := eachRow(ctx, q, "SELECT name FROM pragma_table_info('"+table+"') ORDER BY cid", func(scan func(...any) error) error {
			var name string
			err := scan(&name)
			columns = append(columns, name)
			return err
		})
		if err != nil {
			return false, err
		}
		if have := strings.Join(columns, " "); have != want {
			return false, unknown("table %q has the columns %q", table, have)
		}
	}
	return fresh, nil
}

// eachRow calls f once for each row of a query.
func eachRow(ctx context.Context, q querier, query string, f func(scan func(...any) error) error) (err error) {
	rows, err := q.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := f(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

func sqliteFacts(ctx context.Context, q querier, facts *Facts) error {
	row := q.QueryRowContext(ctx, "SELECT OS, GraphDriver, GraphRoot, RunRoot, StaticDir, TmpDir, VolumeDir FROM DBConfig")
	if err := row.Scan(&facts.OS, &facts.GraphDriver, &facts.GraphRoot, &facts.RunRoot, &facts.StaticDir, &facts.TmpDir, &facts.VolumeDir); err != nil {
		return err
	}
	podNames := map[string]string{}
	err := eachRow(ctx, q, "SELECT ID, Name FROM PodConfig", func(scan func(...any) error) error {
		var id, name string
		err := scan(&id, &name)
		podNames[id] = name
		facts.Pods = append(facts.Pods, name)
		return err
	})
	if err != nil {
		return err
	}
	err = eachRow(ctx, q, "SELECT Name FROM VolumeConfig", func(scan func(...any) error) error {
		var name string
		err := scan(&name)
		facts.Volumes = append(facts.Volumes, name)
		return err
	})
	if err != nil {
		return err
	}
	slices.Sort(facts.Pods)
	slices.Sort(facts.Volumes)
	records, err := sqliteRecords(ctx, q)
	if err != nil {
		return err
	}
	for _, r := range records {
		c, err := containerFacts(r.id, r.config, r.state)
		if err != nil {
			return err
		}
		c.PodName = podNames[c.Pod]
		facts.Containers = append(facts.Containers, c)
	}
	return nil
}

// sqliteRecords reads every container's two records with the storage class they
// are stored in: podman binds them sometimes as text, sometimes as a blob.
func sqliteRecords(ctx context.Context, q querier) ([]record, error) {
	var records []record
	const query = `SELECT c.ID, CAST(c.JSON AS BLOB), typeof(c.JSON), CAST(s.JSON AS BLOB), typeof(s.JSON)
		FROM ContainerConfig c LEFT JOIN ContainerState s ON s.ID = c.ID ORDER BY c.ID`
	err := eachRow(ctx, q, query, func(scan func(...any) error) error {
		var r record
		var configClass, stateClass string
		if err := scan(&r.id, &r.config, &configClass, &r.state, &stateClass); err != nil {
			return err
		}
		if !json.Valid(r.config) || !json.Valid(r.state) {
			return damaged("container %s: config or state is no JSON", r.id)
		}
		r.blobConfig, r.blobState = configClass == "blob", stateClass == "blob"
		records = append(records, r)
		return nil
	})
	return records, err
}

// planSQLite computes the new records. Nothing is written.
func planSQLite(ctx context.Context, q querier, m *mover) (records []record, driver bool, err error) {
	var now, graphRoot, runRoot string
	if err := q.QueryRowContext(ctx, "SELECT GraphDriver, GraphRoot, RunRoot FROM DBConfig").Scan(&now, &graphRoot, &runRoot); err != nil {
		return nil, false, err
	}
	if driver, err = m.driver(now); err != nil {
		return nil, false, err
	}
	m.addRoot(graphRoot)
	m.addRoot(runRoot)
	if records, err = sqliteRecords(ctx, q); err != nil {
		return nil, false, err
	}
	return records, driver, m.all(records)
}

func previewSQLite(ctx context.Context, path string, m *mover) error {
	return sqliteError(viewSQLite(ctx, path, func(q querier) error {
		var version int
		fresh, err := checkSQLite(ctx, q, &version)
		if err != nil || fresh {
			return err
		}
		_, _, err = planSQLite(ctx, q, m)
		return err
	}))
}

func setSQLite(ctx context.Context, path string, m *mover) (err error) {
	db, err := openSQLite(ctx, path)
	if err != nil {
		return err
	}
	defer func() {
		err = sqliteError(errors.Join(err, db.Close()))
	}()
	tx, err := db.BeginTx(ctx, nil)
	if ctx.Err() != nil { // the deadline passed while waiting for the lock
		return fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
	}
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing; before, the first error counts
	var version int
	fresh, err := checkSQLite(ctx, tx, &version)
	if err != nil || fresh {
		return err
	}
	records, driver, err := planSQLite(ctx, tx, m)
	if err != nil {
		return err
	}
	if driver {
		if err := updateOne(ctx, tx, "UPDATE DBConfig SET GraphDriver = ?", m.to); err != nil {
			return err
		}
	}
	for _, r := range records {
		if r.newConfig != nil {
			if err := updateOne(ctx, tx, "UPDATE ContainerConfig SET JSON = ? WHERE ID = ?", stored(r.newConfig, r.blobConfig), r.id); err != nil {
				return err
			}
		}
		if r.newState != nil {
			if err := updateOne(ctx, tx, "UPDATE ContainerState SET JSON = ? WHERE ID = ?", stored(r.newState, r.blobState), r.id); err != nil {
				return err
			}
		}
	}
	return tx.Commit()
}

func stored(doc []byte, blob bool) any {
	if blob {
		return doc
	}
	return string(doc)
}

func updateOne(ctx context.Context, tx *sql.Tx, query string, args ...any) error {
	result, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err == nil && n != 1 {
		err = fmt.Errorf("%q changed %d rows, not 1", query, n)
	}
	return err
}
