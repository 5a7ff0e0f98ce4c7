package host

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Holder is a process that uses a filesystem.
type Holder struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`
	How  string `json:"how"` // file, folder (current or root), program, mapping; mount: only sees it, in a mount namespace of its own
	Path string `json:"path,omitempty"`
}

func (h Holder) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s[%d] (%s %s", h.Name, h.PID, h.How, h.Path)) + ")"
}

// Holders lists the processes that use files of the filesystem with this device
// number or that see it mounted in another mount namespace, each once, by
// process id. It is for people to read: a process may have come or gone since.
func Holders(dev uint64) []Holder {
	own, _ := os.Readlink("/proc/thread-self/ns/mnt")
	spaces := map[string]bool{own: true}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	var all []Holder
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		how, path := uses(dir, dev)
		if how == "" {
			// One process for each namespace that has it mounted.
			if ns, err := os.Readlink(dir + "/ns/mnt"); err == nil && !spaces[ns] {
				spaces[ns] = true
				how, path = sees(pid, dev)
			}
		}
		if how == "" {
			continue
		}
		name, err := os.ReadFile(dir + "/comm")
		if err != nil {
			continue // gone
		}
		all = append(all, Holder{PID: pid, Name: strings.TrimSpace(string(name)), How: how, Path: path})
	}
	slices.SortFunc(all, func(a, b Holder) int { return cmp.Compare(a.PID, b.PID) })
	return all
}

func uses(dir string, dev uint64) (how, path string) {
	links := [][2]string{{"folder", dir + "/cwd"}, {"folder", dir + "/root"}, {"program", dir + "/exe"}}
	fds, _ := filepath.Glob(dir + "/fd/*")
	for _, fd := range fds {
		links = append(links, [2]string{"file", fd})
	}
	for _, l := range links {
		// The filesystem is not asked: a dead one would not answer.
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, l[1], unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
			continue
		}
		if unix.Mkdev(st.Dev_major, st.Dev_minor) == dev {
			to, _ := os.Readlink(l[1])
			return l[0], to
		}
	}
	maps, err := os.Open(dir + "/maps")
	if err != nil {
		return "", ""
	}
	defer maps.Close()
	want := fmt.Sprintf("%02x:%02x", unix.Major(dev), unix.Minor(dev))
	for s := bufio.NewScanner(maps); s.Scan(); {
		// 7f0000-7f1000 r-xp 00000000 08:01 1234 /path
		if f := strings.Fields(s.Text()); len(f) > 5 && f[3] == want {
			return "mapping", f[5]
		}
	}
	return "", ""
}

func sees(pid int, dev uint64) (how, path string) {
	t, err := MountsOf(pid)
	if err != nil {
		return "", ""
	}
	if i := slices.IndexFunc(t, func(m Mount) bool { return m.Dev() == dev }); i >= 0 {
		return "mount", t[i].Path
	}
	return "", ""
}
