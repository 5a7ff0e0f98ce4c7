package treecopy

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrChanged: something changed during a strict pass.
	ErrChanged = errors.New("changed while it was copied")
	// ErrUnmapped: a file's owner or group has no id in this user namespace.
	ErrUnmapped = errors.New("owner or group has no id in this user namespace")
	// ErrMount: another mount lies in the tree.
	ErrMount = errors.New("another filesystem is mounted here")
	// ErrBusy: another process uses the index.
	ErrBusy = errors.New("index is in use")
	// ErrNotEmpty: there is no index yet, but the destination holds something.
	ErrNotEmpty = errors.New("destination is not empty")
	// ErrOtherTree: the index is about other trees.
	ErrOtherTree = errors.New("index belongs to another source or destination")
	// ErrIncomplete: the last Copy did not come to its end.
	ErrIncomplete = errors.New("copy is not complete")
	// ErrDiffers: the destination is not as it was written.
	ErrDiffers = errors.New("destination differs from what was copied")
)

// Options of Copy.
type Options struct {
	// Index is the file that remembers what was copied. It is made if missing, and
	// must lie in neither tree.
	Index string
	// Skip names what is left out, whole subtrees of it: in the source not read, in
	// the destination neither touched nor removed. The path is relative, without a
	// leading slash.
	Skip func(rel string) bool
	// Workers at once; 0 means 16 or, with Strict, 32: then somebody waits for it. They
	// mostly wait for the disk, each with 400 KiB of memory.
	Workers int
	// BytesPerSecond limits the reading of file data; 0 means no limit.
	BytesPerSecond int64
	// IdleIO asks for I/O only when nobody else wants any.
	IdleIO bool
	// Strict makes it an error (ErrChanged) if the source changes meanwhile.
	Strict bool
	// Expect is what Scan found, for Progress. Later passes know it from the index.
	Expect Totals
	// Progress is called twice a second and at each phase, by one goroutine.
	Progress func(Progress)

	checkpoint time.Duration // for tests; 0: checkpointEvery
}

// Progress says how far it is.
type Progress struct {
	Phase      string // "sync source", "copy", "sync", "verify"
	Files      int64  // settled: copied, or found unchanged
	Bytes      int64  // their sizes
	Copied     int64  // bytes read so far: what a rate is made of
	TotalFiles int64  // 0: not known
	TotalBytes int64
}

// Totals of a tree.
type Totals struct {
	Files     int64 // all that is not a folder, by name
	Folders   int64
	Bytes     int64 // sizes of files, of one with several names once
	Allocated int64 // disk space in bytes, likewise
}

// Report of one Copy.
type Report struct {
	Pass         int     `json:"pass"` // 1, 2, …; a pass that was interrupted keeps its number
	Files        int64   `json:"files"`
	Folders      int64   `json:"folders"`
	Symlinks     int64   `json:"symlinks"`
	Devices      int64   `json:"devices"`
	Fifos        int64   `json:"fifos"`
	Sockets      int64   `json:"sockets"`       // left out: nobody listens on a copy
	Links        int64   `json:"links"`         // further names given to copied files
	Copied       int64   `json:"copied"`        // entries made anew
	Unchanged    int64   `json:"unchanged"`     // entries that are as they were in the pass before
	Removed      int64   `json:"removed"`       // names removed from the destination
	Unsettled    int64   `json:"unsettled"`     // changed or vanished meanwhile: the next pass settles it
	Bytes        int64   `json:"bytes"`         // sizes of all files seen
	CopiedBytes  int64   `json:"copied_bytes"`  // data read and written
	ResumedBytes int64   `json:"resumed_bytes"` // of large files, found from an interrupted copy
	Seconds      float64 `json:"seconds"`
}

// failed names the entry in an error, and the mount if it is one.
func failed(verb, path string, err error) error {
	if errors.Is(err, unix.EXDEV) {
		err = ErrMount
	}
	if path == "" {
		path = "."
	}
	return fmt.Errorf("cannot %s %q: %w", verb, path, err)
}
