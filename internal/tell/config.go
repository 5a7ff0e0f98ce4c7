package tell

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/storagectl/storagectl/internal/host"
)

// Config is storagectl's configuration: what it tells, and whom. The doc tags are
// what docs/config.md says of the keys.
type Config struct {
	Metrics MetricsConfig `toml:"metrics"`
	Audit   AuditConfig   `toml:"audit"`
	Notify  []Target      `toml:"notify"`
}

// MetricsConfig is where metrics go.
type MetricsConfig struct {
	Dir string `toml:"dir" doc:"the folder that node_exporter reads (--collector.textfile.directory); left out: no metrics are written"`
}

// AuditConfig is where the audit goes.
type AuditConfig struct {
	File string `toml:"file" doc:"the file of the audit, for the runs of one state directory; left out: audit.jsonl in that"`
}

// ConfigError reports a configuration that is not followed.
type ConfigError struct {
	Path         string
	Line, Column int // 0: not known
	Why, Hint    string
}

func (e *ConfigError) Error() string {
	at := ""
	if e.Line > 0 {
		at = fmt.Sprintf("line %d, column %d: ", e.Line, e.Column)
	}
	return fmt.Sprintf("the configuration %s cannot be used: %s%s", e.Path, at, e.Why)
}

// LoadConfig reads a configuration. It must belong to root or to the caller and be
// closed to the writing of others. It returns a [*ConfigError], or os.ErrNotExist.
func LoadConfig(path string) (Config, error) {
	b, err := host.ReadTrusted(path)
	var foreign *host.UntrustedError
	if errors.As(err, &foreign) {
		return Config{}, &ConfigError{Path: path, Why: foreign.Why, Hint: "who can write to it could have root run a program: chown and chmod it, and its folders"}
	}
	if err != nil {
		return Config{}, err
	}
	c, err := readConfig(path, b)
	if err != nil || c.Audit.File == "" {
		return c, err
	}
	switch err := host.TrustedPlace(filepath.Clean(c.Audit.File)); {
	case errors.As(err, &foreign):
		return Config{}, &ConfigError{Path: path, Why: fmt.Sprintf("audit.file: %q: %s", c.Audit.File, foreign.Why),
			Hint: "who can write above it could have root write elsewhere, or put another audit there: name a place that is root's, without links"}
	case err != nil && !errors.Is(err, os.ErrNotExist): // it may be mounted later
		return Config{}, &ConfigError{Path: path, Why: fmt.Sprintf("audit.file: %v", err)}
	}
	return c, nil
}

func readConfig(path string, b []byte) (Config, error) {
	var c Config
	dec := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return Config{}, tomlError(path, err)
	}
	places := Locate(b)
	bad := func(key, why, hint string) (Config, error) {
		at := places.Of(key)
		return Config{}, &ConfigError{Path: path, Line: at.Line, Column: at.Column, Why: why, Hint: hint}
	}
	if d := c.Metrics.Dir; d != "" && !filepath.IsAbs(d) {
		return bad("metrics.dir", fmt.Sprintf("metrics.dir cannot be %q: it is not an absolute path", d), "it is the path of a folder from / on")
	}
	if f := c.Audit.File; f != "" && !filepath.IsAbs(f) {
		return bad("audit.file", fmt.Sprintf("audit.file cannot be %q: it is not an absolute path", f), "it is the path of a file from / on")
	}
	for i, t := range c.Notify {
		if err := t.Check(); err != nil {
			return bad(fmt.Sprintf("notify[%d].%s", i, err.Key), fmt.Sprintf("[[notify]] number %d: %v", i+1, err), err.Hint)
		}
	}
	return c, nil
}

func tomlError(path string, err error) error {
	e := &ConfigError{Path: path, Why: strings.TrimPrefix(err.Error(), "toml: ")}
	var missing *toml.StrictMissingError
	var decode *toml.DecodeError
	switch {
	case errors.As(err, &missing) && len(missing.Errors) > 0:
		first := missing.Errors[0]
		name := strings.Join(first.Key(), ".")
		e.Line, e.Column = first.Position()
		e.Why = fmt.Sprintf("unknown key %q", name)
		var known []string
		for _, k := range Keys() {
			known = append(known, k.Name)
		}
		e.Hint = "docs/config.md has the keys"
		if near := Nearest(name, known); near != "" {
			e.Hint = "did you mean " + near + "?"
		}
	case errors.As(err, &decode):
		e.Line, e.Column = decode.Position()
		e.Why, e.Hint = strings.TrimPrefix(decode.Error(), "toml: "), "docs/config.md has the keys, and what each can be"
		if key := decode.Key(); len(key) > 0 {
			e.Why = fmt.Sprintf("%s: %s", strings.Join(key, "."), e.Why)
		}
	}
	return e
}

// Key is one key of the configuration.
type Key struct{ Name, Type, Doc string }

// Keys are all keys, as the documents list them.
func Keys() []Key { return keysOf(reflect.TypeFor[Config](), "") }

func keysOf(t reflect.Type, in string) []Key {
	var keys []Key
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		name = in + name
		switch ft := f.Type; {
		case ft.Kind() == reflect.Struct:
			keys = append(keys, keysOf(ft, name+".")...)
		case ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.Struct:
			keys = append(keys, keysOf(ft.Elem(), name+".")...)
		case ft.Kind() == reflect.Slice:
			keys = append(keys, Key{name, "list of strings", f.Tag.Get("doc")})
		case ft == reflect.TypeFor[Duration]():
			keys = append(keys, Key{name, "duration", f.Tag.Get("doc")})
		default:
			keys = append(keys, Key{name, ft.Kind().String(), f.Tag.Get("doc")})
		}
	}
	return keys
}

// Nearest is the word of a list that differs least from another, "" where none is
// near.
func Nearest(word string, list []string) string {
	best, least := "", max(1, len(word)/3)+1
	for _, w := range list {
		if d := distance(word, w); d < least {
			best, least = w, d
		}
	}
	return best
}

// distance counts the letters to be put in, left out or changed (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
