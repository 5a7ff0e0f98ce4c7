package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/google/renameio/v2"
)

// withoutRange takes the line that the change made out of /etc/subuid or
// /etc/subgid. usermod --del-subuids does not while a process of the user's runs
// (seen, shadow 4.13), and somebody's always does where there is linger.
func (c Change) withoutRange(path string) error {
	unlock, err := lockShadow(path)
	if err != nil {
		return err
	}
	defer unlock()
	f, err := readSmall(path)
	if err != nil || !f.There {
		return err
	}
	var b strings.Builder
	for l := range strings.Lines(string(f.Content)) {
		p := strings.Split(strings.TrimSpace(l), ":")
		var start, count uint64
		if len(p) == 3 && p[0] == c.User {
			if _, err := fmt.Sscan(p[1], &start); err == nil {
				_, err = fmt.Sscan(p[2], &count)
				if err == nil && fmt.Sprintf("%d-%d", start, start+count-1) == c.After {
					continue
				}
			}
		}
		b.WriteString(l)
	}
	if b.String() == string(f.Content) {
		return nil
	}
	return renameio.WriteFile(path, []byte(b.String()), fs.FileMode(f.Mode))
}

// free sees to it that nobody else has an id of the range that the change gives.
func (c Change) free(path string) error {
	all, err := readRanges(path)
	if err != nil {
		return err
	}
	var first, last uint64
	if _, err := fmt.Sscanf(c.After, "%d-%d", &first, &last); err != nil {
		return fmt.Errorf("cannot read the range %q: %w", c.After, err)
	}
	for _, r := range all {
		if r.who != c.User && r.start <= last && first < r.start+r.count {
			return fmt.Errorf("cannot give %s the ids %s: %s has given %s some of them meanwhile", c.User, c.After, path, r.who)
		}
	}
	return nil
}

// lockShadow takes the lock that usermod takes on a file: a file beside it with
// the process's number, which counts only as long as the process lives.
func lockShadow(path string) (unlock func(), err error) {
	lock := path + ".lock"
	for range 2 {
		f, err := os.OpenFile(lock, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			_, err = fmt.Fprintf(f, "%d", os.Getpid())
			if err = errors.Join(err, f.Close()); err != nil {
				return nil, errors.Join(err, os.Remove(lock))
			}
			return func() { _ = os.Remove(lock) }, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		b, err := os.ReadFile(lock)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		pid := strings.TrimRight(string(b), "\x00\n")
		if _, err := os.Stat("/proc/" + pid); pid != "" && err == nil {
			return nil, fmt.Errorf("%s is locked by process %s", path, pid)
		}
		if err := gone(os.Remove(lock)); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s is locked", path)
}
