package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// Need is who cannot do without a feature of a filesystem.
type Need string

const (
	NeedStore   Need = "store"   // a container store of any driver
	NeedOverlay Need = "overlay" // the kernel's overlay
	NeedProgram Need = "program" // overlay by a program in the kernel's place
	NeedNone    Need = ""        // nobody; it is told, since an image may use it
)

// Feature is one thing that a filesystem can do or cannot, tried on itself.
type Feature struct {
	Name string `json:"name"`
	Need Need   `json:"need,omitempty"`
	OK   bool   `json:"ok"`
	Saw  string `json:"saw,omitempty"` // what was seen, if it was not what it should be
}

// TargetReport is what a folder's filesystem is good for.
type TargetReport struct {
	Path       string    `json:"path"`
	Type       string    `json:"type"` // of the filesystem, as mounted: xfs, ceph, fuse.ceph-fuse
	Size       uint64    `json:"size"` // bytes
	Free       uint64    `json:"free"` // bytes, for who is not root
	Inodes     uint64    `json:"inodes,omitempty"`
	InodesFree uint64    `json:"inodesFree,omitempty"`
	UserNS     bool      `json:"userNS"` // seen from within a user namespace
	Features   []Feature `json:"features"`
}

// Native reports whether the kernel's overlay works there, and names what it
// misses.
func (r TargetReport) Native() (bool, []string) { return r.lacks(NeedStore, NeedOverlay) }

// ByProgram reports whether overlay works there by a program ([ProbeProgram]), and
// names what it misses.
func (r TargetReport) ByProgram() (bool, []string) { return r.lacks(NeedStore, NeedProgram) }

// Store reports whether a store of whatever driver can be there, and names what
// it misses.
func (r TargetReport) Store() (bool, []string) { return r.lacks(NeedStore) }

// Warnings names what is missing that only some images need.
func (r TargetReport) Warnings() []string {
	_, missing := r.lacks(NeedNone)
	return missing
}

func (r TargetReport) lacks(needs ...Need) (bool, []string) {
	var missing []string
	for _, f := range r.Features {
		for _, n := range needs {
			if f.Need == n && !f.OK {
				missing = append(missing, f.Name+": "+f.Saw)
			}
		}
	}
	return len(missing) == 0 && len(r.Features) > 0, missing
}

// probe is a folder of our own in the target.
type probe struct {
	dir    string // by the target's descriptor, so that no name on the way matters
	userNS bool
	other  int // an id besides 0 that is mapped; -1: none
}

// ProbeTarget tries on a folder what a container store in it will do, as the
// process that will own the store: root, or root of a user namespace, in a
// private mount namespace. Nothing is left behind. A feature that is missing is no
// error; not being able to try is.
func ProbeTarget(ctx context.Context, target *os.File) (TargetReport, error) {
	fail := func(err error) (TargetReport, error) {
		return TargetReport{}, fmt.Errorf("cannot try what %s is good for: %w", target.Name(), err)
	}
	m, err := host.MountOf(target)
	if err != nil {
		return fail(err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(target.Fd()), &fs); err != nil {
		return fail(err)
	}
	r := TargetReport{
		Path: target.Name(), Type: m.Type, Size: fs.Blocks * uint64(fs.Bsize), Free: fs.Bavail * uint64(fs.Bsize),
		Inodes: fs.Files, InodesFree: fs.Ffree,
	}
	r.Features = append(r.Features, mountFlags(fs.Flags)...)
	p, err := newProbe(target)
	r.UserNS = p.userNS
	if err != nil {
		if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			r.Features = append(r.Features, Feature{Name: "can be written to", Need: NeedStore, Saw: reason(err)})
			return r, nil
		}
		return fail(err)
	}
	for _, f := range p.features() {
		if ctx.Err() != nil {
			break
		}
		err := f.try()
		r.Features = append(r.Features, Feature{Name: f.name, Need: f.need, OK: err == nil, Saw: reason(err)})
	}
	if err := errors.Join(p.remove(), ctx.Err()); err != nil {
		return fail(err)
	}
	return r, nil
}

func newProbe(target *os.File) (p probe, err error) {
	if p.userNS, p.other, err = ownMap(); err != nil {
		return p, err
	}
	p.dir, err = os.MkdirTemp(fmt.Sprintf("/proc/self/fd/%d", target.Fd()), ".storagectl-probe-")
	return p, err
}

func (p probe) remove() error {
	err := os.RemoveAll(p.dir)
	if _, err2 := os.Lstat(p.dir); err == nil && !errors.Is(err2, os.ErrNotExist) {
		err = but(err2, "it is there still") // fuse-overlayfs says that it has removed what it has not
	}
	if err != nil {
		return fmt.Errorf("cannot take away what was tried: %w", err)
	}
	return nil
}

type trial struct {
	name string
	need Need
	try  func() error
}

func (p probe) features() []trial {
	// An overlay mounted in a user namespace keeps its own in user.* attributes,
	// any other in trusted.* ones.
	userXattr := NeedNone
	if p.userNS {
		userXattr = NeedOverlay
	}
	all := []trial{
		{"type of files in folders (d_type)", NeedOverlay, p.dtype},
		{"symbolic links", NeedStore, p.symlink},
		{"hard links", NeedStore, p.link},
		{"owners", NeedStore, p.chown},
		{"times in nanoseconds", NeedStore, p.times},
		{"programs run", NeedStore, p.exec},
		{"shared memory maps", NeedStore, p.mmap},
		{"locks", NeedStore, p.locks},
		{"attributes user.*", userXattr, func() error { return p.xattr("user.storagectl") }},
		{"access control lists", NeedNone, p.acl},
		{"file capabilities", NeedNone, p.capability},
		{"whiteouts by mknod 0:0", NeedOverlay, p.mknod},
		{"RENAME_WHITEOUT", NeedOverlay, p.renameWhiteout},
		{"O_TMPFILE", NeedOverlay, p.tmpfile},
	}
	if !p.userNS {
		all = append(all, trial{"attributes trusted.*", NeedOverlay, func() error { return p.xattr("trusted.overlay.storagectl") }})
	}
	return append(all, trial{"an overlay mount", NeedOverlay, p.overlay})
}

// mountFlags judges how the target is mounted.
func mountFlags(flags int64) []Feature {
	var all []Feature
	for _, f := range []struct {
		flag int64
		name string
		why  string
		need Need
	}{
		{unix.ST_RDONLY, "mounted for writing", "it is mounted read-only", NeedStore},
		{unix.ST_NOEXEC, "mounted without noexec", "no program in a container would run", NeedStore},
		{unix.ST_NOSUID, "mounted without nosuid", "setuid programs and file capabilities in containers would have no effect", NeedNone},
		{unix.ST_NODEV, "mounted without nodev", "devices in images would not work", NeedNone},
	} {
		got := Feature{Name: f.name, Need: f.need, OK: flags&f.flag == 0}
		if !got.OK {
			got.Saw = f.why
		}
		all = append(all, got)
	}
	return all
}

// ownMap tells whether this is a user namespace below the first, and an id besides
// root's that is mapped in both maps, the highest; -1 if there is none.
func ownMap() (userNS bool, other int, err error) {
	other = 1 << 30
	for _, file := range []string{"uid_map", "gid_map"} {
		b, err := os.ReadFile(filepath.Join("/proc/self", file))
		if err != nil {
			return false, -1, err
		}
		top := -1
		for l := range strings.Lines(string(b)) {
			var in, out, n int64
			if _, err := fmt.Sscan(l, &in, &out, &n); err != nil {
				return false, -1, fmt.Errorf("cannot read %s: %w", file, err)
			}
			if in != 0 || out != 0 || n != 1<<32-1 {
				userNS = true
			}
			top = max(top, int(min(in+n-1, 65533))) // above is where many maps end
		}
		other = min(other, top)
	}
	if other < 1 {
		other = -1
	}
	return userNS, other, nil
}

// reason is an error in as few words as it can be said: paths in it are ours, and
// say nothing.
func reason(err error) string {
	if err == nil {
		return ""
	}
	var path *os.PathError
	var link *os.LinkError
	var call *os.SyscallError
	switch {
	case errors.As(err, &path):
		return path.Op + ": " + path.Err.Error()
	case errors.As(err, &link):
		return link.Op + ": " + link.Err.Error()
	case errors.As(err, &call):
		return call.Error()
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// but is err, or what else is wrong.
func but(err error, format string, args ...any) error {
	if err != nil {
		return err
	}
	return fmt.Errorf(format, args...)
}
