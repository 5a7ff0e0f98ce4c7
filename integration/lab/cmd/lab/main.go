// Command lab boots and enters the throw-away nodes of the tests.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

const usage = `usage: lab base RELEASE…                      build and cache node roots
       lab up [-fs ext4|xfs] [-size 8G] [-seed DIR] [-bind A:B] RELEASE NAME
       lab run NAME USER [COMMAND…]           run a command (a shell without one)
       lab kill|poweroff|start|down NAME      power cut; ordered shutdown; boot again; remove
       lab store RELEASE USER plain|containers    make a cached vfs store; prints a DIR for -seed
       lab nomad                              build and cache nomad and its podman driver; prints their DIR
       lab list
       lab clean [-all]                       remove what dead tests left; -all: every node
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := command(ctx, os.Args[1:])
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && os.Args[1] == "run":
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	verb, args := args[0], args[1:]
	switch {
	case verb == "base" && len(args) > 0:
		for _, r := range args {
			dir, err := lab.Base(ctx, r)
			if err != nil {
				return err
			}
			fmt.Println(dir)
		}
		return nil
	case verb == "up":
		return up(ctx, args)
	case verb == "store":
		return store(ctx, args)
	case verb == "nomad":
		dir, err := lab.NomadTools(ctx)
		if err == nil {
			fmt.Println(dir)
		}
		return err
	case verb == "list":
		names, err := lab.List()
		fmt.Println(strings.Join(names, "\n"))
		return err
	case verb == "clean":
		return lab.Clean(ctx, len(args) > 0 && args[0] == "-all")
	case len(args) == 0:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	node, err := lab.Attach(args[0])
	if err != nil {
		return err
	}
	switch verb {
	case "run":
		if len(args) < 2 {
			args = append(args, "root")
		}
		if len(args) < 3 {
			args = append(args, "bash")
		}
		cmd := node.Cmd(ctx, args[1], args[2:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	case "kill":
		return node.Kill(ctx)
	case "poweroff":
		return node.Poweroff(ctx)
	case "start":
		return node.Start(ctx)
	case "down":
		return node.Close()
	}
	return fmt.Errorf("cannot do %q: no such command", verb)
}

func up(ctx context.Context, args []string) error {
	var opts lab.Options
	flags := flag.NewFlagSet("up", flag.ExitOnError)
	flags.StringVar(&opts.FS, "fs", "", "filesystem of its own for the data")
	flags.StringVar(&opts.Size, "size", "", "size of that filesystem")
	flags.StringVar(&opts.Seed, "seed", "", "data folder to start with")
	flags.Func("bind", "bind mount FROM:TO", func(b string) error {
		opts.Binds = append(opts.Binds, b)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 2 {
		return errors.New("cannot boot: want RELEASE NAME")
	}
	opts.Release, opts.Name, opts.Keep = flags.Arg(0), flags.Arg(1), true
	start := time.Now()
	if _, err := lab.Boot(ctx, opts); err != nil {
		return err
	}
	fmt.Printf("%s is up after %.1f s\n", opts.Name, time.Since(start).Seconds())
	return nil
}

// store makes or finds a cached store.
func store(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("cannot make a store: want RELEASE USER KIND")
	}
	dir, err := images.Store(ctx, args[0], args[1], images.Kind(args[2]))
	if err != nil {
		return err
	}
	fmt.Println(dir)
	return nil
}
