package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// OccupiedError says that a device is not made a filesystem on.
type OccupiedError struct {
	Device string
	Found  []Signature
	Files  []string // at the top of the filesystem that is there
	InUse  bool     // mounted or otherwise taken
}

func (e *OccupiedError) Error() string {
	var what []string
	if e.InUse {
		what = append(what, "it is in use")
	}
	for _, s := range e.Found {
		what = append(what, "it holds "+s.String())
	}
	if n := len(e.Files); n > 0 {
		what = append(what, "with files: "+strings.Join(e.Files[:min(n, 5)], ", "))
	}
	return fmt.Sprintf("cannot make a filesystem on %s: %s", e.Device, strings.Join(what, ", "))
}

// MkfsOptions says what to make.
type MkfsOptions struct {
	Type      string // xfs or ext4
	Label     string // at most 12 bytes on XFS, 16 on ext4
	Replace   bool   // a filesystem that is there may go if it holds no files
	Again     bool   // the device was free when one like it was begun here: its torso may go, too
	Marker    string // a name at the top of a filesystem that does not count as a file
	NoDiscard bool   // do not tell the device first that all of it is free
	Stripe    int64  // bytes, whole blocks: what the device best writes as one; 0: what it tells
}

// stripeFrom is the size of a device, in bytes, from which XFS gets a stripe: a smaller
// one has no room for the log then (mkfs.xfs 6.1 fails below 600 MB, and leaves a stripe
// out that only the device tells of, as krbd does: "small data volume").
const stripeFrom = 1_000_000_000

const ext4Block = 4096 // bytes

// Filesystem is what was made.
type Filesystem struct {
	Type        string `json:"type"`
	UUID        string `json:"uuid"`
	Label       string `json:"label,omitempty"`
	BlockSize   int64  `json:"blockSize"`             // bytes
	StripeUnit  int64  `json:"stripeUnit,omitempty"`  // bytes; XFS only
	StripeWidth int64  `json:"stripeWidth,omitempty"` // bytes; XFS only
}

// Mkfs makes a filesystem for container stores on a device that is free, and
// gives it as it is seen afterwards. Anything that has a signature is an
// [*OccupiedError]; with Replace a filesystem may go that can be looked into and
// holds nothing, with Again one that was left half made. A partition table, a volume of LVM or LUKS, swap or RAID never
// goes: whoever means it wipes it first. A device that is in use never does.
//
// The stripe is the device's own, which both programs ask it for, where the options
// name none. Of ext4 1 % is kept for root, instead of 5: enough that root can tidy up.
func (r *Runner) Mkfs(ctx context.Context, dev string, o MkfsOptions) (Filesystem, error) {
	d, err := LookDevice(dev)
	if err != nil {
		return Filesystem{}, err
	}
	found, err := r.Signatures(ctx, d.Path)
	if err != nil {
		return Filesystem{}, err
	}
	if d.InUse || len(found) > 0 && !o.Replace && !o.Again {
		return Filesystem{}, &OccupiedError{Device: d.Path, Found: found, InUse: d.InUse}
	}
	if err := replaceable(d, found, o); err != nil {
		return Filesystem{}, err
	}
	var name string
	var args []string
	switch o.Type {
	case "xfs":
		name, args = "mkfs.xfs", []string{"-q", "-n", "ftype=1"}
		if o.NoDiscard {
			args = append(args, "-K")
		}
		switch {
		case o.Stripe > 0 && d.Size < stripeFrom:
			args = append(args, "-d", "noalign")
		case o.Stripe > 0:
			args = append(args, "-d", fmt.Sprintf("su=%d,sw=1", o.Stripe))
		}
		if len(found) > 0 {
			args = append(args, "-f")
		}
	case "ext4":
		name, args = "mkfs.ext4", []string{"-q", "-m", "1", "-E", "discard"}
		if o.NoDiscard {
			args[4] = "nodiscard"
		}
		if o.Stripe > 0 { // told in blocks, whose size is else chosen by that of the device
			args[4] += fmt.Sprintf(",stride=%d,stripe-width=%[1]d", o.Stripe/ext4Block)
			args = append(args, "-b", fmt.Sprint(ext4Block))
		}
		if len(found) > 0 {
			args = append(args, "-F")
		}
	default:
		return Filesystem{}, fmt.Errorf("cannot make a filesystem on %s: type %q is not known", d.Path, o.Type)
	}
	if o.Label != "" {
		args = append(args, "-L", o.Label)
	}
	// Discarding a large device takes its time.
	if _, err := r.tool(ctx, 30*time.Minute, name, append(args, d.Path)...); err != nil {
		return Filesystem{}, fmt.Errorf("cannot make a filesystem on %s: %w", d.Path, err)
	}
	return r.made(ctx, d.Path, o)
}

// replaceable judges what is on a device before it goes.
func replaceable(d BlockDevice, found []Signature, o MkfsOptions) error {
	kind := ""
	for _, s := range found {
		known := s.Type == "xfs" || s.Type == "ext4" || s.Type == "ext3" || s.Type == "ext2" || s.Type == "btrfs"
		// btrfs has several copies of its own.
		if s.Table || !known || kind != "" && kind != s.Type || !o.Replace && s.Type != o.Type {
			return &OccupiedError{Device: d.Path, Found: found}
		}
		kind = s.Type
	}
	if kind == "" {
		return nil
	}
	files, err := FilesOn(d.Path, kind, o.Marker)
	if err != nil {
		if o.Again && kind == o.Type {
			return nil // what was not finished cannot be mounted
		}
		return errors.Join(&OccupiedError{Device: d.Path, Found: found}, err)
	}
	if len(files) > 0 {
		return &OccupiedError{Device: d.Path, Found: found, Files: files}
	}
	return nil
}

func (r *Runner) made(ctx context.Context, dev string, o MkfsOptions) (Filesystem, error) {
	fail := func(err error) (Filesystem, error) {
		return Filesystem{}, fmt.Errorf("cannot use the filesystem made on %s: %w", dev, err)
	}
	found, err := r.Signatures(ctx, dev)
	if err != nil {
		return fail(err)
	}
	if len(found) != 1 || found[0].Type != o.Type || found[0].UUID == "" {
		return fail(fmt.Errorf("it holds %v", found))
	}
	f := Filesystem{Type: o.Type, UUID: found[0].UUID, Label: found[0].Label}
	root, drop, err := glance(dev, o.Type, false)
	if err != nil {
		return fail(err)
	}
	defer drop()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &st); err != nil {
		return fail(err)
	}
	f.BlockSize = st.Bsize
	if o.Type == "xfs" {
		g, err := geometryXFS(root)
		if err != nil {
			return fail(err)
		}
		const ftype = 1 << 16 // XFS_FSOP_GEOM_FLAGS_FTYPE
		if g.Flags&ftype == 0 {
			return fail(errors.New("its folders do not tell the type of files (ftype=0), which overlay needs"))
		}
		f.StripeUnit, f.StripeWidth = int64(g.Sunit)*f.BlockSize, int64(g.Swidth)*f.BlockSize
	}
	return f, nil
}

// FilesOn lists what is at the top of a filesystem on a device that is not
// mounted, at most 100 names, but for lost+found and the marker. Nobody else sees
// the mount. What can be seen without it is seen without the journal, and nothing
// is written then. But a filesystem that was cut off may look empty so (seen on
// XFS): before it is called empty, its journal is written back as by any mount.
func FilesOn(dev, kind, marker string) ([]string, error) {
	for _, journal := range []bool{false, true} {
		names, err := topNames(dev, kind, marker, journal)
		if err != nil {
			return nil, fmt.Errorf("cannot see the files on %s: %w", dev, err)
		}
		if len(names) > 0 {
			return names, nil
		}
	}
	return nil, nil
}

func topNames(dev, kind, marker string, journal bool) ([]string, error) {
	root, drop, err := glance(dev, kind, journal)
	if err != nil {
		return nil, err
	}
	defer drop()
	names, err := root.Readdirnames(100)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return n == "lost+found" || marker != "" && (n == marker || n == marker+".new") })
	slices.Sort(names)
	return names, nil
}

// glance opens the top of a filesystem that is not mounted, for reading. The
// caller drops it.
func glance(dev, kind string, journal bool) (root *os.File, drop func(), err error) {
	m := FSMount{Source: dev, Type: kind, Flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC}
	switch {
	case kind == "xfs" && journal:
		m.Data = "nouuid"
	case kind == "xfs":
		m.Data = "nouuid,norecovery"
	case (kind == "ext3" || kind == "ext4") && !journal:
		m.Data = "noload"
	}
	tree, err := newTree(m)
	if errors.Is(err, unix.ENOSYS) {
		return glanceOld(m)
	}
	if err != nil {
		return nil, nil, err
	}
	root, err = Readable(tree)
	if err != nil {
		tree.Close()
		return nil, nil, err
	}
	return root, func() { root.Close(); tree.Close() }, nil
}

// glanceOld is glance for Linux before 5.2, at a mount point of root's.
func glanceOld(m FSMount) (*os.File, func(), error) {
	at, err := os.MkdirTemp("/run", "storagectl-look-")
	if err != nil {
		return nil, nil, err
	}
	gone := func() { _ = os.Remove(at) }
	if err := unix.Mount(m.Source, at, m.Type, m.Flags, m.Data); err != nil {
		gone()
		return nil, nil, err
	}
	root, err := os.Open(at)
	drop := func() {
		root.Close()
		_ = unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // used by nobody else
		gone()
	}
	if err != nil {
		drop()
		return nil, nil, err
	}
	return root, drop, nil
}
