package host

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Users lists the processes that have a file or folder below dir open, mapped, as
// their program or as where they are, but for this one and those excepted. A path
// is taken as the kernel tells it to this process; one that is written to by
// somebody who opened it before a rename of dir is told by its new path.
func Users(dir string, except ...int) ([]Holder, error) {
	ps, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	below := func(path string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
	var users []Holder
	for _, p := range ps {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() || slices.Contains(except, pid) {
			continue
		}
		proc := filepath.Join("/proc", p.Name())
		how, path := openBelow(proc, below)
		if how == "" {
			continue
		}
		name, err := os.ReadFile(filepath.Join(proc, "comm"))
		if err != nil {
			continue // gone
		}
		users = append(users, Holder{PID: pid, Name: strings.TrimSpace(string(name)), How: how, Path: path})
	}
	return users, nil
}

// openBelow tells how a process uses a path that is meant. One that is gone
// meanwhile uses none.
func openBelow(proc string, below func(string) bool) (how, path string) {
	for name, how := range map[string]string{"cwd": "folder", "root": "folder", "exe": "program"} {
		if to, err := os.Readlink(filepath.Join(proc, name)); err == nil && below(to) {
			return how, to
		}
	}
	fds, _ := os.ReadDir(filepath.Join(proc, "fd"))
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join(proc, "fd", fd.Name())); err == nil && below(to) {
			return "file", to
		}
	}
	maps, _ := os.ReadFile(filepath.Join(proc, "maps"))
	for l := range strings.Lines(string(maps)) {
		if i := strings.IndexByte(l, '/'); i >= 0 && below(strings.TrimSpace(l[i:])) {
			return "mapping", strings.TrimSpace(l[i:])
		}
	}
	// A container's root that is mounted from here, in a mount namespace of its own.
	mounts, _ := os.ReadFile(filepath.Join(proc, "mountinfo"))
	for l := range strings.Lines(string(mounts)) {
		if _, rest, ok := strings.Cut(l, "upperdir="); ok {
			if upper, _, _ := strings.Cut(strings.TrimSpace(rest), ","); below(upper) {
				return "mount", upper
			}
		}
	}
	return "", ""
}
