package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
)

// MountUnitName is the unit that systemd has for a mount point.
func MountUnitName(path string) string { return unit.UnitNamePathEscape(path) + ".mount" }

// AutomountUnitName is the unit that mounts it when it is first used.
func AutomountUnitName(path string) string { return unit.UnitNamePathEscape(path) + ".automount" }

// MountUnit is what systemd says of a .mount or .automount unit.
type MountUnit struct {
	Name       string `json:"name"`
	Load       string `json:"load"`   // loaded, not-found, masked, …
	Active     string `json:"active"` // active, inactive, failed, activating, …
	Sub        string `json:"sub"`    // mounted, dead; of an automount: waiting, running
	Result     string `json:"result"`
	Where      string `json:"where"`
	What       string `json:"what,omitempty"`       // of a mount: the source
	Type       string `json:"type,omitempty"`       // of a mount
	Options    string `json:"options,omitempty"`    // of a mount
	Fragment   string `json:"fragment,omitempty"`   // the unit's file; empty: only seen in the table of mounts
	Source     string `json:"source,omitempty"`     // what the file was generated from: /etc/fstab
	Queued     bool   `json:"queued,omitempty"`     // something is to become of it, such as a start that waits for its device
	NeedReload bool   `json:"needReload,omitempty"` // systemd has not read what is on the disk
}

// Configured reports whether systemd would mount it by itself, rather than know
// it only because somebody did.
func (m MountUnit) Configured() bool { return m.Load == "loaded" && m.Fragment != "" }

// LookMountUnit asks for a .mount or .automount unit. One that is not there is no
// error: Load says not-found.
func (b *Bus) LookMountUnit(ctx context.Context, name string) (MountUnit, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	p, err := b.conn.GetAllPropertiesContext(ctx, name)
	if err != nil {
		return MountUnit{}, fmt.Errorf("cannot look at unit %s: %w", name, err)
	}
	text := func(key string) string {
		s, _ := p[key].(string)
		return s
	}
	m := MountUnit{
		Name: name, Load: text("LoadState"), Active: text("ActiveState"), Sub: text("SubState"), Result: text("Result"),
		Where: text("Where"), What: text("What"), Type: text("Type"), Options: text("Options"),
		Fragment: text("FragmentPath"), Source: text("SourcePath"),
	}
	m.NeedReload, _ = p["NeedDaemonReload"].(bool)
	if job, ok := p["Job"].([]any); ok && len(job) > 0 {
		id, _ := job[0].(uint32)
		m.Queued = id != 0
	}
	if m.Load == "" || m.Active == "" {
		return MountUnit{}, fmt.Errorf("cannot look at unit %s: systemd does not tell its state", name)
	}
	return m, nil
}

// Reload makes systemd read units and fstab again. It changes no mount: a new
// automount has to be started.
func (b *Bus) Reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, unitDeadline)
	defer cancel()
	if err := b.conn.ReloadContext(ctx); err != nil {
		return fmt.Errorf("cannot make systemd read its units again: %w", err)
	}
	return nil
}

// StartMount starts the automount of a path, if systemd has one, else its mount,
// and returns when the table of mounts shows it: an autofs, or whatever else.
func (b *Bus) StartMount(ctx context.Context, path string) error {
	name := AutomountUnitName(path)
	m, err := b.LookMountUnit(ctx, name)
	if err != nil {
		return err
	}
	if !m.Configured() {
		name = MountUnitName(path)
	}
	if err := b.Start(ctx, name); err != nil {
		return err
	}
	t, err := Mounts()
	if err != nil {
		return err
	}
	if len(t.Stack(path)) == 0 {
		return fmt.Errorf("cannot start %s: nothing is mounted at %s afterwards", name, path)
	}
	return nil
}

// StopMount stops the mount of a path and its automount, if there is one, and
// returns when nothing is mounted there. Where something is in use, the error is
// a [*BusyError], and the automount stays as a rule.
//
// The mount goes first: with an automount that is stopped, systemd detaches what
// is mounted on it even while it is in use (seen, systemd 252), and programs would
// go on writing to a filesystem that nobody sees. Should somebody trigger it in
// between, that is found out afterwards, and is a [*BusyError], too.
func (b *Bus) StopMount(ctx context.Context, path string) error {
	t, err := Mounts()
	if err != nil {
		return err
	}
	was, mounted := t.At(path)
	for _, name := range []string{MountUnitName(path), AutomountUnitName(path)} {
		m, err := b.LookMountUnit(ctx, name)
		if err != nil {
			return err
		}
		if (m.Active == "inactive" || m.Active == "failed") && !m.Queued {
			continue
		}
		if err := b.Stop(ctx, name); err != nil {
			if t, err2 := Mounts(); err2 == nil {
				if at, ok := t.At(path); ok {
					return errors.Join(busy(path, at.Dev()), err)
				}
			}
			return err
		}
	}
	if t, err = Mounts(); err != nil {
		return err
	}
	if at := t.Stack(path); len(at) > 0 {
		return fmt.Errorf("cannot unmount %s: %s is mounted there still", path, at[0].Source)
	}
	elsewhere := slices.ContainsFunc(t, func(m Mount) bool { return m.Dev() == was.Dev() })
	if mounted && !elsewhere {
		if who := Holders(was.Dev()); len(who) > 0 {
			return &BusyError{Path: path, Holders: who}
		}
	}
	return nil
}

// Requirers are the active units that systemd stops with the mount of a path.
func (b *Bus) Requirers(ctx context.Context, path string) ([]string, error) {
	p, err := b.conn.GetUnitPropertyContext(ctx, MountUnitName(path), "RequiredBy")
	if err != nil {
		return nil, fmt.Errorf("cannot see what requires the mount of %s: %w", path, err)
	}
	all, _ := p.Value.Value().([]string)
	var active []string
	for _, unit := range all {
		if unit == AutomountUnitName(path) {
			continue
		}
		on, err := b.Active(ctx, unit)
		if err != nil {
			return nil, err
		}
		if on {
			active = append(active, unit)
		}
	}
	return active, nil
}

// WaitsFor reports whether systemd starts a unit only after it has tried to mount
// a path. It is for looking what has become of a [DropIn]: what systemd does not
// like in one it leaves out with a warning.
func (b *Bus) WaitsFor(ctx context.Context, unit, path string) (bool, error) {
	p, err := b.conn.GetUnitPropertyContext(ctx, unit, "After")
	if err != nil {
		return false, fmt.Errorf("cannot look at unit %s: %w", unit, err)
	}
	after, _ := p.Value.Value().([]string)
	return slices.Contains(after, MountUnitName(path)), nil
}
