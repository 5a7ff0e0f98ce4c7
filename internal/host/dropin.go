package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/unit"
	"github.com/google/renameio/v2"
)

// systemUnits is where the administrator's units are.
const systemUnits = "/etc/systemd/system"

// DropIn is a file that adds to a unit of the system's manager.
type DropIn struct {
	Unit string `json:"unit"`
	Name string `json:"name"` // of the file
	Text []byte `json:"text"`
}

// StoreDropIn makes a service wait for the mount of the store that it works on.
// A service that needs the store fails with it; but the manager of a rootless
// store's owner, user@UID.service, comes up without it, too, after systemd has
// tried: a lost disk must not lock the owner out, and nothing is written beneath
// because the empty mount point is immutable.
//
// ok is false for what is no service, and for a path with control characters. A
// socket must not wait: it is ordered before
// basic.target, and a mount that needs the network after it; systemd would break
// the circle by leaving something out. Its service waits.
func StoreDropIn(unit, run, path string) (d DropIn, ok bool) {
	if !strings.HasSuffix(unit, ".service") || strings.ContainsFunc(path, unicode.IsControl) {
		return DropIn{}, false
	}
	text := runComment + run + "\n[Unit]\n"
	if strings.HasPrefix(unit, "user@") {
		// Names of units are taken as they stand, backslashes and all; in quotes
		// they would be no names (seen, systemd 252).
		m := MountUnitName(path)
		text += "Wants=" + m + "\nAfter=" + m + "\n"
	} else {
		quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(path)
		text += `RequiresMountsFor="` + quoted + "\"\n"
	}
	return DropIn{Unit: unit, Name: dropInName(run), Text: []byte(text)}, true
}

// DeviceDropIn has systemd wait longer than usual for a device that a unit of
// [MountUnitFiles] mounts; a line in fstab says that itself.
func DeviceDropIn(device, run string, wait time.Duration) DropIn {
	text := runComment + run + "\n[Unit]\nJobRunningTimeoutSec=" + seconds(wait) + "\n"
	return DropIn{Unit: unit.UnitNamePathEscape(device) + ".device", Name: dropInName(run), Text: []byte(text)}
}

// TrimDropIn has systemd's weekly fstrim.service tell the device below path, too, what
// is free: that service works through fstab, and leaves out what units mount. Others than
// root may change the path there: where it leads through a link nothing is done. ok is false
// for a path with control characters.
func TrimDropIn(run, path string) (d DropIn, ok bool) {
	if strings.ContainsFunc(path, unicode.IsControl) {
		return DropIn{}, false
	}
	quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(path)
	text := runComment + run + "\n[Service]\nExecStart=-/bin/sh -c '" +
		`test "$$(readlink -f -- "$$1")" = "$$1" && exec timeout 6h /sbin/fstrim --verbose --quiet-unsupported "$$1"` + "' sh \"" + quoted + "\"\n"
	return DropIn{Unit: "fstrim.service", Name: dropInName(run), Text: []byte(text)}, true
}

// dropInName is the same for all units that a run adds to.
func dropInName(run string) string { return "50-storagectl-" + run + ".conf" }

func (d DropIn) path(root string) (dir, file string, err error) {
	if root == "" {
		root = systemUnits
	}
	for _, name := range []string{d.Unit, d.Name} {
		if name != filepath.Base(name) || !filepath.IsLocal(name) {
			return "", "", fmt.Errorf("cannot add to unit %q: bad name", name)
		}
	}
	dir = filepath.Join(root, d.Unit+".d")
	return dir, filepath.Join(dir, d.Name), nil
}

// HasDropIn reports whether the file is there as it should be. The root is the
// folder of units, /etc/systemd/system if empty.
func HasDropIn(root string, d DropIn) (bool, error) {
	_, file, err := d.path(root)
	if err != nil {
		return false, err
	}
	now, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot look at %s: %w", file, err)
	}
	return bytes.Equal(now, d.Text), nil
}

// WriteDropIn writes the file, whole or not at all, and it is on the disk when it
// returns. systemd heeds it after [Bus.Reload].
func WriteDropIn(root string, d DropIn) error {
	dir, file, err := d.path(root)
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		err = renameio.WriteFile(file, d.Text, 0o644, renameio.IgnoreUmask(), renameio.WithTempDir(dir))
	}
	if err != nil {
		return fmt.Errorf("cannot add to unit %s: %w", d.Unit, err)
	}
	return errors.Join(SyncDir(dir), SyncDir(filepath.Dir(dir)))
}

// RemoveDropIn takes the file away, and its folder if nothing else is in it.
func RemoveDropIn(root string, d DropIn) error {
	dir, file, err := d.path(root)
	if err != nil {
		return err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot take away what was added to unit %s: %w", d.Unit, err)
	}
	if err := os.Remove(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return SyncDir(dir) // others have something there
	}
	return SyncDir(filepath.Dir(dir))
}
