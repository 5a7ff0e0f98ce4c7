package storageconf

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

var (
	// ErrInvalid: the file is no TOML, or not what podman can read as a
	// storage.conf. Nothing was changed.
	ErrInvalid = errors.New("invalid storage.conf")
	// ErrAmbiguous: a setting is written twice in different spellings
	// (podman's reader ignores case), and which of them counts is chance.
	ErrAmbiguous = errors.New("ambiguous storage.conf")
	// ErrManual: the change asked for cannot be made without touching other
	// text; the message says which line to edit by hand.
	ErrManual = errors.New("storage.conf needs an edit by hand")
)

// Change is one setting that an edit alters.
type Change struct {
	Line int    `json:"line"` // in the old file, from 1; for an added line, where it goes
	Key  string `json:"key"`  // "storage.driver"
	Old  string `json:"old"`  // as written; empty: added
	New  string `json:"new"`  // as written; empty: commented out
	Why  string `json:"why"`
}

// utf8BOM may start a file; podman's TOML reader skips it.
const utf8BOM = "\xef\xbb\xbf"

// Edit gives src with the driver set to to, by changing as few bytes as it can:
// comments, order, unknown keys, line endings, a BOM and a missing final newline
// stay. A driver is added to the [storage] table, and the table at the end,
// where absent. Where to is "overlay", mount_program and force_mask are
// commented out: with a mount program podman would not use the kernel's
// overlay, and without one the driver refuses to make a container with
// force_mask (containers/storage drivers/overlay, CreateReadWrite). All other
// options stay, those of the vfs driver too: no other driver reads them.
//
// The result is parsed again and refused unless it is the same document but for
// the changes returned. No changes: out is src.
func Edit(src []byte, to string) (out []byte, changes []Change, err error) {
	out, changes, err = edit(src, to)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot set driver %q in storage.conf: %w", to, err)
	}
	return out, changes, nil
}

func edit(src []byte, to string) ([]byte, []Change, error) {
	if to == "" || strings.ContainsFunc(to, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) {
		return nil, nil, fmt.Errorf("%w: no driver is called so", ErrInvalid)
	}
	return change(src, func(e *editor, s *scanned) error {
		if err := e.setDriver(s, to); err != nil || to != "overlay" {
			return err
		}
		for _, path := range []string{"storage.options.mount_program", programKey,
			"storage.options.force_mask", "storage.options.overlay.force_mask"} {
			if err := e.commentOut(s, path); err != nil {
				return err
			}
		}
		return nil
	})
}

// change gives src as edits patches it, refused unless it is the same document but
// for what edits says it changed.
func change(src []byte, edits func(*editor, *scanned) error) ([]byte, []Change, error) {
	doc := bytes.TrimPrefix(src, []byte(utf8BOM))
	bom := len(src) - len(doc)
	before, err := decode(doc)
	if err != nil {
		return nil, nil, err
	}
	if err := unambiguous(before); err != nil {
		return nil, nil, err
	}
	s, err := scan(doc)
	if err != nil {
		return nil, nil, err
	}
	e := editor{doc: doc, want: before}
	if err := edits(&e, s); err != nil {
		return nil, nil, err
	}
	if len(e.patches) == 0 {
		return src, nil, nil
	}
	edited := e.apply()
	after, err := decode(edited)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: the edited file would not parse (%w)", ErrManual, err)
	}
	if !reflect.DeepEqual(prune(e.want), prune(after)) {
		return nil, nil, fmt.Errorf("%w: the edit would change other settings too", ErrManual)
	}
	sort.SliceStable(e.changes, func(i, j int) bool { return e.changes[i].Line < e.changes[j].Line })
	return append(bytes.Clone(src[:bom]), edited...), e.changes, nil
}

// decode parses a whole document; go-toml finds duplicate keys here, which its
// parser alone does not.
func decode(doc []byte) (map[string]any, error) {
	m := map[string]any{}
	if err := toml.Unmarshal(doc, &m); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, _ := at.Position()
			return nil, fmt.Errorf("%w: line %d: %w", ErrInvalid, line, err)
		}
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return m, nil
}

// unambiguous refuses two spellings of one name among the tables and keys that
// decide about the driver. Podman's reader (BurntSushi/toml) falls back to
// comparing without case, in the random order of a Go map.
func unambiguous(doc map[string]any) error {
	level := []map[string]any{doc}
	for _, name := range []string{"storage", "options", "overlay"} {
		var next []map[string]any
		for _, table := range level {
			for _, key := range []string{name, "driver", "mount_program", "force_mask"} {
				var first string
				for k := range table {
					if !strings.EqualFold(k, key) {
						continue
					}
					if first != "" {
						return fmt.Errorf("%w: both %q and %q", ErrAmbiguous, first, k)
					}
					first = k
				}
			}
			for k, v := range table {
				if sub, ok := v.(map[string]any); ok && strings.EqualFold(k, name) {
					next = append(next, sub)
				} else if strings.EqualFold(k, name) {
					return fmt.Errorf("%w: %q is not a table", ErrInvalid, k)
				}
			}
		}
		level = next
	}
	return nil
}

// patch replaces doc[start:end].
type patch struct {
	start, end int
	text       string
}

type editor struct {
	doc     []byte
	want    map[string]any // the old document with the wanted changes made
	patches []patch
	changes []Change
}

func (e *editor) apply() []byte {
	sort.SliceStable(e.patches, func(i, j int) bool { return e.patches[i].start < e.patches[j].start })
	var out []byte
	at := 0
	for _, p := range e.patches {
		out = append(append(out, e.doc[at:p.start]...), p.text...)
		at = p.end
	}
	return append(out, e.doc[at:]...)
}

func (e *editor) line(offset int) int { return bytes.Count(e.doc[:offset], []byte("\n")) + 1 }

// newline is the file's own line ending: that of its first line.
func (e *editor) newline() string {
	if i := bytes.IndexByte(e.doc, '\n'); i > 0 && e.doc[i-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}

func (e *editor) setDriver(s *scanned, to string) error {
	const why = "the store's driver changes"
	if d := s.find("storage.driver"); d != nil {
		now, ok := stringAt(e.want, d.path)
		if !ok {
			return fmt.Errorf("%w: line %d: driver is not a string", ErrInvalid, e.line(d.start))
		}
		if now == to || to == "overlay" && now == "overlay2" { // the same driver to podman
			return nil
		}
		quote := `"`
		if e.doc[d.valueStart] == '\'' {
			quote = `'`
		}
		e.patches = append(e.patches, patch{d.valueStart, d.end, quote + to + quote})
		e.changes = append(e.changes, Change{e.line(d.start), "storage.driver", string(e.doc[d.valueStart:d.end]), quote + to + quote, why})
		setAt(e.want, d.path, to)
		return nil
	}

	at, text := e.placeForDriver(s, `driver = "`+to+`"`)
	e.patches = append(e.patches, patch{at, at, text})
	e.changes = append(e.changes, Change{e.line(at), "storage.driver", "", `"` + to + `"`, why})
	setAt(e.want, []string{s.storageName(), "driver"}, to)
	return nil
}

// placeForDriver gives where to put the setting, and the text that makes it one
// of the storage table there.
func (e *editor) placeForDriver(s *scanned, setting string) (at int, text string) {
	nl := e.newline()
	if s.header >= 0 { // the line after [storage]
		at = e.lineEnd(s.header)
		if at > 0 && e.doc[at-1] != '\n' {
			return at, nl + setting
		}
		return at, setting + nl
	}
	if t := s.find("storage"); t != nil { // storage = { … }
		at = t.valueStart + 1
		if rest := bytes.TrimLeft(e.doc[at:t.end], " \t\r\n"); len(rest) > 0 && rest[0] == '}' {
			return at, " " + setting + " "
		}
		return at, " " + setting + ","
	}
	if s.dotted != nil { // storage.graphroot = … before any table
		return s.dotted.start, s.dotted.first + "." + setting + nl
	}
	at = len(e.doc)
	header := "[" + s.storageSpelling() + "]" + nl + setting + nl
	if at == 0 {
		return at, header
	}
	if e.doc[at-1] != '\n' {
		header = nl + header
	}
	return at, nl + header
}

// lineEnd gives the offset after the newline of the line that holds offset, or
// the end of the file.
func (e *editor) lineEnd(offset int) int {
	if i := bytes.IndexByte(e.doc[offset:], '\n'); i >= 0 {
		return offset + i + 1
	}
	return len(e.doc)
}

// commentOut makes the lines of a setting comments. An empty string is as good
// as no setting to podman and stays.
func (e *editor) commentOut(s *scanned, path string) error {
	item := s.find(path)
	if item == nil {
		return nil
	}
	if now, ok := stringAt(e.want, item.path); ok && now == "" {
		return nil
	}
	if item.inline {
		return fmt.Errorf("%w: line %d: take %s out of the inline table", ErrManual, e.line(item.start), path)
	}
	start := bytes.LastIndexByte(e.doc[:item.start], '\n') + 1
	for at := start; at < item.end; at = e.lineEnd(at) {
		e.patches = append(e.patches, patch{at, at, "# "})
	}
	e.changes = append(e.changes, Change{Line: e.line(item.start), Key: path, Old: string(e.doc[item.valueStart:item.end]),
		Why: "native overlay has no mount program, and no force_mask without one"})
	removeAt(e.want, item.path)
	return nil
}
