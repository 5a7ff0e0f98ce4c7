package libpoddb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// SQLite's locks on a database file: byte ranges at 1 GiB
// (sqlite.org/lockingv3.html, os.h).
const (
	pendingByte  = 0x40000000
	reservedByte = pendingByte + 1
	sharedFirst  = pendingByte + 2
	sharedSize   = 510
)

// snapshot is a consistent reading of a SQLite database with what an
// interrupted transaction left beside it.
type snapshot struct {
	db      []byte
	journal []byte // of a rollback journal that still has to be played back
	wal     []byte // of a write-ahead log not yet in db
}

func (s snapshot) sidecars() bool { return len(s.journal)+len(s.wal) > 0 }

// takeSnapshot reads the database under SQLite's SHARED lock, taken by hand so
// that nothing is created beside the file and no recovery is run on it. While
// the lock is held no writer can change the file. A rollback journal belongs to
// a live transaction when somebody holds the RESERVED lock (then the file is
// still the old state), else to a dead one (then it has to be played back).
func takeSnapshot(ctx context.Context, path string) (snapshot, error) {
	end := deadline(ctx)
	for {
		s, stable, err := trySnapshot(ctx, path, end)
		if err != nil || stable {
			return s, err
		}
		if time.Now().After(end) {
			return snapshot{}, fmt.Errorf("%w: its write-ahead log keeps changing", ErrBusy)
		}
	}
}

func trySnapshot(ctx context.Context, path string, end time.Time) (s snapshot, stable bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return s, false, err
	}
	defer f.Close()
	if err := lockShared(ctx, f, end); err != nil {
		return s, false, err
	}
	before, err := stamps(path)
	if err != nil {
		return s, false, err
	}
	reserved := unix.Flock_t{Type: unix.F_WRLCK, Start: reservedByte, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &reserved); err != nil {
		return s, false, fmt.Errorf("asking for the database lock: %w", err)
	}
	if s.db, err = os.ReadFile(path); err != nil {
		return s, false, err
	}
	if reserved.Type == unix.F_UNLCK {
		if s.journal, err = readIfThere(path + "-journal"); err != nil {
			return s, false, err
		}
	}
	if s.wal, err = readIfThere(path + "-wal"); err != nil {
		return s, false, err
	}
	// A write-ahead log is copied back into the file under other locks than
	// these; podman does not use one, so it is enough to see that it rested.
	after, err := stamps(path)
	return s, len(s.wal) == 0 || before == after, err
}

func lockShared(ctx context.Context, f *os.File, end time.Time) error {
	set := func(kind int16, start, length int64) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: start, Len: length})
	}
	tick := time.NewTicker(5 * time.Millisecond) // the kernel's waiting form of this lock has no deadline
	defer tick.Stop()
	for {
		err := set(unix.F_RDLCK, pendingByte, 1)
		if err == nil {
			err = set(unix.F_RDLCK, sharedFirst, sharedSize)
			if e := set(unix.F_UNLCK, pendingByte, 1); err == nil && e != nil {
				err = e
			}
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("locking the database: %w", err)
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: %w", ErrBusy, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
		case <-tick.C:
		}
	}
}

// stamps gives sizes and times of the database and its write-ahead log.
func stamps(path string) (s [2][2]int64, err error) {
	for i, p := range []string{path, path + "-wal"} {
		info, err := os.Stat(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return s, err
		}
		s[i] = [2]int64{info.Size(), info.ModTime().UnixNano()}
	}
	return s, nil
}

func readIfThere(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// viewSQLite runs f over a snapshot of the database: in memory, or, where an
// interrupted transaction has to be undone first, in a temporary folder outside
// the store. The database itself is only read.
func viewSQLite(ctx context.Context, path string, f func(querier) error) (err error) {
	s, err := takeSnapshot(ctx, path)
	if err != nil || len(s.db) == 0 && !s.sidecars() {
		return err
	}
	db, cleanup, err := openSnapshot(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close(), cleanup()) }()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if !s.sidecars() {
		if len(s.db) > 20 {
			// Bytes 18 and 19 say that the file is used with a write-ahead
			// log (2) or without (1). The log is empty here, and a database
			// in memory cannot have one.
			s.db[18], s.db[19] = 1, 1
		}
		err := conn.Raw(func(c any) error {
			return c.(interface{ Deserialize([]byte) error }).Deserialize(s.db)
		})
		if err != nil {
			return err
		}
	}
	return f(conn)
}

func openSnapshot(ctx context.Context, s snapshot) (db *sql.DB, cleanup func() error, err error) {
	if !s.sidecars() {
		db, err = sql.Open("sqlite", ":memory:")
		return db, func() error { return nil }, err
	}
	dir, err := os.MkdirTemp("", "libpoddb-*")
	if err != nil {
		return nil, nil, err
	}
	path := filepath.Join(dir, "db.sql")
	if err = s.write(path); err == nil {
		db, err = openSQLite(ctx, path)
	}
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return db, func() error { return os.RemoveAll(dir) }, nil
}

// write puts the snapshot at path, sidecars beside it; stale ones are removed.
func (s snapshot) write(path string) error {
	for _, part := range []struct {
		suffix string
		data   []byte
	}{{"-journal", s.journal}, {"-wal", s.wal}, {"-shm", nil}, {"", s.db}} {
		if err := os.Remove(path + part.suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if len(part.data) == 0 && part.suffix != "" {
			continue
		}
		if err := os.WriteFile(path+part.suffix, part.data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// settle plays back what an interrupted transaction left beside the database
// at path, so that the file alone is the whole.
func settle(ctx context.Context, path string) error {
	db, err := openSQLite(ctx, path)
	if err != nil {
		return err
	}
	var mode string
	err = db.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode)
	if err == nil && mode == "wal" {
		var busy, pages, moved int
		err = db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &pages, &moved)
		if err == nil && busy != 0 {
			err = ErrBusy
		}
	}
	if err == nil {
		var n int // the first read plays back a rollback journal
		err = db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master").Scan(&n)
	}
	return sqliteError(errors.Join(err, db.Close()))
}
