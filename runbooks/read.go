package runbooks

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/internal/window"
)

// FileError says what is wrong in a runbook, and where.
type FileError struct {
	Path         string
	Line, Column int // 1 is the first; 0: the file as a whole
	Text         string
	Hint         string // "": none
}

func (e *FileError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("cannot read runbook %s: %s", e.Path, e.Text)
	}
	return fmt.Sprintf("cannot read runbook %s: line %d, column %d: %s", e.Path, e.Line, e.Column, e.Text)
}

// maxText is how long a runbook can be: its text stands in the journal of each run.
const maxText = 256 << 10

// Parse reads a runbook. Every error is a [*FileError]. What only this program's
// commands know, such as the names of their flags, is judged by [Runbook.Expand].
func Parse(text []byte, origin string) (*Runbook, error) {
	if len(text) > maxText {
		return nil, &FileError{Path: origin, Text: fmt.Sprintf("it has more than %d bytes", maxText)}
	}
	var f file
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&f)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown) && len(unknown.Errors) > 0:
		return nil, unknownKey(origin, &unknown.Errors[0], tell.Locate(text))
	case errors.As(err, &wrong):
		return nil, wrongValue(origin, wrong)
	case err != nil:
		return nil, &FileError{Path: origin, Text: strings.TrimPrefix(err.Error(), "toml: ")}
	}
	b := &f.Runbook
	b.Origin, b.Text, b.places = origin, string(text), tell.Locate(text)
	if f.Window != nil {
		w, err := f.Window.Window()
		var bad *window.KeyError
		if errors.As(err, &bad) {
			return nil, b.wrong("window."+bad.Key, bad.Hint, "%s", bad.Text)
		}
		if err != nil {
			return nil, b.wrong("window", "", "%v", err)
		}
		b.Window = &w
	}
	return b, b.check()
}

func unknownKey(origin string, e *toml.DecodeError, at tell.Places) *FileError {
	key := e.Key()
	line, column := e.Position()
	for path, p := range at { // which also knows the tables that a key stands in inside of a line
		if p.Line == line && p.Column == column {
			key = nil
			for part := range strings.SplitSeq(path, ".") {
				part, _, _ = strings.Cut(part, "[")
				key = append(key, part)
			}
		}
	}
	last := key[len(key)-1]
	f := &FileError{Path: origin, Line: line, Column: column, Text: fmt.Sprintf("unknown key %q", last)}
	known := keysOf(reflect.TypeFor[file](), key[:len(key)-1])
	if near := tell.Nearest(last, known); near != "" {
		f.Hint = fmt.Sprintf("did you mean %q?", near)
	} else if len(known) > 0 {
		f.Hint = "the keys there are " + strings.Join(known, ", ")
	}
	return f
}

func wrongValue(origin string, e *toml.DecodeError) *FileError {
	line, column := e.Position()
	f := &FileError{Path: origin, Line: line, Column: column, Text: strings.TrimPrefix(e.Error(), "toml: ")}
	if key := e.Key(); len(key) > 0 {
		f.Text = fmt.Sprintf("%s: %s", strings.Join(key, "."), f.Text)
	}
	if strings.Contains(f.Text, "cannot decode") || strings.Contains(f.Text, "cannot store") || strings.Contains(f.Text, "incompatible") {
		f.Text = "the value is of the wrong kind"
		if key := e.Key(); len(key) > 0 {
			f.Text = fmt.Sprintf("the value of %q is of the wrong kind", strings.Join(key, "."))
		}
		f.Hint = "strings stand in quotes, lists in brackets; docs/runbooks.md lists the keys"
	}
	return f
}

// keysOf lists the keys that can stand at a path of tables.
func keysOf(t reflect.Type, path []string) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if len(path) > 0 && t.Kind() == reflect.Map {
		return keysOf(t.Elem(), path[1:])
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var keys []string
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		switch {
		case f.Anonymous && len(path) > 0:
			if sub := keysOf(f.Type, path); sub != nil {
				return sub
			}
		case f.Anonymous:
			keys = append(keys, keysOf(f.Type, nil)...)
		case name == "" || name == "-":
		case len(path) > 0 && name == path[0]:
			return keysOf(f.Type, path[1:])
		case len(path) == 0:
			keys = append(keys, name)
		}
	}
	return keys
}

// wrong is an error about the key at a path; where that is not in the file, about
// what it would stand in.
func (b *Runbook) wrong(path, hint, format string, args ...any) *FileError {
	e := &FileError{Path: b.Origin, Text: fmt.Sprintf(format, args...), Hint: hint}
	at := b.places.Of(path)
	e.Line, e.Column = at.Line, at.Column
	return e
}

// sorted lists the keys of a map in order.
func sorted[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
