package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
)

// oldMount judges the mount that the graphroot is: whether it can be taken down,
// made again elsewhere, and put back as it was.
func (a *Assessment) oldMount(ctx context.Context, env Env) error {
	root := a.Inputs.Store.GraphRoot
	refuse := func(hint, format string, args ...any) error {
		a.refuse("graphroot-mount", hint, format, args...)
		return nil
	}
	const byHand = "stop podman and move the store by hand"
	if !host.HasSystemd() {
		return refuse(byHand, "the graphroot %s is a mount, and without systemd none is taken down", root)
	}
	t, err := host.Mounts()
	if err != nil {
		return err
	}
	stack := t.Stack(root)
	if len(stack) == 0 {
		return refuse(byHand, "the graphroot %s is a mount that only %s sees", root, a.Inputs.Owner.Name)
	}
	top := stack[0]
	if len(stack) > 2 || len(stack) == 2 && stack[1].Type != "autofs" {
		return refuse("unmount what is not the store", "more than one mount lies on the graphroot %s", root)
	}
	// Those of a block device, which can be mounted elsewhere at any time; and CephFS, if
	// it is known how.
	local := []string{"ext4", "xfs", "btrfs", "f2fs"}
	cephfs := top.Type == ceph.Kernel.FSType() || top.Type == ceph.Fuse.FSType()
	if !cephfs && !slices.Contains(local, top.Type) {
		return refuse(byHand, "the graphroot %s is a mount of type %s, which this release does not take down (only %s, and CephFS)", root, top.Type, strings.Join(local, ", "))
	}
	text, err := readFstab()
	if err != nil {
		return err
	}
	m := &OldMount{}
	m.BootMount, err = host.FindBootMount(text, root)
	if errors.Is(err, host.ErrNoBootMount) {
		return refuse("add to "+fstabPath+": "+bootLine(ctx, env.Runner, top, root)+"; then systemctl daemon-reload",
			"the graphroot %s is a mount that no boot makes: a way back would not last", root)
	}
	if err != nil {
		return refuse("put it into one line of "+fstabPath, "%v", err)
	}
	if done, err := committed(env.Dir, m.Run); err != nil {
		return err
	} else if !done {
		a.refuse("uncommitted", fmt.Sprintf("storagectl commit %s, or storagectl rollback %s", m.Run, m.Run), "run %s, which mounted %s, is not committed", m.Run, root)
		return nil
	}
	if m.Place = earlierPlace(env.Dir, m.Run); cephfs && m.Place == nil {
		return refuse(byHand, "the graphroot %s is a mount of CephFS that no run of storagectl known here has made", root)
	}
	live, err := host.OpenDir(root)
	if err != nil {
		return err
	}
	defer live.Close()
	if whose, err := ownerOf(live); err != nil {
		return err
	} else if whose != a.Inputs.Owner.UID {
		return refuse("give podman a graphroot that is its user's own", "what is mounted on the graphroot %s belongs to user %d, not to %s", root, whose, a.Inputs.Owner.Name)
	}
	if m.Folder, err = host.FolderID(live); err != nil {
		return err
	}
	if why, err := m.differs(ctx, env.Runner, live, top); err != nil {
		return err
	} else if why != "" {
		return refuse("mend "+fstabPath+" or the unit, or mount what they say", "what is mounted on %s is not what a boot mounts there: %s", root, why)
	}
	a.Inputs.Store.Mount = m
	return a.beneath(m)
}

// committed reports whether the run that made a mount keeps no old store. One that is
// not known here may have been of another state directory, or nobody's.
func committed(dir engine.Dir, run string) (bool, error) {
	if run == "" {
		return true, nil
	}
	st, err := engine.Read(dir.RunPath(run))
	if errors.Is(err, engine.ErrNoRun) {
		return true, nil
	}
	return st.Phase != engine.PhaseFinished, err
}

// ownerOf is whose a folder is. Where the graphroot is, is its user's word, and
// nobody's mounts are taken down on that alone.
func ownerOf(dir *os.File) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return 0, fmt.Errorf("cannot look at %s: %w", dir.Name(), err)
	}
	return st.Uid, nil
}

// differs tells why what a boot mounts is not what is mounted; "" where it is, or
// where that shows only when it is mounted (a file of a loop device): the cutover
// looks then.
func (m *OldMount) differs(ctx context.Context, run *host.Runner, live *os.File, top host.Mount) (string, error) {
	if slices.Contains(m.Options, "rbind") {
		return "it mounts what is below, too (rbind)", nil
	}
	if slices.Contains(m.Options, "bind") {
		who, err := host.Changeable(m.Source)
		if err != nil {
			return err.Error(), nil // a symbolic link on the way, or nothing there
		}
		if who != "" {
			return fmt.Sprintf("others than root can change %s, and so what is mounted", who), nil
		}
		from, err := host.OpenDir(m.Source)
		if err != nil {
			return err.Error(), nil
		}
		defer from.Close()
		var a, b unix.Stat_t
		if err := errors.Join(unix.Fstat(int(from.Fd()), &a), unix.Fstat(int(live.Fd()), &b)); err != nil {
			return "", fmt.Errorf("cannot look at %s: %w", m.Source, err)
		}
		if a.Dev != b.Dev || a.Ino != b.Ino {
			return m.Source + " is another folder", nil
		}
		return "", nil
	}
	var dev host.BlockDevice
	var err error
	if host.IsTag(m.Source) {
		dev, err = run.FindDevice(ctx, m.Source)
	} else if strings.HasPrefix(m.Source, "/dev/") {
		dev, err = host.LookDevice(m.Source)
	} else {
		return "", nil
	}
	if err != nil {
		return err.Error(), nil // a boot would not find it either
	}
	if dev.Major != top.Major || dev.Minor != top.Minor {
		return fmt.Sprintf("%s is %s, and %s is mounted", m.Source, dev.Path, top.Source), nil
	}
	return "", nil
}

// beneath looks at the mount point itself: what lies hidden there would be in the
// way, and nobody knows any more what it is.
func (a *Assessment) beneath(m *OldMount) error {
	root := a.Inputs.Store.GraphRoot
	dir, err := host.Underneath(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := entries(dir)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		a.Refusals = append(a.Refusals, *hiddenFiles(root))
	}
	on, err := host.Immutable(dir)
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	m.Open = !on
	return err
}

// bootLine is the line of fstab that would make a mount at every boot.
func bootLine(ctx context.Context, run *host.Runner, m host.Mount, path string) string {
	source, kind, options := m.Source, m.Type, "nofail,noatime"
	if m.Root != "/" {
		source, kind, options = "FOLDER", "none", "bind,nofail"
	} else if found, err := run.Signatures(ctx, m.Source); err == nil && len(found) == 1 && found[0].UUID != "" {
		source = "UUID=" + found[0].UUID
	}
	return strings.Join([]string{source, path, kind, options, "0 0"}, " ")
}

// emptyOld removes from a store that a run reaches at its own place what podman and
// storagectl have made, and names what is left. It runs in the worker.
func emptyOld(path string) (left []string, err error) {
	if filepath.Dir(filepath.Dir(path)) != privateMounts || !strings.HasSuffix(filepath.Dir(path), "-old") {
		return nil, fmt.Errorf("cannot remove %s: it is not the old store of a run", path)
	}
	if err := uncover(path); err != nil {
		return nil, err
	}
	if mounted, err := mountsBelow(path); err != nil {
		return nil, err
	} else if mounted = slices.DeleteFunc(mounted, func(m string) bool { return m == path }); len(mounted) > 0 {
		return nil, fmt.Errorf("cannot remove %s: %s is mounted in it", path, strings.Join(mounted, ", "))
	}
	es, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("cannot remove the old store: %w", err)
	}
	for _, e := range es {
		name := e.Name()
		switch {
		case name == "lost+found":
		case podmans(name), host.IsMarker(name), strings.HasPrefix(name, asideMark):
			if err := os.RemoveAll(filepath.Join(path, name)); err != nil {
				return nil, fmt.Errorf("cannot remove the old store: %w", err)
			}
		default:
			left = append(left, name)
		}
	}
	return left, syncDirs(path)
}
