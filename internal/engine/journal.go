package engine

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// journalName is the journal's file in the run's folder.
const journalName = "journal"

// Journal is the durable memory of one run. After a method returns nil, its
// record survives a power cut; after a crash during the call the record is
// there whole or not at all.
type Journal struct {
	f     *os.File
	state State
	now   func() time.Time
	point func(string)
	bad   error // a failed write or fsync: nothing may be appended after it
}

// Options are what a journal takes from its surroundings.
type Options struct {
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
	// Point, if set, is called before and after each record is written. The
	// crash sweep kills the process there.
	Point func(string)
}

func (o Options) fill(j *Journal) {
	j.now, j.point = o.Now, o.Point
	if j.now == nil {
		j.now = time.Now
	}
	if j.point == nil {
		j.point = func(string) {}
	}
}

// Create makes the journal of a new run in dir, an existing and empty folder,
// and writes its first record. dir itself must already be durable.
func Create(dir string, h Header, o Options) (*Journal, error) {
	h.Schema = Schema
	path := filepath.Join(dir, journalName)
	// Under another name until the first record is whole: a run that has a
	// journal has a plan.
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot create journal: %w", err)
	}
	j := &Journal{f: f, state: newState()}
	o.fill(j)
	if err := j.append(Record{Kind: KindRun, Header: &h}); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := os.Rename(path+".new", path); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot create journal: %w", err), f.Close())
	}
	if err := syncDir(dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

// Open opens the journal of dir to go on with it. A torn last line is cut off.
// The caller holds the run's lock.
func Open(dir string, o Options) (*Journal, error) {
	path := filepath.Join(dir, journalName)
	st, whole, err := read(path)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open journal: %w", err)
	}
	if fi, err := f.Stat(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open journal: %w", err), f.Close())
	} else if fi.Size() != whole {
		if err := errors.Join(f.Truncate(whole), f.Sync()); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot cut the torn last line of %s: %w", path, err), f.Close())
		}
	}
	j := &Journal{f: f, state: st}
	o.fill(j)
	return j, nil
}

// Read tells the state of the run in dir without opening it for writing and
// without a lock, for status and dry runs.
func Read(dir string) (State, error) {
	st, _, err := read(filepath.Join(dir, journalName))
	return st, err
}

// ReadHeader reads the first record of the run in dir alone.
func ReadHeader(dir string) (Header, error) {
	path := filepath.Join(dir, journalName)
	f, err := os.Open(path)
	if err != nil {
		return Header{}, fmt.Errorf("cannot read journal: %w", err)
	}
	defer f.Close()
	b, err := bufio.NewReader(f).ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return Header{}, fmt.Errorf("cannot read journal: %w", err)
	}
	st := newState()
	rec, err := decode(bytes.TrimSuffix(b, []byte("\n")))
	if err != nil {
		return Header{}, &DamagedError{Path: path, Line: 1, Why: err.Error()}
	}
	if why := st.apply(rec); why != "" {
		return Header{}, &DamagedError{Path: path, Line: 1, Why: why}
	}
	return st.Header, nil
}

// read replays the journal and returns how many bytes of it are whole records.
func read(path string) (State, int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return State{}, 0, fmt.Errorf("cannot read journal %s: %w", path, ErrNoRun)
		}
		return State{}, 0, fmt.Errorf("cannot read journal: %w", err)
	}
	st := newState()
	var whole int64
	for n := 1; len(b) > 0; n++ {
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			break // a write cut short: its record was never acknowledged
		}
		rec, err := decode(b[:end])
		if err != nil {
			// Blocks of one write may reach the disk in any order, so the last
			// line can be whole in length and hollow inside.
			if len(b) == end+1 {
				break
			}
			return State{}, 0, &DamagedError{Path: path, Line: n, Why: err.Error()}
		}
		if why := st.apply(rec); why != "" {
			return State{}, 0, &DamagedError{Path: path, Line: n, Why: why}
		}
		whole += int64(end + 1)
		b = b[end+1:]
	}
	if st.Header.Schema == 0 {
		return State{}, 0, &DamagedError{Path: path, Line: 1, Why: "the first record is missing"}
	}
	return st, whole, nil
}

// Close releases the file. The journal needs no other shutdown.
func (j *Journal) Close() error { return j.f.Close() }

// State is the run as its journal tells it.
func (j *Journal) State() State { return j.state }

// Note records something worth telling later.
func (j *Journal) Note(step, text string) error {
	return j.append(Record{Kind: KindNote, Step: step, Text: text})
}

// TakenUp records that a command goes on with the run, and who had it do so.
func (j *Journal) TakenUp(a Actor) error {
	return j.append(Record{Kind: KindNote, Text: "taken up by storagectl " + a.Command, Actor: &a})
}

// Ended records that the command that went on with the run ends, with this exit code.
func (j *Journal) Ended(code int) error {
	return j.append(Record{Kind: KindNote, Text: fmt.Sprintf("storagectl ended with %d", code), Exit: &code})
}

// Audited records that the audit in file has all of this journal, and the hash of its
// last record then: that audit without the hash was cut. The audit in the state directory
// has the name "", wherever that directory is.
func (j *Journal) Audited(hash, file string) error {
	return j.append(Record{Kind: KindNote, Text: "told to the audit", Audit: hash, File: file})
}

// Digest is the SHA-256 of the journal of the run in dir as far as its record seq,
// in hexadecimal.
func Digest(dir string, seq int) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		return "", fmt.Errorf("cannot read journal: %w", err)
	}
	end := 0
	for range seq {
		n := bytes.IndexByte(b[end:], '\n')
		if n < 0 {
			return "", fmt.Errorf("cannot read journal: it has less than %d records", seq)
		}
		end += n + 1
	}
	sum := sha256.Sum256(b[:end])
	return hex.EncodeToString(sum[:]), nil
}

// SaveFacts makes the fields of v, a struct, durable. Fields that are empty
// (by their omitempty tags) are left out. A fact once saved is never
// overwritten: the same value again is fine, a list may grow at its end, and any
// other value is an error.
func (j *Journal) SaveFacts(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot save facts: %w", err)
	}
	all := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &all); err != nil {
		return fmt.Errorf("cannot save facts: %w", err)
	}
	fresh := map[string]json.RawMessage{}
	for k, v := range all {
		old, ok := j.state.Facts[k]
		if !ok || grown(old, v) {
			fresh[k] = v
		} else if !bytes.Equal(old, v) {
			return fmt.Errorf("cannot save fact %q: it is already known to be otherwise", k)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	return j.append(Record{Kind: KindFacts, Facts: fresh})
}

// LoadFacts fills v, a pointer to the struct that SaveFacts was given.
func (j *Journal) LoadFacts(v any) error { return j.state.LoadFacts(v) }

func (j *Journal) append(r Record) error {
	if j.bad != nil {
		return j.bad
	}
	r.Seq = len(j.state.Records) + 1
	r.Time = j.now().UTC()
	b, err := encode(r)
	if err != nil {
		return fmt.Errorf("cannot write journal: %w", err)
	}
	point := string(r.Kind) + " " + r.Step
	j.point("before journal " + point)
	if _, err := j.f.Write(b); err != nil {
		// What reached the file is unknown: only a reopened journal may go on.
		j.bad = fmt.Errorf("cannot write journal: %w", err)
		return j.bad
	}
	if err := j.f.Sync(); err != nil {
		j.bad = fmt.Errorf("cannot write journal: %w", err)
		return j.bad
	}
	j.point("after journal " + point)
	if why := j.state.apply(r); why != "" {
		return fmt.Errorf("cannot write journal: %s", why)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("cannot sync %s: %w", dir, err)
	}
	return errors.Join(d.Sync(), d.Close())
}
