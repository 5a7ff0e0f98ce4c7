package libpoddb

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// sqliteDDL makes the tables of podman's schema 1.
func sqliteDDL() []string {
	return []string{
		`CREATE TABLE DBConfig(ID INTEGER PRIMARY KEY NOT NULL, SchemaVersion INTEGER NOT NULL, OS TEXT NOT NULL, StaticDir TEXT NOT NULL, TmpDir TEXT NOT NULL,
			GraphRoot TEXT NOT NULL, RunRoot TEXT NOT NULL, GraphDriver TEXT NOT NULL, VolumeDir TEXT NOT NULL, CHECK (ID IN (1)))`,
		`CREATE TABLE IDNamespace(ID TEXT PRIMARY KEY NOT NULL)`,
		`CREATE TABLE ContainerConfig(ID TEXT PRIMARY KEY NOT NULL, Name TEXT UNIQUE NOT NULL, PodID TEXT, JSON TEXT NOT NULL,
			FOREIGN KEY (ID) REFERENCES IDNamespace(ID) DEFERRABLE INITIALLY DEFERRED, FOREIGN KEY (ID) REFERENCES ContainerState(ID) DEFERRABLE INITIALLY DEFERRED,
			FOREIGN KEY (PodID) REFERENCES PodConfig(ID))`,
		`CREATE TABLE ContainerState(ID TEXT PRIMARY KEY NOT NULL, State INTEGER NOT NULL, ExitCode INTEGER, JSON TEXT NOT NULL,
			FOREIGN KEY (ID) REFERENCES ContainerConfig(ID) DEFERRABLE INITIALLY DEFERRED, CHECK (ExitCode BETWEEN -1 AND 255))`,
		`CREATE TABLE ContainerExecSession(ID TEXT PRIMARY KEY NOT NULL, ContainerID TEXT NOT NULL)`,
		`CREATE TABLE ContainerDependency(ID TEXT NOT NULL, DependencyID TEXT NOT NULL, PRIMARY KEY (ID, DependencyID))`,
		`CREATE TABLE ContainerVolume(ContainerID TEXT NOT NULL, VolumeName TEXT NOT NULL, PRIMARY KEY (ContainerID, VolumeName))`,
		`CREATE TABLE ContainerExitCode(ID TEXT PRIMARY KEY NOT NULL, Timestamp INTEGER NOT NULL, ExitCode INTEGER NOT NULL)`,
		`CREATE TABLE PodConfig(ID TEXT PRIMARY KEY NOT NULL, Name TEXT UNIQUE NOT NULL, JSON TEXT NOT NULL)`,
		`CREATE TABLE PodState(ID TEXT PRIMARY KEY NOT NULL, InfraContainerID TEXT, JSON TEXT NOT NULL)`,
		`CREATE TABLE VolumeConfig(Name TEXT PRIMARY KEY NOT NULL, StorageID TEXT, JSON TEXT NOT NULL)`,
		`CREATE TABLE VolumeState(Name TEXT PRIMARY KEY NOT NULL, JSON TEXT NOT NULL)`,
	}
}

// newSQLite makes a database as podman 5 would hold it, at an awkward path.
// One container's config is stored as a blob, as podman's own rewrite does.
func newSQLite(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a b?c#d%41")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "db.sql")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	statements := append(sqliteDDL(),
		`INSERT INTO DBConfig VALUES (1, 1, 'linux', '/g/libpod', '/t', '/g', '/r', 'vfs', '/g/volumes')`,
		`INSERT INTO PodConfig VALUES ('p1', 'pod1', '{"id":"p1","name":"pod1"}')`,
		`INSERT INTO PodState VALUES ('p1', NULL, '{}')`,
		`INSERT INTO VolumeConfig VALUES ('vol1', NULL, '{"mountPoint":"/g/volumes/vol1/_data"}')`,
		`INSERT INTO VolumeState VALUES ('vol1', '{}')`,
		`INSERT INTO ContainerExitCode VALUES ('`+idA+`', 5, 0)`)
	change(t, path, statements...)
	db := rawSQLite(t, path)
	defer func() { _ = db.Close() }()
	if _, err := db.Exec("PRAGMA synchronous=OFF"); err != nil {
		t.Fatal(err)
	}
	exec := func(query string, args ...any) {
		t.Helper()
		if _, err := db.Exec(query, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(`INSERT INTO ContainerConfig VALUES (?, 'c', 'p1', ?)`, idA, []byte(strings.Replace(trapConfig, `"name" : "c"`, `"name" : "c","pod":"p1"`, 1)))
	exec(`INSERT INTO ContainerState VALUES (?, 6, 0, ?)`, idA, trapState)
	for i := range 12 { // more than one page
		id := fmt.Sprintf("%064d", i)
		exec(`INSERT INTO ContainerConfig VALUES (?, ?, NULL, ?)`, id, "n"+id, strings.ReplaceAll(trapConfig, idA, id))
		exec(`INSERT INTO ContainerState VALUES (?, 2, 0, ?)`, id, strings.ReplaceAll(trapState, idA, id))
	}
	return path
}

func rawSQLite(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=rw")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	return db
}

func change(t *testing.T, path string, statements ...string) {
	t.Helper()
	db := rawSQLite(t, path)
	defer func() { _ = db.Close() }()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// dumpSQLite gives every row of every table with the storage class of each
// value.
func dumpSQLite(t *testing.T, path string) map[string]string {
	t.Helper()
	db := rawSQLite(t, path)
	defer func() { _ = db.Close() }()
	all := map[string]string{}
	for table, columns := range sqliteTables() {
		var parts []string
		for _, c := range strings.Fields(columns) {
			parts = append(parts, "typeof("+c+")||':'||quote("+c+")")
		}
		rows, err := db.Query("SELECT rowid, " + strings.Join(parts, "||' '||") + " FROM " + table)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var id int
			var row string
			if err := rows.Scan(&id, &row); err != nil {
				t.Fatal(err)
			}
			all[fmt.Sprintf("%s/%d", table, id)] = row
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func TestSQLite(t *testing.T) {
	ctx := context.Background()
	path := newSQLite(t)
	dir := filepath.Dir(path)
	original, before := read(t, path), dumpSQLite(t, path)

	found, err := Find(ctx, dir, filepath.Join(dir, "libpod"))
	if err != nil || len(found) != 1 {
		t.Fatalf("Find: %v %d", err, len(found))
	}
	f := found[0]
	if f.Kind != SQLite || f.SchemaVersion != 1 || f.GraphDriver != "vfs" || f.GraphRoot != "/g" || f.RunRoot != "/r" || f.StaticDir != "/g/libpod" || f.TmpDir != "/t" || f.VolumeDir != "/g/volumes" {
		t.Errorf("%+v", f)
	}
	if len(f.Containers) != 13 || !reflect.DeepEqual(f.Pods, []string{"pod1"}) || !reflect.DeepEqual(f.Volumes, []string{"vol1"}) {
		t.Errorf("%d containers, pods %v, volumes %v", len(f.Containers), f.Pods, f.Volumes)
	}
	if c := f.Containers[12]; c.ID != idA || c.Name != "c" || c.State != "exited" || c.PodName != "pod1" || !c.Mounted || !c.Checkpointed || !c.ExitCommand {
		t.Errorf("%+v", c)
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 || !bytes.Equal(original, read(t, path)) {
		t.Errorf("Find left traces: %v", names)
	}

	saved := filepath.Join(dir, "saved")
	if err := Save(ctx, path, saved); err != nil || !bytes.Equal(original, read(t, saved+"/db.sql")) {
		t.Fatalf("Save: %v", err)
	}
	if err := SetDriver(ctx, path, "vfs", "overlay", Moves{}); err != nil {
		t.Fatal(err)
	}
	after := dumpSQLite(t, path)
	for key, old := range before {
		table, _, _ := strings.Cut(key, "/")
		now := after[key]
		switch table {
		case "DBConfig":
			if want := strings.Replace(old, "'vfs'", "'overlay'", 1); now != want {
				t.Errorf("%s: %s", key, now)
			}
		case "ContainerConfig", "ContainerState":
			if now == old || strings.Count(now, "text:") != strings.Count(old, "text:") || strings.Count(now, "blob:") != strings.Count(old, "blob:") {
				t.Errorf("%s: the same, or of another class", key)
			}
		default:
			if now != old {
				t.Errorf("%s: %s → %s", key, old, now)
			}
		}
	}
	if len(before) != len(after) {
		t.Errorf("%d rows before, %d after", len(before), len(after))
	}
	if d, err := Driver(ctx, path); err != nil || d != "overlay" {
		t.Errorf("Driver: %q %v", d, err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 2 {
		t.Errorf("left behind: %v", names)
	}
	once := read(t, path)
	if err := SetDriver(ctx, path, "vfs", "overlay", Moves{}); err != nil || !bytes.Equal(once, read(t, path)) {
		t.Errorf("second SetDriver: %v", err)
	}
	if err := Restore(ctx, saved, path); err != nil || !bytes.Equal(original, read(t, path)) || !bytes.Equal(once, read(t, saved+"/db.sql.replaced-1")) {
		t.Errorf("Restore: %v", err)
	}
}

func TestSQLiteRefusals(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name string
		sql  string
		want error
	}{
		{"later schema", "UPDATE DBConfig SET SchemaVersion = 2", ErrSchema},
		{"unknown table", "CREATE TABLE Quadlet(ID TEXT)", ErrSchema},
		{"unknown column", "ALTER TABLE ContainerState ADD COLUMN More TEXT", ErrSchema},
		{"missing table", "DROP TABLE PodState", ErrSchema},
		{"a trigger", "CREATE TRIGGER t AFTER UPDATE ON DBConfig BEGIN DELETE FROM PodConfig; END", ErrSchema},
		{"no settings table", "DROP TABLE DBConfig", ErrSchema},
		{"another driver", "UPDATE DBConfig SET GraphDriver = 'btrfs'", ErrDriver},
		{"a record that is no JSON", "UPDATE ContainerState SET JSON = '{' WHERE ID = '" + idA + "'", ErrDamaged},
		{"a container without state", "DELETE FROM ContainerState WHERE ID = '" + idA + "'", ErrDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := newSQLite(t)
			change(t, path, c.sql)
			before := read(t, path)
			if err := SetDriver(ctx, path, "vfs", "overlay", Moves{}); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if !bytes.Equal(before, read(t, path)) {
				t.Error("the refused file was changed")
			}
		})
	}
	t.Run("no rows yet", func(t *testing.T) {
		path := newSQLite(t)
		change(t, path, "DELETE FROM DBConfig")
		if err := SetDriver(ctx, path, "vfs", "overlay", Moves{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("overwritten", func(t *testing.T) {
		path := newSQLite(t)
		data := read(t, path)
		for i := 4096; i < len(data); i++ {
			data[i] ^= 0x55
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(ctx, path); !errors.Is(err, ErrDamaged) {
			t.Errorf("%v", err)
		}
	})
	t.Run("no database", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "db.sql")
		if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 5000), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(ctx, path); !errors.Is(err, ErrDamaged) {
			t.Errorf("%v", err)
		}
	})
}

// TestSQLiteLocks: another process's transaction that has begun but not written
// does not disturb a reader; one that is writing makes it wait until the
// deadline.
func TestSQLiteLocks(t *testing.T) {
	path := newSQLite(t)
	hold := func(begin string, f func(ctx context.Context)) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		cmd := child(ctx, "hold", path, begin)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if n, err := out.Read(make([]byte, 1)); n != 1 {
			t.Fatal(err)
		}
		f(ctx)
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Fatal(err)
		}
	}
	const short = 300 * time.Millisecond
	hold("BEGIN IMMEDIATE", func(ctx context.Context) {
		if d, err := Driver(ctx, path); err != nil || d != "vfs" {
			t.Errorf("Driver: %q %v", d, err)
		}
		ctx, cancel := context.WithTimeout(ctx, short)
		defer cancel()
		if err := SetDriver(ctx, path, "vfs", "overlay", Moves{}); !errors.Is(err, ErrBusy) {
			t.Errorf("SetDriver: %v", err)
		}
	})
	hold("BEGIN EXCLUSIVE", func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, short)
		defer cancel()
		if _, err := Read(ctx, path); !errors.Is(err, ErrBusy) {
			t.Errorf("Read: %v", err)
		}
	})
}

// crashed gives the database files as they lie when a writer dies: cut is a
// copy taken in the middle of a transaction that was spilled to the file.
func crashed(t *testing.T, wal bool) (path string, before map[string]string) {
	t.Helper()
	src := newSQLite(t)
	before = dumpSQLite(t, src)
	db := rawSQLite(t, src)
	defer func() { _ = db.Close() }()
	steps := []string{"PRAGMA cache_size=2", "BEGIN IMMEDIATE", "UPDATE DBConfig SET GraphDriver='half'", "UPDATE ContainerConfig SET JSON=CAST(JSON AS TEXT)||' '", "UPDATE ContainerState SET JSON=JSON||' '"}
	if wal {
		steps = []string{"PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=0", "UPDATE DBConfig SET OS='after'"}
	}
	for _, s := range steps {
		if _, err := db.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
	path = filepath.Join(t.TempDir(), "db.sql")
	for _, suffix := range []string{"", "-journal", "-wal"} {
		data, err := os.ReadFile(src + suffix)
		if err != nil {
			continue
		}
		if err := os.WriteFile(path+suffix, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path, before
}

func TestSQLiteAfterACrash(t *testing.T) {
	ctx := context.Background()
	list := func(path string) map[string]string {
		files := map[string]string{}
		names, _ := os.ReadDir(filepath.Dir(path))
		for _, n := range names {
			if !n.IsDir() {
				files[n.Name()] = string(read(t, filepath.Join(filepath.Dir(path), n.Name())))
			}
		}
		return files
	}
	t.Run("journal", func(t *testing.T) {
		path, before := crashed(t, false)
		files := list(path)
		if len(files) != 2 {
			t.Fatalf("no journal to test with: %d files", len(files))
		}
		f, err := Read(ctx, path)
		if err != nil || f.GraphDriver != "vfs" || len(f.Containers) != 13 {
			t.Errorf("Read: %v %v", f.GraphDriver, err)
		}
		if !reflect.DeepEqual(files, list(path)) {
			t.Error("Read changed something")
		}
		saved := filepath.Join(filepath.Dir(path), "saved")
		if err := Save(ctx, path, saved); err != nil || !reflect.DeepEqual(files, list(path)) {
			t.Fatalf("Save: %v, or it changed something", err)
		}
		if got := dumpSQLite(t, saved+"/db.sql"); !reflect.DeepEqual(got, before) {
			t.Error("the saved copy is not the state before the transaction")
		}
		if err := SetDriver(ctx, path, "vfs", "overlay", Moves{}); err != nil {
			t.Fatal(err)
		}
		if err := SetDriver(ctx, path, "overlay", "vfs", Moves{}); err != nil {
			t.Fatal(err)
		}
		// A journal beside the present file must not reach the restored one.
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := Restore(ctx, saved, path); err != nil {
			t.Fatal(err)
		}
		if got := list(path); len(got) != 1 || got["db.sql"] != string(read(t, saved+"/db.sql")) {
			t.Errorf("after Restore: %d files", len(got))
		}
		if got := dumpSQLite(t, path); !reflect.DeepEqual(got, before) {
			t.Error("the restored database differs")
		}
	})
	t.Run("write-ahead log", func(t *testing.T) {
		path, _ := crashed(t, true)
		files := list(path)
		if len(files["db.sql-wal"]) == 0 {
			t.Fatal("no log to test with")
		}
		f, err := Read(ctx, path)
		if err != nil || f.OS != "after" {
			t.Errorf("Read: %q %v", f.OS, err)
		}
		if !reflect.DeepEqual(files, list(path)) {
			t.Error("Read changed something")
		}
		saved := filepath.Join(filepath.Dir(path), "saved")
		if err := Save(ctx, path, saved); err != nil {
			t.Fatal(err)
		}
		if f, err := Read(ctx, saved+"/db.sql"); err != nil || f.OS != "after" {
			t.Errorf("the saved copy: %q %v", f.OS, err)
		}
		if err := SetDriver(ctx, path, "vfs", "overlay", Moves{}); err != nil {
			t.Fatal(err)
		}
		if err := Restore(ctx, saved, path); err != nil {
			t.Fatal(err)
		}
		if f, err := Read(ctx, path); err != nil || f.OS != "after" || f.GraphDriver != "vfs" {
			t.Errorf("restored: %+v %v", f.GraphDriver, err)
		}
	})
}
