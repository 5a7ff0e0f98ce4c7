package host

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// BlockDevice is a disk, a partition or whatever else holds blocks.
type BlockDevice struct {
	Path     string  `json:"path"` // without symbolic links
	Major    uint32  `json:"major"`
	Minor    uint32  `json:"minor"`
	Size     int64   `json:"size"` // bytes
	ReadOnly bool    `json:"readOnly,omitempty"`
	MinIO    int64   `json:"minIO"`           // bytes; the smallest request without a penalty
	OptIO    int64   `json:"optIO,omitempty"` // bytes; the best request: a stripe; 0 if not told
	Mounts   []Mount `json:"mounts,omitempty"`
	InUse    bool    `json:"inUse,omitempty"` // mounted, swap, or part of something else
}

// ErrNoDevice says that no block device has what is looked for.
var ErrNoDevice = errors.New("no such block device")

// ManyDevicesError says that more than one device has the same filesystem id or label:
// copies of one another, maybe, and mounting the wrong one would be a disaster.
type ManyDevicesError struct {
	Tag   string
	Paths []string
}

func (e *ManyDevicesError) Error() string {
	return fmt.Sprintf("cannot tell which device is meant by %s: %s have it", e.Tag, strings.Join(e.Paths, ", "))
}

// LookDevice looks at a block device. Its path must be root's alone to change.
func LookDevice(path string) (BlockDevice, error) {
	fail := func(err error) (BlockDevice, error) {
		return BlockDevice{}, fmt.Errorf("cannot look at device %s: %w", path, err)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fail(err)
	}
	if who, err := Changeable(real); err != nil {
		return fail(err)
	} else if who != "" {
		return fail(fmt.Errorf("others than root can change %s", who))
	}
	f, err := os.OpenFile(real, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return fail(errors.New("it is no block device"))
	}
	d := BlockDevice{Path: real, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)}
	if d.Size, err = f.Seek(0, io.SeekEnd); err != nil {
		return fail(err)
	}
	ro, err1 := unix.IoctlGetUint32(fd, unix.BLKROGET)
	minIO, err2 := unix.IoctlGetUint32(fd, unix.BLKIOMIN)
	optIO, err3 := unix.IoctlGetUint32(fd, unix.BLKIOOPT)
	if err := errors.Join(err1, err2, err3); err != nil {
		return fail(err)
	}
	d.ReadOnly, d.MinIO, d.OptIO = ro != 0, int64(minIO), int64(optIO)
	t, err := Mounts()
	if err != nil {
		return fail(err)
	}
	for _, m := range t {
		if m.Dev() == st.Rdev {
			d.Mounts = append(d.Mounts, m)
		}
	}
	// Linux gives a device exclusively to one at a time: a mount anywhere, swap,
	// RAID, LVM.
	x, err := unix.Open(real, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case err == nil:
		_ = unix.Close(x)
	case errors.Is(err, unix.EBUSY):
		d.InUse = true
	default:
		return fail(err)
	}
	return d, nil
}

// IsTag reports whether a device is named by what it holds, as fstab may name it:
// UUID=…, LABEL=…, PARTUUID=… or PARTLABEL=….
func IsTag(name string) bool {
	key, _, ok := strings.Cut(name, "=")
	return ok && slices.Contains([]string{"UUID", "LABEL", "PARTUUID", "PARTLABEL"}, key)
}

// FindDevice finds the block device that a tag ([IsTag]) names by reading the devices
// themselves: no udev and no cache has a say. The error is [ErrNoDevice] or a
// [*ManyDevicesError].
func (r *Runner) FindDevice(ctx context.Context, tag string) (BlockDevice, error) {
	fail := func(err error) (BlockDevice, error) {
		return BlockDevice{}, fmt.Errorf("cannot find the device with %s: %w", tag, err)
	}
	key, value, _ := strings.Cut(tag, "=")
	value = strings.Trim(value, `"`) // as in fstab
	const digits = "0123456789abcdefABCDEF-"
	if !IsTag(tag) || value == "" || strings.HasSuffix(key, "UUID") && strings.Trim(value, digits) != "" || strings.ContainsAny(value, "\"\\\n") {
		return fail(errors.New("it cannot be looked for"))
	}
	out, err := r.tool(ctx, 0, "blkid", "-c", "/dev/null", "-o", "device", "-t", key+"="+value)
	const nothing = 2
	if code := exitCode(err); code == nothing {
		return fail(ErrNoDevice)
	} else if code != 0 {
		return fail(err)
	}
	var found []BlockDevice
	for _, path := range strings.Fields(string(out)) {
		d, err := LookDevice(path)
		if err != nil {
			return BlockDevice{}, err
		}
		same := func(o BlockDevice) bool { return o.Major == d.Major && o.Minor == d.Minor }
		if !slices.ContainsFunc(found, same) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return fail(ErrNoDevice)
	case 1:
		return found[0], nil
	}
	e := &ManyDevicesError{Tag: tag}
	for _, d := range found {
		e.Paths = append(e.Paths, d.Path)
	}
	return BlockDevice{}, e
}

// Signature is something that a device says it holds.
type Signature struct {
	Type   string `json:"type"` // xfs, ext4, LVM2_member, gpt, …
	UUID   string `json:"uuid,omitempty"`
	Label  string `json:"label,omitempty"`
	Offset int64  `json:"offset"` // bytes
	Table  bool   `json:"table,omitempty"`
}

func (s Signature) String() string {
	t := s.Type
	if s.Table {
		t += " partition table"
	}
	if s.Label != "" {
		t += " " + strconv.Quote(s.Label)
	}
	if s.UUID != "" {
		t += " " + s.UUID
	}
	return t
}

// Signatures lists what a device says it holds, by place; none where nothing is
// known. Partition tables count. Nothing is written.
func (r *Runner) Signatures(ctx context.Context, dev string) ([]Signature, error) {
	out, err := r.tool(ctx, 0, "wipefs", "--no-act", "--json", dev)
	if err != nil {
		return nil, fmt.Errorf("cannot see what is on %s: %w", dev, err)
	}
	var list struct {
		Signatures []struct{ Type, UUID, Label, Offset string }
	}
	if len(strings.TrimSpace(string(out))) > 0 { // it says nothing where there is nothing
		if err := json.Unmarshal(out, &list); err != nil {
			return nil, fmt.Errorf("cannot see what is on %s: %w", dev, err)
		}
	}
	var all []Signature
	for _, s := range list.Signatures {
		at, err := strconv.ParseInt(s.Offset, 0, 64)
		if err != nil {
			return nil, fmt.Errorf("cannot see what is on %s: %w", dev, err)
		}
		all = append(all, Signature{Type: s.Type, UUID: s.UUID, Label: s.Label, Offset: at})
	}
	// The second opinion, which also tells tables from filesystems.
	probe, err := r.tool(ctx, 0, "blkid", "--probe", "--output", "export", dev)
	const nothing, unsure = 2, 8
	if code := exitCode(err); code != 0 && code != nothing && code != unsure {
		return nil, fmt.Errorf("cannot see what is on %s: %w", dev, err)
	} else if code == unsure && len(all) == 0 {
		all = append(all, Signature{Type: "several things at once"})
	}
	found := map[string]string{}
	for l := range strings.Lines(string(probe)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(l), "="); ok {
			found[k] = v
		}
	}
	for key, table := range map[string]bool{"TYPE": false, "PTTYPE": true} {
		kind := found[key]
		i := slices.IndexFunc(all, func(s Signature) bool { return s.Type == kind })
		if i >= 0 {
			all[i].Table = table
		} else if kind != "" {
			all = append(all, Signature{Type: kind, UUID: found["UUID"], Label: found["LABEL"], Table: table})
		}
	}
	slices.SortFunc(all, func(a, b Signature) int { return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Type, b.Type)) })
	return all, nil
}

// Blank reports whether the first and the last MiB of a device are zeros. What
// has no signature and is not blank may still be somebody's.
func Blank(dev string) (bool, error) {
	f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, fmt.Errorf("cannot read device: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, fmt.Errorf("cannot read device: %w", err)
	}
	const piece = 1 << 20
	for _, at := range []int64{0, max(0, size-piece)} {
		b, err := io.ReadAll(io.NewSectionReader(f, at, piece))
		if err != nil {
			return false, fmt.Errorf("cannot read device: %w", err)
		}
		if strings.Trim(string(b), "\x00") != "" {
			return false, nil
		}
	}
	return true, nil
}
