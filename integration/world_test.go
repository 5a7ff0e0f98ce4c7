package integration

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
	"github.com/storagectl/storagectl/integration/lab/tree"
)

// Exit codes as the command's help lists them.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitRefused  = 3
	exitWindow   = 5
	exitNoRun    = 10
	exitHeld     = 11
	exitDamaged  = 12
	exitInterupt = 130
)

// A world is a node with the store that a test is about.
type world struct {
	t    testing.TB
	ctx  context.Context
	node *lab.Node
	user string // owner of the store: root or lab.Owner

	patience time.Duration // with one command; 5 minutes if zero
}

// newWorld boots a node with a store of the kind. The node is gone after the test.
func newWorld(t testing.TB, release, user string, kind images.Kind) *world {
	t.Helper()
	return newWorldWith(t, user, kind, lab.Options{Release: release})
}

func newWorldWith(t testing.TB, user string, kind images.Kind, opts lab.Options) *world {
	t.Helper()
	limit := 50 * time.Minute
	if os.Getenv("STORAGECTL_SWEEP") != "" { // hours
		limit = 10 * time.Hour
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	seed, err := images.Store(ctx, opts.Release, user, kind)
	if err != nil {
		t.Fatal(err)
	}
	opts.Seed = seed
	node, err := lab.Boot(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Errorf("cannot remove the node: %v", err)
		}
	})
	w := &world{t: t, ctx: ctx, node: node, user: user}
	w.begin(kind)
	return w
}

// begin is what a boot does not bring with it: root's configuration. The first podman
// command after a boot refreshes the database.
func (w *world) begin(kind images.Kind) {
	w.t.Helper()
	if w.user == "root" {
		w.script("root", images.Configure("root", kind))
	}
	w.podman("ps")
}

func (w *world) graphroot() string {
	if w.user == "root" {
		return "/var/lib/containers/storage"
	}
	return lab.GraphRoot
}

// script runs a shell script in the node and returns its output.
func (w *world) script(user, script string) string {
	w.t.Helper()
	out, err := w.node.Script(w.ctx, user, script)
	if err != nil {
		w.t.Fatalf("%v\noutput ends: %s", err, out[max(0, len(out)-500):])
	}
	return out
}

// podman runs podman as the store's owner.
func (w *world) podman(args ...string) string {
	w.t.Helper()
	out, err := w.node.Run(w.ctx, w.user, append([]string{"podman"}, args...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// driver is the store's driver; overlay is fuse-overlayfs where that mounts it.
func (w *world) driver() string {
	w.t.Helper()
	out := w.podman("info", "--format", "{{.Store.GraphDriverName}} {{.Store.GraphOptions}}")
	name, options, _ := strings.Cut(out, " ")
	if strings.Contains(options, "fuse-overlayfs") {
		return "fuse-overlayfs"
	}
	return name
}

// A result is what a command left.
type result struct {
	code           int // -1: ended by a signal
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\n--- stdout\n%s\n--- stderr\n%s", r.code, r.stdout, r.stderr)
}

// exec runs a command in the node as a user; it may fail.
func (w *world) exec(user string, argv ...string) result {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, cmp.Or(w.patience, 5*time.Minute))
	defer cancel()
	cmd := w.node.Cmd(ctx, user, argv...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		w.t.Fatalf("%v: %v\n%s\n%s", argv, errors.Join(err, ctx.Err()), out.String(), errs.String())
	}
	code := cmd.ProcessState.ExitCode()
	if code == 128+9 { // nsenter and sh report a signal so
		code = -1
	}
	return result{code, out.String(), errs.String()}
}

// ctl runs storagectl as root; migrate gets --user where the store is a user's.
func (w *world) ctl(args ...string) result {
	w.t.Helper()
	return w.exec("root", append([]string{"storagectl"}, args...)...)
}

// must runs storagectl as ctl does and wants it to succeed.
func (w *world) must(args ...string) result {
	w.t.Helper()
	r := w.ctl(args...)
	if r.code != exitDone {
		w.t.Fatalf("storagectl %s: %s", strings.Join(args, " "), r)
	}
	return r
}

// migrate is the arguments of the main job for the world's store.
func (w *world) migrate(more ...string) []string { return w.migrateTo("overlay", more...) }

func (w *world) migrateTo(driver string, more ...string) []string {
	args := []string{"migrate", "--to", driver, "--yes"}
	if w.user != "root" {
		args = append(args, "--user", w.user)
	}
	return append(args, more...)
}

// inventory maps a path of the node to what is known of it.
type inventory map[string]string

// tree lists folders of the node. Listed are contents, modes, owners, xattrs,
// hard links and file times; not the times of folders.
func (w *world) tree(dirs ...string) inventory {
	w.t.Helper()
	inv := inventory{}
	for _, dir := range dirs {
		host := w.node.HostPath(dir)
		if _, err := os.Lstat(host); errors.Is(err, os.ErrNotExist) {
			inv[dir] = "absent"
			continue
		}
		err := tree.Walk(host, tree.Options{Nlink: true}, func(path, text string) {
			inv[filepath.Join(dir, path)] = text
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return inv
}

// store lists the graphroot without what podman itself may change at any
// command: its locks (their content names the last writer) and its database,
// which the manifest compares by what podman reads from it.
func (w *world) store() inventory {
	w.t.Helper()
	inv := w.tree(w.graphroot())
	maps.DeleteFunc(inv, func(path, _ string) bool {
		switch filepath.Base(path) {
		case "bolt_state.db", "db.sql", "db.sql-wal", "db.sql-shm", "db.sql-journal":
			return true
		}
		return filepath.Ext(path) == ".lock"
	})
	return inv
}

// untouched lists what a command must not write to before it has the operator's
// word: the store, the configuration, storagectl's own state, podman's run
// folder.
func (w *world) untouched() inventory {
	w.t.Helper()
	inv := w.store()
	dirs := []string{"/etc", "/var/lib/storagectl"}
	if w.user != "root" {
		dirs = append(dirs, lab.Home+"/.config")
	}
	maps.Copy(inv, w.tree(dirs...))
	return inv
}

// diff lists what differs, at most 16 lines of it; "" if nothing does.
func diff(before, after inventory) string {
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(before)) {
		switch got, ok := after[k]; {
		case !ok:
			lines = append(lines, "- "+k+": "+before[k])
		case got != before[k]:
			lines = append(lines, "- "+k+": "+before[k], "+ "+k+": "+got)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(after)) {
		if _, ok := before[k]; !ok {
			lines = append(lines, "+ "+k+": "+after[k])
		}
	}
	if n := len(lines); n > 16 {
		lines = append(lines[:16], fmt.Sprintf("… and %d more", n-16))
	}
	return strings.Join(lines, "\n")
}

// same fails the test if two inventories differ.
func (w *world) same(what string, before, after inventory) {
	w.t.Helper()
	if d := diff(before, after); d != "" {
		w.t.Errorf("%s differs:\n%s", what, d)
	}
}
