package libpoddb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// saved is the record written after a copy is complete; without it a copy does
// not count.
type saved struct {
	Schema int    `json:"schema"` // 1
	Kind   Kind   `json:"kind"`
	Path   string `json:"path"`
	Size   int64  `json:"size"`   // bytes
	SHA256 string `json:"sha256"` // hex
	Mode   uint32 `json:"mode"`   // permission bits
	UID    int    `json:"uid"`
	GID    int    `json:"gid"`
}

// Save keeps a consistent copy of the database at path in dstDir, as
// dstDir/<name> with a record dstDir/<name>.saved.json; both are synced when it
// returns. The database is not changed; a transaction that a crash interrupted
// is undone in the copy. A complete copy that is there already is kept as it
// is, whatever path holds now; one that does not match its record is
// ErrDamaged.
func Save(ctx context.Context, path, dstDir string) error {
	if err := save(ctx, path, dstDir); err != nil {
		return fmt.Errorf("cannot save libpod database %s: %w", path, err)
	}
	return nil
}

// SaveAnew is Save of a database that may have been used since an earlier copy was
// made: one that does not match path any more is replaced. Between the two there is a
// moment without a complete copy, so path must be what is to be kept, and untouched by
// the caller until it returns. A copy that does not match its record is ErrDamaged.
func SaveAnew(ctx context.Context, path, dstDir string) error {
	dst := filepath.Join(dstDir, filepath.Base(path))
	r, err := readSaved(dst)
	if errors.Is(err, fs.ErrNotExist) {
		return Save(ctx, path, dstDir)
	}
	now := ""
	if err == nil {
		now, err = hashFile(path)
	}
	if err == nil && now == r.SHA256 {
		return nil
	}
	if err == nil {
		err = os.Remove(dst + ".saved.json")
	}
	if err == nil {
		err = syncDir(dstDir)
	}
	if err != nil {
		return fmt.Errorf("cannot save libpod database %s anew: %w", path, err)
	}
	return Save(ctx, path, dstDir)
}

func save(ctx context.Context, path, dstDir string) error {
	dst := filepath.Join(dstDir, filepath.Base(path))
	if _, err := readSaved(dst); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	kind, err := kindOf(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dstDir, 0o700); err != nil {
		return err
	}
	partial := dst + ".partial"
	if kind == BoltDB {
		err = copyBolt(ctx, path, partial)
	} else {
		var s snapshot
		if s, err = takeSnapshot(ctx, path); err == nil {
			err = s.write(partial)
		}
		if err == nil && s.sidecars() {
			err = settle(ctx, partial)
		}
	}
	if err != nil {
		return err
	}
	sum, size, err := syncAndHash(partial)
	if err != nil {
		return err
	}
	if err := os.Rename(partial, dst); err != nil {
		return err
	}
	r := saved{Schema: 1, Kind: kind, Path: path, Size: size, SHA256: sum, Mode: uint32(info.Mode().Perm())}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		r.UID, r.GID = int(st.Uid), int(st.Gid)
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	recordPartial := dst + ".saved.json.partial"
	if err := os.WriteFile(recordPartial, append(data, '\n'), 0o600); err != nil {
		return err
	}
	if _, _, err := syncAndHash(recordPartial); err != nil {
		return err
	}
	if err := syncDir(dstDir); err != nil { // the copy's name before the record's
		return err
	}
	if err := os.Rename(recordPartial, dst+".saved.json"); err != nil {
		return err
	}
	return syncDir(dstDir)
}

// readSaved gives the record of the copy at dst and sees that the copy matches
// it. fs.ErrNotExist: there is no complete copy.
func readSaved(dst string) (saved, error) {
	var r saved
	data, err := os.ReadFile(dst + ".saved.json")
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil || r.Schema != 1 {
		return r, damaged("record of the saved copy %s (schema %d): %v", dst, r.Schema, err)
	}
	sum, err := hashFile(dst)
	if errors.Is(err, fs.ErrNotExist) || err == nil && sum != r.SHA256 {
		return r, damaged("saved copy %s does not match its record", dst)
	}
	return r, err
}

// Saved tells whether dstDir holds a complete copy of the database of this
// path. ErrDamaged: it does, but the copy does not match its record.
func Saved(dstDir, path string) (bool, error) {
	_, err := readSaved(filepath.Join(dstDir, filepath.Base(path)))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Restore puts the copy that Save made in dstDir back at path, with its mode
// and owner. The path holds the present database or the saved one at every
// moment; the present one is kept in dstDir as <name>.replaced-<n>. Podman must
// be stopped. Where the saved one is in place already, nothing is done. It is
// synced when it returns. fs.ErrNotExist: there is no complete copy.
func Restore(ctx context.Context, dstDir, path string) error {
	if err := restore(ctx, dstDir, path); err != nil {
		return fmt.Errorf("cannot restore libpod database %s: %w", path, err)
	}
	return nil
}

func restore(ctx context.Context, dstDir, path string) error {
	dst := filepath.Join(dstDir, filepath.Base(path))
	r, err := readSaved(dst)
	if err != nil {
		return err
	}
	if err := retireSidecars(ctx, r.Kind, path, dstDir); err != nil {
		return err
	}
	now, err := hashFile(path)
	if err == nil && now == r.SHA256 {
		return syncDir(filepath.Dir(path))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if r.Kind == BoltDB && err == nil {
		// Wait for whoever has it open; a file too broken to open has nobody.
		db, err := openBolt(ctx, path, true)
		if errors.Is(err, ErrBusy) {
			return err
		}
		if err == nil {
			defer func() { _ = db.Close() }() // opened read-only, for its lock
		}
	}
	staged := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".storagectl")
	if err := copyFile(dst, staged); err != nil {
		return err
	}
	if err := os.Chown(staged, r.UID, r.GID); err != nil {
		return err
	}
	if err := os.Chmod(staged, fs.FileMode(r.Mode)); err != nil {
		return err
	}
	if sum, _, err := syncAndHash(staged); err != nil || sum != r.SHA256 {
		return errors.Join(err, damaged("copy of %s came out different", dst))
	}
	if err := keepAside(path, dst); err != nil {
		return err
	}
	if err := os.Rename(staged, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// retireSidecars gets rid of what an interrupted transaction left beside the
// present SQLite database: it is played back, or where that fails set aside. A
// journal left behind would be played into the restored file.
func retireSidecars(ctx context.Context, kind Kind, path, dstDir string) error {
	if kind != SQLite {
		return nil
	}
	var there []string
	for _, suffix := range []string{"-journal", "-wal", "-shm"} {
		if _, err := os.Lstat(path + suffix); err == nil {
			there = append(there, path+suffix)
		}
	}
	if len(there) == 0 {
		return nil
	}
	if err := settle(ctx, path); errors.Is(err, ErrBusy) {
		return err
	}
	for _, p := range there {
		err := keepAside(p, filepath.Join(dstDir, filepath.Base(p)))
		if err == nil {
			err = os.Remove(p)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(filepath.Dir(path))
}

// keepAside gives the file at path a second name <as>.replaced-<n>, or copies
// it there where it cannot be linked. A file kept already is not kept twice.
func keepAside(path, as string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		aside := as + ".replaced-" + strconv.Itoa(n)
		if there, err := os.Stat(aside); err == nil {
			if os.SameFile(there, info) {
				return nil
			}
			continue
		}
		err := os.Link(path, aside)
		if errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EMLINK) {
			if err = copyFile(path, aside+".partial"); err == nil {
				err = os.Rename(aside+".partial", aside)
			}
		}
		if err != nil {
			return err
		}
		return syncDir(filepath.Dir(aside))
	}
}

// copyBolt copies the file while holding bolt's lock against writers.
func copyBolt(ctx context.Context, path, dst string) error {
	db, err := openBolt(ctx, path, true)
	if err != nil {
		if info, e := os.Stat(path); e != nil || info.Size() != 0 {
			return err
		}
	} else {
		defer func() { _ = db.Close() }() // opened read-only, for its lock
	}
	return copyFile(path, dst)
}

// copyFile copies src to dst, which is made new, private and synced.
func copyFile(src, dst string) error {
	if err := os.Remove(dst); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

// syncAndHash makes a file's content durable and gives its hash and size.
func syncAndHash(path string) (sum string, size int64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return "", 0, err
	}
	h := sha256.New()
	size, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), size, err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
