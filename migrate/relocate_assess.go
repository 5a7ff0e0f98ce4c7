package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
)

// relocation judges where a store is to go. Nothing is made yet: what the
// target's filesystem can do is tried in the run's first step, before the drain.
func (a *Assessment) relocation(ctx context.Context, s *Session) error {
	if os.Getuid() != 0 {
		a.refuse("not-root", "run it as root, with --user for the store of a user", "only root can mount a store elsewhere")
		return nil
	}
	if err := a.movable(); err != nil {
		return err
	}
	if err := a.mountedByHand(ctx, s.cli); err != nil {
		return err
	}
	if a.Inputs.Converting() {
		a.knownProgram()
	}
	need, err := ask[uint64](ctx, s, opReclaim, pathArg{a.Inputs.Store.GraphRoot})
	if err != nil {
		return err
	}
	a.Need = need
	if a.Look.Mountpoint {
		if a.Inputs.Converting() {
			a.refuse("graphroot-mount", "storagectl migrate --to "+a.Inputs.Request.To+" first; or move it on the driver that it is on",
				"the graphroot %s is a mount, and a store is not converted on its way from there", a.Inputs.Store.GraphRoot)
			return nil
		}
		if err := a.oldMount(ctx, s.env); err != nil || len(a.Refusals) > 0 {
			return err
		}
	}
	if need, err = a.room(ctx, s, need); err != nil || len(a.Refusals) > 0 {
		return err
	}
	judge := a.target
	switch r := a.Inputs.Request.Relocate; {
	case a.homeward():
		judge = a.targetHome
	case r.Device != "":
		judge = func() error { return a.targetDevice(ctx, s.env.Runner) }
	case r.CephFS != "":
		judge = func() error { return a.targetPlace(ctx, s.env.Runner, need) }
	case r.RBD != "":
		judge = func() error { return a.targetImage(ctx, s.env.Runner, need) }
	}
	if err := judge(); err != nil || len(a.Refusals) > 0 {
		return err
	}
	if a.drive(); len(a.Refusals) > 0 {
		return nil
	}
	if err := a.fstab(); err != nil {
		return err
	}
	home := a.Inputs.Target.Kind == KindHome
	if _, err := os.Stat("/dev/autofs"); err != nil && !home && host.HasSystemd() && a.Inputs.Request.Relocate.Mount == MountAuto {
		a.refuse("automount", "say --mount boot", "this host has no automounts: %v", err)
	}
	if free := a.Inputs.Target.Free; need > free-free/50 { // filesystems have needs of their own
		a.refuse("no-room", "give a larger target, or remove what is not needed from the store",
			"the store needs %s, and on the target %s are free", Bytes(need), Bytes(free))
	}
	if err := a.units(ctx, s); err != nil {
		return err
	}
	if a.Inputs.Request.Containers != Refuse {
		if err := a.running(ctx, s.cli); err != nil {
			return err
		}
	}
	who, err := host.Changeable(a.Inputs.Store.GraphRoot)
	if err != nil {
		return err
	}
	if host.HasSystemd() && !a.Inputs.Systemd {
		a.noLinger()
		return nil
	} else if who != "" && !host.HasSystemd() {
		a.refuse("graphroot-owner", "give podman a graphroot in folders of root's", "others than root can change %s, and without systemd nothing mounts there safely after a boot", who)
		return nil
	}
	// systemd makes the unit of a line in fstab for where the path leads at boot,
	// through links: who can change the path could have root mount over /etc.
	fuse := a.Inputs.Target.Kind == KindCephFS && a.Inputs.Target.Place.Mounter == ceph.Fuse
	if fuse && !a.Inputs.Systemd {
		a.refuse("no-systemd", "say --mounter kernel, where the kernel has the client", "without systemd nothing mounts by ceph-fuse after a boot as a store needs it")
		return nil
	}
	if a.Inputs.Target.Units = fuse || who != "" && a.Inputs.Systemd; who != "" && !home {
		a.Notes = append(a.Notes, fmt.Sprintf("others than root can change %s, so units of systemd's mount the store and no line in %s; what remains is told in docs/relocate.md", who, fstabPath))
	}
	a.Inputs.Target.Trim = a.Inputs.Target.Units && (a.Inputs.Target.Kind == KindDevice || a.Inputs.Target.Kind == KindRBD)
	if a.Inputs.Target.SetProgram {
		if err := a.conf(ctx, s); err != nil || len(a.Refusals) > 0 {
			return err
		}
	}
	a.plan(s)
	return nil
}

func (a *Assessment) noLinger() {
	name := a.Inputs.Owner.Name
	a.refuse("no-linger", "loginctl enable-linger "+name, "%s has no systemd running: what uses the store could not be ordered after its mount", name)
}

// room is what the store will need on the target: what it has, or, where it is
// brought to another driver, about what that makes of it and what is copied.
func (a *Assessment) room(ctx context.Context, s *Session, has uint64) (uint64, error) {
	if !a.Inputs.Converting() {
		return has, nil
	}
	if err := a.conf(ctx, s); err != nil || len(a.Refusals) > 0 {
		return 0, err
	}
	if err := a.content(ctx, s); err != nil || len(a.Refusals) > 0 {
		return 0, err
	}
	rest, err := ask[int64](ctx, s, opWeigh, copyArgs{From: a.Inputs.Store.GraphRoot, Converted: a.Inputs.converted()})
	a.Room = uint64(max(a.Estimate.BytesNeeded+rest, 0))
	return a.Room, err
}

// movable refuses a store that cannot be moved as it is.
func (a *Assessment) movable() error {
	root, l := a.Inputs.Store.GraphRoot, a.Look
	for _, m := range l.Mounts {
		rel := strings.TrimPrefix(m, l.RealPath+"/")
		switch {
		case strings.HasSuffix(m, "/userdata/shm"), rel == "overlay", strings.HasPrefix(rel, "overlay/"): // podman's own
		default:
			a.refuse("mount", "unmount it first; it is mounted again by hand at the same path afterwards", "%s is mounted in the store", m)
		}
	}
	if run := a.Inputs.Store.RunRoot; strings.HasPrefix(run+"/", root+"/") {
		a.refuse("runroot", "set runroot to a folder outside the store", "podman's runroot %s lies in the store", run)
	}
	if v := a.Inputs.Store.VolumePath; v != "" && !strings.HasPrefix(v+"/", root+"/") {
		a.Notes = append(a.Notes, fmt.Sprintf("the volumes lie outside the graphroot and stay where they are: %s", v))
	}
	return nil
}

// mountedByHand refuses a rootful store whose images or stopped containers are
// mounted by "podman image mount" or "podman mount": somebody may be in there, and
// a store cannot be moved under a mount. (A user's are in a namespace of podman's,
// which ends.)
func (a *Assessment) mountedByHand(ctx context.Context, cli podman.CLI) error {
	if !a.Inputs.Owner.Rootful() || !slices.ContainsFunc(a.Look.Mounts, func(m string) bool { return strings.HasSuffix(m, "/merged") }) {
		return nil
	}
	list := func(args ...string) ([]string, error) {
		out, err := cli.Run(ctx, nil, append(args, "--format", "json")...)
		if err != nil {
			return nil, err
		}
		var mounts []struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal(out, &mounts); err != nil {
			return nil, fmt.Errorf("cannot read what podman has mounted: %w", err)
		}
		var ids []string
		for _, m := range mounts {
			ids = append(ids, m.ID)
		}
		return ids, nil
	}
	images, err := list("image", "mount")
	if err != nil {
		return err
	}
	if len(images) > 0 {
		a.refuse("mount", "podman image unmount --force --all", "%s mounted by hand (podman image mount): %s", Count(len(images), "image is", "images are"), few(images))
	}
	mounted, err := list("mount")
	if err != nil {
		return err
	}
	cs, err := cli.Containers(ctx)
	if err != nil {
		return err
	}
	mounted = slices.DeleteFunc(mounted, func(id string) bool {
		return slices.ContainsFunc(cs, func(c podman.Container) bool { return c.ID == id && c.State == "running" })
	})
	if len(mounted) > 0 {
		a.refuse("mount", "podman umount "+strings.Join(mounted, " "), "%s mounted by hand (podman mount): %s", Count(len(mounted), "container is", "containers are"), few(mounted))
	}
	return nil
}

// target looks at the place that the store is to go to.
func (a *Assessment) target() error {
	r := a.Inputs.Request.Relocate
	dir, err := filepath.Abs(r.Path)
	if err != nil {
		return fmt.Errorf("cannot find %s: %w", r.Path, err)
	}
	f, err := host.OpenDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		a.refuse("no-target", "make the folder, on the filesystem that the store is to go to", "there is no folder %s", dir)
		return nil
	case errors.Is(err, unix.ELOOP):
		a.refuse("no-target", "give the path that it leads to", "%s goes through a symbolic link", dir)
		return nil
	case errors.Is(err, unix.ENOTDIR):
		a.refuse("no-target", "give a folder", "%s is not a folder", dir)
		return nil
	case err != nil:
		return err
	}
	defer f.Close()
	if bad, err := host.Changeable(filepath.Join(dir, a.folderName())); err != nil {
		return err
	} else if bad != "" {
		a.refuse("target-owner", "give a folder that belongs to root, in folders that belong to root, all closed to the writing of others",
			"%s can be changed by others than root: whoever can do so could have root mount something else", bad)
		return nil
	}
	if err := a.targetOn(KindPath, f); err != nil {
		return err
	}
	folder := filepath.Join(dir, a.folderName())
	if in, err := a.intertwined(f); err != nil {
		return err
	} else if in {
		a.refuse("target-inside", "give a folder outside the store", "%s and the store %s lie in each other", dir, a.Look.RealPath)
	} else if _, err := os.Lstat(folder); err == nil {
		a.Refusals = append(a.Refusals, *targetTaken(folder))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot look at %s: %w", folder, err)
	}
	if a.Look.MountedOn == a.Inputs.Target.On {
		a.Notes = append(a.Notes, fmt.Sprintf("%s lies on the same filesystem as the store: there will be no more room than there was", dir))
	}
	return nil
}

// intertwined reports whether a target lies in the store, or the store in the folder
// that it would get there: by whatever path, also one of a bind mount.
func (a *Assessment) intertwined(target *os.File) (bool, error) {
	root, err := host.OpenDir(a.Look.RealPath)
	if err != nil {
		return false, err
	}
	defer root.Close()
	if in, err := host.Inside(target, root); err != nil || in {
		return in, err
	}
	folder, err := host.OpenBelow(target, a.folderName())
	if err != nil { // then nothing can be in it; what it is else is looked at afterwards
		return false, nil
	}
	defer folder.Close()
	return host.Inside(root, folder)
}

// targetOn notes the target's filesystem, which is mounted, and refuses one that is
// mounted so that containers cannot be on it.
func (a *Assessment) targetOn(kind string, dir *os.File) error {
	m, err := host.MountOf(dir)
	if err != nil {
		return err
	}
	var sf unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &sf); err != nil {
		return fmt.Errorf("cannot look at %s: %w", dir.Name(), err)
	}
	id, err := host.FilesystemID(dir)
	if err != nil {
		return err
	}
	a.Inputs.Target = &Target{Kind: kind, Where: dir.Name(), On: m.Path, FSType: m.Type, ID: id, Free: sf.Bavail * uint64(sf.Bsize)}
	switch {
	case sf.Flags&unix.ST_RDONLY != 0:
		a.refuse("target-mount", "remount it for writing", "the filesystem of %s is mounted read-only", dir.Name())
	case sf.Flags&(unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC) != 0:
		a.refuse("target-mount", "mount it without nosuid, nodev and noexec: containers need what these take away",
			"the filesystem of %s is mounted %s", dir.Name(), m.Options)
	}
	return nil
}

func (a *Assessment) folderName() string { return folderOf(a.Inputs) }

// folderOf names the folder of a store on a target that it shares with others.
func folderOf(in Inputs) string { return "storage-" + in.Owner.Name }

// fstab refuses a graphroot that fstab has a line for already.
func (a *Assessment) fstab() error {
	b, err := os.ReadFile(fstabPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot read fstab: %w", err)
	}
	lines, err := host.ParseFstab(b)
	if err != nil {
		a.refuse("fstab", "mend that line first (findmnt --verify)", "fstab cannot be read: %v", err)
		return nil
	}
	i := slices.IndexFunc(lines, func(l host.FstabLine) bool { return l.Path == a.Inputs.Store.GraphRoot })
	if i >= 0 && a.Inputs.Store.Mount == nil { // the old mount's is parked
		a.refuse("fstab", "remove the line if it is not wanted any more", "fstab has a line for %s already (line %d)", a.Inputs.Store.GraphRoot, lines[i].Line)
	}
	return nil
}

// relocateWhat tells what the steps of a relocation come to.
func (a *Assessment) relocateWhat(what map[string]string) {
	in := a.Inputs
	t := in.Target
	folder := filepath.Join(t.Where, folderOf(in))
	tried := fmt.Sprintf("the store's owner tries what %s needs there", in.Request.To)
	what[stepTarget] = fmt.Sprintf("%s, on the %s of %s with %s free; %s", folder, t.FSType, t.On, Bytes(t.Free), tried)
	if t.Kind == KindRBD {
		what[stepTakeOver] = fmt.Sprintf("%s: on the cluster's blocklist, and the lock broken", holders(t.Image.Holders))
		what[stepImage] = fmt.Sprintf("%s by %s, and nowhere else", t.Where, t.Image.Mapper)
		if t.Image.Create {
			what[stepImage] = fmt.Sprintf("%s is made, of %s; by %s, and nowhere else", t.Where, Bytes(t.Image.Size), t.Image.Mapper)
			if t.Image.MakeNamespace {
				what[stepImage] = fmt.Sprintf("the namespace %s/%s is made; ", t.Image.Spec.Pool, t.Image.Spec.Namespace) + what[stepImage]
			}
		}
	}
	if t.Kind != KindPath {
		folder = t.Where
		what[stepTarget] = fmt.Sprintf("the empty %s on %s (%s); %s", t.FSType, t.Where, Bytes(t.Free), tried)
		if t.Kind == KindRBD && !t.Make {
			what[stepTarget] = fmt.Sprintf("the empty filesystem on it, or %s is made where nothing is; %s", t.FSType, tried)
		}
		if t.Kind == KindCephFS {
			what[stepTarget] = fmt.Sprintf("%s%s (%s free), mounted by %s; %s", subvolumeWhat(t.Place.Subvolume), t.Where, Bytes(t.Free), t.Place.Mounter.Client(), tried)
		}
		if t.Make {
			what[stepTarget] = fmt.Sprintf("%s is made on %s (%s); %s", t.FSType, t.Where, Bytes(t.Free), tried)
		}
	}
	what[stepCopy] = fmt.Sprintf("%s of %s, while podman works", Bytes(a.Need), in.Store.GraphRoot)
	if in.Converting() {
		a.convertWhat(what)
	}
	what[stepReadBack] = "every file, against the checksums that were taken when it was read"
	what[stepManifest] = "images, layers, containers, pods, volumes, secrets, networks"
	what[stepSwap] = fmt.Sprintf("%s becomes %s; an immutable mount point takes its place", in.Store.GraphRoot, asideOf(in.Store.GraphRoot, "RUN"))
	what[stepCopyRest] = "what changed since, and its checksums"
	if m := in.Store.Mount; m != nil {
		by := "the line in " + fstabPath + " becomes a comment"
		if !m.Fstab {
			by = "its units are taken away"
		}
		what[stepSwap] = fmt.Sprintf("%s, on %s: %s; until the commit the old store is reached at %s", m.Source, in.Store.GraphRoot, by, oldPlace("RUN"))
		what[stepCommit] = "what is podman's on " + m.Source + "; " + what[stepCommit]
	}
	if t.Kind == KindHome {
		what[stepTarget] = fmt.Sprintf("a folder in %s, on the %s of %s with %s free; %s", t.Where, t.FSType, t.On, Bytes(t.Free), tried)
		what[stepMount] = fmt.Sprintf("%s is a plain folder again, and no mount", in.Store.GraphRoot)
		return
	}
	how := "mounted when it is first used"
	if in.Request.Relocate.Mount == MountBoot || !in.Systemd {
		how = "mounted at boot"
	}
	by := "a line in " + fstabPath
	if t.Units {
		by = "units of systemd's"
	}
	what[stepMount] = fmt.Sprintf("%s on %s, by %s, %s; what uses the store is ordered after it", folder, in.Store.GraphRoot, by, how)
}
