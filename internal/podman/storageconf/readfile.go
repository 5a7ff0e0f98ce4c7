package storageconf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// maxFile is the largest storage.conf that is read, in bytes; real ones have
// some kilobytes.
const maxFile = 1 << 20

// ErrNotAFile reports a storage.conf that is no regular file, or far too large
// to be one.
var ErrNotAFile = errors.New("not a configuration file")

// ReadFile reads a configuration file that somebody else may have put there: it
// does not wait for the other end of a pipe, and takes no more than 1 MiB.
// Errors are those of package os, or ErrNotAFile.
func ReadFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w: it is no regular file", path, ErrNotAFile)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: %w: it has more than %d bytes", path, ErrNotAFile, maxFile)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}
