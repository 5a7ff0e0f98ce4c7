package engine

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is a state directory: runs/<id>/ holds each run's journal and files,
// locks/<store> one lock for each store.
type Dir struct{ Path string }

// RunPath is the folder of a run.
func (d Dir) RunPath(run string) string { return filepath.Join(d.Path, "runs", run) }

// List names all runs, the oldest first. A state directory that is not there
// holds none.
func (d Dir) List() ([]string, error) {
	es, err := os.ReadDir(filepath.Join(d.Path, "runs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list runs: %w", err)
	}
	var runs []string
	for _, e := range es {
		// A folder without a journal is a run that was cut off before its first
		// record: it changed nothing, and there is nothing to tell of it.
		if _, err := os.Lstat(filepath.Join(d.RunPath(e.Name()), journalName)); e.IsDir() && err == nil {
			runs = append(runs, e.Name())
		}
	}
	slices.SortFunc(runs, func(a, b string) int { return cmp.Or(cmp.Compare(number(a), number(b)), cmp.Compare(a, b)) })
	return runs, nil
}

// number is what a run's id begins with: they grow, and may have any number of digits.
func number(run string) int {
	num, _, _ := strings.Cut(run, "-")
	n, err := strconv.Atoi(num)
	if err != nil { // no run's
		return 0
	}
	return n
}

// Find resolves a run's id, its unambiguous beginning, or "" for the latest.
// It returns [ErrNoRun] when there is none.
func (d Dir) Find(name string) (string, error) {
	runs, err := d.List()
	if err != nil {
		return "", err
	}
	if name == "" {
		if len(runs) == 0 {
			return "", fmt.Errorf("%w: none was begun yet in %s", ErrNoRun, d.Path)
		}
		return runs[len(runs)-1], nil
	}
	var hits []string
	for _, r := range runs {
		if r == name {
			return r, nil
		}
		if strings.HasPrefix(r, name) || strings.HasPrefix(strings.TrimLeft(r, "0"), name+"-") {
			hits = append(hits, r)
		}
	}
	switch len(hits) {
	case 0:
		return "", fmt.Errorf("%w: %q", ErrNoRun, name)
	case 1:
		return hits[0], nil
	}
	return "", fmt.Errorf("%w: %q means %s", ErrNoRun, name, strings.Join(hits, " or "))
}

// New makes a durable, empty folder for a new run and returns the run's id:
// a number that grows (a clock may jump), the job, and four random digits, so
// that runs of two state directories never share a name.
func (d Dir) New(job string) (string, error) {
	runs := filepath.Join(d.Path, "runs")
	if err := mkdirs(runs); err != nil {
		return "", err
	}
	es, err := os.ReadDir(runs)
	if err != nil {
		return "", fmt.Errorf("cannot list runs: %w", err)
	}
	n := 0
	for _, e := range es {
		n = max(n, number(e.Name()))
	}
	var r [2]byte
	if _, err := rand.Read(r[:]); err != nil {
		return "", fmt.Errorf("cannot name a run: %w", err)
	}
	id := fmt.Sprintf("%04d-%s-%s", n+1, job, hex.EncodeToString(r[:]))
	if err := os.Mkdir(d.RunPath(id), 0o700); err != nil {
		return "", fmt.Errorf("cannot make a run's folder: %w", err)
	}
	return id, syncDir(runs)
}

// Lock takes the lock of a store, so that one run at a time works on it. It
// returns [ErrLocked] when another process holds it, and not only for a look. The
// lock goes with the process, however it ends.
func (d Dir) Lock(store string) (*os.File, error) { return d.LockFor(store, "") }

// LockFor is Lock for work that is no run: who is what others are told who ask for the
// lock meanwhile.
func (d Dir) LockFor(store, who string) (*os.File, error) {
	dir := filepath.Join(d.Path, "locks")
	if err := mkdirs(dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, store), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock %s: %w", store, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	// Whoever only looks has it for a moment, too.
	for end := time.Now().Add(lookTime); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
			if who := signature(f); who != "" {
				err = fmt.Errorf("%w: %s", ErrLocked, who)
			}
		}
		return nil, errors.Join(fmt.Errorf("cannot lock %s: %w", store, err), f.Close())
	}
	if err := Sign(f, who); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot lock %s: %w", store, err), f.Close())
	}
	return f, nil
}

// lookTime is how long a lock is tried for that somebody may only be looking at, who
// may be kept from the CPU meanwhile.
const lookTime = 2 * time.Second

// Sign writes into a lock that this process holds who it is that holds it.
func Sign(lock *os.File, who string) error {
	err := lock.Truncate(0)
	if err == nil {
		_, err = lock.WriteAt([]byte(who), 0)
	}
	if err != nil {
		return fmt.Errorf("cannot sign the lock: %w", err)
	}
	return nil
}

func signature(lock *os.File) string {
	b := make([]byte, 200)
	n, _ := lock.ReadAt(b, 0)
	return string(b[:n])
}

// Locked tells whether somebody holds the lock of a store now, without keeping it.
func (d Dir) Locked(store string) (bool, error) {
	_, held, err := d.Holder(store)
	return held, err
}

// AtWork tells whether a process is at a run now, and else whether the lock of its store
// is somebody else's.
func (d Dir) AtWork(store, run string) (is, other bool, err error) {
	who, held, err := d.Holder(store)
	return held && who == run, held && who != run, err
}

// Holder is Locked, and tells who holds the lock, if that has signed it: "" otherwise.
func (d Dir) Holder(store string) (who string, held bool, err error) {
	f, err := os.Open(filepath.Join(d.Path, "locks", store))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("cannot look at the lock of %s: %w", store, err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return signature(f), true, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("cannot look at the lock of %s: %w", store, err)
	}
	return "", false, nil
}

// mkdirs makes a folder and its missing parents, each durable in its own parent.
func mkdirs(dir string) error {
	if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := mkdirs(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot make %s: %w", dir, err)
	}
	return syncDir(parent)
}
