package libpoddb

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	bolt := func(n int) Facts { return Facts{Kind: BoltDB, Path: "bolt", Containers: make([]Container, n)} }
	lite := func(n int) Facts { return Facts{Kind: SQLite, Path: "lite", Containers: make([]Container, n)} }
	for _, c := range []struct {
		name             string
		found            []Facts
		version, backend string
		want             string
		err              error
	}{
		{"bolt before 4.8", []Facts{bolt(1)}, "4.3.1", "", "bolt", nil},
		{"bolt on 5", []Facts{bolt(1)}, "5.4.2", "", "bolt", nil},
		{"bolt on 6", []Facts{bolt(1)}, "6.0.0", "", "", ErrBackend},
		{"sqlite on 5", []Facts{lite(1)}, "5.4.2", "", "lite", nil},
		{"sqlite on 4.3", []Facts{lite(1)}, "4.3.1", "", "", ErrBackend},
		{"sqlite chosen on 4.6", []Facts{lite(1), bolt(0)}, "4.6.0", "sqlite", "lite", nil},
		{"both full", []Facts{lite(1), bolt(1)}, "5.4.2", "", "", ErrBoth},
		{"both full, podman's word does not help", []Facts{lite(1), bolt(1)}, "5.4.2", "sqlite", "", ErrBoth},
		{"both empty on 5", []Facts{lite(0), bolt(0)}, "5.4.2", "", "lite", nil},
		{"both empty on 4.3", []Facts{lite(0), bolt(0)}, "4.3.1", "", "bolt", nil},
		{"empty bolt left over", []Facts{lite(2), bolt(0)}, "5.4.2", "", "lite", nil},
		{"the full one is not looked at", []Facts{lite(0), bolt(2)}, "5.4.2", "", "", ErrBackend},
		{"bolt set in containers.conf", []Facts{lite(0), bolt(2)}, "5.4.2", "boltdb", "bolt", nil},
		{"no version", []Facts{bolt(1)}, "", "", "", ErrBackend},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Choose(c.found, c.version, c.backend)
			if !errors.Is(err, c.err) || got.Path != c.want {
				t.Errorf("%q %v", got.Path, err)
			}
		})
	}
}

func TestSavedCopyDamaged(t *testing.T) {
	ctx := context.Background()
	path := newSQLite(t)
	saved := filepath.Join(t.TempDir(), "db")
	if ok, err := Saved(saved, path); ok || err != nil {
		t.Errorf("Saved: %v %v", ok, err)
	}
	if err := Restore(ctx, saved, path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Restore without a copy: %v", err)
	}
	if err := Save(ctx, path, saved); err != nil {
		t.Fatal(err)
	}
	if ok, err := Saved(saved, path); !ok || err != nil {
		t.Errorf("Saved: %v %v", ok, err)
	}
	if err := os.WriteFile(saved+"/db.sql", []byte("no"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := read(t, path)
	if err := Save(ctx, path, saved); !errors.Is(err, ErrDamaged) {
		t.Errorf("Save: %v", err)
	}
	if err := Restore(ctx, saved, path); !errors.Is(err, ErrDamaged) || string(before) != string(read(t, path)) {
		t.Errorf("Restore: %v", err)
	}
}

// TestSaveAnew: a database that was used since it was saved is saved as it is now, also
// where that was cut off; one that was not keeps its copy.
func TestSaveAnew(t *testing.T) {
	ctx := context.Background()
	path := newSQLite(t)
	saved := filepath.Join(t.TempDir(), "db")
	copied := filepath.Join(saved, filepath.Base(path))
	for range 2 {
		if err := SaveAnew(ctx, path, saved); err != nil {
			t.Fatal(err)
		}
	}
	first := read(t, copied)
	was, err := os.Stat(copied)
	if err != nil {
		t.Fatal(err)
	}
	if err := SaveAnew(ctx, path, saved); err != nil {
		t.Fatal(err)
	}
	if now, err := os.Stat(copied); err != nil || !os.SameFile(was, now) {
		t.Errorf("a copy that is right was made again: %v", err)
	}
	use := func(name string) {
		t.Helper()
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = db.ExecContext(ctx, "CREATE TABLE "+name+" (ID TEXT)")
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	use("Once")
	if err := Save(ctx, path, saved); err != nil || string(read(t, copied)) != string(first) {
		t.Errorf("Save changed a copy: %v", err)
	}
	if err := SaveAnew(ctx, path, saved); err != nil || string(read(t, copied)) != string(read(t, path)) {
		t.Errorf("the copy is not of what is there now: %v", err)
	}
	use("Twice")
	if err := os.Remove(copied + ".saved.json"); err != nil { // cut off in the middle
		t.Fatal(err)
	}
	if err := SaveAnew(ctx, path, saved); err != nil || string(read(t, copied)) != string(read(t, path)) {
		t.Errorf("the copy is not of what is there now: %v", err)
	}
	now := read(t, path)
	use("Thrice")
	if err := Restore(ctx, saved, path); err != nil || string(read(t, path)) != string(now) {
		t.Errorf("it is not what comes back: %v", err)
	}
	if err := os.WriteFile(copied, []byte("no"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := SaveAnew(ctx, path, saved); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged copy: %v", err)
	}
}

func TestRestoreWhereNothingIs(t *testing.T) {
	ctx := context.Background()
	path := newSQLite(t)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 7, 8); err != nil {
		t.Fatal(err)
	}
	saved := filepath.Join(t.TempDir(), "db")
	if err := Save(ctx, path, saved); err != nil {
		t.Fatal(err)
	}
	before := read(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := Restore(ctx, saved, path); err != nil || string(before) != string(read(t, path)) {
		t.Fatalf("%v", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	names, _ := os.ReadDir(filepath.Dir(path))
	if len(names) != 1 || !strings.HasPrefix(names[0].Name(), "db.sql") {
		t.Errorf("%v", names)
	}
}
