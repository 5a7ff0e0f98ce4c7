package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// The kinds of changes that --fix makes.
const (
	changeSubIDs = "subids"
	changeLinger = "linger"
	changeFuse   = "fuse-device"
	changeShared = "shared-root"
	changeSocket = "podman-socket"
	changeLink   = "link"
	changeCNI    = "cni-version"
	changeFlag   = "mount-program-flag"
)

// Change is one safe change, and all that is needed to look at it, make it and
// take it back: it can be kept in a journal.
type Change struct {
	Kind   string `json:"kind"`
	Text   string `json:"text"` // for people
	User   string `json:"user,omitempty"`
	Path   string `json:"path,omitempty"`
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

// Name tells the change from others of one host.
func (c Change) Name() string { return c.Kind }

// Root reports whether only root can make the change.
func (c Change) Root() bool {
	return c.Kind == changeSubIDs || c.Kind == changeFuse || c.Kind == changeShared || c.Kind == changeLink
}

// Holds looks whether the change is made.
func (c Change) Holds(ctx context.Context, h *Host) (bool, error) {
	switch c.Kind {
	case changeSubIDs:
		return c.ranges()
	case changeLinger:
		return there(filepath.Join(lingerDir, c.User))
	case changeFuse:
		return there(c.Path)
	case changeShared:
		return rootShared()
	case changeSocket:
		s, err := c.socket(ctx, h)
		return s.Active == "active" && strings.HasPrefix(s.File, "enabled"), err
	case changeLink:
		to, err := os.Readlink(c.Path)
		return to == c.After, gone(err)
	case changeCNI:
		f, err := askOwner[fileIs](ctx, h, opFileIs, c.Path)
		return err == nil && bytes.Equal(f.Content, cniVersion(f.Content, c.Before, c.After)), err
	case changeFlag:
		f, err := askOwner[fileIs](ctx, h, opFileIs, c.Path)
		return !f.There, err
	}
	return false, fmt.Errorf("this release does not know the change %q", c.Kind)
}

// Do makes the change.
func (c Change) Do(ctx context.Context, h *Host) error {
	switch c.Kind {
	case changeSubIDs:
		// usermod gives a range also where somebody has it, and who it was when the
		// change was thought of may be long ago.
		if err := errors.Join(c.free("/etc/subuid"), c.free("/etc/subgid")); err != nil {
			return err
		}
		return h.system(ctx, "usermod", "--add-subuids", c.After, "--add-subgids", c.After, c.User)
	case changeLinger:
		if err := h.system(ctx, "loginctl", "enable-linger", c.User); err != nil || os.Getuid() != 0 {
			return err
		}
		// Logind has begun to start the user's systemd; the checks that follow should see
		// it up. Whether it is they look at themselves.
		_ = h.system(ctx, "systemctl", "start", fmt.Sprintf("user@%d.service", h.Owner.UID))
		return nil
	case changeFuse:
		if err := unix.Mknod(c.Path, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cannot make %s: %w", c.Path, err)
		}
		return os.Chmod(c.Path, 0o666) //nolint:gosec // so it is on every host
	case changeShared:
		return propagate(unix.MS_SHARED)
	case changeSocket:
		if err := h.owners(ctx, "enable", podmanSocket); err != nil {
			return err
		}
		return h.owners(ctx, "start", podmanSocket)
	case changeLink:
		return renameio.Symlink(c.After, c.Path)
	case changeCNI:
		return c.rewrite(ctx, h, c.Before, c.After)
	case changeFlag:
		_, err := askOwner[none](ctx, h, opFilePut, filePut{Path: c.Path, Remove: true})
		return err
	}
	return fmt.Errorf("this release does not know the change %q", c.Kind)
}

// Undo takes the change back.
func (c Change) Undo(ctx context.Context, h *Host) error {
	switch c.Kind {
	case changeSubIDs:
		return errors.Join(c.withoutRange("/etc/subuid"), c.withoutRange("/etc/subgid"))
	case changeLinger:
		if on, err := c.Holds(ctx, h); err != nil || !on {
			return err
		}
		return h.system(ctx, "loginctl", "disable-linger", c.User)
	case changeFuse:
		return gone(os.Remove(c.Path))
	case changeShared:
		return propagate(unix.MS_PRIVATE)
	case changeSocket:
		if !strings.HasPrefix(c.Before, "enabled") {
			if err := h.owners(ctx, "disable", podmanSocket); err != nil {
				return err
			}
		}
		if strings.HasSuffix(c.Before, " active") {
			return nil
		}
		return h.owners(ctx, "stop", podmanSocket)
	case changeLink:
		if to, err := os.Readlink(c.Path); err != nil || to != c.After {
			return gone(err) // somebody has changed it since
		}
		return renameio.Symlink(c.Before, c.Path)
	case changeCNI:
		return c.rewrite(ctx, h, c.After, c.Before)
	case changeFlag:
		_, err := askOwner[none](ctx, h, opFilePut, filePut{Path: c.Path, Content: []byte(c.Before), Mode: 0o600, New: true})
		return err
	}
	return fmt.Errorf("this release does not know the change %q", c.Kind)
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func there(path string) (bool, error) {
	_, err := os.Lstat(path)
	return err == nil, gone(err)
}

func rootShared() (bool, error) {
	table, err := host.Mounts()
	if err != nil {
		return false, err
	}
	m, is := table.At("/")
	return is && strings.Contains(m.Propagation, "shared"), nil
}

func propagate(how uintptr) error {
	if err := unix.Mount("", "/", "", how, ""); err != nil {
		return fmt.Errorf("cannot change how mounts of / spread: %w", err)
	}
	return nil
}

// ranges reports whether the user has exactly this range in both files.
func (c Change) ranges() (bool, error) {
	for _, path := range []string{"/etc/subuid", "/etc/subgid"} {
		all, err := readRanges(path)
		if err != nil {
			return false, err
		}
		found := false
		for _, r := range all {
			found = found || r.who == c.User && fmt.Sprintf("%d-%d", r.start, r.start+r.count-1) == c.After
		}
		if !found {
			return false, nil
		}
	}
	return true, nil
}

func (c Change) socket(ctx context.Context, h *Host) (host.UnitState, error) {
	s, f := h.socketState(ctx)
	if f != nil {
		return s, errors.New(f.Saw)
	}
	return s, nil
}

// system runs a command of the system's.
func (h *Host) system(ctx context.Context, argv ...string) error {
	_, err := h.Runner.Run(ctx, host.Cmd{Argv: argv, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, Timeout: 30 * time.Second})
	return err
}

// owners tells the systemd of the store's owner something.
func (h *Host) owners(ctx context.Context, argv ...string) error {
	cmd := host.Cmd{Argv: append([]string{"systemctl"}, argv...), Env: h.Owner.Env(), Timeout: 30 * time.Second}
	if !h.Owner.Rootful() {
		cmd.Argv = append([]string{"systemctl", "--user"}, argv...)
		if !h.self() {
			cmd.As = &host.User{UID: h.Owner.UID, GID: h.Owner.GID}
		}
	}
	_, err := h.Runner.Run(ctx, cmd)
	return err
}

// cniVersion puts another version into a network's configuration, and changes
// nothing else.
func cniVersion(text []byte, from, to string) []byte {
	at := bytes.Index(text, []byte(`"cniVersion"`))
	if at < 0 {
		return text
	}
	old := []byte(`"` + from + `"`)
	if i := bytes.Index(text[at:], old); i >= 0 && !bytes.ContainsAny(text[at:at+i], ",}") {
		i += at
		return append(append(bytes.Clone(text[:i]), `"`+to+`"`...), text[i+len(old):]...)
	}
	return text
}

func (c Change) rewrite(ctx context.Context, h *Host, from, to string) error {
	f, err := askOwner[fileIs](ctx, h, opFileIs, c.Path)
	if err != nil || !f.There {
		return err
	}
	now := cniVersion(f.Content, from, to)
	if bytes.Equal(now, f.Content) {
		return nil
	}
	_, err = askOwner[none](ctx, h, opFilePut, filePut{Path: c.Path, Content: now, Mode: f.Mode, Was: f.Content})
	return err
}

// filePut is a file of the owner's to be written or removed, by the owner's worker.
type filePut struct {
	Path    string `json:"path"`
	Content []byte `json:"content,omitempty"`
	Was     []byte `json:"was,omitempty"` // what it must hold now
	Mode    uint32 `json:"mode,omitempty"`
	New     bool   `json:"new,omitempty"` // only if it is not there
	Remove  bool   `json:"remove,omitempty"`
}

// put writes the file, the old content or the new and never neither, or removes it.
func (p filePut) put() error {
	if p.Remove {
		if err := gone(os.Remove(p.Path)); err != nil {
			return err
		}
		return syncDir(filepath.Dir(p.Path))
	}
	f, err := readSmall(p.Path)
	if err != nil {
		return err
	}
	if p.New && f.There {
		return nil
	}
	if p.Was != nil && !bytes.Equal(f.Content, p.Was) {
		return fmt.Errorf("%s: %w", p.Path, host.ErrChanged)
	}
	return renameio.WriteFile(p.Path, p.Content, os.FileMode(p.Mode))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return gone(err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}
