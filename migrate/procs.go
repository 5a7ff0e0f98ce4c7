package migrate

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// podmanProcesses lists the podman, conmon and buildah processes of the owner,
// who is root in the worker's namespace. With endPause it first ends podman's
// pause processes: each keeps a mount namespace alive in which the store of the
// old driver may be mounted, and podman starts a new one when it needs it.
func podmanProcesses(endPause bool) ([]process, error) {
	ps, err := scanProcesses()
	if err != nil || !endPause {
		return ps, err
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		ended := false
		for _, p := range ps {
			if p.Pause {
				ended = true
				if err := endProcess(p.PID); err != nil {
					return nil, err
				}
			}
		}
		if !ended {
			return ps, nil
		}
		if ps, err = scanProcesses(); err != nil {
			return nil, err
		}
	}
	return ps, nil
}

// endProcess kills one process and waits until it is gone.
func endProcess(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot end podman's pause process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cannot end podman's pause process %d: %w", pid, err)
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("cannot wait for podman's pause process %d: %w", pid, err)
	}
	return nil
}

func scanProcesses() ([]process, error) {
	es, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	var ps []process
	for _, e := range es {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		fi, err := os.Stat(dir)
		if err != nil {
			continue // gone
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); !ok || st.Uid != 0 {
			continue // another user's
		}
		comm, err1 := os.ReadFile(filepath.Join(dir, "comm"))
		line, err2 := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err1 != nil || err2 != nil {
			continue // gone
		}
		if p, ok := classify(pid, strings.TrimSpace(string(comm)), bytes.Split(bytes.TrimRight(line, "\x00"), []byte{0})); ok {
			ps = append(ps, p)
		}
	}
	return ps, nil
}

// classify tells podman's processes from others. The pause process is named
// "podman pause" (podman 3 to 4.3, prctl) or is "catatonit -P" (podman 4 on,
// where catatonit is installed). A zombie has no command line and holds nothing.
func classify(pid int, comm string, argv [][]byte) (process, bool) {
	if len(argv) == 0 || len(argv[0]) == 0 {
		return process{}, false
	}
	p := process{PID: pid, Command: called(comm, argv[1:])}
	switch filepath.Base(comm) {
	case "podman pause":
		p.Pause = true
	case "catatonit":
		if len(argv) != 2 || string(argv[1]) != "-P" {
			return process{}, false // a container's init
		}
		p.Pause = true
	case "podman", "conmon", "buildah", "skopeo":
	default:
		return process{}, false
	}
	return p, true
}

// called is what people call a process: the program and what it is told to do,
// or the container that it watches. The rest of a command line is left out, for
// passwords stand in it.
func called(comm string, args [][]byte) string {
	verbs := map[string][]string{
		"podman": {"attach", "auto-update", "build", "commit", "container", "cp", "create", "events", "exec", "export", "image", "import", "info",
			"kube", "load", "logs", "manifest", "mount", "network", "play", "pod", "ps", "pull", "push", "restart", "rm", "rmi", "run", "save", "search",
			"secret", "start", "stats", "stop", "system", "top", "unshare", "volume", "wait"},
		"buildah": {"add", "bud", "build", "commit", "copy", "from", "mount", "pull", "push", "run", "unshare"},
		"skopeo":  {"copy", "delete", "inspect", "sync"},
	}[comm]
	for i, a := range args {
		word := string(a)
		if comm == "conmon" && (word == "-n" || word == "--name") && i+1 < len(args) {
			return "conmon of " + string(args[i+1])
		}
		if slices.Contains(verbs, word) {
			return comm + " " + word
		}
	}
	return comm
}

// process is one process of the owner that has to do with podman.
type process struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	Pause   bool   `json:"pause"` // podman's pause process: it only holds the user namespace
}

type processArgs struct {
	EndPause bool `json:"endPause"` // end pause processes and wait until they are gone
}

func (p process) String() string { return fmt.Sprintf("%s (pid %d)", p.Command, p.PID) }
