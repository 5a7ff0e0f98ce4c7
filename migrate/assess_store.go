package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/migrate/convert"
)

// roots refuses graphroots in which a mistake would cost more than a store.
func (a *Assessment) roots(stateDir string) {
	root, l := a.Inputs.Store.GraphRoot, a.Look
	const move = "give podman a folder of its own as graphroot"
	switch {
	case l.RealPath == "":
		a.refuse("graphroot", "run podman once", "the graphroot %s is not there", root)
		return
	case root == "/" || l.RealPath == "/" || len(strings.Split(strings.Trim(l.RealPath, "/"), "/")) < 2:
		a.refuse("graphroot", move, "the graphroot is %s", root)
	case l.RealPath == filepath.Clean(a.Inputs.Owner.Home) || strings.HasPrefix(a.Inputs.Owner.Home+"/", l.RealPath+"/"):
		a.refuse("graphroot", move, "the graphroot %s is or holds the home of %s", root, a.Inputs.Owner.Name)
	case l.Symlink:
		a.refuse("graphroot", "set graphroot to "+l.RealPath+" itself", "the graphroot %s is a symbolic link to %s", root, l.RealPath)
	case l.ReadOnly:
		a.refuse("graphroot", "remount it for writing", "the filesystem of %s is mounted read-only", root)
	}
	for _, m := range l.Mounts {
		part, _, _ := strings.Cut(strings.TrimPrefix(m, l.RealPath+"/"), "/")
		switch {
		case a.Inputs.Request.Relocate != nil: // judged by itself
		case a.Info.Store.GraphDriverName == a.Inputs.Request.To: // stays where it is
		case a.Inputs.Request.Images == Discard:
			a.refuse("mount", "unmount it first", "%s is mounted in the store, and podman system reset would delete what is on it", m)
		case strings.HasSuffix(m, "/userdata/shm"): // podman's own, of a running container
		case part == overlay && a.Info.Store.GraphDriverName == overlay && a.ownMount(m): // the driver's
		case slices.Contains(storeParts(a.Info.Store.GraphDriverName), part):
			a.refuse("mount", "unmount it, or move the whole graphroot onto that filesystem", "%s is mounted in the store, so that it cannot be renamed with it", m)
		}
	}
	if len(l.Foreign) > 0 {
		what := strings.Join(l.Foreign[:min(5, len(l.Foreign))], ", ")
		// Where podman's files lie among others' on a mount, it is not clear
		// whose mount that is; and a reset deletes the graphroot with all in it.
		if l.Mountpoint || a.Inputs.Request.Images == Discard {
			a.refuse("graphroot", move, "the graphroot %s holds what is not podman's: %s", root, what)
		} else {
			a.Notes = append(a.Notes, fmt.Sprintf("the graphroot holds what is not podman's, and it is left alone: %s", what))
		}
	}
	state, err := realParent(stateDir)
	if err != nil {
		a.refuse("state-dir", "give another --state-dir", "the state directory %s cannot be looked at: %v", stateDir, err)
	} else if state == l.RealPath || strings.HasPrefix(state+"/", l.RealPath+"/") {
		a.refuse("state-dir", "give a --state-dir outside the store", "the state directory %s lies inside the store %s", stateDir, root)
	}
	for _, d := range l.Drivers {
		if d != a.Info.Store.GraphDriverName && d == a.Inputs.Request.To && a.Info.Store.GraphDriverName != a.Inputs.Request.To {
			a.refuse("other-driver", fmt.Sprintf("move %s* away if they are left over; podman does not use them", filepath.Join(root, d)),
				"the graphroot %s already holds folders of the driver %s", root, d)
		}
	}
}

// content judges what is in the store, and whether it can be staged.
func (a *Assessment) content(ctx context.Context, s *Session) error {
	if a.Inputs.Request.Images == Discard || a.Conf.ImageStore != "" {
		return nil
	}
	s.Inputs = a.Inputs
	o := convert.Options{Source: s.convertSource(), To: a.Inputs.Request.To, Stage: runFolder(a.Inputs.Store.GraphRoot, s.ID), Containers: true,
		KeepDamaged: a.Inputs.Request.KeepDamaged, Elsewhere: a.Inputs.Converting()}
	e, err := ask[convert.Estimate](ctx, s, opSurvey, o)
	if faultKind(err) == faultNoNative {
		a.refuse("no-native-overlay", "overlay needs a kernel and a local filesystem that have it", "%v", err)
		return nil
	}
	if faultKind(err) == faultUnlike {
		a.Refusals = append(a.Refusals, *unconvertible(err))
		return nil
	}
	if err != nil {
		return err
	}
	a.Estimate = e
	a.mapped()
	if len(e.Damage) > 0 && !a.Inputs.Request.KeepDamaged {
		var lines []string
		for _, d := range e.Damage[:min(5, len(e.Damage))] {
			lines = append(lines, d.String())
		}
		a.refuse("damaged", "repair or remove the damaged images, or carry them over as they are with --keep-damaged",
			"the store is damaged in %s: %s", Count(len(e.Damage), "place", "places"), strings.Join(lines, "; "))
	}
	for _, i := range e.ImageStores {
		if i.Images > 0 && a.Inputs.Request.To != a.Inputs.Store.Driver {
			a.Notes = append(a.Notes, fmt.Sprintf("the additional image store %s and its %s stay where they are: podman on %s sees only what images of that driver it holds", i.Path, Count(i.Images, a.Inputs.Store.Driver+" image", a.Inputs.Store.Driver+" images"), a.Inputs.Request.To))
		}
	}
	if o.Elsewhere { // judged with the target
		return nil
	}
	if e.BytesNeeded > e.BytesFree {
		a.refuse("no-room", "free some space on the filesystem of "+a.Inputs.Store.GraphRoot,
			"staging needs %s, and %s are free", Bytes(e.BytesNeeded), Bytes(e.BytesFree))
	}
	if e.InodesFree > 0 && e.InodesNeeded > e.InodesFree {
		a.refuse("no-room", "remove some files on the filesystem of "+a.Inputs.Store.GraphRoot,
			"staging needs %s, and %d are free", Count(e.InodesNeeded, "inode", "inodes"), e.InodesFree)
	}
	return nil
}

// unfinished refuses an owner whose earlier run is neither finished nor rolled
// back. It returns the folders in the store that runs known here may have left.
func (a *Assessment) unfinished(dir engine.Dir) (known map[string]bool, err error) {
	runs, err := dir.List()
	if err != nil {
		return nil, err
	}
	known = map[string]bool{}
	for _, run := range runs {
		st, err := engine.Read(dir.RunPath(run))
		if err != nil {
			continue // a damaged journal of this store shows by its folder
		}
		in, err := DecodeInputs(st)
		if err != nil || in.Owner.UID != a.Inputs.Owner.UID {
			continue
		}
		folder := filepath.Base(runFolder("/", run))
		known[folder], known[folder+straySuffix] = true, true
		if !st.Phase.Over() {
			if held, err := dir.Locked(st.Header.Store); err != nil {
				return nil, err
			} else if held {
				return nil, fmt.Errorf("run %s is at work on the store of %s: %w", run, in.Owner.Name, engine.ErrLocked)
			}
			a.refuse("unfinished", fmt.Sprintf("storagectl resume %s finishes it, storagectl rollback %s undoes it", run, run),
				"run %s on the store of %s is not finished", run, in.Owner.Name)
		}
	}
	return known, nil
}

// leftovers refuses a store that holds the folder of a run that is not known,
// or that any run kept, if the store is to be reset: the folder would go, too.
func (a *Assessment) leftovers(known map[string]bool) {
	for _, f := range a.Look.Leftover {
		path := filepath.Join(a.Inputs.Store.GraphRoot, f)
		if a.Inputs.Request.Images == Discard && !a.Inputs.There() {
			a.refuse("leftover", "fetch what you want from it (docs/runs.md), then remove it or move it away",
				"podman system reset would delete %s, which an earlier run kept", path)
		} else if a.Inputs.Request.Relocate != nil {
			a.refuse("leftover", "commit that run, or fetch what you want from the folder (docs/runs.md) and remove it; it would not go along",
				"%s is kept from an earlier run", path)
		} else if known[f] || a.Inputs.There() {
			a.Notes = append(a.Notes, path+" is kept from an earlier run")
		} else {
			a.refuse("leftover", "go on with that run, with its --state-dir or as the user who began it (storagectl history); the folder may hold the only copy of a store, so do not delete it",
				"%s is left from a run that this state directory does not know", path)
		}
	}
}

// realParent resolves the links of the longest part of path that is there.
func realParent(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	rest := ""
	for {
		real, err := filepath.EvalSymlinks(path)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		rest = filepath.Join(filepath.Base(path), rest)
		path = filepath.Dir(path)
	}
}
