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
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// ErrChanged says that somebody else has written a file meanwhile.
var ErrChanged = errors.New("it has been changed meanwhile")

// FstabRefusedError says that findmnt(8) finds faults in the fstab that was to be
// written that it does not find in the one that is there.
type FstabRefusedError struct{ Faults []string }

func (e *FstabRefusedError) Error() string {
	return "cannot write fstab: findmnt finds fault with it: " + strings.Join(e.Faults, "; ")
}

// WriteFstab replaces the file at path, which must hold before ([ErrChanged]
// else), by after: the old content or the new, never neither, and the new one is
// on the disk when it returns. Owner, mode and extended attributes stay. New
// faults that `findmnt --verify` finds are a [*FstabRefusedError], and nothing is
// changed then; new warnings are returned. A symbolic link stays, and the file
// it leads to is replaced.
func (r *Runner) WriteFstab(ctx context.Context, path string, before, after []byte) (warnings []string, err error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot write fstab: %w", err)
	}
	if err := unchanged(path, before); err != nil {
		return nil, err
	}
	if bytes.Equal(before, after) {
		return nil, nil
	}
	var was complaints
	if len(before) > 0 {
		if was, err = r.verifyFstab(ctx, path); err != nil {
			return nil, err
		}
	}
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o644), renameio.IgnoreUmask())
	if err != nil {
		return nil, fmt.Errorf("cannot write fstab: %w", err)
	}
	defer func() { _ = f.Cleanup() }() // nothing is left to clean up after the rename
	if _, err := f.Write(after); err != nil {
		return nil, fmt.Errorf("cannot write fstab: %w", err)
	}
	if err := copyAttributes(path, f.File); err != nil {
		return nil, fmt.Errorf("cannot write fstab: %w", err)
	}
	is, err := r.verifyFstab(ctx, f.Name())
	if err != nil {
		return nil, err
	}
	faults := fresh(was.faults, is.faults)
	if n := is.unparsed - was.unparsed; n > 0 {
		faults = append(faults, fmt.Sprintf("%d lines that it cannot read", n))
	}
	if len(faults) > 0 {
		return nil, &FstabRefusedError{faults}
	}
	if err := unchanged(path, before); err != nil {
		return nil, err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return nil, fmt.Errorf("cannot write fstab: %w", err)
	}
	return fresh(was.warnings, is.warnings), SyncDir(filepath.Dir(path))
}

func unchanged(path string, before []byte) error {
	now, err := os.ReadFile(path)
	if err != nil && (!errors.Is(err, fs.ErrNotExist) || len(before) > 0) {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if !bytes.Equal(now, before) {
		return fmt.Errorf("cannot write %s: %w", path, ErrChanged)
	}
	return nil
}

// ReplaceFile replaces a file of root's, which must hold before ([ErrChanged]
// else), by after: the old content or the new, never neither, and the new one is
// on the disk when it returns. Owner, mode and extended attributes stay; one that
// was not there has the mode 0644. A symbolic link stays, and the file it leads to
// is replaced.
func ReplaceFile(path string, before, after []byte) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o644), renameio.IgnoreUmask())
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	defer func() { _ = f.Cleanup() }() // nothing is left to clean up after the rename
	if _, err = f.Write(after); err == nil {
		err = copyAttributes(path, f.File)
	}
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if err := unchanged(path, before); err != nil {
		return err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return SyncDir(filepath.Dir(path))
}

// copyAttributes gives a file the owner, mode and extended attributes (SELinux's
// label, an ACL) of the file at path, if there is one.
func copyAttributes(path string, to *os.File) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return err
	}
	if err := errors.Join(to.Chown(int(st.Uid), int(st.Gid)), unix.Fchmod(int(to.Fd()), st.Mode&0o7777)); err != nil {
		return err
	}
	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Listxattr(path, names)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(string(names[:max(n, 0)]), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Getxattr(path, name, value)
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}

// complaints are what findmnt --verify says, each with its mount point.
type complaints struct {
	faults, warnings []string
	unparsed         int
}

func (r *Runner) verifyFstab(ctx context.Context, path string) (complaints, error) {
	out, err := r.tool(ctx, 0, "findmnt", "--verify", "--tab-file", path)
	c := readComplaints(string(out))
	if err == nil {
		return c, nil
	}
	// With 1 it says that it found faults, and their sum on stderr; or that it
	// could not look.
	var exit *ExitError
	if errors.As(err, &exit) && exit.Code == 1 {
		sums := strings.TrimSpace(exit.Stderr)
		n, what, _ := strings.Cut(sums[strings.LastIndexByte(sums, '\n')+1:], " ")
		if v, err := strconv.Atoi(n); err == nil && strings.HasPrefix(what, "parse error") {
			c.unparsed = v
			return c, nil
		}
	}
	return complaints{}, fmt.Errorf("cannot verify fstab: %w", err)
}

// readComplaints reads paragraphs of a mount point and, indented, what is wrong
// with it: [E] a fault, [W] a warning.
func readComplaints(out string) complaints {
	var c complaints
	at := ""
	for l := range strings.Lines(out) {
		said := strings.TrimSpace(l)
		if fault, ok := strings.CutPrefix(said, "[E] "); ok {
			c.faults = append(c.faults, at+": "+fault)
		} else if warning, ok := strings.CutPrefix(said, "[W] "); ok {
			c.warnings = append(c.warnings, at+": "+warning)
		} else if said != "" {
			at = said
		}
	}
	return c
}

// fresh gives what is said now and was not said before, as often as that is so.
func fresh(before, now []string) []string {
	before = slices.Clone(before)
	var all []string
	for _, s := range now {
		if i := slices.Index(before, s); i >= 0 {
			before = slices.Delete(before, i, i+1)
		} else {
			all = append(all, s)
		}
	}
	return all
}

// SyncDir has a folder's entries outlive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("cannot sync %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("cannot sync %s: %w", dir, err)
	}
	return nil
}
