package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// UntrustedError reports a file that others than who runs this program, and root,
// could have written.
type UntrustedError struct{ Path, Why string }

func (e *UntrustedError) Error() string { return fmt.Sprintf("cannot trust %s: %s", e.Path, e.Why) }

// mostTrusted is the size of the largest file that is read so.
const mostTrusted = 1 << 20

// ReadTrusted reads a file that tells this program what to do: one that belongs to
// root or to who runs this program, in folders that do, all the way from /, and that
// nobody else can write to. Symbolic links are followed first, and what they lead to
// is judged. It returns an [*UntrustedError] for any other, and os.ErrNotExist.
func ReadTrusted(path string) ([]byte, error) { return readTrusted(path, 0o022) }

// ReadSecret reads a file as [ReadTrusted] does which, moreover, nobody else can read,
// without the white space around its content.
func ReadSecret(path string) ([]byte, error) {
	b, err := readTrusted(path, 0o077)
	return bytes.TrimSpace(b), err
}

func readTrusted(path string, closed os.FileMode) ([]byte, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	if real, err = filepath.Abs(real); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	if err := foldersOf(path, real, unix.S_ISVTX); err != nil {
		return nil, err
	}
	dir, err := OpenDir(filepath.Dir(real))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), filepath.Base(real), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), real)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("cannot look at %s: %w", path, err)
	}
	switch why := foreign(&st, uint32(closed)); {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, &UntrustedError{Path: path, Why: "it is not a file"}
	case why != "":
		return nil, &UntrustedError{Path: path, Why: "it " + why}
	}
	b, err := io.ReadAll(io.LimitReader(f, mostTrusted+1))
	if err == nil && len(b) > mostTrusted {
		err = errors.New("it is larger than 1 MiB")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return b, nil
}

// TrustedPlace reports where root could be led elsewhere with a file that it is to write:
// each folder above it must be there as such, not as a link, belong to root, and be
// closed to the writing of others. It returns an [*UntrustedError], or os.ErrNotExist. For
// any other user all places are good.
func TrustedPlace(path string) error {
	if os.Getuid() != 0 {
		return nil
	}
	return foldersAbove(path)
}

// Trusted reports whether others than root, and who runs this program, can change what is
// at a path, a file or a folder, or put something else there. On the way there may be no
// link. It returns an [*UntrustedError], or os.ErrNotExist.
func Trusted(path string) error {
	if err := foldersAbove(path); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("cannot look at %s: %w", path, err)
	}
	switch why := foreign(&st, 0o022); {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return &UntrustedError{Path: path, Why: "it is a symbolic link"}
	case why != "":
		return &UntrustedError{Path: path, Why: "it " + why}
	}
	return nil
}

// foldersAbove judges the folders above a path, none of which may be a link, nor, the
// lowest, one that others may write to with the bit sticky.
func foldersAbove(path string) error {
	err := foldersOf(path, path, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return &UntrustedError{Path: path, Why: "what is above it is a link, or no folder"}
	}
	return err
}

// foldersOf judges each folder above the file real, which path leads to. In a folder
// above others that has the bit sticky, such as /tmp, nobody removes or renames what is
// another's; the lowest that is there is judged by sticky: something may be made in it.
func foldersOf(path, real string, sticky uint32) error {
	var missing error
	for dir := filepath.Dir(real); ; dir = filepath.Dir(dir) {
		d, err := OpenDir(dir)
		if errors.Is(err, os.ErrNotExist) && dir != "/" {
			missing = err
			continue
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		err = unix.Fstat(int(d.Fd()), &st)
		_ = d.Close()
		if err != nil {
			return fmt.Errorf("cannot look at %s: %w", dir, err)
		}
		if why := foreign(&st, 0o022); why != "" && (st.Uid != 0 || st.Mode&sticky == 0) {
			return &UntrustedError{Path: path, Why: fmt.Sprintf("its folder %s %s", dir, why)}
		}
		if dir == "/" {
			return missing
		}
		sticky = unix.S_ISVTX
	}
}

// foreign says what makes a file or folder another's; "": nothing.
func foreign(st *unix.Stat_t, closed uint32) string {
	switch self := uint32(os.Getuid()); {
	case st.Uid != 0 && st.Uid != self && self == 0:
		return fmt.Sprintf("belongs to the user with id %d, not to root", st.Uid)
	case st.Uid != 0 && st.Uid != self:
		return fmt.Sprintf("belongs to the user with id %d, neither to root nor to you", st.Uid)
	case st.Mode&closed&0o022 != 0:
		return fmt.Sprintf("can be written by others (its mode is %#o)", st.Mode&0o7777)
	case st.Mode&closed != 0:
		return fmt.Sprintf("can be read by others (its mode is %#o)", st.Mode&0o7777)
	}
	return ""
}
