// Command demonomad migrates the store of a Nomad client node while a service
// runs on it: the job moves away and back, and is never down. With -rounds it
// measures instead how long the node is out of service, and whose time that is.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
	"github.com/storagectl/storagectl/integration/lab/nomad"
)

func main() {
	rounds := flag.Int("rounds", 0, "measure so many rounds, and write a table")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	var err error
	if *rounds > 0 {
		err = bench(ctx, *rounds)
	} else {
		_, err = round(ctx, os.Stdout)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

func round(ctx context.Context, w io.Writer) (m measure, err error) {
	say := func(format string, args ...any) { fmt.Fprintf(w, "\n== "+format+"\n", args...) }
	say("a Nomad server and two client nodes with rootless podman on vfs (built and cached the first time)")
	seed, err := images.Store(ctx, "bookworm", lab.Owner, images.Small)
	if err != nil {
		return m, err
	}
	c, err := nomad.Start(ctx, nomad.Options{})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for range 2 {
		if _, err := c.AddClient(ctx, lab.Options{Release: "bookworm", Seed: seed}); err != nil {
			return m, err
		}
	}
	if err := c.RunJob(ctx, nomad.ServiceJob("web", "localhost/lab/base:1", 2), 2); err != nil {
		return m, err
	}
	say("the service web, count 2")
	if err := show(c, w); err != nil {
		return m, err
	}
	args := []string{"storagectl", "migrate", "--to", "overlay", "--user", lab.Owner, "--yes", "--slots", "1",
		"--canary", "localhost/lab/base:1", "--canary-shell", "/bin/busybox,sh,-c"}
	say("root@node0# %s", strings.Join(args, " "))
	stop := watch(ctx, c)
	argv := append([]string{"env"}, c.Env(c.Clients[0], "")...)
	cmd := c.Clients[0].Cmd(ctx, "root", append(append(argv, args...), "--json")...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, os.Stderr
	bad := cmd.Run()
	low, drained := stop()
	m.low = low
	if err := m.read(&log, w); err != nil || bad != nil {
		return m, errors.Join(bad, err)
	}
	node, err := c.Node(c.Clients[0])
	if err != nil {
		return m, err
	}
	say("after: node0 is %s; the service", node.SchedulingEligibility)
	if err := show(c, w); err != nil {
		return m, err
	}
	if err := m.jobsPart(c, drained); err != nil {
		return m, err
	}
	say("the whole of it")
	fmt.Fprintf(w, "out of service  %.1f s, of which %.1f s until the job's last container had ended, %.1f s until Nomad had the drain as complete; podman down %.1f s\n", m.out, m.ended, m.jobs, m.down)
	fmt.Fprintf(w, "the service     never below %d of 2\n", m.low)
	if m.low < 1 || node.SchedulingEligibility != api.NodeSchedulingEligible {
		return m, errors.New("the service was down, or the node was not given back")
	}
	return m, nil
}

// show lists the containers of the service.
func show(c *nomad.Cluster, w io.Writer) error {
	allocs, err := c.Allocs("web")
	for _, a := range allocs {
		fmt.Fprintf(w, "  %s on %s: %s\n", a.ID[:8], a.NodeName, a.ClientStatus)
	}
	return err
}
