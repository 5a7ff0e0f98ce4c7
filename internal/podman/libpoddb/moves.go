package libpoddb

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Moves says where the folders lie that a change of driver renames from
// <from>-containers to <to>-containers. The graph root and run root that the
// database names, and those that its containers' own static dirs show, are
// always among them; Roots adds spellings of them through other paths.
type Moves struct {
	Roots []string `json:"roots,omitempty"`
}

// Change is one value that SetDriver alters (or would alter).
type Change struct {
	Container string `json:"container,omitempty"` // id; empty for the store's own settings
	Field     string `json:"field"`               // "graph driver", "config.staticDir", "state.bindMounts./etc/hosts" …
	Old       string `json:"old"`
	New       string `json:"new"`
}

// mover rewrites the records of one database from one driver to another.
type mover struct {
	from, to string
	roots    []string
	changes  []Change
}

// learn adds the roots that a container's own records show: its static dir is
// <graphroot>/<driver>-containers/<id>/userdata and its run dir the same below
// the run root (containers/storage, Store.ContainerDirectory and
// ContainerRunDirectory).
func (m *mover) learn(id string, paths ...string) {
	for _, p := range paths {
		for _, driver := range []string{m.from, m.to} {
			if root, ok := strings.CutSuffix(filepath.Clean(p), filepath.Join("/", driver+"-containers", id, "userdata")); ok && root != "" {
				m.addRoot(root)
			}
		}
	}
}

func (m *mover) addRoot(root string) {
	if root == "" || !filepath.IsAbs(root) {
		return
	}
	root = filepath.Clean(root)
	if !slices.Contains(m.roots, root) {
		m.roots = append(m.roots, root)
	}
}

// path gives p with <root>/<from>-containers replaced, whole path elements
// only.
func (m *mover) path(p string) string {
	for _, root := range m.roots {
		old := filepath.Join(root, m.from+"-containers")
		if rest, ok := strings.CutPrefix(p, old); ok && (rest == "" || rest[0] == '/') {
			return filepath.Join(root, m.to+"-containers") + rest
		}
	}
	return p
}

// container gives the two records of a container as the new driver needs them.
// An unchanged record comes back byte for byte.
//
// The fields are those of libpod's ContainerConfig, ContainerState and
// ExecConfig, podman 3.0.1 to 5.8, that hold a path podman made itself below
// the container's directories, or a mount source, or podman's own command line.
// Labels, environment, annotations, commands and create commands are the
// user's words and stay.
func (m *mover) container(id string, config, state []byte) (newConfig, newState []byte, err error) {
	exit, err := m.exitOptions(config, state)
	if err != nil {
		return nil, nil, damaged("container %s: %v", id, err)
	}
	var args argList
	newConfig, err = rewriteJSON(config, m.editor(id, "config", func(path []string, value string) (string, bool) {
		switch {
		case len(path) == 1:
			switch path[0] {
			case "staticDir", "ShmDir", "logPath", "secretsPath", "conmonPidFile", "pid_file", "baseHostsFile":
				return m.path(value), true
			}
		case len(path) == 2 && path[0] == "mounts": // what clean-up unmounts: the shm folder
			return m.path(value), true
		case len(path) == 2 && path[0] == "exitCommand":
			return m.argument(&args, exit[""], path[1], value), true
		case len(path) == 4 && path[0] == "spec" && path[1] == "mounts" && path[3] == "source":
			return m.path(value), true
		case len(path) == 3 && path[0] == "spec" && path[1] == "root" && path[2] == "path":
			return m.path(value), true
		}
		return "", false
	}, nil))
	if err != nil {
		return nil, nil, err
	}

	// A container that was not cleaned up has the mount point of the old
	// driver on record, and podman would start from there. It is recorded as
	// not mounted, as podman's own clean-up does (libpod cleanupStorage).
	var mount struct {
		Mountpoint string `json:"mountPoint"`
	}
	if err := json.Unmarshal(state, &mount); err != nil {
		return nil, nil, damaged("container %s: state: %v", id, err)
	}
	unmount := false
	for _, root := range m.roots {
		unmount = unmount || strings.HasPrefix(mount.Mountpoint, filepath.Join(root, m.from)+"/")
	}
	execArgs := map[string]*argList{}
	newState, err = rewriteJSON(state, m.editor(id, "state", func(path []string, value string) (string, bool) {
		switch {
		case len(path) == 1:
			switch path[0] {
			case "configPath", "runDir", "checkpointLog", "checkpointPath", "restoreLog":
				return m.path(value), true
			case "mountPoint":
				if unmount {
					return "", true
				}
			}
		case len(path) == 2 && path[0] == "bindMounts":
			return m.path(value), true
		case len(path) == 5 && path[0] == "newExecSessions" && path[2] == "config" && path[3] == "exitCommand":
			if execArgs[path[1]] == nil {
				execArgs[path[1]] = &argList{}
			}
			return m.argument(execArgs[path[1]], exit[path[1]], path[4], value), true
		}
		return "", false
	}, func(path []string) bool { return unmount && len(path) == 1 && path[0] == "mounted" }))
	if err != nil {
		return nil, nil, err
	}
	return newConfig, newState, nil
}

// editor adapts a decision about strings to rewriteJSON and notes the changes.
// Where clear says so, a true becomes false.
func (m *mover) editor(id, record string, decide func([]string, string) (string, bool), clear func([]string) bool) func([]string, json.Token) ([]byte, error) {
	return func(path []string, tok json.Token) ([]byte, error) {
		field := record + "." + strings.Join(path, ".")
		if on, ok := tok.(bool); ok && on && clear != nil && clear(path) {
			m.changes = append(m.changes, Change{id, field, "true", "false"})
			return []byte("false"), nil
		}
		old, ok := tok.(string)
		if !ok {
			return nil, nil
		}
		value, mine := decide(path, old)
		if !mine || value == old {
			return nil, nil
		}
		if value == dropped {
			m.changes = append(m.changes, Change{id, field, old, ""})
			return []byte{}, nil
		}
		m.changes = append(m.changes, Change{id, field, old, value})
		return quote(value)
	}
}

// dropped stands for a word that is taken away; no word can hold it.
const dropped = "\x00"

// exitOptions finds, in the clean-up commands of a container ("") and of what was
// run in it (by id), the words that are to be taken away, by their index.
func (m *mover) exitOptions(config, state []byte) (map[string]map[string]bool, error) {
	var c struct {
		ExitCommand []string `json:"exitCommand"`
	}
	var s struct {
		Sessions map[string]struct {
			Config struct {
				ExitCommand []string `json:"exitCommand"`
			} `json:"config"`
		} `json:"newExecSessions"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(state, &s); err != nil {
		return nil, err
	}
	all := map[string]map[string]bool{"": m.foreignOptions(c.ExitCommand)}
	for id, session := range s.Sessions {
		all[id] = m.foreignOptions(session.Config.ExitCommand)
	}
	return all, nil
}

// foreignOptions are the words of a command line that name options of the driver which
// it has no more: of overlay on vfs all but those that both know, and on overlay that
// the kernel mounts what is a mount program's.
func (m *mover) foreignOptions(words []string) map[string]bool {
	drop := map[string]bool{}
	for i := 1; i+1 < len(words); i++ {
		key, _, _ := strings.Cut(words[i+1], "=")
		name, ok := strings.CutPrefix(key, m.from+".")
		if words[i] != "--storage-opt" || !ok || m.from != "overlay" {
			continue
		}
		gone := name == "mount_program" || name == "force_mask"
		if m.to == "vfs" {
			gone = name != "imagestore" && name != "ignore_chown_errors"
		}
		if gone {
			drop[strconv.Itoa(i)], drop[strconv.Itoa(i+1)] = true, true
		}
	}
	return drop
}

// argList is how far the walk through one command line has come.
type argList struct{ previous string }

// argument moves one word of podman's own clean-up command line, whose order is
// that of CreateExitCommandArgs: a driver given by flag that contradicts the
// database is a hard error, and options carry the driver's name as prefix.
//
// Options that drop names, with the flag before them, are taken away: the new driver
// refuses options that it does not know, and with a mount program podman would turn
// the store back to it.
func (m *mover) argument(a *argList, drop map[string]bool, index, word string) string {
	previous := a.previous
	a.previous = word
	if drop[index] {
		return dropped
	}
	switch previous {
	case "--storage-driver":
		if word == m.from {
			return m.to
		}
	case "--storage-opt":
		if rest, ok := strings.CutPrefix(word, m.from+"."); ok {
			return m.to + "." + rest
		}
	}
	return word
}
