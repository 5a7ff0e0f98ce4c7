package tell

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// Actor is who had something done, and by which command.
type Actor struct {
	Command  string `json:"command"`
	UID      int    `json:"uid"`
	LoginUID int    `json:"loginUID"` // who logged in, whatever they became since; -1: nobody
	SudoUser string `json:"sudoUser,omitempty"`
}

// Entry is one record of the audit.
type Entry struct {
	Seq     int       `json:"seq"`     // 1, 2, 3 …
	Time    time.Time `json:"time"`    // when it happened
	Written time.Time `json:"written"` // when it came into the audit: later, after a crash between the two
	Event   string    `json:"event"`   // begin, taken-up (by another command), a phase of the run, stop, end (of the command); prune-begin, prune
	Run     string    `json:"run,omitempty"`
	At      int       `json:"at,omitempty"`      // the record of the run's journal that it tells of
	Journal string    `json:"journal,omitempty"` // SHA-256 of the run's journal as far as that record
	Job     string    `json:"job,omitempty"`
	By      *Actor    `json:"by,omitempty"`
	Version string    `json:"version,omitempty"` // of the program that began the run
	Owner   string    `json:"owner,omitempty"`
	Store   string    `json:"store,omitempty"` // the graphroot
	Plan    string    `json:"plan,omitempty"`  // SHA-256 of the run's inputs and steps
	Error   string    `json:"error,omitempty"`
	Exit    *int      `json:"exit,omitempty"` // of the command, where it ends
	// Accessors of Nomad's ACL tokens that set the drains, by node.
	Nomad    []Drain         `json:"nomad,omitempty"`
	Verified *Verified       `json:"verified,omitempty"`
	Detail   json.RawMessage `json:"detail,omitempty"` // of jobs that are no runs, such as prune
	Prev     string          `json:"prev"`             // hash of the record before; "" in the first
}

// Drain is a drain of a Nomad node, and whose token set it.
type Drain struct {
	Node     string `json:"node"`
	Accessor string `json:"accessor,omitempty"`
}

// Verified is what proved a store in a run.
type Verified struct {
	At       time.Time `json:"at"`
	Manifest string    `json:"manifest,omitempty"` // SHA-256 of what the store held before
	Sample   string    `json:"sample,omitempty"`   // SHA-256 of the hashes of sampled files
	Driver   string    `json:"driver,omitempty"`   // that a container ran on
	Podman   string    `json:"podman,omitempty"`
}

// Audit is a file of JSON lines. Each has a record and its SHA-256, and each record
// the hash of the one before, so that none can be changed, left out or put in between
// without all that follow.
type Audit struct {
	Path string
	Now  func() time.Time // the clock; nil: time.Now
}

// BrokenError reports where an audit is not as it was written. Line 0 is the file as
// a whole.
type BrokenError struct {
	Path string
	Line int
	Why  string
}

func (e *BrokenError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("the audit %s is not whole: %s", e.Path, e.Why)
	}
	return fmt.Sprintf("the audit %s is broken at line %d: %s", e.Path, e.Line, e.Why)
}

// auditLine is a record as it stands in the file. The hash is over the exact bytes of
// Rec.
type auditLine struct {
	Hash string          `json:"hash"`
	Rec  json.RawMessage `json:"rec"`
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (l auditLine) bytes() []byte {
	return fmt.Appendf(nil, "{\"hash\":%q,\"rec\":%s}\n", l.Hash, l.Rec)
}

func encodeEntry(e Entry) (auditLine, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // what a reader's own tools would write
	if err := enc.Encode(e); err != nil {
		return auditLine{}, err
	}
	rec := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	return auditLine{Hash: hashOf(rec), Rec: rec}, nil
}

// Append writes records, and returns the hash of the audit's last one. A record of a
// run (Run and At) that is there already is left out, so that it can be told again
// after a crash. After it returns nil they survive a power cut; after a crash
// meanwhile those that are there are whole. Others may append at the same time.
func (a Audit) Append(ctx context.Context, entries ...Entry) (string, error) {
	f, err := a.open(ctx)
	if err != nil {
		return "", fmt.Errorf("cannot write the audit: %w", err)
	}
	defer f.Close()
	there := map[place]bool{}
	for _, e := range entries {
		if e.Run != "" && e.At > 0 {
			there[place{e.Run, e.At}] = false
		}
	}
	whole, size, seq, head, err := survey(f, there)
	if err != nil {
		return "", fmt.Errorf("cannot read the audit: %w", err)
	}
	if whole < size { // a write that was cut short: it was never acknowledged
		if err := f.Truncate(whole); err != nil {
			return "", fmt.Errorf("cannot cut the torn last line of the audit: %w", err)
		}
	}
	now := time.Now
	if a.Now != nil {
		now = a.Now
	}
	var out []byte
	for _, e := range entries {
		if there[place{e.Run, e.At}] {
			continue
		}
		seq++
		e.Seq, e.Prev, e.Written = seq, head, now().UTC()
		if e.Time.IsZero() {
			e.Time = e.Written
		}
		l, err := encodeEntry(e)
		if err != nil {
			return "", fmt.Errorf("cannot write the audit: %w", err)
		}
		head = l.Hash
		out = append(out, l.bytes()...)
	}
	if len(out) == 0 {
		return head, nil
	}
	if _, err := f.Write(out); err != nil {
		_ = f.Truncate(whole) // half a record is told from a whole one anyhow
		return "", fmt.Errorf("cannot write the audit: %w", err)
	}
	if err := f.Sync(); err != nil {
		return "", fmt.Errorf("cannot write the audit: %w", err)
	}
	return head, nil
}

// place is the record of a run's journal that an entry tells of.
type place struct {
	run string
	at  int
}

// survey reads an audit, which may be long, for what is to follow, and marks the places
// that are there. It judges no chain: what is wrong with the audit must not keep the rest
// from being told. size is all that was read, whole as far as it was written whole.
func survey(r io.Reader, there map[place]bool) (whole, size int64, seq int, head string, err error) {
	lines := bufio.NewReaderSize(r, 1<<16)
	for {
		b, err := lines.ReadBytes('\n')
		if len(b) > 0 {
			whole = size // something follows what was read before
		}
		size += int64(len(b))
		if errors.Is(err, io.EOF) {
			return whole, size, seq, head, nil
		}
		if err != nil {
			return 0, 0, 0, "", err
		}
		var l auditLine
		var e Entry
		// Blocks of one write may reach the disk in any order: the last line can be whole
		// in length and hollow inside.
		if json.Unmarshal(b, &l) != nil || json.Unmarshal(l.Rec, &e) != nil {
			continue
		}
		whole, seq, head = size, e.Seq, l.Hash
		if at := (place{e.Run, e.At}); e.Run != "" {
			if _, asked := there[at]; asked {
				there[at] = true
			}
		}
	}
}

// open opens the audit with its lock.
func (a Audit) open(ctx context.Context) (*os.File, error) {
	real, err := filepath.EvalSymlinks(filepath.Dir(a.Path)) // the state directory may lie behind a link
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return nil, err
	}
	dir, err := host.OpenDir(real)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := closedFolder(dir); err != nil {
		return nil, err
	}
	// By its descriptor: somebody above may rename the folder, and put a link in its place.
	name, at := filepath.Base(a.Path), int(dir.Fd())
	var st unix.Stat_t
	fresh := errors.Is(unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW), os.ErrNotExist)
	fd, err := unix.Openat(at, name, unix.O_RDWR|unix.O_CREAT|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: a.Path, Err: err}
	}
	f := os.NewFile(uintptr(fd), a.Path)
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("it is not a file"), f.Close())
	}
	if fresh {
		d, err := host.Readable(dir)
		if err == nil {
			err = errors.Join(d.Sync(), d.Close())
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(err, f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(errors.New("another process holds it"), f.Close())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Chain is an audit that was read and found whole.
type Chain struct {
	Entries []Entry
	Hashes  []string // of each
}

// Read reads the audit and proves its chain. A torn last line does not count. It
// returns a [*BrokenError] that names the first line that is not as it was written,
// and os.ErrNotExist where nothing was told yet.
func (a Audit) Read() (Chain, error) {
	b, err := os.ReadFile(a.Path)
	if err != nil {
		return Chain{}, fmt.Errorf("cannot read the audit: %w", err)
	}
	var c Chain
	prev := ""
	for n := 1; len(b) > 0; n++ {
		broken := func(why string) (Chain, error) { return c, &BrokenError{Path: a.Path, Line: n, Why: why} }
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			break
		}
		var l auditLine
		var e Entry
		if err := json.Unmarshal(b[:end], &l); err == nil {
			err = json.Unmarshal(l.Rec, &e)
			if err != nil {
				return broken("it is no record")
			}
		} else if end+1 == len(b) {
			break
		} else {
			return broken("it is no record")
		}
		switch {
		case !bytes.Equal(l.bytes(), b[:end+1]) || hashOf(l.Rec) != l.Hash:
			return broken("the record was changed: its hash is another")
		case e.Prev != prev:
			return broken("it does not follow the line before: a record was changed, put in or left out there")
		case e.Seq != n:
			return broken(fmt.Sprintf("it is record %d", e.Seq))
		}
		prev = l.Hash
		c.Entries, c.Hashes = append(c.Entries, e), append(c.Hashes, l.Hash)
		b = b[end+1:]
	}
	return c, nil
}
