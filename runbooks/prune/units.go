package prune

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// unitFolder is a folder with files that may name images, containers and volumes.
type unitFolder struct {
	path    string
	quadlet bool   // all in it is for podman
	home    string // what %h is there
}

// unitFolders are those of systemd and of Quadlet: the owner's own, and the system's,
// whose units may run as the owner. It is called where the owner's environment is.
func unitFolders(uid int) []unitFolder {
	system := systemFolders()
	if uid == 0 {
		return system
	}
	home := os.Getenv("HOME")
	conf := os.Getenv("XDG_CONFIG_HOME")
	if conf == "" {
		conf = filepath.Join(home, ".config")
	}
	var own []unitFolder
	for _, p := range []string{filepath.Join(conf, "systemd", "user"), filepath.Join(home, ".local", "share", "systemd", "user"),
		"/etc/systemd/user", "/run/systemd/user", "/usr/local/lib/systemd/user", "/usr/lib/systemd/user", "/lib/systemd/user"} {
		own = append(own, unitFolder{p, false, home})
	}
	own = append(own, unitFolder{filepath.Join(conf, "containers", "systemd"), true, home})
	if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" {
		for _, below := range []string{"user", "generator"} {
			own = append(own, unitFolder{filepath.Join(run, "systemd", below), false, home})
		}
		own = append(own, unitFolder{filepath.Join(run, "containers", "systemd"), true, home})
	}
	// /etc/containers/systemd/users is below one of the system's.
	return append(own, system...)
}

func systemFolders() (all []unitFolder) {
	for _, p := range []string{"/etc/systemd/system", "/run/systemd/system", "/run/systemd/generator",
		"/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} {
		all = append(all, unitFolder{p, false, "/root"})
	}
	for _, p := range []string{"/etc/containers/systemd", "/run/containers/systemd", "/usr/share/containers/systemd"} {
		all = append(all, unitFolder{p, true, "/root"})
	}
	return all
}

const (
	maxUnitFile  = 1 << 20
	maxUnitFiles = 20_000
	maxUnitBytes = 64 << 20 // of all: they are kept in memory, which counts in root's control group
)

// unitFile is a file of a unit, or of Quadlet.
type unitFile struct {
	Path    string `json:"path"`
	Quadlet bool   `json:"quadlet"`
	Home    string `json:"home"`
	Text    string `json:"text,omitempty"`
}

// readUnits reads all files that may name something of podman's; unread are those that
// are there and closed to the owner.
func readUnits(folders []unitFolder) (files, unread []unitFile, err error) {
	done := map[string]bool{} // folders, by their real path
	count, room := 0, maxUnitBytes
	var walk func(f unitFolder, folder string) error
	walk = func(f unitFolder, folder string) error {
		root, err := filepath.EvalSymlinks(folder)
		if err != nil {
			return nil //nolint:nilerr // it is not there, or not for this user
		}
		if done[root] {
			return nil
		}
		done[root] = true
		return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
				return nil
			case err != nil:
				return err
			case d.IsDir():
				done[path] = true
				return nil
			}
			if fi, err := os.Stat(path); err == nil && fi.IsDir() { // a link: Quadlet follows those of folders, systemd those of drop-ins
				if f.quadlet || slices.Contains([]string{".d", ".wants", ".requires", ".upholds"}, filepath.Ext(path)) {
					return walk(f, path)
				}
				return nil
			}
			if !f.quadlet && !ofService(path) {
				return nil
			}
			if count++; count > maxUnitFiles {
				return fmt.Errorf("there are more than %d files", maxUnitFiles)
			}
			u := unitFile{Path: path, Quadlet: f.quadlet, Home: f.home}
			switch u.Text, err = readUnit(path); {
			case errors.Is(err, fs.ErrPermission):
				unread = append(unread, u)
			case err != nil:
				return err
			default:
				files = append(files, u)
			}
			if room -= len(u.Text); room < 0 {
				return fmt.Errorf("there are files of more than %d bytes", maxUnitBytes)
			}
			return nil
		})
	}
	for _, f := range folders {
		if err := walk(f, f.path); err != nil {
			return nil, nil, fmt.Errorf("cannot see which images units name, in %s: %w", f.path, err)
		}
	}
	return files, unread, nil
}

// ofService reports whether a file of systemd's is a service, or a part of one.
func ofService(path string) bool {
	return strings.HasSuffix(path, ".service") || strings.HasSuffix(path, ".conf") && strings.HasSuffix(filepath.Dir(path), ".service.d")
}

// readUnit reads a file, which may be a link (to /dev/null: a masked unit). One that is
// not there is empty; one that is closed to the owner is an error.
func readUnit(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe is not waited for
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ELOOP) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxUnitFile))
	return string(b), err
}

// readHanded reads a file that a unit hands to podman: one that is not there may come.
func readHanded(path string) (string, error) {
	text, err := readUnit(path)
	if err == nil && text == "" {
		err = fs.ErrNotExist
	}
	return text, err
}

// closedUnits are the names in files that the owner may not read: a unit of the system's
// may run as the owner nevertheless. Root reads them, where all of their folders are
// root's alone; else what they name is not known.
func closedUnits(unread []unitFile) []Wanted {
	var files []unitFile
	var all []Wanted
	for _, u := range unread {
		of := slices.ContainsFunc(systemFolders(), func(f unitFolder) bool {
			root, err := filepath.EvalSymlinks(f.path)
			return err == nil && strings.HasPrefix(filepath.Clean(u.Path), root+"/")
		})
		var b []byte
		err := fs.ErrPermission
		if of && os.Geteuid() == 0 {
			b, err = host.ReadTrusted(u.Path)
		}
		if err != nil {
			all = append(all, Wanted{Name: "*", By: filepath.Base(u.Path) + ", which cannot be read,"})
			continue
		}
		u.Text = string(b)
		files = append(files, u)
	}
	return append(all, namesInUnits(files, func(string) (string, error) { return "", fs.ErrPermission })...)
}
