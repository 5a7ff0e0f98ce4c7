package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// swap describes a cutover: the parts of From leave the graphroot for old/, the
// parts of To come in from new/.
type swap struct {
	GraphRoot string `json:"graphRoot"`
	Folder    string `json:"folder"`
	From      string `json:"from"`
	To        string `json:"to"`
}

func (s swap) old(name string) string { return filepath.Join(s.Folder, "old", name) }
func (s swap) new(name string) string { return filepath.Join(s.Folder, "new", name) }
func (s swap) live(name string) string {
	return filepath.Join(s.GraphRoot, name)
}

// in reports whether the cutover stands: all of To is live and in new/ no more,
// nothing of From is live, and its layers, at least, are in old/.
func (s swap) in() (bool, error) {
	for _, n := range storeParts(s.To) {
		live, err1 := exists(s.live(n))
		staged, err2 := exists(s.new(n))
		if err := errors.Join(err1, err2); err != nil || !live || staged {
			return false, err
		}
	}
	for _, n := range storeParts(s.From) {
		if live, err := exists(s.live(n)); err != nil || live {
			return false, err
		}
	}
	return exists(s.old(s.From + "-layers"))
}

// do makes the cutover, from any state that a crash can have left.
func (s swap) do() error {
	if err := os.MkdirAll(filepath.Join(s.Folder, "old"), 0o700); err != nil {
		return fmt.Errorf("cannot make room for the old store: %w", err)
	}
	for _, n := range storeParts(s.From) {
		if err := s.shift(n, s.live(n), s.old(n)); err != nil {
			return err
		}
	}
	for _, n := range storeParts(s.To) {
		if err := s.shift(n, s.new(n), s.live(n)); err != nil {
			return err
		}
	}
	return s.sync()
}

// undo takes the cutover back, from any state that a crash can have left. What
// was made in the new store since is in new/ then.
func (s swap) undo() error {
	for _, n := range storeParts(s.To) {
		if err := s.shift(n, s.live(n), s.new(n)); err != nil {
			return err
		}
	}
	for _, n := range storeParts(s.From) {
		if err := s.shift(n, s.old(n), s.live(n)); err != nil {
			return err
		}
	}
	return s.sync()
}

// shift renames one part of a store. Where both ends are there, podman was
// started while the part was away and made a new one in the graphroot: if that
// is empty it goes among the strays, if it holds anything there is no going on.
func (s swap) shift(name, from, to string) error {
	src, err1 := exists(from)
	dst, err2 := exists(to)
	if err := errors.Join(err1, err2); err != nil || !src {
		return err
	}
	if !dst {
		return move(from, to)
	}
	stray := from
	if to == s.live(name) {
		stray = to
	}
	used, err := partUsed(stray)
	if err != nil {
		return err
	}
	if used {
		return &strayError{Path: stray}
	}
	dir := filepath.Join(s.Folder, "stray")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make room for %s: %w", name, err)
	}
	// A name of its own: this can happen more than once in a run.
	aside, err := os.MkdirTemp(dir, name+".")
	if err != nil {
		return fmt.Errorf("cannot make room for %s: %w", name, err)
	}
	if err := move(stray, filepath.Join(aside, name)); err != nil {
		return err
	}
	if stray == to {
		return move(from, to)
	}
	return nil
}

func (s swap) sync() error {
	dirs := []string{s.GraphRoot, s.Folder}
	for _, d := range []string{"old", "new"} {
		if ok, err := exists(filepath.Join(s.Folder, d)); err != nil {
			return err
		} else if ok {
			dirs = append(dirs, filepath.Join(s.Folder, d))
		}
	}
	return syncDirs(dirs...)
}

// strayError reports that somebody used podman while the store was away.
type strayError struct{ Path string }

func (e *strayError) Error() string {
	return fmt.Sprintf("cannot go on: podman was used while its store was moved aside, and made %s, which is not empty; move it away, then resume", e.Path)
}

// partUsed reports whether a part of a store holds anything: records, or the
// folders of layers.
func partUsed(part string) (bool, error) {
	base := filepath.Base(part)
	for _, kind := range []string{"images", "layers", "containers"} {
		if !strings.HasSuffix(base, "-"+kind) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(part, kind+".json"))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("cannot see whether %s is in use: %w", part, err)
		}
		var recs []json.RawMessage
		// Records that cannot be read may be somebody's.
		return json.Unmarshal(b, &recs) != nil || len(recs) > 0, nil
	}
	for _, dir := range []string{part, filepath.Join(part, "dir")} { // overlay/<layer>, vfs/dir/<layer>
		es, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("cannot see whether %s is in use: %w", part, err)
		}
		for _, e := range es {
			if len(e.Name()) == 64 {
				return true, nil
			}
		}
	}
	return false, nil
}

// move renames and never replaces.
func move(from, to string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("cannot rename %s to %s: %w", from, to, err)
	}
	return nil
}
