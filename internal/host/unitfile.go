package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/google/renameio/v2"
)

// UnitFile is a unit of the system's manager that storagectl makes.
type UnitFile struct {
	Name     string `json:"name"`
	Text     []byte `json:"text"`
	WantedBy string `json:"wantedBy,omitempty"` // the target that starts it at boot
}

// UnitTakenError says that there is a unit of that name which is not the run's.
type UnitTakenError struct{ Path string }

func (e *UnitTakenError) Error() string {
	return fmt.Sprintf("cannot make unit %s: somebody else's is there", e.Path)
}

// MountUnitFiles says in units what a line of fstab would say. They are for a
// mount point that others than root can replace ([Changeable]): systemd makes the
// unit of a line in fstab for the place that the path leads to at boot, so that who
// puts a symbolic link there has root mount what they like over /etc; but a unit
// whose own path leads through a link is refused (both seen, systemd 252). Between
// that look and the mount remains a moment, in which the same can be tried.
func MountUnitFiles(e FstabEntry, how FstabHow, run string) ([]UnitFile, error) {
	if err := checkRun(run); err != nil {
		return nil, err
	}
	// Options of [FstabOptions] that are for the generator are units' settings here.
	options := []string{"noatime"}
	wantedBy := "local-fs.target"
	if how.Boot || how.Wait > 0 {
		options = append(options, "nofail") // else boot waits for it (systemd.mount(5))
	}
	if how.Network {
		options = append(options, "_netdev")
		if how.Boot {
			wantedBy = "remote-fs.target" // an automount itself needs no network
		}
	}
	options = append(append(options, how.More...), runOption+run)
	values := map[string]string{"Where": filepath.Clean(e.Path), "What": e.Source, "Type": e.Type, "Options": strings.Join(options, ",")}
	for key, v := range values {
		if v == "" || strings.ContainsFunc(v, unicode.IsControl) || strings.TrimSpace(v) != v || strings.HasSuffix(v, `\`) || strings.HasPrefix(v, `"`) {
			return nil, fmt.Errorf("cannot say in a unit: %s=%q", key, v)
		}
		values[key] = strings.ReplaceAll(v, "%", "%%")
	}
	if !filepath.IsAbs(e.Path) {
		return nil, fmt.Errorf("cannot say in a unit: %q is not absolute", e.Path)
	}
	head := runComment + run + "\n[Unit]\n"
	m := head
	for _, u := range how.Requires {
		m += "Requires=" + u + "\nAfter=" + u + "\n"
	}
	for _, u := range how.After {
		m += "After=" + u + "\n"
	}
	m += "\n[Mount]\n"
	for _, key := range []string{"What", "Where", "Type", "Options"} {
		m += key + "=" + values[key] + "\n"
	}
	if how.Wait > 0 { // for its device there is [DeviceDropIn]
		m += "TimeoutSec=" + seconds(how.Wait) + "\n"
	}
	if env := how.Environment; env != "" {
		if strings.ContainsFunc(env, unicode.IsControl) || strings.ContainsAny(env, `"\$`) {
			return nil, fmt.Errorf("cannot say in a unit: Environment=%q", env)
		}
		m += `Environment="` + strings.ReplaceAll(env, "%", "%%") + "\"\n"
	}
	mount := UnitFile{Name: MountUnitName(e.Path), Text: []byte(m)}
	if how.Boot {
		mount.WantedBy = wantedBy
		return []UnitFile{mount}, nil
	}
	a := head + "\n[Automount]\nWhere=" + values["Where"] + "\n"
	return []UnitFile{mount, {Name: AutomountUnitName(e.Path), Text: []byte(a), WantedBy: wantedBy}}, nil
}

func (u UnitFile) paths(root string) (file, link string, err error) {
	if root == "" {
		root = systemUnits
	}
	for _, name := range []string{u.Name, u.WantedBy + "."} {
		if name != filepath.Base(name) || !filepath.IsLocal(name) {
			return "", "", fmt.Errorf("cannot make unit %q: bad name", u.Name)
		}
	}
	file = filepath.Join(root, u.Name)
	if u.WantedBy != "" {
		link = filepath.Join(root, u.WantedBy+".wants", u.Name)
	}
	return file, link, nil
}

// HasUnitFile reports whether the unit is there as it should be, and started at
// boot. The root is the folder of units, /etc/systemd/system if empty.
func HasUnitFile(root string, u UnitFile) (bool, error) {
	file, link, err := u.paths(root)
	if err != nil {
		return false, err
	}
	now, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot look at unit %s: %w", file, err)
	}
	if link != "" {
		to, err := os.Readlink(link)
		if errors.Is(err, fs.ErrNotExist) || err == nil && to != file {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("cannot look at unit %s: %w", file, err)
		}
	}
	return bytes.Equal(now, u.Text), nil
}

// WriteUnitFile makes the unit, whole or not at all, and has it started at boot;
// all is on the disk when it returns. One that another run or somebody else made
// is a [*UnitTakenError]. systemd heeds it after [Bus.Reload].
func WriteUnitFile(root string, u UnitFile) error {
	file, link, err := u.paths(root)
	if err != nil {
		return err
	}
	if err := ours(file, u); err != nil {
		return err
	}
	if err := renameio.WriteFile(file, u.Text, 0o644, renameio.IgnoreUmask(), renameio.WithTempDir(filepath.Dir(file))); err != nil {
		return fmt.Errorf("cannot make unit %s: %w", u.Name, err)
	}
	if link != "" {
		err := os.MkdirAll(filepath.Dir(link), 0o755)
		if err == nil {
			err = renameio.Symlink(file, link)
		}
		if err != nil {
			return fmt.Errorf("cannot make unit %s: %w", u.Name, err)
		}
		if err := SyncDir(filepath.Dir(link)); err != nil {
			return err
		}
	}
	return SyncDir(filepath.Dir(file))
}

// RemoveUnitFile takes the unit of a run away, and what starts it at boot. One
// that is not the run's stays, and is a [*UnitTakenError].
func RemoveUnitFile(root string, u UnitFile) error {
	file, link, err := u.paths(root)
	if err != nil {
		return err
	}
	if err := ours(file, u); err != nil {
		return err
	}
	for _, path := range []string{link, file} {
		if path == "" {
			continue
		}
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot take away unit %s: %w", u.Name, err)
		}
		if err := SyncDir(filepath.Dir(path)); err != nil {
			return err
		}
	}
	return nil
}

// ours sees to it that a file is not there, or begins with the same comment of a
// run as the unit.
func ours(file string, u UnitFile) error {
	now, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot make unit %s: %w", u.Name, err)
	}
	mark, _, _ := strings.Cut(string(u.Text), "\n")
	if first, _, _ := strings.Cut(string(now), "\n"); first != mark || !strings.HasPrefix(mark, runComment) {
		return &UnitTakenError{file}
	}
	return nil
}
