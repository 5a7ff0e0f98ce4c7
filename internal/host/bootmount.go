package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// BootMount is how a boot mounts something, as the administrator's files say.
type BootMount struct {
	Source   string   `json:"source"`
	Type     string   `json:"type"`
	Options  []string `json:"options,omitempty"`
	Requires []string `json:"requires,omitempty"` // units that the source comes from
	Fstab    bool     `json:"fstab,omitempty"`    // a line in fstab says it; else units in /etc/systemd/system
	Run      string   `json:"run,omitempty"`      // the run of storagectl that wrote it; "": somebody else did
}

// ErrNoBootMount says that no boot mounts anything at a path.
var ErrNoBootMount = errors.New("no boot mounts it: neither fstab nor a unit in " + systemUnits + " has it")

// FindBootMount tells how a boot mounts what belongs at a path. The error is
// [ErrNoBootMount] where it does not, and says why where what it does is not
// clear: two places tell of it, or one in words that only systemd understands.
func FindBootMount(fstab []byte, path string) (BootMount, error) {
	lines, err := ParseFstab(fstab)
	if err != nil {
		return BootMount{}, err
	}
	lines = slices.DeleteFunc(lines, func(l FstabLine) bool { return filepath.Clean(l.Path) != filepath.Clean(path) })
	text, err := os.ReadFile(filepath.Join(systemUnits, MountUnitName(path)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return BootMount{}, fmt.Errorf("cannot see how %s is mounted at boot: %w", path, err)
	}
	for _, dir := range []string{systemUnits, "/run/systemd/system", "/usr/lib/systemd/system"} {
		for _, name := range []string{MountUnitName(path), AutomountUnitName(path)} {
			if _, err := os.Lstat(filepath.Join(dir, name+".d")); err == nil {
				return BootMount{}, fmt.Errorf("cannot tell how %s is mounted at boot: there are additions to its unit in %s", path, filepath.Join(dir, name+".d"))
			}
		}
	}
	switch {
	case len(lines) == 0 && text == nil:
		return BootMount{}, ErrNoBootMount
	case len(lines) > 1, len(lines) > 0 && text != nil:
		return BootMount{}, fmt.Errorf("cannot tell how %s is mounted at boot: more than one line of fstab or unit is for it", path)
	case text != nil:
		return bootMountOfUnit(text)
	}
	l := lines[0]
	m := BootMount{Source: l.Source, Type: l.Type, Options: l.Options, Fstab: true, Run: l.Run}
	for _, o := range l.Options {
		if u, ok := strings.CutPrefix(o, "x-systemd.requires="); ok && !strings.HasPrefix(u, "/") {
			m.Requires = append(m.Requires, u)
		}
	}
	return m, nil
}

func bootMountOfUnit(text []byte) (BootMount, error) {
	options, err := unit.DeserializeOptions(bytes.NewReader(text))
	if err != nil {
		return BootMount{}, fmt.Errorf("cannot read the unit of a mount: %w", err)
	}
	var m BootMount
	for _, o := range options {
		o.Value = strings.TrimSpace(strings.ReplaceAll(o.Value, "\\\n", " ")) // a line that goes on
		value := strings.ReplaceAll(o.Value, "%%", "\x00")
		if strings.Contains(value, "%") && o.Section == "Mount" {
			return BootMount{}, fmt.Errorf("cannot read the unit of a mount: %s=%s has what only systemd can fill in", o.Name, o.Value)
		}
		value = strings.ReplaceAll(value, "\x00", "%")
		switch o.Section + "." + o.Name {
		case "Mount.What":
			m.Source = value
		case "Mount.Type":
			m.Type = value
		case "Mount.Options":
			m.Options = nil
			for _, o := range splitOptions(value) {
				if run, is := strings.CutPrefix(o, runOption); is {
					m.Run = run
				} else {
					m.Options = append(m.Options, o)
				}
			}
		case "Unit.Requires":
			m.Requires = append(m.Requires, strings.Fields(o.Value)...)
		}
	}
	if m.Source == "" {
		return BootMount{}, errors.New("cannot read the unit of a mount: it does not say what is mounted")
	}
	return m, nil
}

// MountAsBoot mounts at dir, which must be root's alone, what a boot mounts
// elsewhere: by mount(8), from the same source, with the same type and options.
func (r *Runner) MountAsBoot(ctx context.Context, m BootMount, dir string) error {
	var args []string
	if m.Type != "" {
		args = append(args, "-t", m.Type)
	}
	// What only tells when it is mounted is nothing to mount(8), but to its word on
	// who else may unmount it.
	options := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool {
		return strings.HasPrefix(o, "x-") || slices.Contains([]string{"noauto", "nofail", "auto", "defaults", "user", "users", "owner", "group"}, o)
	})
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	if _, err := r.tool(ctx, time.Minute, "mount", append(args, "--", m.Source, dir)...); err != nil {
		return fmt.Errorf("cannot mount %s: %w", m.Source, err)
	}
	return nil
}

// FolderID tells a folder from any other of its filesystem, also after a boot: its
// inode and, where the filesystem knows it, the moment in which it was made.
func FolderID(dir *os.File) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(dir.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return "", fmt.Errorf("cannot look at %s: %w", dir.Name(), err)
	}
	id := fmt.Sprintf("%d", st.Ino)
	if st.Mask&unix.STATX_BTIME != 0 {
		id += fmt.Sprintf("@%d.%09d", st.Btime.Sec, st.Btime.Nsec)
	}
	return id, nil
}

// BootFile is a file, or a link, of /etc/systemd/system.
type BootFile struct {
	Path string `json:"path"`
	Link string `json:"link,omitempty"` // where it leads; Text otherwise
	Text []byte `json:"text,omitempty"`
}

// DropsIn reports whether the file adds to another unit.
func (f BootFile) DropsIn() bool { return strings.HasSuffix(filepath.Dir(f.Path), ".d") }

// BootFiles lists the units of a path, what has them started at boot, and what a
// run of storagectl has added to other units for it ([StoreDropIn]).
func BootFiles(path, run string) ([]BootFile, error) {
	var found []string
	for _, name := range []string{MountUnitName(path), AutomountUnitName(path)} {
		found = append(found, filepath.Join(systemUnits, name))
		for _, kind := range []string{"wants", "requires", "upholds"} {
			// The name has no letter that a pattern heeds but the backslash.
			links, err := filepath.Glob(filepath.Join(systemUnits, "*."+kind, strings.ReplaceAll(name, `\`, `\\`)))
			if err != nil {
				return nil, fmt.Errorf("cannot look for units: %w", err)
			}
			found = append(found, links...)
		}
	}
	if run != "" {
		if err := checkRun(run); err != nil {
			return nil, err
		}
		added, err := filepath.Glob(filepath.Join(systemUnits, "*.d", dropInName(run)))
		if err != nil {
			return nil, fmt.Errorf("cannot look for units: %w", err)
		}
		found = append(found, added...)
	}
	var all []BootFile
	for _, path := range found {
		f := BootFile{Path: path}
		fi, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		switch {
		case err != nil:
		case fi.Mode()&fs.ModeSymlink != 0:
			f.Link, err = os.Readlink(path)
		default:
			f.Text, err = os.ReadFile(path)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read unit %s: %w", path, err)
		}
		all = append(all, f)
	}
	return all, nil
}

// There reports whether anything is at the file's path.
func (f BootFile) There() (bool, error) {
	_, err := os.Lstat(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Remove takes the file away, for good when it returns. A folder that nothing else
// is in goes, too.
func (f BootFile) Remove() error {
	dir := filepath.Dir(f.Path)
	if err := os.Remove(f.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot take away a unit's file: %w", err)
	}
	if dir == systemUnits || os.Remove(dir) != nil { // others have something there
		if err := SyncDir(dir); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return SyncDir(systemUnits)
}

// Restore puts the file back, whole or not at all, and it is on the disk when it
// returns.
func (f BootFile) Restore() error {
	dir := filepath.Dir(f.Path)
	err := os.MkdirAll(dir, 0o755)
	if err == nil && f.Link != "" {
		err = renameio.Symlink(f.Link, f.Path)
	} else if err == nil {
		err = renameio.WriteFile(f.Path, f.Text, 0o644, renameio.IgnoreUmask(), renameio.WithTempDir(dir))
	}
	if err != nil {
		return fmt.Errorf("cannot put a unit's file back: %w", err)
	}
	return errors.Join(SyncDir(dir), SyncDir(systemUnits))
}
