package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// This file guards what `podman system reset` deletes besides the images: it
// removes the graphroot, the runroot and its temporary folder with all in them,
// whosever it is (libpod/reset.go of podman 3.0.1 to 5.8).

// logins is the file of registry logins: $XDG_RUNTIME_DIR/containers/auth.json,
// which lies in the runroot of a rootless store (containers-auth.json(5)).
const logins = "auth.json"

// resetArgs names what a reset would delete, and by what podman knows it.
type resetArgs struct {
	GraphRoot  string   `json:"graphRoot"`
	Driver     string   `json:"driver"`
	RunRoot    string   `json:"runRoot"`
	TmpDir     string   `json:"tmpDir"`
	VolumePath string   `json:"volumePath"` // "": volumes are not looked at
	Volumes    []string `json:"volumes"`    // that podman knows
	Containers []string `json:"containers"` // ids that podman knows
	Home       string   `json:"home"`
}

// resetLook is what the worker sees of it.
type resetLook struct {
	Folders []resetFolder `json:"folders,omitempty"` // those that must not go
	Logins  string        `json:"logins,omitempty"`  // file of registry logins that is carried over
	Stuck   string        `json:"stuck,omitempty"`   // why it cannot be
	Buildah []string      `json:"buildah,omitempty"` // containers that podman's database does not know
}

// resetFolder is a folder that a reset would delete and that is not podman's alone.
type resetFolder struct {
	Path    string   `json:"path"`
	What    string   `json:"what"`
	Home    bool     `json:"home"`              // it is or holds the owner's home
	Foreign []string `json:"foreign,omitempty"` // what is not podman's in it
}

func lookAtReset(a resetArgs) (resetLook, error) {
	var l resetLook
	for _, f := range []struct {
		path, what string
		own        func(string) bool
	}{
		{a.RunRoot, "runroot", func(n string) bool { return podmansRun(n) || n == logins }},
		{a.TmpDir, "temporary folder", func(n string) bool {
			// Where podman puts it by itself, all in it is podman's.
			base := strings.TrimSuffix(a.TmpDir, "/tmp")
			return filepath.Base(base) == "libpod" || podmansTmp(n)
		}},
		{a.VolumePath, "folder of volumes", func(n string) bool { return slices.Contains(a.Volumes, n) || n == "backingFsBlockDev" }},
	} {
		if f.path == "" {
			continue
		}
		seen, err := lookAtFolder(f.path, a.Home, f.own)
		if err != nil {
			return l, err
		}
		if seen.What = f.what; seen.Home || len(seen.Foreign) > 0 {
			l.Folders = append(l.Folders, seen)
		}
	}
	var err error
	if l.Buildah, err = strangers(a); err != nil {
		return l, err
	}
	file := filepath.Join(a.RunRoot, logins)
	there, err := exists(file)
	if err != nil || !there {
		return l, err
	}
	l.Logins = file
	if mounted, err := isMountpoint(a.RunRoot); err != nil {
		return l, err
	} else if mounted {
		l.Stuck = a.RunRoot + " is a mount point"
	} else if err := unix.Faccessat(unix.AT_FDCWD, filepath.Dir(a.RunRoot), unix.W_OK, unix.AT_EACCESS); err != nil {
		l.Stuck = fmt.Sprintf("%s cannot be written to: %v", filepath.Dir(a.RunRoot), err)
	}
	return l, nil
}

func lookAtFolder(path, home string, own func(string) bool) (resetFolder, error) {
	f := resetFolder{Path: path}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("cannot look at %s: %w", path, err)
	}
	if h, err := filepath.EvalSymlinks(home); err == nil {
		home = h
	}
	f.Home = strings.HasPrefix(filepath.Clean(home)+"/", strings.TrimSuffix(real, "/")+"/")
	es, err := os.ReadDir(real)
	if err != nil {
		return f, fmt.Errorf("cannot look at %s: %w", path, err)
	}
	for _, e := range es {
		if !own(e.Name()) {
			f.Foreign = append(f.Foreign, e.Name())
		}
	}
	return f, nil
}

// podmansRun reports whether podman, containers/storage or its network stack
// makes an entry of this name in a runroot.
func podmansRun(name string) bool {
	if ofDriver(name) {
		return true
	}
	switch name {
	case "networks", "cni", "libpod", "rootless-netns", "rootless-netns.lock", "rootless-cni-infra", "storage.lock":
		return true
	}
	return strings.HasPrefix(name, "db.sql") // of a transient store
}

// podmansTmp is the same for libpod's temporary folder.
func podmansTmp(name string) bool {
	switch name {
	case "alive", "alive.lck", "attach", "containers-root", "events", "exits", "lock", "locks", "pause.pid", "persist",
		"rp", "socket", "user", "tmp", "cni.lock":
		return true
	}
	for _, prefix := range []string{"rootless", "slirp4netns-", "intermediate-mountpoint-", "db.sql"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return strings.HasSuffix(name, ".net") // slirp4netns' sockets
}

// strangers names the containers in the store that podman's database does not
// know, buildah's working containers above all.
func strangers(a resetArgs) ([]string, error) {
	var names []string
	for _, file := range []string{"containers.json", "volatile-containers.json"} {
		path := filepath.Join(a.GraphRoot, a.Driver+"-containers", file)
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot look at the store's containers: %w", err)
		}
		var recs []struct {
			ID    string   `json:"id"`
			Names []string `json:"names"`
		}
		if err := json.Unmarshal(b, &recs); err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", path, err)
		}
		for _, r := range recs {
			if !slices.Contains(a.Containers, r.ID) {
				names = append(names, append(r.Names, r.ID)[0])
			}
		}
	}
	return names, nil
}

// resetting judges what a reset would delete.
func (a *Assessment) resetting(ctx context.Context, s *Session) error {
	l, err := ask[resetLook](ctx, s, opResetLook, s.resetArgs(a.Database))
	if err != nil {
		return err
	}
	a.Reset = &l
	for _, r := range l.refusals() {
		a.Refusals = append(a.Refusals, *r)
	}
	if len(l.Buildah) > 0 && a.Inputs.Request.Containers == Refuse {
		a.refuse("containers", "remove them (buildah rm), or say --containers discard to give them up",
			"the store holds containers that podman's database does not know, such as buildah's: %s", few(l.Buildah))
	}
	return nil
}

func (l resetLook) refusals() []*Refusal {
	var rs []*Refusal
	refuse := func(hint, format string, args ...any) {
		rs = append(rs, &Refusal{ID: "reset", Text: fmt.Sprintf(format, args...), Hint: hint})
	}
	for _, f := range l.Folders {
		if f.Home {
			refuse("give podman a folder of its own", "podman system reset would delete the %s %s, which is or holds the owner's home", f.What, f.Path)
			continue
		}
		refuse("move it away, or give podman a folder of its own",
			"podman system reset would delete the %s %s, which holds what is not podman's: %s", f.What, f.Path, few(f.Foreign))
	}
	if l.Stuck != "" {
		refuse("move it away yourself, and back afterwards", "the registry logins in %s cannot be carried over podman system reset: %s", l.Logins, l.Stuck)
	}
	return rs
}

// few names some of many, quoted: others chose these names.
func few(names []string) string {
	words := make([]string, 0, 5)
	for _, n := range names[:min(5, len(names))] {
		words = append(words, fmt.Sprintf("%q", n))
	}
	if more := len(names) - len(words); more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, ", ")
}

// loginsAside is where the registry logins wait while podman resets the store:
// beside the runroot, so that a rename takes them there.
func loginsAside(runRoot, run string) string {
	return filepath.Join(filepath.Dir(runRoot), ".storagectl-"+run)
}

type loginsArgs struct {
	RunRoot string `json:"runRoot"`
	Aside   string `json:"aside"`
}

// loginsOut takes the registry logins out of the runroot. It replaces nothing.
func loginsOut(a loginsArgs) error {
	from := filepath.Join(a.RunRoot, logins)
	if there, err := exists(from); err != nil || !there {
		return err
	}
	if err := os.MkdirAll(a.Aside, 0o700); err != nil {
		return fmt.Errorf("cannot keep the registry logins: %w", err)
	}
	return a.carry(from, filepath.Join(a.Aside, logins))
}

// loginsBack puts the registry logins back, if they wait aside.
func loginsBack(a loginsArgs) error {
	from := filepath.Join(a.Aside, logins)
	if there, err := exists(from); err != nil {
		return err
	} else if there {
		if err := os.MkdirAll(a.RunRoot, 0o700); err != nil { // as podman makes it
			return fmt.Errorf("cannot put the registry logins back: %w", err)
		}
		if err := a.carry(from, filepath.Join(a.RunRoot, logins)); err != nil {
			return err
		}
	}
	if err := os.Remove(a.Aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot put the registry logins back: %w", err)
	}
	return nil
}

func (a loginsArgs) carry(from, to string) error {
	if there, err := exists(to); err != nil {
		return err
	} else if there {
		return fmt.Errorf("cannot keep the registry logins: there are two files of them, %s and %s: merge them into the first", filepath.Join(a.RunRoot, logins), filepath.Join(a.Aside, logins))
	}
	if err := move(from, to); err != nil {
		return err
	}
	return syncDirs(a.RunRoot, a.Aside)
}
