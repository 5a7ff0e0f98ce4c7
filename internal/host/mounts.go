package host

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mount is one mount of a mount namespace (proc_pid_mountinfo(5)), with octal
// escapes decoded.
type Mount struct {
	ID          int    `json:"id"`
	Parent      int    `json:"parent"`
	Major       uint32 `json:"major"`
	Minor       uint32 `json:"minor"`
	Root        string `json:"root"` // the folder of the filesystem that is seen at Path
	Path        string `json:"path"`
	Type        string `json:"type"`
	Source      string `json:"source"`
	Options     string `json:"options"`   // of this mount
	FSOptions   string `json:"fsOptions"` // of the filesystem, the same for all its mounts
	Propagation string `json:"propagation,omitempty"`
}

// Dev is the device number of the filesystem, as stat(2) gives it for files of
// most filesystems (btrfs has one for each subvolume).
func (m Mount) Dev() uint64 { return unix.Mkdev(m.Major, m.Minor) }

// Has reports whether the mount itself or its filesystem has an option, such as
// "ro".
func (m Mount) Has(option string) bool {
	return slices.Contains(strings.Split(m.Options+","+m.FSOptions, ","), option)
}

// MountTable is all the mounts of one mount namespace. What it tells of a path
// is reckoned from the table alone: nothing is opened, so that no automount is
// triggered and no dead network filesystem is waited for. A path must be
// absolute, and symbolic links in it are not followed.
type MountTable []Mount

// Mounts lists the mounts of this process.
func Mounts() (MountTable, error) { return readMounts("/proc/thread-self/mountinfo") }

// MountsOf lists the mounts that another process sees.
func MountsOf(pid int) (MountTable, error) {
	return readMounts("/proc/" + strconv.Itoa(pid) + "/mountinfo")
}

func readMounts(path string) (MountTable, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot list mounts: %w", err)
	}
	defer f.Close()
	return ParseMounts(f)
}

// ParseMounts reads a table in the form of /proc/PID/mountinfo.
func ParseMounts(r io.Reader) (MountTable, error) {
	list, err := mountinfo.GetMountsFromReader(r, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot list mounts: %w", err)
	}
	t := make(MountTable, 0, len(list))
	for _, m := range list {
		t = append(t, Mount{
			ID: m.ID, Parent: m.Parent, Major: uint32(m.Major), Minor: uint32(m.Minor), Root: m.Root, Path: m.Mountpoint,
			Type: m.FSType, Source: m.Source, Options: m.Options, FSOptions: m.VFSOptions, Propagation: m.Optional,
		})
	}
	return t, nil
}

// Over gives the mount that a walk to path ends in: the mount at path, if there
// is one, or that in which path lies. Mounts that lie hidden beneath another are
// never given. False only for a table without a root.
func (t MountTable) Over(path string) (Mount, bool) {
	chain := t.walk(path)
	if len(chain) == 0 {
		return Mount{}, false
	}
	return chain[len(chain)-1], true
}

// Stack gives the mounts that cover one another at path itself, topmost first:
// for an automount in use, the filesystem and then the autofs. Nil where path is
// no mount point.
func (t MountTable) Stack(path string) []Mount {
	path = filepath.Clean(path)
	chain := t.walk(path)
	var at []Mount
	for _, m := range slices.Backward(chain) {
		if m.Path != path {
			break
		}
		at = append(at, m)
	}
	return at
}

// At gives the mount at path itself. False where there is none, or nothing but
// an autofs that has not been triggered.
func (t MountTable) At(path string) (Mount, bool) {
	at := t.Stack(path)
	if len(at) == 0 || at[0].Type == "autofs" {
		return Mount{}, false
	}
	return at[0], true
}

// Below lists the mounts strictly under path, the hidden ones, too.
func (t MountTable) Below(path string) []Mount {
	path = filepath.Clean(path)
	var all []Mount
	for _, m := range t {
		if m.Path != path && within(m.Path, path) {
			all = append(all, m)
		}
	}
	return all
}

// walk gives the mounts that a walk from the root to path passes, in that order.
func (t MountTable) walk(path string) []Mount {
	path = filepath.Clean(path)
	ids := make(map[int]bool, len(t))
	for _, m := range t {
		ids[m.ID] = true
	}
	var chain []Mount
	for _, m := range t {
		if m.Path == "/" && (!ids[m.Parent] || m.Parent == m.ID) {
			chain = append(chain, m)
			break
		}
	}
	// Each step crosses the first mount point on the way that the mount walked
	// in has; a mount has no two children at one place.
	for len(chain) > 0 && len(chain) <= len(t) {
		in := chain[len(chain)-1]
		next := -1
		for i, m := range t {
			if m.Parent == in.ID && m.ID != in.ID && within(path, m.Path) && (next < 0 || len(m.Path) < len(t[next].Path)) {
				next = i
			}
		}
		if next < 0 {
			break
		}
		chain = append(chain, t[next])
	}
	return chain
}

// within reports whether path is dir or lies under it.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir) && path[len(dir)] == '/'
}

// MountOf gives the mount of this process's namespace that a descriptor was
// opened in.
func MountOf(f *os.File) (Mount, error) {
	id, err := mountID(f)
	if err != nil {
		return Mount{}, fmt.Errorf("cannot find the mount of %s: %w", f.Name(), err)
	}
	t, err := Mounts()
	if err != nil {
		return Mount{}, err
	}
	for _, m := range t {
		if m.ID == id {
			return m, nil
		}
	}
	return Mount{}, fmt.Errorf("cannot find the mount of %s: it is not attached here", f.Name())
}

// mountID reads a descriptor's mount, which the kernel tells since 3.15
// (statx(2) only since 5.8).
func mountID(f *os.File) (int, error) {
	info, err := os.Open(fmt.Sprintf("/proc/thread-self/fdinfo/%d", f.Fd()))
	if err != nil {
		return 0, err
	}
	defer info.Close()
	for s := bufio.NewScanner(info); s.Scan(); {
		if id, ok := strings.CutPrefix(s.Text(), "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(id))
		}
	}
	return 0, fmt.Errorf("the kernel does not tell it")
}
