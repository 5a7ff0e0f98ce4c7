// Command lab boots and enters the throw-away nodes of the tests.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/ceph"
	"github.com/storagectl/storagectl/integration/lab/images"
)

const usage = `usage: lab base RELEASE…                      build and cache node roots
       lab up [-fs ext4|xfs] [-size 8G] [-seed DIR] [-udev] [-bind A:B] RELEASE NAME
       lab run NAME USER [COMMAND…]           run a command (a shell without one)
       lab kill|poweroff|start|down NAME      power cut; ordered shutdown; boot again; remove
       lab store RELEASE USER KIND            make a cached vfs store; prints a DIR for -seed
                                              (plain, containers, small or demo)
       lab nomad                              build and cache nomad and its podman driver; prints their DIR
       lab ceph up|down|env|join|stop|… NAME  a Ceph cluster; lab ceph tells more
       lab list                               the nodes there are
       lab clean [-all]                       remove what dead tests left; -all: every node
RELEASE is bullseye, bookworm, trixie or forky; USER in a node is root, hashi or other.
`

const exitUsage = 2

// hinted is an error with what to type instead.
type hinted struct {
	err   error
	hint  string
	usage bool // wrong usage: nothing was tried
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

func wrong(hint, format string, args ...any) error {
	return &hinted{fmt.Errorf(format, args...), hint, true}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(tell(command(ctx, os.Args[1:]), os.Stderr))
}

// tell writes what went wrong and what to do, and gives the exit status. What a
// command in a node ended with is passed on without a word.
func tell(err error, stderr io.Writer) int {
	var ran *ranError
	var h *hinted
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ran):
		return ran.code
	case errors.As(err, &h):
		fmt.Fprintf(stderr, "error: %v\nhint: %s\n", err, h.hint)
		if h.usage {
			return exitUsage
		}
	default:
		fmt.Fprintf(stderr, "error: %v\n", err)
	}
	return 1
}

// ranError is the status of a command that ran in a node and failed.
type ranError struct{ code int }

func (e *ranError) Error() string { return fmt.Sprintf("the command ended with %d", e.code) }

func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return wrong("lab help tells all commands; lab up bookworm n1 boots a node", "cannot do anything without a command")
	}
	verb, args := args[0], args[1:]
	if slices.Contains([]string{"help", "-h", "-help", "--help"}, verb) {
		fmt.Print(usage)
		return nil
	}
	verbs := []string{"base", "up", "run", "kill", "poweroff", "start", "down", "store", "nomad", "ceph", "list", "clean"}
	if !slices.Contains(verbs, verb) {
		return wrong("lab help tells all commands", "cannot do %q: there is no such command", verb)
	}
	if os.Getuid() != 0 && verb != "list" {
		return wrong("sudo lab "+strings.Join(append([]string{verb}, args...), " "), "cannot %s as an ordinary user: the lab needs namespaces and mounts", verb)
	}
	switch verb {
	case "base":
		return base(ctx, args)
	case "up":
		return up(ctx, args)
	case "store":
		return store(ctx, args)
	case "nomad":
		dir, err := lab.NomadTools(ctx)
		if err == nil {
			fmt.Println(dir)
		}
		return err
	case "ceph":
		return cephVerb(ctx, args)
	case "list":
		names, err := lab.List()
		for _, n := range names {
			fmt.Println(n)
		}
		return err
	case "clean":
		if len(args) > 1 || len(args) == 1 && args[0] != "-all" {
			return wrong("lab clean, or lab clean -all for every node", "cannot clean %q", strings.Join(args, " "))
		}
		return errors.Join(lab.Clean(ctx, len(args) == 1), ceph.Clean(len(args) == 1))
	}
	return onNode(ctx, verb, args)
}

// onNode does what is done with one node that is there.
func onNode(ctx context.Context, verb string, args []string) error {
	if len(args) == 0 {
		return wrong("lab "+verb+" NAME; lab list tells the names", "cannot %s without the name of a node", verb)
	}
	if verb != "run" && len(args) > 1 {
		return wrong("lab "+verb+" "+args[0], "cannot %s %q: want one NAME", verb, strings.Join(args, " "))
	}
	node, err := lab.Attach(args[0])
	if errors.Is(err, fs.ErrNotExist) {
		return &hinted{fmt.Errorf("cannot %s node %q: there is none of that name", verb, args[0]),
			"lab list tells the names; lab up bookworm " + args[0] + " boots it", false}
	}
	if err != nil {
		return err
	}
	switch verb {
	case "kill":
		return node.Kill(ctx)
	case "poweroff":
		return node.Poweroff(ctx)
	case "start":
		return node.Start(ctx)
	case "down":
		return node.Close()
	}
	return inside(ctx, node, args[1:])
}

// inside runs a command in a node.
func inside(ctx context.Context, node *lab.Node, args []string) error {
	if len(args) == 0 {
		args = []string{"root"}
	}
	if len(args) == 1 {
		args = append(args, "bash")
	}
	cmd := node.Cmd(ctx, args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &ranError{exit.ExitCode()}
	}
	if err != nil {
		return fmt.Errorf("cannot run %s in node %s: %w", args[1], node.Name, err)
	}
	return nil
}

func base(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return wrong("lab base bookworm", "cannot build a node without a RELEASE")
	}
	for _, r := range args {
		if err := checkRelease(r); err != nil {
			return err
		}
		dir, err := lab.Base(ctx, r)
		if err != nil {
			return err
		}
		fmt.Println(dir)
	}
	return nil
}

func checkRelease(name string) error {
	if !slices.Contains([]string{"bullseye", "bookworm", "trixie", "forky"}, name) {
		return wrong("bullseye, bookworm, trixie or forky", "cannot build a node of %q: there is no recipe for such a release", name)
	}
	return nil
}

func up(ctx context.Context, args []string) error {
	var opts lab.Options
	const example = "lab up -seed DIR bookworm n1; -fs ext4|xfs, -size 8G and -bind FROM:TO come before the RELEASE, too"
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&opts.FS, "fs", "", "filesystem of its own for the data")
	flags.BoolVar(&opts.Udev, "udev", false, "run udev")
	flags.StringVar(&opts.Size, "size", "", "size of that filesystem")
	flags.StringVar(&opts.Seed, "seed", "", "data folder to start with")
	flags.Func("bind", "bind mount FROM:TO", func(b string) error {
		opts.Binds = append(opts.Binds, b)
		return nil
	})
	flags.StringVar(&opts.Netns, "netns", "", "path of the network namespace it lives in")
	if err := flags.Parse(args); err != nil {
		return wrong(example, "cannot boot a node: %w", err)
	}
	if flags.NArg() != 2 {
		return wrong(example, "cannot boot a node: want RELEASE and NAME, got %q", flags.Args())
	}
	opts.Release, opts.Name, opts.Keep = flags.Arg(0), flags.Arg(1), true
	if err := checkRelease(opts.Release); err != nil {
		return err
	}
	start := time.Now()
	_, err := lab.Boot(ctx, opts)
	if errors.Is(err, fs.ErrExist) {
		return &hinted{fmt.Errorf("cannot boot a node as %q: there is one of that name", opts.Name),
			fmt.Sprintf("lab run %s root enters it; lab down %s removes it", opts.Name, opts.Name), false}
	}
	if err != nil {
		return err
	}
	fmt.Printf("%s is up after %.1f s\n", opts.Name, time.Since(start).Seconds())
	return nil
}

// store makes or finds a cached store.
func store(ctx context.Context, args []string) error {
	const example = "lab store bookworm hashi plain"
	if len(args) != 3 {
		return wrong(example, "cannot make a store: want RELEASE, USER and KIND, got %q", args)
	}
	if err := checkRelease(args[0]); err != nil {
		return err
	}
	if args[1] != "root" && args[1] != lab.Owner {
		return wrong("root or "+lab.Owner, "cannot make a store of %q: a node has none", args[1])
	}
	kind := images.Kind(args[2])
	if !slices.Contains([]images.Kind{images.Plain, images.Containers, images.Small, images.Demo}, kind) {
		return wrong("plain, containers, small or demo", "cannot make a store of the kind %q: there is no such kind", kind)
	}
	dir, err := images.Store(ctx, args[0], args[1], kind)
	if err != nil {
		return err
	}
	fmt.Println(dir)
	return nil
}
