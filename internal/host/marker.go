package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// MarkerName is the file at the top of a filesystem that storagectl made or took.
const MarkerName = "storagectl-target.json"

// markerNew is where a marker is written before it has its name.
const markerNew = MarkerName + ".new"

// Marker says what a filesystem is for, to whoever finds it. It is a note and no
// proof: who owns the folder can write what they like.
type Marker struct {
	Host  string    `json:"host"`
	Run   string    `json:"run"`
	Store string    `json:"store"` // the graphroot
	Owner string    `json:"owner"` // of the store
	Made  time.Time `json:"made"`
}

// ReadMarker reads the marker in a folder. Nothing but a plain small file is read.
// Where there is none the error is [os.ErrNotExist].
func ReadMarker(dir *os.File) (Marker, error) {
	var m Marker
	// A FIFO must not hold us, nor a link lead us.
	fd, err := unix.Openat(int(dir.Fd()), MarkerName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return m, fmt.Errorf("cannot read the marker in %s: %w", dir.Name(), err)
	}
	f := os.NewFile(uintptr(fd), MarkerName)
	defer f.Close()
	const most = 64 << 10
	fi, err := f.Stat()
	if err == nil && (!fi.Mode().IsRegular() || fi.Size() > most) {
		err = errors.New("it is no small file")
	}
	if err != nil {
		return m, fmt.Errorf("cannot read the marker in %s: %w", dir.Name(), err)
	}
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return m, fmt.Errorf("cannot read the marker in %s: %w", dir.Name(), err)
	}
	return m, nil
}

// WriteMarker writes the marker, whole or not at all, for all to read who can enter
// the folder; it is on the disk when it returns. What somebody else put under its
// name is replaced, never written to.
func WriteMarker(dir *os.File, m Marker) error {
	return putMarker(dir, m, func(at int) error { return unix.Renameat(at, markerNew, at, MarkerName) })
}

// ClaimMarker is [WriteMarker] where several may want the same folder: it never
// replaces a marker, and then the error is [os.ErrExist]. What was written can still
// be another's who came at the same moment, so [ReadMarker] tells whose it is.
func ClaimMarker(dir *os.File, m Marker) error {
	return putMarker(dir, m, func(at int) error {
		err := unix.Linkat(at, markerNew, at, MarkerName, 0)
		if err2 := unix.Unlinkat(at, markerNew, 0); err == nil {
			err = err2
		}
		return err
	})
}

func putMarker(dir *os.File, m Marker, put func(at int) error) error {
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return fmt.Errorf("cannot write the marker in %s: %w", dir.Name(), err)
	}
	at := int(dir.Fd())
	err = func() error {
		if err := unix.Unlinkat(at, markerNew, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		fd, err := unix.Openat(at, markerNew, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), markerNew)
		_, err = io.Copy(f, bytes.NewReader(append(b, '\n')))
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
		if err := put(at); err != nil {
			return err
		}
		d, err := Readable(dir)
		if err != nil {
			return err
		}
		defer d.Close()
		return d.Sync()
	}()
	if err != nil {
		return fmt.Errorf("cannot write the marker in %s: %w", dir.Name(), err)
	}
	return nil
}

// IsMarker reports whether a name at the top of a filesystem is a marker, or one
// that a crash kept from getting its name.
func IsMarker(name string) bool { return name == MarkerName || name == markerNew }

// RemoveMarker takes the marker away, if there is one.
func RemoveMarker(dir *os.File) error {
	for _, name := range []string{markerNew, MarkerName} {
		if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cannot take the marker away from %s: %w", dir.Name(), err)
		}
	}
	return nil
}
