package host

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ServiceOf is the service of the system's manager that a process is in, "" if it is in
// none, or gone. What runs in a user's manager is in user@UID.service. The process is
// given by its folder in /proc.
func ServiceOf(dir string) string {
	b, _ := os.ReadFile(filepath.Join(dir, "cgroup")) // gone: in none
	for line := range strings.Lines(string(b)) {
		// ID:CONTROLLERS:PATH, cgroups(7). The path of systemd's is in the unified
		// hierarchy, or in one of its own.
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[1] != "" && f[1] != "name=systemd" {
			continue
		}
		for part := range strings.SplitSeq(f[2], "/") {
			if strings.HasSuffix(part, ".scope") {
				break // a session, or a container: what is below is its own to name
			}
			// systemd puts a _ before a name that the kernel could take for a file of its own.
			if name := strings.TrimPrefix(part, "_"); strings.HasSuffix(name, ".service") {
				return name
			}
		}
	}
	return ""
}

// UserOf is the user that a process runs as, by its folder in /proc; ok is false where it
// is gone, or was started by another than it runs as (setuid). The owner of that folder would not do: it is root for any that is not dumpable.
func UserOf(dir string) (uid uint32, ok bool) {
	b, _ := os.ReadFile(filepath.Join(dir, "status"))
	for line := range strings.Lines(string(b)) {
		if ids, is := strings.CutPrefix(line, "Uid:"); is {
			if f := strings.Fields(ids); len(f) == 4 && f[0] == f[1] { // real, effective, saved, of files
				n, err := strconv.ParseUint(f[1], 10, 32)
				return uint32(n), err == nil
			}
		}
	}
	return 0, false
}
