package runbooks

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/tell"
)

//go:embed embedded/*.toml
var embedded embed.FS

// NotFoundError reports that there is no runbook of a name.
type NotFoundError struct {
	Name string
	Near string // what may be meant; "": nothing is like it
	Path string // of one that goes by its path
}

func (e *NotFoundError) Error() string { return fmt.Sprintf("there is no runbook %q", e.Name) }

// Load reads a runbook by its path, if there is a slash in it or it ends in .toml, or
// else by its name: from the first of dirs that has NAME.toml, or of those that come
// with storagectl. Without dirs it is [Dir]. Run as root it takes only files that
// nobody but root can change.
func Load(nameOrPath string, dirs ...string) (*Runbook, error) {
	if strings.ContainsRune(nameOrPath, '/') || strings.HasSuffix(nameOrPath, ".toml") {
		path, err := filepath.Abs(nameOrPath)
		if err != nil {
			return nil, fmt.Errorf("cannot find runbook %s: %w", nameOrPath, err)
		}
		text, err := read(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &NotFoundError{Name: nameOrPath, Path: path}
		}
		if err != nil {
			return nil, err
		}
		return Parse(text, path)
	}
	if len(dirs) == 0 {
		dirs = []string{Dir}
	}
	for _, dir := range dirs {
		b, err := inFolder(dir, nameOrPath)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return b, err
	}
	text, err := embedded.ReadFile("embedded/" + nameOrPath + ".toml")
	if err != nil {
		e := &NotFoundError{Name: nameOrPath}
		if all, err := List(dirs...); err == nil {
			var names []string
			for _, f := range all {
				if f.Name != nameOrPath { // a link to nothing
					names = append(names, f.Name)
				}
			}
			e.Near = tell.Nearest(nameOrPath, names)
		}
		return nil, e
	}
	return Parse(text, Embedded)
}

// inFolder reads the runbook of a name in a folder.
func inFolder(dir, name string) (*Runbook, error) {
	path, err := filepath.Abs(filepath.Join(dir, name+".toml"))
	if err != nil {
		return nil, fmt.Errorf("cannot find runbook %s: %w", name, err)
	}
	text, err := read(path)
	if err != nil {
		return nil, err
	}
	b, err := Parse(text, path)
	if err == nil && b.Name != name {
		err = b.wrong("name", "one of the two has to change", "it is called %q there, and its file %s.toml", b.Name, name)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Found is a runbook in a list.
type Found struct {
	Name    string
	Origin  string   // its path, or [Embedded]
	Runbook *Runbook // nil where Err is not
	Err     error
}

// List finds all runbooks that go by a name, in order. One of a folder hides an
// embedded one of its name.
func List(dirs ...string) ([]Found, error) {
	if len(dirs) == 0 {
		dirs = []string{Dir}
	}
	var all []Found
	known := func(name string) bool { return slices.ContainsFunc(all, func(f Found) bool { return f.Name == name }) }
	for _, dir := range dirs {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("cannot list runbooks: %w", err)
		}
		es, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("cannot list runbooks: %w", err)
		}
		for _, e := range es {
			name, is := strings.CutSuffix(e.Name(), ".toml")
			if !is || known(name) {
				continue
			}
			f := Found{Name: name, Origin: filepath.Join(dir, e.Name())}
			f.Runbook, f.Err = inFolder(dir, name) // not Load, which lists what there is if it is gone by now
			all = append(all, f)
		}
	}
	es, err := embedded.ReadDir("embedded")
	if err != nil {
		return nil, fmt.Errorf("cannot list runbooks: %w", err)
	}
	for _, e := range es {
		name := strings.TrimSuffix(e.Name(), ".toml")
		if known(name) {
			continue
		}
		text, err := embedded.ReadFile("embedded/" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("cannot read runbook %s: %w", name, err)
		}
		f := Found{Name: name, Origin: Embedded}
		f.Runbook, f.Err = Parse(text, Embedded)
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b Found) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// read reads a file. For root nobody else may be able to change it, or an
// [*host.UntrustedError] is returned: what stands in it is done with root's rights.
func read(path string) ([]byte, error) {
	if os.Geteuid() == 0 {
		return host.ReadTrusted(path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not hold us
	if err != nil {
		return nil, fmt.Errorf("cannot read runbook: %w", err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return nil, fmt.Errorf("cannot read runbook: %w", err)
	} else if !fi.Mode().IsRegular() {
		return nil, &FileError{Path: path, Text: "it is not a file"}
	}
	text, err := io.ReadAll(io.LimitReader(f, maxText+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read runbook: %w", err)
	}
	return text, nil
}
