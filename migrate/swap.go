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

	"github.com/storagectl/storagectl/internal/host"
)

// swap describes a cutover: the parts of From leave the graphroot for old/, the
// parts of To come in from new/.
type swap struct {
	GraphRoot string `json:"graphRoot"`
	Folder    string `json:"folder"`
	From      string `json:"from"`
	To        string `json:"to"`
	// Native has the new store say that it never had a mount program. Podman
	// from 4.0 on otherwise walks the whole store to find out, when it first
	// opens it and everybody waits; before 4.0 it took the file itself, whatever
	// it said, as a yes (containers/storage 1.38 and 1.30,
	// drivers/overlay/overlay.go, SupportsNativeOverlay).
	Native bool `json:"native"`
}

func (s swap) old(name string) string { return filepath.Join(s.Folder, "old", name) }
func (s swap) new(name string) string { return filepath.Join(s.Folder, "new", name) }
func (s swap) live(name string) string {
	return filepath.Join(s.GraphRoot, name)
}

// in reports whether the cutover stands: all of To is live and in new/ no more,
// nothing of From is live, and its layers, at least, are in old/.
func (s swap) in() (bool, error) {
	if placed, err := s.placed(); err != nil || !placed {
		return false, err
	}
	for _, n := range storeParts(s.From) {
		if s.From == s.To {
			break // what is live is the new one
		}
		if live, err := exists(s.live(n)); err != nil || live {
			return false, err
		}
	}
	return exists(s.old(s.From + "-layers"))
}

// placed reports whether all of To is live and in new/ no more.
func (s swap) placed() (bool, error) {
	for _, n := range storeParts(s.To) {
		live, err1 := exists(s.live(n))
		staged, err2 := exists(s.new(n))
		if err := errors.Join(err1, err2); err != nil || !live || staged {
			return false, err
		}
	}
	return true, nil
}

// newLive reports whether the new store is in use, whatever strays lie beside it.
func (s swap) newLive() (bool, error) {
	live, err := exists(s.live(s.To + "-layers"))
	if err != nil || !live {
		return false, err
	}
	return exists(s.old(s.From + "-layers"))
}

// out reports whether the old store is live again, whole.
func (s swap) out() (bool, error) {
	for _, n := range storeParts(s.From) {
		if kept, err := exists(s.old(n)); err != nil || kept {
			return false, err
		}
	}
	return exists(s.live(s.From + "-layers"))
}

// do makes the cutover, from any state that a crash can have left. It returns
// the folder of strays, "" if there were none worth keeping.
func (s swap) do() (strays string, err error) {
	if err := os.MkdirAll(filepath.Join(s.Folder, "old"), 0o700); err != nil {
		return "", fmt.Errorf("cannot make room for the old store: %w", err)
	}
	for _, n := range storeParts(s.From) {
		if gone, err := s.left(n); err != nil {
			return strays, err
		} else if gone {
			continue
		}
		if err := s.shift(n, s.live(n), s.old(n), &strays); err != nil {
			return strays, err
		}
	}
	if err := s.arrive(&strays); err != nil {
		return strays, err
	}
	return strays, s.sync()
}

// left reports, where both stores have parts of the same names, that the old one's is
// aside: what is live by this name is the new one's, then, or a stray.
func (s swap) left(name string) (bool, error) {
	if s.From != s.To {
		return false, nil
	}
	return exists(s.old(name))
}

// arrive moves the parts of To in.
func (s swap) arrive(strays *string) error {
	if err := s.sayNative(); err != nil {
		return err
	}
	for _, n := range storeParts(s.To) {
		if err := s.shift(n, s.new(n), s.live(n), strays); err != nil {
			return err
		}
	}
	return nil
}

func (s swap) sayNative() error {
	staged, err := exists(s.new("overlay"))
	if err != nil || !s.Native || !staged {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.new("overlay"), markName), []byte("false"), 0o600); err != nil {
		return fmt.Errorf("cannot mark the new store as native: %w", err)
	}
	return syncDirs(s.new("overlay"))
}

// undo takes the cutover back, from any state that a crash can have left. What
// was made in the new store since is in new/ then. It returns strays as do does.
func (s swap) undo() (strays string, err error) {
	for _, n := range storeParts(s.To) {
		if gone, err := s.left(n); err != nil {
			return strays, err
		} else if s.From == s.To && !gone {
			continue // what is live is the old one
		}
		if err := s.shift(n, s.live(n), s.new(n), &strays); err != nil {
			return strays, err
		}
	}
	for _, n := range storeParts(s.From) {
		if err := s.shift(n, s.old(n), s.live(n), &strays); err != nil {
			return strays, err
		}
	}
	return strays, s.sync()
}

// shift renames one part of a store. Where both ends are there, podman was
// started while the part was away and made a new one in the graphroot. That one
// gives way: empty it goes with the run's folder, with content it is kept in a
// folder of its own, which nothing of ours ever removes.
func (s swap) shift(name, from, to string, strays *string) error {
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
	dir := filepath.Join(s.Folder, "stray")
	if used {
		dir = s.strayFolder()
		*strays = dir
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make room for %s: %w", name, err)
	}
	aside := filepath.Join(dir, name)
	for i := 2; ; i++ { // it can happen more than once in a run
		there, err := exists(aside)
		if err != nil {
			return err
		}
		if !there {
			break
		}
		aside = filepath.Join(dir, fmt.Sprintf("%s.%d", name, i))
	}
	if err := move(stray, aside); err != nil {
		return err
	}
	if err := syncDirs(dir, s.GraphRoot); err != nil {
		return err
	}
	if stray == to {
		return move(from, to)
	}
	return nil
}

// strayFolder keeps what podman made in the store's place while it was away.
func (s swap) strayFolder() string { return s.Folder + straySuffix }

const straySuffix = "-stray"

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
		if json.Unmarshal(b, &recs) != nil {
			return true, nil //nolint:nilerr // perhaps somebody's
		}
		return len(recs) > 0, nil
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
	err := host.RenameNew(unix.AT_FDCWD, from, unix.AT_FDCWD, to)
	if errors.Is(err, unix.EBUSY) {
		if err := detachSelf(from); err != nil {
			return err
		}
		err = host.RenameNew(unix.AT_FDCWD, from, unix.AT_FDCWD, to)
	}
	if err != nil {
		return fmt.Errorf("cannot rename %s to %s: %w", from, to, err)
	}
	return nil
}

// detachSelf takes away, in this worker's mount namespace, a mount of a folder
// on itself. The overlay driver makes one of its home, and a podman that was
// killed leaves it behind. A mount of another filesystem stays.
func detachSelf(path string) error {
	mounted, err := isMountpoint(path)
	if err != nil || !mounted {
		return err
	}
	var here, parent unix.Stat_t
	if err := errors.Join(unix.Lstat(path, &here), unix.Lstat(filepath.Dir(path), &parent)); err != nil {
		return fmt.Errorf("cannot look at %s: %w", path, err)
	}
	if here.Dev != parent.Dev {
		return fmt.Errorf("cannot move %s: another filesystem is mounted there", path)
	}
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("cannot detach the mount of %s on itself: %w", path, err)
	}
	return nil
}
