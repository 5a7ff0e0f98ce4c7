package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// Unit is a whole unit of ours.
type Unit struct {
	Name string // of the unit and of its file
	Text []byte
}

// unitMark is the first line of each of them: what does not begin with it is not ours.
const unitMark = "# Written by storagectl. Changes are lost with the next \"storagectl runbook install\".\n"

// ForeignUnitError reports a unit that storagectl did not write.
type ForeignUnitError struct{ Path string }

func (e *ForeignUnitError) Error() string {
	return fmt.Sprintf("%s is there already, and not storagectl's", e.Path)
}

// OwnUnit reads a unit of ours, without its mark. Where there is none the error is
// [fs.ErrNotExist], and a [*ForeignUnitError] where somebody else wrote it. The root is
// the folder of units, /etc/systemd/system if empty.
func OwnUnit(root, name string) ([]byte, error) {
	path, err := unitPath(root, name)
	if err != nil {
		return nil, err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot look at unit %s: %w", name, err)
	}
	if !fi.Mode().IsRegular() { // a link: another's unit under this name, or masked
		return nil, &ForeignUnitError{path}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot look at unit %s: %w", name, err)
	}
	text, ours := bytes.CutPrefix(b, []byte(unitMark))
	if !ours {
		return nil, &ForeignUnitError{path}
	}
	return text, nil
}

// WriteUnit writes a unit, whole or not at all, and it is on the disk when it returns.
// systemd heeds it after [Bus.Reload]. It never replaces another's.
func WriteUnit(root string, u Unit) error {
	if _, err := OwnUnit(root, u.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	path, err := unitPath(root, u.Name)
	if err == nil {
		err = renameio.WriteFile(path, append([]byte(unitMark), u.Text...), 0o644, renameio.IgnoreUmask(), renameio.WithTempDir(filepath.Dir(path)))
	}
	if err != nil {
		return fmt.Errorf("cannot write unit %s: %w", u.Name, err)
	}
	return SyncDir(filepath.Dir(path))
}

// RemoveUnit takes a unit of ours away, if it is there.
func RemoveUnit(root, name string) error {
	if _, err := OwnUnit(root, name); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	path, err := unitPath(root, name)
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("cannot remove unit %s: %w", name, err)
	}
	return SyncDir(filepath.Dir(path))
}

// OwnUnits names the units of ours that begin so.
func OwnUnits(root, prefix string) ([]string, error) {
	if root == "" {
		root = systemUnits
	}
	es, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("cannot list units: %w", err)
	}
	var names []string
	for _, e := range es {
		if !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		if _, err := OwnUnit(root, e.Name()); err == nil {
			names = append(names, e.Name())
		} else if foreign := (*ForeignUnitError)(nil); !errors.As(err, &foreign) {
			return nil, err
		}
	}
	return names, nil
}

func unitPath(root, name string) (string, error) {
	if root == "" {
		root = systemUnits
	}
	if name != filepath.Base(name) || !filepath.IsLocal(name) {
		return "", fmt.Errorf("%q is no name of a unit", name)
	}
	return filepath.Join(root, name), nil
}

// Enable has each boot start a unit, and looks.
func (b *Bus) Enable(ctx context.Context, unit string) error {
	ctx, cancel := context.WithTimeout(ctx, unitDeadline)
	defer cancel()
	if _, _, err := b.conn.EnableUnitFilesContext(ctx, []string{unit}, false, false); err != nil {
		return fmt.Errorf("cannot enable %s: %w", unit, err)
	}
	if err := b.Reload(ctx); err != nil {
		return err
	}
	if on, err := b.Enabled(ctx, unit); err != nil || !on {
		return errors.Join(fmt.Errorf("cannot enable %s: it is not, afterwards", unit), err)
	}
	return nil
}

// Disable has no boot start a unit, and looks.
func (b *Bus) Disable(ctx context.Context, unit string) error {
	ctx, cancel := context.WithTimeout(ctx, unitDeadline)
	defer cancel()
	if _, err := b.conn.DisableUnitFilesContext(ctx, []string{unit}, false); err != nil {
		return fmt.Errorf("cannot disable %s: %w", unit, err)
	}
	if err := b.Reload(ctx); err != nil {
		return err
	}
	if on, err := b.Enabled(ctx, unit); err != nil || on {
		return errors.Join(fmt.Errorf("cannot disable %s: it is enabled still", unit), err)
	}
	return nil
}

// NextElapse is when a timer elapses next by its calendar; zero: never.
func (b *Bus) NextElapse(ctx context.Context, timer string) (time.Time, error) {
	p, err := b.conn.GetUnitTypePropertyContext(ctx, timer, "Timer", "NextElapseUSecRealtime")
	if err != nil {
		return time.Time{}, fmt.Errorf("cannot look at unit %s: %w", timer, err)
	}
	us, ok := p.Value.Value().(uint64)
	if !ok || us == 0 || us > math.MaxInt64 {
		return time.Time{}, nil
	}
	return time.UnixMicro(int64(us)), nil
}

// AwaitUp waits until a unit is up, as long as ctx lasts. One that has failed is an
// error at once.
func (b *Bus) AwaitUp(ctx context.Context, unit string) error {
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		s, err := b.UnitState(ctx, unit)
		if err != nil {
			return err
		}
		if s.Active == "active" {
			return nil
		}
		if s.Active == "failed" || s.Load == "not-found" || s.Load == "masked" {
			return fmt.Errorf("unit %s is %s, %s", unit, s.Load, s.Active)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("unit %s is %s: %w", unit, s.Active, ctx.Err())
		case <-t.C:
		}
	}
}
