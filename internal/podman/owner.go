// Package podman is Podman seen from outside: who owns a store, what podman
// says of it, and the owner worker, the process that does all work inside a
// store with the rights of its owner and no more.
package podman

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/storagectl/storagectl/internal/host"
)

// IDRange is a run of subordinate ids, as in /etc/subuid.
type IDRange struct {
	Start uint32 `json:"start"`
	Count uint32 `json:"count"`
}

// Owner is the user whom a container store belongs to.
type Owner struct {
	Name       string    `json:"name"`
	UID        uint32    `json:"uid"`
	GID        uint32    `json:"gid"`
	Home       string    `json:"home"`
	RuntimeDir string    `json:"runtimeDir,omitempty"` // /run/user/UID where it is there
	SubUIDs    []IDRange `json:"subuids,omitempty"`
	SubGIDs    []IDRange `json:"subgids,omitempty"`
}

// Rootful reports whether the store is the system's own.
func (o Owner) Rootful() bool { return o.UID == 0 }

// ErrNoUser reports that no user of that name is known.
var ErrNoUser = errors.New("no such user")

// LookupOwner finds a user by name or number through the name service (getent),
// because a static program sees only /etc/passwd, and the user's subordinate
// ids (getsubids where it is there, else /etc/subuid and /etc/subgid).
func LookupOwner(ctx context.Context, r *host.Runner, name string) (Owner, error) {
	line, err := r.Run(ctx, host.Cmd{Argv: []string{"getent", "passwd", name}, Env: basePath(), Timeout: 20 * time.Second})
	var ee *host.ExitError
	switch {
	case errors.As(err, &ee):
		return Owner{}, fmt.Errorf("cannot find user %q: %w", name, ErrNoUser)
	case err != nil: // no getent: a small container
		u, err := user.Lookup(name)
		if err != nil {
			return Owner{}, fmt.Errorf("cannot find user %q: %w", name, ErrNoUser)
		}
		line = fmt.Appendf(nil, "%s:x:%s:%s::%s:", u.Username, u.Uid, u.Gid, u.HomeDir)
	}
	f := strings.Split(strings.TrimSpace(string(line)), ":")
	if len(f) < 6 {
		return Owner{}, fmt.Errorf("cannot find user %q: the name service answered %q", name, line)
	}
	uid, err1 := strconv.ParseUint(f[2], 10, 32)
	gid, err2 := strconv.ParseUint(f[3], 10, 32)
	if err1 != nil || err2 != nil {
		return Owner{}, fmt.Errorf("cannot find user %q: the name service answered %q", name, line)
	}
	o := Owner{Name: f[0], UID: uint32(uid), GID: uint32(gid), Home: filepath.Clean("/" + f[5])}
	if o.Rootful() {
		return o, nil
	}
	o.RuntimeDir = runtimeDir(o.UID)
	if o.SubUIDs, err = subIDs(ctx, r, o, "/etc/subuid"); err != nil {
		return Owner{}, err
	}
	if o.SubGIDs, err = subIDs(ctx, r, o, "/etc/subgid", "-g"); err != nil {
		return Owner{}, err
	}
	return o, nil
}

// subIDs asks getsubids, which knows the name service, and reads the file where
// there is no such tool (before shadow 4.10) or it knows nothing.
func subIDs(ctx context.Context, r *host.Runner, o Owner, file string, flags ...string) ([]IDRange, error) {
	argv := append(append([]string{"getsubids"}, flags...), o.Name)
	out, err := r.Run(ctx, host.Cmd{Argv: argv, Env: basePath(), Timeout: 20 * time.Second})
	if err == nil {
		if rs := parseSubIDs(string(out)); len(rs) > 0 {
			return rs, nil
		}
	}
	return fileSubIDs(file, o)
}

// parseSubIDs reads lines like "0: hashi 100000 65536".
func parseSubIDs(text string) []IDRange {
	var rs []IDRange
	for l := range strings.Lines(text) {
		f := strings.Fields(l)
		if len(f) != 4 {
			continue
		}
		start, err1 := strconv.ParseUint(f[2], 10, 32)
		count, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 == nil && err2 == nil && count > 0 {
			rs = append(rs, IDRange{uint32(start), uint32(count)})
		}
	}
	return rs
}

// runtimeDir is the user's runtime directory as logind makes it, "" where there
// is none. The caller's own XDG_RUNTIME_DIR counts where the user is the caller.
func runtimeDir(uid uint32) string {
	dir := fmt.Sprintf("/run/user/%d", uid)
	if uint32(os.Getuid()) == uid {
		if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
			dir = d
		}
	}
	fi, err := os.Lstat(dir)
	if err != nil || !fi.IsDir() {
		return ""
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || st.Uid != uid {
		return ""
	}
	return dir
}

func fileSubIDs(path string, o Owner) ([]IDRange, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot read subordinate ids: %w", err)
	}
	var rs []IDRange
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		f := strings.Split(strings.TrimSpace(sc.Text()), ":")
		if len(f) != 3 || (f[0] != o.Name && f[0] != strconv.FormatUint(uint64(o.UID), 10)) {
			continue
		}
		start, err1 := strconv.ParseUint(f[1], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 != nil || err2 != nil || count == 0 {
			return nil, fmt.Errorf("cannot read subordinate ids: %s has the line %q", path, sc.Text())
		}
		rs = append(rs, IDRange{uint32(start), uint32(count)})
	}
	return rs, nil
}

// maps are the owner's ids as a user namespace has them: the owner is root, the
// subordinate ids follow from 1 on. This is podman's own mapping.
func maps(id uint32, rs []IDRange) []syscall.SysProcIDMap {
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(id), Size: 1}}
	next := 1
	for _, r := range rs {
		m = append(m, syscall.SysProcIDMap{ContainerID: next, HostID: int(r.Start), Size: int(r.Count)})
		next += int(r.Count)
	}
	return m
}

func basePath() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
}

// Env is the whole environment for a process of the owner. extra is appended.
func (o Owner) Env(extra ...string) []string {
	env := append(basePath(), "HOME="+o.Home, "USER="+o.Name, "LOGNAME="+o.Name)
	if o.RuntimeDir != "" {
		env = append(env, "XDG_RUNTIME_DIR="+o.RuntimeDir)
		if _, err := os.Lstat(filepath.Join(o.RuntimeDir, "bus")); err == nil {
			env = append(env, "DBUS_SESSION_BUS_ADDRESS=unix:path="+filepath.Join(o.RuntimeDir, "bus"))
		}
	}
	return append(env, extra...)
}

// as is whom commands of the owner run as: nil where that is the caller already.
func (o Owner) as() *host.User {
	if uint32(os.Getuid()) == o.UID {
		return nil
	}
	return &host.User{UID: o.UID, GID: o.GID}
}
