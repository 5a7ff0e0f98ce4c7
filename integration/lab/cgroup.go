package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cgroupName is the folder of the lab in the cgroup tree; each node has one of
// its own below it, because systemd-nspawn --keep-unit puts its payload into
// the cgroup it is started in.
const cgroupName = "storagectl-lab"

// cgroupMounts returns where cgroup v2 is mounted, and systemd's named v1
// hierarchy where the host has one (nspawn makes folders there, too).
func cgroupMounts() (v2, named string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	defer func() { _ = f.Close() }()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 {
			continue
		}
		switch {
		case r[0] == "cgroup2" && v2 == "":
			v2 = l[4]
		case r[0] == "cgroup" && strings.Contains(r[2], "name=systemd"):
			named = l[4]
		}
	}
	if v2 == "" {
		return "", "", errors.New("cannot find a cgroup v2 mount")
	}
	return v2, named, sc.Err()
}

// makeCgroup makes the cgroup of a node and returns it.
func makeCgroup(node string) (string, error) {
	v2, _, err := cgroupMounts()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(v2, cgroupName, node)
	return dir, os.MkdirAll(dir, 0o755)
}

// cgroupOf returns the cgroup of a node, whether it exists or not.
func cgroupOf(node string) (string, error) {
	v2, _, err := cgroupMounts()
	return filepath.Join(v2, cgroupName, node), err
}

// killCgroup kills every process of a node at once, the container's init and
// nspawn included, waits until they are gone, and removes its cgroups.
func killCgroup(ctx context.Context, node string) error {
	v2, named, err := cgroupMounts()
	if err != nil {
		return err
	}
	dir := filepath.Join(v2, cgroupName, node)
	err = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot kill node %s: %w", node, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute) // its last process unmounts, and so writes, its disks
	defer cancel()
	stuck := map[string]bool{}
	patience := time.Now().Add(time.Second)
	err = poll(ctx, 20*time.Millisecond, func() (bool, error) {
		if time.Now().After(patience) {
			stuck = abortFuse(stuck)
			patience = time.Now().Add(time.Second)
		}
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		return strings.Contains(string(b), "populated 0"), err
	})
	if err != nil {
		return fmt.Errorf("cannot see the end of node %s: %w", node, err)
	}
	for _, mount := range []string{v2, named} {
		if mount == "" {
			continue
		}
		dir := filepath.Join(mount, cgroupName, node)
		// A dying process may hold its cgroup a moment longer.
		err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
			err := removeCgroups(dir)
			return err == nil, busyIsNil(err)
		})
		if err != nil {
			return fmt.Errorf("cannot remove cgroup %s: %w", dir, err)
		}
	}
	return nil
}

func busyIsNil(err error) error {
	if errors.Is(err, syscall.EBUSY) {
		return nil
	}
	return err
}

// removeCgroups removes a cgroup and all below it, deepest first.
func removeCgroups(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroups(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// initPid returns the host's pid of the node's init, or 0 while there is none.
func initPid(cgroup string) int {
	// systemd moves itself into init.scope first of all.
	b, err := os.ReadFile(filepath.Join(cgroup, "payload", "init.scope", "cgroup.procs"))
	if err != nil {
		return 0
	}
	for _, line := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(line)
		if err == nil && pidInNamespace(pid) == 1 {
			return pid
		}
	}
	return 0
}

// pidInNamespace returns the pid a process has in its innermost pid namespace.
func pidInNamespace(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(rest)
			if len(f) < 2 {
				return 0
			}
			n, _ := strconv.Atoi(f[len(f)-1])
			return n
		}
	}
	return 0
}
