// Command demo migrates the rootless vfs store of a throw-away node to overlay
// before the reader's eyes and prints what was there before and after.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	say("building a Debian bookworm node and a vfs store for it (cached after the first time)")
	seed, err := images.Store(ctx, "bookworm", lab.Owner, images.Demo)
	if err != nil {
		return err
	}
	node, err := lab.Boot(ctx, lab.Options{Release: "bookworm", Seed: seed})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()

	before, err := look(ctx, node)
	if err != nil {
		return err
	}
	before.print("before")

	const command = "storagectl migrate --to overlay --user " + lab.Owner + " --yes"
	say("root@node# " + command)
	down := watch(ctx, node)
	start := time.Now()
	if err := show(ctx, node, command); err != nil {
		return err
	}
	total := time.Since(start)
	seconds, err := down()
	if err != nil {
		return err
	}
	after, err := look(ctx, node)
	if err != nil {
		return err
	}
	after.print("after")

	const commit = "storagectl commit"
	say("root@node# " + commit)
	if err := show(ctx, node, commit); err != nil {
		return err
	}
	end, err := look(ctx, node)
	if err != nil {
		return err
	}
	say("the whole of it")
	fmt.Printf("driver         %s -> %s\n", before.driver, end.driver)
	fmt.Printf("images         %d of %d kept, with names and digests\n", before.kept(end), len(before.images))
	fmt.Printf("disk used      %d MB, then %d MB beside the old store, then %d MB after commit\n", before.mb, after.mb, end.mb)
	fmt.Printf("podman down    %.1f s (its socket, seen from outside)\n", seconds)
	fmt.Printf("in all         %.1f s\n", total.Seconds())
	if end.driver != "overlay" || before.kept(end) != len(before.images) {
		return errors.New("the store did not come through whole")
	}
	return nil
}

func say(text string) { fmt.Printf("\n== %s\n", text) }

func show(ctx context.Context, node *lab.Node, command string) error {
	cmd := node.Cmd(ctx, "root", strings.Fields(command)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// A state is what podman says of the store, and what it takes on the disk.
type state struct {
	driver string
	images []string // name or <none>, id, digest, sorted
	mb     int
}

func look(ctx context.Context, node *lab.Node) (state, error) {
	out, err := node.Script(ctx, lab.Owner, `
podman info --format '{{.Store.GraphDriverName}}'
podman unshare du -sm "$(podman info --format '{{.Store.GraphRoot}}')" | cut -f1
podman images --no-trunc --format '{{.Repository}}:{{.Tag}}|{{.ID}}|{{.Digest}}' | sort`)
	if err != nil {
		return state{}, err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) < 2 {
		return state{}, fmt.Errorf("cannot read what podman says: %q", out)
	}
	s := state{driver: lines[0], images: lines[2:]}
	_, err = fmt.Sscan(lines[1], &s.mb)
	return s, err
}

func (s state) print(when string) {
	say(when)
	fmt.Printf("driver %s, %d MB, %d images:\n", s.driver, s.mb, len(s.images))
	for _, line := range s.images {
		f := strings.Split(line, "|")
		fmt.Printf("  %-34s %.19s  %.26s\n", f[0], f[1], f[2])
	}
}

func (s state) kept(after state) int {
	have := map[string]bool{}
	for _, i := range after.images {
		have[i] = true
	}
	n := 0
	for _, i := range s.images {
		if have[i] {
			n++
		}
	}
	return n
}

// watch looks at the owner's podman.socket ten times a second until the
// returned function is called, which gives the seconds in which it was down.
func watch(ctx context.Context, node *lab.Node) (stop func() (float64, error)) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := node.Cmd(ctx, lab.Owner, "bash", "-c",
		`while sleep 0.1; do echo "$(date +%s.%N) $(systemctl --user is-active podman.socket)"; done`)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return func() (float64, error) { return 0, fmt.Errorf("cannot watch podman.socket: %w", err) }
	}
	seconds := make(chan float64, 1)
	go func() {
		var down, last float64
		for sc := bufio.NewScanner(out); sc.Scan(); {
			var at float64
			var is string
			if _, err := fmt.Sscan(sc.Text(), &at, &is); err != nil {
				continue
			}
			if last != 0 && is != "active" {
				down += at - last
			}
			last = at
		}
		seconds <- down
	}()
	return func() (float64, error) {
		cancel()
		s := <-seconds
		_ = cmd.Wait() // it was killed
		return s, nil
	}
}
