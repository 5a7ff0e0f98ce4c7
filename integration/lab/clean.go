package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// record is what a node's folder remembers for other processes.
type record struct {
	Options Options
	Root    string
}

func (n *Node) save() error {
	b, err := json.Marshal(record{n.opts, n.base.root})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.dir, "node.json"), b, 0o600)
}

func load(name string) (record, error) {
	var r record
	b, err := os.ReadFile(filepath.Join(nodesDir(), name, "node.json"))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

// Attach returns a node that another process made, running or not.
func Attach(name string) (*Node, error) {
	r, err := load(name)
	if err != nil {
		return nil, fmt.Errorf("cannot find node %q: %w", name, err)
	}
	cgroup, err := cgroupOf(name)
	if err != nil {
		return nil, err
	}
	return &Node{
		Name: name, opts: r.Options, base: base{root: r.Root},
		dir: filepath.Join(nodesDir(), name), cgroup: cgroup, pid: initPid(cgroup),
	}, nil
}

// List returns the names of the nodes that have a disk.
func List() ([]string, error) {
	entries, err := os.ReadDir(nodesDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// Clean removes the nodes whose process is gone, with their processes, mounts
// and disks; with all, also those that were booted to stay.
func Clean(ctx context.Context, all bool) error {
	names, err := List()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		dir := filepath.Join(nodesDir(), name)
		if r, err := load(name); err == nil && r.Options.Keep && !all {
			continue
		}
		if held(filepath.Join(dir, "lock")) {
			continue
		}
		errs = append(errs, killCgroup(ctx, name), removeNode(name))
	}
	return errors.Join(errs...)
}

// held says whether a living process has the lock file locked.
func held(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}
