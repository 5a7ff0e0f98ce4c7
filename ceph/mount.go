package ceph

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/host"
)

// Mounter is what mounts a CephFS.
type Mounter string

// The mounters.
const (
	Kernel Mounter = "kernel" // mount.ceph and the kernel's client
	Fuse   Mounter = "fuse"   // ceph-fuse
)

// FSType is the type that the kernel shows of its mounts.
func (m Mounter) FSType() string {
	if m == Kernel {
		return "ceph"
	}
	return "fuse.ceph-fuse"
}

// Client is what people call it.
func (m Mounter) Client() string {
	if m == Kernel {
		return "the kernel's client"
	}
	return "ceph-fuse"
}

// Packages are Debian's that have its programs.
func (m Mounter) Packages() string {
	if m == Kernel {
		return "ceph-common"
	}
	return "ceph-fuse fuse3"
}

// Missing is a program that it needs and that is not here, "" if there is none.
func (m Mounter) Missing() string {
	tools := []string{"ceph-fuse", "mount.fuse"}
	if m == Kernel {
		tools = []string{"mount.ceph"}
	}
	for _, tool := range tools {
		there := func(dir string) bool { _, err := os.Stat(filepath.Join(dir, tool)); return err == nil }
		if !slices.ContainsFunc([]string{"/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin"}, there) {
			return tool
		}
	}
	return ""
}

const toolTime = time.Minute

// DefaultMounter is the kernel's client where the kernel has it or can load it,
// else ceph-fuse.
func DefaultMounter(ctx context.Context, run *host.Runner) Mounter {
	if hasFS("ceph") {
		return Kernel
	}
	// That there is no such module is an answer, too.
	_, _ = run.Run(ctx, host.Cmd{Argv: []string{"modprobe", "ceph"}, Env: toolEnv(), Timeout: 20 * time.Second})
	if hasFS("ceph") {
		return Kernel
	}
	return Fuse
}

func hasFS(name string) bool {
	b, _ := os.ReadFile("/proc/filesystems") // always there
	for _, line := range strings.Split(string(b), "\n") {
		if w := strings.Fields(line); len(w) > 0 && w[len(w)-1] == name {
			return true
		}
	}
	return false
}

// Syntax is how the source of a kernel mount is written.
type Syntax int

// The two ways there are: MONITORS:/PATH with the options name= and mds_namespace=,
// and, from Ceph 17 on, USER@FSID.FS=/PATH with mon_addr=.
const (
	OldSyntax Syntax = iota
	NewSyntax
)

// SyntaxOf is the syntax that the host's mount.ceph understands, by the version
// of rbd, which comes in the same package: mount.ceph tells none.
func SyntaxOf(ctx context.Context, run *host.Runner) (Syntax, error) {
	out, err := run.Run(ctx, host.Cmd{Argv: []string{"rbd", "--version"}, Env: toolEnv(), Timeout: 20 * time.Second})
	if err != nil {
		return OldSyntax, fmt.Errorf("cannot tell the version of mount.ceph: %w", err)
	}
	w := strings.Fields(string(out)) // ceph version 16.2.15 (…) pacific (stable)
	if len(w) < 3 || w[0] != "ceph" {
		return OldSyntax, fmt.Errorf("cannot tell the version of mount.ceph: rbd says %q", out)
	}
	if compareVersions(w[2], "17.2.0") >= 0 {
		return NewSyntax, nil
	}
	return OldSyntax, nil
}

// Source is what a mount of a place needs to know.
type Source struct {
	Place   Place
	Cluster cephlink.Cluster
	FSID    string // new syntax only
	Secret  string // file with nothing but the base64 key; see [WriteSecret]
}

// Line returns source, type and options of a kernel mount, as fstab and mount(8)
// take them. The key is named by its file, never given.
func (s Source) Line(syntax Syntax) (source, fstype string, options []string, err error) {
	mons := s.Cluster.Mons
	for _, m := range mons {
		if v := strings.TrimPrefix(m, "["); strings.ContainsAny(m, "/, =") || strings.HasPrefix(v, "v1:") || strings.HasPrefix(v, "v2:") {
			return "", "", nil, fmt.Errorf("cannot mount %s: the kernel takes monitors as HOST or HOST:PORT, not as %q", s.Place, m)
		}
	}
	if s.Secret != "" {
		options = append(options, "secretfile="+s.Secret)
	}
	if s.Cluster.Conf != "" {
		options = append(options, "conf="+s.Cluster.Conf)
	}
	for _, o := range options {
		if strings.ContainsAny(o, ", \t\n\\") {
			return "", "", nil, fmt.Errorf("cannot mount %s: %q cannot be an option", s.Place, o)
		}
	}
	if syntax == NewSyntax {
		if len(mons) > 0 {
			options = append(options, "mon_addr="+strings.Join(mons, "/"))
		}
		return fmt.Sprintf("%s@%s.%s=%s", s.Cluster.ID(), s.FSID, s.Place.FS, s.Place.Path), "ceph", options, nil
	}
	options = append(options, "name="+s.Cluster.ID(), "mds_namespace="+s.Place.FS)
	return strings.Join(mons, ",") + ":" + s.Place.Path, "ceph", options, nil
}

// FuseUnit returns source, type and options by which mount(8) and mount.fuse mount a
// place, and what has to stand in their environment: a unit of systemd's has that, a
// line in fstab has not. (mount.fuse.ceph, which is meant for lines, cannot be told
// dev and suid: mount(8) keeps from it what is its own default.) The error is one
// where a setting would not come through.
func (s Source) FuseUnit() (source, fstype string, options []string, environment string, err error) {
	args := s.fuseArgs()
	for _, a := range args {
		if strings.Trim(a, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:/=_[]-") != "" {
			return "", "", nil, "", fmt.Errorf("cannot mount %s: %q cannot be in an environment", s.Place, a)
		}
	}
	return "ceph-fuse", "fuse", []string{"dev", "suid"}, "CEPH_ARGS=" + strings.Join(args, " "), nil
}

// fuseArgs are ceph-fuse's. Permissions are checked by the kernel, since ceph-fuse
// would compare the ids of a user namespace's root with those of the files. Without
// access control lists it says that it does not know them instead of that there are
// none, and then nothing can be opened through fuse-overlayfs that is not root's.
func (s Source) fuseArgs() []string {
	return append(s.Cluster.Args(), "--client_fs="+s.Place.FS, "--client_mountpoint="+s.Place.Path, "--client_permissions=false",
		"--fuse_default_permissions=true", "--client_acl_type=posix_acl", "--client_mount_timeout=30", "--admin_socket=", "--log_file=")
}

// Mount mounts a place at dir, a folder that is there and to which only root can
// change the way, and returns when the kernel shows it there. Nobody else's mount at dir is covered: that is refused.
func Mount(ctx context.Context, run *host.Runner, s Source, dir string, by Mounter) error {
	if is, err := mountedAt(dir); err != nil {
		return err
	} else if is != "" {
		return fmt.Errorf("cannot mount %s: %s is a mount point already, of type %s", s.Place, dir, is)
	}
	var argv []string
	switch by {
	case Kernel:
		syntax, err := SyntaxOf(ctx, run)
		if err != nil {
			return err
		}
		source, fstype, options, err := s.Line(syntax)
		if err != nil {
			return err
		}
		argv = []string{"mount", "-t", fstype, "-o", strings.Join(append(options, "noatime"), ","), source, dir}
	case Fuse:
		argv = append(append([]string{"ceph-fuse"}, s.fuseArgs()...), dir, "-o", "dev,suid,noatime")
	default:
		return fmt.Errorf("cannot mount %s: there is no mounter %q", s.Place, by)
	}
	_, err := run.Run(ctx, host.Cmd{Argv: argv, Env: toolEnv(), Timeout: toolTime})
	is, lerr := mountedAt(dir)
	switch {
	case err != nil:
		err = fmt.Errorf("cannot mount %s: %w", s.Place, err)
		if is != "" { // it said no, and is there
			err = errors.Join(err, Unmount(context.WithoutCancel(ctx), run, dir))
		}
		return err
	case lerr != nil:
		return lerr
	case is != by.FSType():
		return fmt.Errorf("cannot mount %s: %s says it did, and %s is of type %q", s.Place, argv[0], dir, is)
	}
	return nil
}

// Unmount unmounts dir, and returns when all that was written there is in the
// cluster: a ceph-fuse writes it out when the mount is gone already, and then ends.
// One that is not a mount point is no error; one in use is (EBUSY of umount).
func Unmount(ctx context.Context, run *host.Runner, dir string) error {
	is, err := mountedAt(dir)
	if err != nil {
		return err
	}
	if is != "" {
		_, err = run.Run(ctx, host.Cmd{Argv: []string{"umount", "--no-canonicalize", "--", dir}, Env: toolEnv(), Timeout: 2 * toolTime})
	}
	if err == nil {
		err = fuseEnded(ctx, dir)
	}
	if err != nil {
		return fmt.Errorf("cannot unmount %s: %w", dir, err)
	}
	return nil
}

// Written returns when all that was written at a folder, where nothing is mounted any
// more, is in the cluster: a ceph-fuse writes it out at its end. It touches nothing
// there: others may be able to change the way to it.
func Written(ctx context.Context, dir string) error {
	if err := fuseEnded(ctx, dir); err != nil {
		return fmt.Errorf("cannot let go of %s: %w", dir, err)
	}
	return nil
}

// fuseEnded waits until no ceph-fuse of root's is there that was to mount at dir.
func fuseEnded(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*toolTime)
	defer cancel()
	for {
		pid, err := fuseOf(dir)
		if err != nil || pid == "" {
			return err
		}
		select { // nothing tells of the end of a process that is not a child
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("ceph-fuse (process %s) has not ended: what was written there need not be in the cluster", pid)
		}
	}
}

// fuseOf is the process id of the ceph-fuse of a folder, "" if there is none.
func fuseOf(dir string) (string, error) {
	es, err := os.ReadDir("/proc")
	if err != nil {
		return "", fmt.Errorf("cannot look at the processes: %w", err)
	}
	for _, e := range es {
		cmd, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")) // it may have ended
		argv := strings.Split(string(cmd), "\x00")
		fi, err := e.Info()
		if err != nil || filepath.Base(argv[0]) != "ceph-fuse" || !slices.Contains(argv, dir) {
			continue
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Uid == 0 { // anybody can call a process so
			return e.Name(), nil
		}
	}
	return "", nil
}

// mountedAt is the type of the topmost mount at dir, "" where there is none.
func mountedAt(dir string) (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("cannot look at the mounts: %w", err)
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	found := ""
	for _, line := range strings.Split(string(b), "\n") {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if ok && len(l) > 4 && len(r) > 0 && unescape.Replace(l[4]) == filepath.Clean(dir) {
			found = r[0] // later lines lie on top
		}
	}
	return found, nil
}

func toolEnv() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
}
