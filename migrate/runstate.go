package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/migrate/convert"
)

// clearRunState moves what a driver has in the runroot into a folder beside it:
// mount counts, locks and the run folders of containers, without which podman
// does not start them again before the next boot. Nothing else in the runroot is
// podman's alone to lose (auth.json lies there), so nothing else is touched.
func clearRunState(a runArgs) error {
	for _, n := range a.parts() {
		from := filepath.Join(a.RunRoot, n)
		there, err := exists(from)
		if err != nil {
			return err
		}
		if !there {
			continue
		}
		if mounted, err := mountsBelow(from); err != nil {
			return err
		} else if len(mounted) > 0 {
			return fmt.Errorf("cannot clear %s: %s is mounted in it", from, strings.Join(mounted, ", "))
		}
		to := filepath.Join(a.Aside, n)
		if there, err := exists(to); err != nil {
			return err
		} else if there { // of an earlier try; podman has made these anew since
			if err := os.RemoveAll(from); err != nil {
				return fmt.Errorf("cannot clear run state: %w", err)
			}
			continue
		}
		if err := os.MkdirAll(a.Aside, 0o700); err != nil {
			return fmt.Errorf("cannot clear run state: %w", err)
		}
		if err := move(from, to); err != nil {
			return err
		}
	}
	return nil
}

// carryRunFolders gives the containers' run folders to another driver, too: a
// container that is stopped, not new, expects its own when it starts. A folder
// is there whole or not at all.
func carryRunFolders(ctx context.Context, runRoot, from, to string) error {
	old, dir := filepath.Join(runRoot, from+"-containers"), filepath.Join(runRoot, to+"-containers")
	es, err := os.ReadDir(old)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // after a reboot; podman makes them anew
	}
	if err != nil {
		return fmt.Errorf("cannot list run folders: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot carry run folders over: %w", err)
	}
	for _, e := range es {
		if there, err := exists(filepath.Join(dir, e.Name())); err != nil {
			return err
		} else if there || !e.IsDir() {
			continue
		}
		half := filepath.Join(dir, ".half-"+e.Name())
		if err := convert.CopyTree(ctx, filepath.Join(old, e.Name()), half); err != nil {
			return err
		}
		if err := move(half, filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// restoreRunState puts back what clearRunState moved aside, if no reboot has
// taken it: podman makes it anew then.
func restoreRunState(a runArgs) error {
	for _, n := range a.parts() {
		from, to := filepath.Join(a.Aside, n), filepath.Join(a.RunRoot, n)
		there, err := exists(from)
		if err != nil {
			return err
		}
		if !there {
			continue
		}
		if err := os.RemoveAll(to); err != nil {
			return fmt.Errorf("cannot restore run state: %w", err)
		}
		if err := move(from, to); err != nil {
			return err
		}
	}
	return nil
}

// forgetRunState removes run state that nobody will want back.
func forgetRunState(aside string) error {
	if !strings.HasPrefix(filepath.Base(aside), ".storagectl-") {
		return fmt.Errorf("cannot remove %s: it is not a run's folder", aside)
	}
	if err := os.RemoveAll(aside); err != nil {
		return fmt.Errorf("cannot remove run state: %w", err)
	}
	return nil
}

func (a runArgs) parts() []string {
	parts := []string{a.Driver + "-layers", a.Driver + "-locks", a.Driver + "-containers", a.Driver}
	if a.Same {
		parts = slices.DeleteFunc(parts, func(p string) bool { return p == a.Driver+"-containers" })
	}
	return parts
}

func runStateCleared(a runArgs) (bool, error) {
	for _, n := range a.parts() {
		if ok, err := exists(filepath.Join(a.RunRoot, n)); err != nil || ok {
			return false, err
		}
	}
	return true, nil
}
