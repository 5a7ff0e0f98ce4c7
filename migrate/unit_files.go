package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
)

// A unit that "podman generate systemd" has made without --new expects the pid of
// its container's monitor in a file of the run root, below a folder with the
// driver's name. Podman's database moves that file; so the unit has to look there.

// UnitFact is a unit's file as it was before the run, and as the run wrote it.
type UnitFact struct {
	Path   string `json:"path"`
	Before []byte `json:"before"`
	After  []byte `json:"after"`
}

type unitArgs struct {
	RunRoot string `json:"runRoot"`
	Driver  string `json:"driver"`
	To      string `json:"to,omitempty"`
}

// unitFileDirs are where the owner keeps units; others may have put theirs
// elsewhere, and those are not the owner's to change.
func unitFileDirs(uid int) []string {
	if uid == 0 {
		return []string{"/etc/systemd/system"}
	}
	config := os.Getenv("XDG_CONFIG_HOME")
	if config == "" {
		config = filepath.Join(os.Getenv("HOME"), ".config")
	}
	return []string{filepath.Join(config, "systemd", "user")}
}

// unitFiles finds the owner's units that expect a pid below a driver's folder in
// the run root. Plain files alone: where a link leads is not looked into.
func (w *worker) unitFiles(_ context.Context, a unitArgs, _ func(any)) ([]string, error) {
	var found []string
	for _, dir := range unitFileDirs(w.uid) {
		es, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot look for unit files: %w", err)
		}
		for _, path := range plainUnitFiles(dir, es) {
			b, err := readUnit(path)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) { // gone, or none of the owner's
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("cannot read a unit file: %w", err)
			}
			if !bytes.Equal(movePIDFile(b, w.runRoots(a.RunRoot), a.Driver, ""), b) {
				found = append(found, path)
			}
		}
	}
	return found, nil
}

// plainUnitFiles are the plain files of services in a folder of units, and of the
// drop-ins of one service each. Those of many (container-.service.d, service.d) name no
// container.
func plainUnitFiles(dir string, es []fs.DirEntry) []string {
	var files []string
	for _, e := range es {
		switch name := e.Name(); {
		case e.Type().IsRegular() && strings.HasSuffix(name, ".service"):
			files = append(files, filepath.Join(dir, name))
		case e.IsDir() && strings.HasSuffix(name, ".service.d") && !strings.HasSuffix(name, "-.service.d"):
			ins, err := os.ReadDir(filepath.Join(dir, name))
			if err != nil {
				continue // gone, or none of the owner's
			}
			for _, in := range ins {
				if in.Type().IsRegular() && strings.HasSuffix(in.Name(), ".conf") {
					files = append(files, filepath.Join(dir, name, in.Name()))
				}
			}
		}
	}
	return files
}

// unitOf is the unit that a unit's file, or a drop-in, is of.
func unitOf(path string) string {
	if d := filepath.Base(filepath.Dir(path)); strings.HasSuffix(d, ".service.d") {
		return strings.TrimSuffix(d, ".d")
	}
	return filepath.Base(path)
}

// unitPID is where a unit expects its pid, and which file says so.
type unitPID struct {
	Path string `json:"path"`
	File string `json:"file,omitempty"`
}

// unitPIDs asks systemd where units expect their pids.
func (w *worker) unitPIDs(ctx context.Context, units []string, _ func(any)) (map[string]unitPID, error) {
	pids := map[string]unitPID{}
	return pids, w.withBus(ctx, func(b *host.Bus) error {
		paths, err := b.PIDFiles(ctx, units)
		for u, p := range paths {
			file, err := b.PIDFileSource(ctx, u, readUnit)
			if err != nil {
				return err
			}
			pids[u] = unitPID{p, ownName(unitFileDirs(w.uid), u, file)}
		}
		return err
	})
}

// ownName is the name under which [worker.unitFiles] tells of a file of systemd's, which
// may name it through another path to the same folder.
func ownName(dirs []string, unit, file string) string {
	theirs, err := os.Stat(file)
	if err != nil {
		return file
	}
	for _, dir := range dirs {
		for _, path := range []string{filepath.Join(dir, unit), filepath.Join(dir, unit+".d", filepath.Base(file))} {
			if ours, err := os.Lstat(path); err == nil && os.SameFile(ours, theirs) {
				return path
			}
		}
	}
	return file
}

// readUnit reads a unit's file. What is no plain file of a unit's size counts as not
// there: what the owner puts in its place must neither hold us nor fill the memory, which
// counts in root's control group.
func readUnit(path string) ([]byte, error) {
	const most = 1 << 20
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > most {
		return nil, fs.ErrNotExist
	}
	return io.ReadAll(io.LimitReader(f, most))
}

// runRoots are the ways in which a unit's file writes the run root: as it is, and
// from systemd's own runtime folder on.
func (w *worker) runRoots(root string) []string {
	runtime := "/run"
	if w.uid != 0 {
		runtime = os.Getenv("XDG_RUNTIME_DIR")
	}
	roots := []string{root}
	if rest, ok := strings.CutPrefix(root, runtime+"/"); ok && runtime != "" {
		roots = append(roots, "%t/"+rest)
	}
	return roots
}

// movePIDFile gives a unit's file with its PIDFile= below the folder of another
// driver, where it was below that of one. All else stays byte for byte.
func movePIDFile(unit []byte, runRoots []string, from, to string) []byte {
	quoted := make([]string, len(runRoots))
	for i, r := range runRoots {
		quoted[i] = regexp.QuoteMeta(r)
	}
	line := regexp.MustCompile(`(?m)^([ \t]*PIDFile[ \t]*=[ \t]*(?:` + strings.Join(quoted, "|") + `)/)` +
		regexp.QuoteMeta(from) + `(-containers/[0-9a-f]{64}/userdata/[^/\s]+[ \t\r]*)$`)
	return line.ReplaceAll(unit, []byte("${1}"+to+"${2}"))
}

// moveUnitFiles has the owner's unit files look below another driver's folder, and
// tells what each was and is. Each is replaced whole, or not at all.
func (w *worker) moveUnitFiles(_ context.Context, a unitMove, _ func(any)) ([]UnitFact, error) {
	var moved []UnitFact
	for _, path := range a.Paths {
		b, err := readUnit(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // somebody removed it, or put something else there
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read a unit file: %w", err)
		}
		after := movePIDFile(b, w.runRoots(a.RunRoot), a.Driver, a.To)
		if i := slices.IndexFunc(a.Known, func(f UnitFact) bool { return f.Path == path }); i >= 0 && bytes.Equal(b, a.Known[i].After) {
			after = a.Known[i].Before // byte for byte, whatever was written in it
		}
		moved = append(moved, UnitFact{Path: path, Before: b, After: after})
		if a.Look || bytes.Equal(after, b) {
			continue
		}
		err = renameio.WriteFile(path, after, 0o644, renameio.WithTempDir(filepath.Dir(path)), renameio.WithExistingPermissions())
		if err == nil {
			err = syncDirs(filepath.Dir(path))
		}
		if err != nil {
			return nil, fmt.Errorf("cannot write a unit file: %w", err)
		}
	}
	return moved, nil
}

type unitMove struct {
	unitArgs
	Paths []string   `json:"paths"`
	Known []UnitFact `json:"known,omitempty"` // as written before: what is still so gets what it was
	Look  bool       `json:"look,omitempty"`  // tell, and write nothing
}

// unitFileSteps changes the unit files that name the old driver; no step where
// there is none.
func (s *Session) unitFileSteps() []engine.Step {
	if len(s.Inputs.UnitFiles) == 0 {
		return nil
	}
	return []engine.Step{{Name: stepUnitFiles, Title: "tell units where their containers' pids are", Needs: []string{stepStop},
		Holds: s.unitFilesMoved, Do: s.moveUnits, Undo: s.moveUnitsBack}}
}

func (s *Session) unitMove(from, to string) unitMove {
	return unitMove{unitArgs: unitArgs{RunRoot: s.Inputs.Store.RunRoot, Driver: from, To: to}, Paths: s.Inputs.UnitFiles}
}

// unitFilesMoved observes the files, and what systemd has read of them.
func (s *Session) unitFilesMoved(ctx context.Context) (bool, error) {
	now, err := ask[[]UnitFact](ctx, s, opUnitFilesMove, func() unitMove {
		m := s.unitMove(s.Inputs.Store.Driver, s.Inputs.Request.To)
		m.Look = true
		return m
	}())
	if err != nil || slices.ContainsFunc(now, func(f UnitFact) bool { return !bytes.Equal(f.Before, f.After) }) {
		return false, err
	}
	if !s.Inputs.Systemd {
		return true, nil
	}
	var names []string
	for _, f := range now {
		if name := unitOf(f.Path); !strings.Contains(name, "@.") && !slices.Contains(names, name) { // a template is no unit
			names = append(names, name)
		}
	}
	pids, err := ask[map[string]unitPID](ctx, s, opUnitPIDs, names)
	for _, p := range pids {
		// What another file says is not ours; the judgement before has refused the units
		// of the run's that are so.
		if strings.Contains(p.Path, "/"+s.Inputs.Store.Driver+"-containers/") && slices.Contains(s.Inputs.UnitFiles, p.File) {
			return false, err
		}
	}
	return err == nil, err
}

func (s *Session) moveUnits(ctx context.Context) error {
	m := s.unitMove(s.Inputs.Store.Driver, s.Inputs.Request.To)
	if s.facts.UnitFiles == nil {
		m.Look = true
		was, err := ask[[]UnitFact](ctx, s, opUnitFilesMove, m)
		if err != nil {
			return err
		}
		if err := s.learn(func(f *Facts) { f.UnitFiles = &was }); err != nil {
			return err
		}
		m.Look = false
	}
	if _, err := ask[[]UnitFact](ctx, s, opUnitFilesMove, m); err != nil {
		return err
	}
	s.point("before after-unit-files")
	return s.reloadUnits(ctx)
}

// moveUnitsBack puts the files back as they were. What somebody edited since keeps
// the edit, and only looks below the old driver's folder again.
func (s *Session) moveUnitsBack(ctx context.Context) error {
	if s.facts.UnitFiles == nil {
		return nil
	}
	m := s.unitMove(s.Inputs.Request.To, s.Inputs.Store.Driver)
	m.Known = *s.facts.UnitFiles
	if _, err := ask[[]UnitFact](ctx, s, opUnitFilesMove, m); err != nil {
		return err
	}
	return s.reloadUnits(ctx)
}

func (s *Session) reloadUnits(ctx context.Context) error {
	if !s.Inputs.Systemd {
		return nil
	}
	_, err := ask[none](ctx, s, opUnitReload, none{})
	return err
}

// pidFiles finds the unit files that have to be changed, and refuses units that
// expect a pid below a folder with the old driver's name and have that from
// elsewhere: they would not start again.
func (a *Assessment) pidFiles(ctx context.Context, s *Session) error {
	st, to := a.Inputs.Store, a.Inputs.Request.To
	if !a.Inputs.Request.keeping() || to == st.Driver {
		return nil
	}
	var err error
	if a.Inputs.UnitFiles, err = ask[[]string](ctx, s, opUnitFiles, unitArgs{RunRoot: st.RunRoot, Driver: st.Driver}); err != nil || !a.Inputs.Systemd {
		return err
	}
	pids, err := ask[map[string]unitPID](ctx, s, opUnitPIDs, a.Units.Own)
	if err != nil {
		return err
	}
	paths := map[string]string{}
	for u, p := range pids {
		// The file that has the last word is one that the run changes: else a drop-in
		// from elsewhere would outlive the change of the unit's own file.
		if !slices.Contains(a.Inputs.UnitFiles, p.File) {
			paths[u] = p.Path
		}
	}
	if len(a.Units.System) > 0 {
		err := s.onSystemBus(ctx, func(b *host.Bus) error {
			theirs, err := b.PIDFiles(ctx, a.Units.System)
			for u, p := range theirs {
				paths[u] = p
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, u := range a.Units.all() {
		if old := "/" + st.Driver + "-containers/"; strings.Contains(paths[u], old) {
			a.refuse("unit-pidfile", fmt.Sprintf("stop and disable the unit; after the migration put %s for %s in it, and enable it again", "/"+to+"-containers/", old),
				"the unit %s has the old driver's name in its PIDFile=%s, and would not start again; that does not stand in a plain file of the owner's among %s", u, paths[u], strings.Join(unitFileDirs(int(a.Inputs.Owner.UID)), ", "))
		}
	}
	return nil
}
