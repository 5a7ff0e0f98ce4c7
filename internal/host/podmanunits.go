package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
)

// PodmanUnits names the active units of this manager that hold the store of the
// user uid in use: podman's own socket, service and timers, services that run
// podman or a container monitor, and what starts these or a task of theirs. Only
// services that run as one of users count (names or numbers; "" is the manager's
// own user), and only processes of uid, as this process's namespace numbers it.
// They come in the order in which they are to be stopped: what starts others
// first.
func (b *Bus) PodmanUnits(ctx context.Context, uid int, users ...string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	us, err := b.conn.ListUnitsByPatternsContext(ctx,
		[]string{"active", "activating", "reloading", "deactivating"}, []string{"*.service", "*.socket", "*.timer", "*.path"})
	if err != nil {
		return nil, fmt.Errorf("cannot list units: %w", err)
	}
	us = slices.DeleteFunc(us, func(u sd.UnitStatus) bool { return ofHealthcheck(u.Name) })
	names := make([]string, len(us))
	for i, u := range us {
		names[i] = u.Name
	}
	return choose(names, func(unit string) (use, error) {
		props, err := b.conn.GetUnitTypePropertiesContext(ctx, unit, "Service")
		if err != nil {
			return unused, fmt.Errorf("cannot look at unit %s: %w", unit, err)
		}
		return useOf(unit, props, uid, users), nil
	}, func(unit string) ([]string, error) {
		p, err := b.conn.GetUnitPropertyContext(ctx, unit, "Triggers")
		if err != nil {
			return nil, fmt.Errorf("cannot look at unit %s: %w", unit, err)
		}
		triggers, _ := p.Value.Value().([]string)
		return triggers, nil
	})
}

// use is what a service has to do with a store.
type use int

const (
	unused use = iota
	// task: such as podman-auto-update. It ends by itself; neither stopping it
	// half-way nor running it again is ours to do. But what starts it must not.
	task
	used
)

// choose picks those of the active units that are to be stopped.
func choose(active []string, look func(string) (use, error), triggers func(string) ([]string, error)) ([]string, error) {
	var starters, services []string
	for _, unit := range active {
		started := []string{unit}
		service := strings.HasSuffix(unit, ".service")
		if !service {
			var err error
			if started, err = triggers(unit); err != nil {
				return nil, err
			}
		}
		for _, s := range started {
			u, err := look(s)
			if err != nil {
				return nil, err
			}
			if service && u == used {
				services = append(services, unit)
			}
			if !service && u != unused {
				starters = append(starters, unit)
				break
			}
		}
	}
	slices.Sort(starters)
	slices.Sort(services)
	return append(starters, services...), nil
}

// ofHealthcheck tells a transient unit of a container's health check, which
// podman names by the container's id, makes when the container starts and
// removes when it stops.
func ofHealthcheck(unit string) bool {
	const id = 64
	if len(unit) <= id || strings.Trim(unit[:id], "0123456789abcdef") != "" {
		return false
	}
	return unit[id] == '.' || unit[id] == '-'
}

// useOf tells by a service's properties what it has to do with the store of uid:
// by its command line, and by the processes in its control group.
func useOf(unit string, props map[string]any, uid int, users []string) use {
	// podman-restart.service starts each container with restart=always, also one that
	// somebody stopped: it is for boots. What runs by it is podman's to stop and start.
	if u, _ := props["User"].(string); !slices.Contains(users, u) || unit == "podman-restart.service" {
		return unused
	}
	is := used
	if t, _ := props["Type"].(string); t == "oneshot" && props["RemainAfterExit"] != true {
		is = task
	}
	if execs, ok := props["ExecStart"].([][]any); ok {
		for _, e := range execs {
			if len(e) < 2 {
				continue
			}
			path, _ := e[0].(string)
			argv, _ := e[1].([]string)
			if startsPodman(path, argv) {
				return is
			}
		}
	}
	group, _ := props["ControlGroup"].(string)
	// user@UID.service holds whole sessions, and our own unit runs podman for us.
	if group == "" || strings.HasPrefix(unit, "user@") || group == ownGroup() || !groupRunsPodman(group, uid) {
		return unused
	}
	return is
}

// startsPodman reports whether a command line runs podman, itself or through a
// program that runs others. That podman is among the arguments of any other
// program says nothing.
func startsPodman(path string, argv []string) bool {
	switch filepath.Base(path) {
	case "podman":
		return true
	case "sh", "bash", "dash", "zsh", "ksh", "busybox", "su", "runuser", "sudo", "env", "nice", "ionice", "chrt", "taskset", "timeout",
		"flock", "setpriv", "stdbuf", "nohup", "setsid", "nsenter", "unshare", "systemd-run", "systemd-cat", "systemd-inhibit":
	default:
		return false
	}
	for _, arg := range argv[min(1, len(argv)):] {
		for _, word := range strings.FieldsFunc(arg, func(r rune) bool { return strings.ContainsRune(" \t\n;&|(){}`$\"'", r) }) {
			if word == "podman" || strings.HasSuffix(word, "/bin/podman") {
				return true
			}
		}
	}
	return false
}

// ownGroup is the control group of this process on the unified hierarchy, "" if
// it is in none.
func ownGroup() string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for l := range strings.Lines(string(b)) {
		if g, ok := strings.CutPrefix(l, "0::"); ok {
			return strings.TrimSpace(g)
		}
	}
	return ""
}

// groupRunsPodman looks for podman or conmon of uid in a control group, on the
// unified hierarchy. Where that is not mounted the command line has to do, and
// where the group is gone it runs nothing.
func groupRunsPodman(group string, uid int) bool {
	b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", group, "cgroup.procs"))
	return err == nil && slices.ContainsFunc(strings.Fields(string(b)), func(pid string) bool {
		return ofUser(pid, uid) && runs(pid, "podman", "conmon")
	})
}

// ofUser reports whether a process has all its user ids from uid. The owner of
// its folder in /proc would not do: it is root for any that is not dumpable.
func ofUser(pid string, uid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		return false // gone
	}
	for l := range strings.Lines(string(b)) {
		if ids, ok := strings.CutPrefix(l, "Uid:"); ok {
			f := strings.Fields(ids)
			return len(f) == 4 && !slices.ContainsFunc(f, func(id string) bool { return id != strconv.Itoa(uid) })
		}
	}
	return false
}

// runs reports whether a process runs a program of one of these names. The name
// that it goes by is its own choice, so the file has to have it, too, where that
// may be seen: root sees all, a user's namespace only its own.
func runs(pid string, programs ...string) bool {
	comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
	if err != nil || !slices.Contains(programs, strings.TrimSpace(string(comm))) {
		return false
	}
	exe, err := os.Readlink(filepath.Join("/proc", pid, "exe"))
	return os.IsPermission(err) || err == nil && slices.Contains(programs, filepath.Base(strings.TrimSuffix(exe, " (deleted)")))
}
