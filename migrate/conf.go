package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/storagectl/storagectl/internal/podman/libpoddb"
	"github.com/storagectl/storagectl/internal/podman/storageconf"
)

// ConfFact is a storage.conf as it was before the run, and as the run wrote it.
type ConfFact struct {
	Path    string   `json:"path"`
	Existed bool     `json:"existed"`
	Mode    uint32   `json:"mode"` // permission bits
	Before  []byte   `json:"before,omitempty"`
	After   []byte   `json:"after"`
	Dirs    []string `json:"dirs,omitempty"` // parents that were missing, outermost first
}

// ConfPlan is which storage.conf has to say the driver, what it has to say, and
// what podman goes by at present.
type ConfPlan struct {
	storageconf.Target
	After    []byte                `json:"-"` // the file's new content; nil: nothing has to be written
	What     string                `json:"what"`
	Settings []storageconf.Setting `json:"settings"`
	// Dangling is a symbolic link to nothing where the file is to be made.
	Dangling string `json:"-"`
	// ImageStore is a folder other than the graphroot that holds the images.
	ImageStore string `json:"-"`
}

// confAnswer carries a plan over the worker's pipe.
type confAnswer struct {
	ConfPlan
	Content    []byte `json:"content,omitempty"`
	Dangling   string `json:"dangling,omitempty"`
	ImageStore string `json:"imageStore,omitempty"`
}

type confArgs struct {
	Owner    storageconf.Owner `json:"owner"`
	Database libpoddb.Facts    `json:"database"`
	To       string            `json:"to"`
	Program  string            `json:"program,omitempty"` // mounts overlays; "": To is what is to be set
}

func planConf(_ context.Context, a confArgs, _ func(any)) (confAnswer, error) {
	layers, err := storageconf.Layers(a.Owner)
	if err != nil {
		return confAnswer{}, err
	}
	settings := storageconf.Effective(a.Owner, layers, a.Database)
	t, err := storageconf.For(a.Owner, layers, settings, a.To)
	if a.Program != "" {
		t, err = storageconf.ForProgram(a.Owner, layers, settings, a.Program)
	}
	if err != nil {
		return confAnswer{}, err
	}
	c := confAnswer{ConfPlan: ConfPlan{Target: t, Settings: settings}, Content: t.Content}
	if t.Create {
		if c.Dangling, err = dangling(t.Path); err != nil {
			return confAnswer{}, err
		}
	}
	c.ImageStore, err = imageStore(settings)
	return c, err
}

// dangling finds the symbolic link to nothing that path is or goes through, ""
// if there is none. Podman takes it for no file at all, but a file that is
// written there replaces the link, which no rollback brings back.
func dangling(path string) (string, error) {
	for ; ; path = filepath.Dir(path) {
		if there, err := exists(path); err != nil {
			return "", err
		} else if !there {
			continue
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return path, nil
		} else if err != nil {
			return "", fmt.Errorf("cannot look at storage.conf: %w", err)
		}
		return "", nil
	}
}

// imageStore gives the folder that storage.imagestore names, if it is in use: an
// older podman does not know the setting, and keeps its images in the graphroot
// (containers/storage from 1.49 on, store.go).
func imageStore(settings []storageconf.Setting) (string, error) {
	var dir, root string
	for _, s := range settings {
		switch s.Name {
		case "imagestore":
			dir = filepath.Clean(s.Value)
		case "graphroot":
			root = filepath.Clean(s.Value)
		}
	}
	if dir == "" || dir == root {
		return "", nil
	}
	es, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cannot look at the image store: %w", err)
	}
	if !slices.ContainsFunc(es, func(e fs.DirEntry) bool { return strings.HasSuffix(e.Name(), "-images") }) {
		return "", nil
	}
	return dir, nil
}

// confPlan finds the storage.conf to write. db is the libpod database, which
// outranks it.
func (s *Session) confPlan(ctx context.Context, db libpoddb.Facts) (ConfPlan, error) {
	in := s.Inputs
	env := map[string]string{}
	for _, kv := range in.ConfEnv {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	says, program := in.Request.To, ""
	if in.Target != nil && in.Target.SetProgram {
		says, program = in.Target.Program, in.Target.Program
	}
	a, err := ask[confAnswer](ctx, s, opConfPlan, confArgs{To: in.Request.To, Program: program, Database: db, Owner: storageconf.Owner{
		Podman: in.Podman, Rootless: !in.Owner.Rootful(), UID: int(in.Owner.UID), Home: in.Owner.Home, Env: env,
	}})
	if err != nil {
		return ConfPlan{}, err
	}
	p := a.ConfPlan
	p.After, p.Dangling, p.ImageStore = a.Content, a.Dangling, a.ImageStore
	switch {
	case p.After == nil:
		p.What = fmt.Sprintf("%s says %s already", p.Path, says)
	case p.Create:
		p.What = fmt.Sprintf("%s is made: %s", p.Path, p.Why)
	default:
		var words []string
		for _, c := range p.Changes {
			words = append(words, fmt.Sprintf("line %d, %s: %s becomes %s", c.Line, c.Key, orNothing(c.Old), orNothing(c.New)))
		}
		p.What = fmt.Sprintf("%s: %s", p.Path, strings.Join(words, "; "))
	}
	return p, nil
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// configured observes that the file that decides names the new driver, or what
// mounts overlays.
func (s *Session) configured(ctx context.Context) (bool, error) {
	p, err := s.confPlan(ctx, libpoddb.Facts{})
	return err == nil && p.After == nil, err
}

// configure writes that into storage.conf and changes nothing else in it.
func (s *Session) configure(ctx context.Context) error {
	p, err := s.confPlan(ctx, libpoddb.Facts{GraphRoot: s.Inputs.Store.GraphRoot, RunRoot: s.Inputs.Store.RunRoot, Path: s.Inputs.Store.Database})
	if err != nil || p.After == nil {
		return err
	}
	if p.Dangling != "" {
		return errDangling(p.Dangling)
	}
	f, err := ask[confFile](ctx, s, opConfRead, pathArg{p.Path})
	if err != nil {
		return err
	}
	if !f.Existed {
		f.Mode = uint32(p.FileMode)
	}
	if s.facts.Conf == nil {
		err := s.learn(func(facts *Facts) {
			facts.Conf = &ConfFact{Path: p.Path, Existed: f.Existed, Mode: f.Mode, Before: f.Content, After: p.After, Dirs: f.MissingDirs}
		})
		if err != nil {
			return err
		}
	}
	// A copy for people beside the journal.
	if was := s.facts.Conf; was.Existed {
		if err := renameio.WriteFile(filepath.Join(s.env.Dir.RunPath(s.ID), "storage.conf.before"), was.Before, 0o600); err != nil {
			return fmt.Errorf("cannot keep a copy of storage.conf: %w", err)
		}
	}
	_, err = ask[none](ctx, s, opConfWrite, confWrite{Path: p.Path, Content: p.After, Mode: f.Mode, DirMode: uint32(p.DirMode)})
	return err
}

// unconfigure puts storage.conf back byte for byte. If somebody edited it since,
// only the driver goes back, and their edit stays.
func (s *Session) unconfigure(ctx context.Context) error {
	was := s.facts.Conf
	if was == nil {
		return nil
	}
	now, err := ask[confFile](ctx, s, opConfRead, pathArg{was.Path})
	if err != nil {
		return err
	}
	switch {
	case now.Existed == was.Existed && bytes.Equal(now.Content, was.Before):
		return nil
	case !now.Existed && !was.Existed:
		return nil
	case now.Existed && !bytes.Equal(now.Content, was.After):
		content, _, err := storageconf.Edit(now.Content, s.Inputs.Store.Driver)
		if s.Inputs.Unfusing() {
			content, _, err = storageconf.EditProgram(now.Content, s.Inputs.Store.Program)
		}
		if err != nil {
			return err
		}
		if err := s.note("%s was edited since the run wrote it: only what the run had set goes back", was.Path); err != nil {
			return err
		}
		_, err = ask[none](ctx, s, opConfWrite, confWrite{Path: was.Path, Content: content, Mode: now.Mode})
		return err
	case was.Existed:
		_, err = ask[none](ctx, s, opConfWrite, confWrite{Path: was.Path, Content: was.Before, Mode: was.Mode})
		return err
	}
	_, err = ask[none](ctx, s, opConfRemove, confRemove{Path: was.Path, Dirs: was.Dirs})
	return err
}

func errDangling(link string) error {
	return fmt.Errorf("cannot write storage.conf: %s is a symbolic link to nothing", link)
}

// confFile is a storage.conf as the owner's worker sees it.
type confFile struct {
	Existed     bool     `json:"existed"`
	Content     []byte   `json:"content,omitempty"`
	Mode        uint32   `json:"mode"`
	MissingDirs []string `json:"missingDirs,omitempty"`
}

type confWrite struct {
	Path    string `json:"path"`
	Content []byte `json:"content"`
	Mode    uint32 `json:"mode"`
	DirMode uint32 `json:"dirMode,omitempty"` // of folders that are not there yet
}

type confRemove struct {
	Path string   `json:"path"`
	Dirs []string `json:"dirs,omitempty"`
}

func readConf(_ context.Context, a pathArg, _ func(any)) (confFile, error) {
	f := confFile{Mode: 0o644}
	b, err := storageconf.ReadFile(a.Path)
	if errors.Is(err, fs.ErrNotExist) {
		for dir := filepath.Dir(a.Path); ; dir = filepath.Dir(dir) {
			if there, err := exists(dir); err != nil {
				return f, err
			} else if there {
				break
			}
			f.MissingDirs = append(f.MissingDirs, dir)
		}
		slices.Reverse(f.MissingDirs)
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("cannot read storage.conf: %w", err)
	}
	fi, err := os.Stat(a.Path)
	if err != nil {
		return f, fmt.Errorf("cannot read storage.conf: %w", err)
	}
	return confFile{Existed: true, Content: b, Mode: uint32(fi.Mode().Perm())}, nil
}

// writeConf replaces a storage.conf atomically. Where the path is a symbolic
// link (dotfiles kept elsewhere), the file it leads to is replaced.
func writeConf(_ context.Context, a confWrite, _ func(any)) (none, error) {
	path := a.Path
	if link, err := dangling(path); err != nil {
		return none{}, err
	} else if link != "" {
		return none{}, errDangling(link)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	} else if !errors.Is(err, fs.ErrNotExist) {
		return none{}, fmt.Errorf("cannot write storage.conf: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), fs.FileMode(a.DirMode)); err != nil {
		return none{}, fmt.Errorf("cannot write storage.conf: %w", err)
	}
	opts := []renameio.Option{renameio.IgnoreUmask(), renameio.WithPermissions(fs.FileMode(a.Mode)),
		renameio.WithTempDir(filepath.Dir(path)), renameio.WithExistingPermissions()}
	if err := renameio.WriteFile(path, a.Content, fs.FileMode(a.Mode), opts...); err != nil {
		return none{}, fmt.Errorf("cannot write storage.conf: %w", err)
	}
	return none{}, syncDirs(filepath.Dir(path))
}

// removeConf takes away a storage.conf that the run made, and the folders that
// were made for it, as far as nothing else is in them by now.
func removeConf(_ context.Context, a confRemove, _ func(any)) (none, error) {
	if err := os.Remove(a.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return none{}, fmt.Errorf("cannot remove storage.conf: %w", err)
	}
	for _, dir := range slices.Backward(a.Dirs) {
		if err := os.Remove(dir); err != nil {
			break // somebody uses it
		}
	}
	return none{}, nil
}
