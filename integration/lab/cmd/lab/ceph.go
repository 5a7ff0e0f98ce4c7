package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/storagectl/storagectl/integration/lab/ceph"
)

const cephUsage = `usage: lab ceph up [-host] [-size BYTES] NAME   start a cluster (-host: on the host's loopback, else in a network of its own)
       lab ceph down NAME                      remove it
       lab ceph env [-json] NAME               how to reach it: for eval, or for a program
       lab ceph join NAME                      a network namespace beside it: prints PATH and ADDRESS
       lab ceph stop|start|freeze|thaw NAME mon|mgr|osd|mds
       lab ceph wait NAME                      until it is healthy
       lab ceph uml NAME DIR SCRIPT            run DIR/SCRIPT in a User-Mode Linux beside it, with DIR as /mnt
`

// cephVerb does what is asked of a Ceph cluster.
func cephVerb(ctx context.Context, args []string) error {
	const example = "lab ceph up c1; lab ceph env c1; lab ceph down c1"
	if len(args) == 0 {
		fmt.Print(cephUsage)
		return nil
	}
	verb, args := args[0], args[1:]
	if !slices.Contains([]string{"up", "down", "env", "join", "stop", "start", "freeze", "thaw", "wait", "uml"}, verb) {
		return wrong(example, "cannot %s a Ceph cluster", verb)
	}
	opts := ceph.Options{Keep: true}
	var onHost, asJSON bool
	flags := flag.NewFlagSet(verb, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.BoolVar(&onHost, "host", false, "on the host's loopback")
	flags.BoolVar(&asJSON, "json", false, "for a program")
	flags.Int64Var(&opts.Size, "size", 0, "bytes of data that fit")
	if err := flags.Parse(args); err != nil {
		return wrong(example, "cannot %s a Ceph cluster: %w", verb, err)
	}
	args = flags.Args()
	daemon := slices.Contains([]string{"stop", "start", "freeze", "thaw"}, verb)
	want := 1
	if daemon {
		want = 2
	} else if verb == "uml" {
		want = 3
	}
	if len(args) != want {
		return wrong("lab ceph tells all of it", "cannot %s a Ceph cluster: want %d arguments, got %q", verb, want, args)
	}
	if verb == "up" {
		opts.Name, opts.Hub = args[0], !onHost
		return cephUp(ctx, opts)
	}
	c, err := ceph.Attach(args[0])
	if errors.Is(err, fs.ErrNotExist) {
		return &hinted{err, "lab ceph up " + args[0] + " starts it", false}
	}
	if err != nil {
		return err
	}
	switch verb {
	case "down":
		return c.Close()
	case "env":
		return cephEnv(c, asJSON)
	case "wait":
		return c.WaitHealthy(ctx)
	case "join":
		path, addr, err := c.Join(ctx)
		fmt.Println(path, addr)
		return err
	case "stop":
		return c.Stop(ctx, args[1])
	case "start":
		return c.Start(args[1])
	case "freeze":
		return c.Freeze(args[1])
	case "uml":
		return c.UML(ctx, args[1], args[2], os.Stdout)
	}
	return c.Thaw(args[1])
}

func cephUp(ctx context.Context, opts ceph.Options) error {
	start := time.Now()
	c, err := ceph.Start(ctx, opts)
	if errors.Is(err, fs.ErrExist) {
		return &hinted{err, "lab ceph down " + opts.Name + " removes it", false}
	}
	if err != nil {
		return err
	}
	fmt.Printf("%s is up after %.1f s\n", c.Name, time.Since(start).Seconds())
	return nil
}

func cephEnv(c *ceph.Cluster, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(map[string]string{
			"conf": c.Conf(), "keyring": c.Keyring("admin"), "netns": c.Netns(), "mon": c.MonAddr(), "fsid": c.FSID,
		})
	}
	// A shell enters the cluster's network by $IN.
	in := ""
	if c.Netns() != "" {
		in = "ip netns exec " + c.Netns()
	}
	fmt.Printf("export CEPH_CONF=%s\nexport CEPH_ARGS='--keyring %s'\nexport IN='%s'\n", c.Conf(), c.Keyring("admin"), in)
	return nil
}
