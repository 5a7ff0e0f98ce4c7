// Command demonomad migrates the store of a Nomad client node while a service
// runs on it: the job moves away and back, and is never down. With -rounds it
// measures instead how long the node is out of service, and whose time that is.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
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

// A measure is what one round took, in seconds.
type measure struct {
	out   float64 // drain set to node eligible
	ended float64 // of that, until the last container had ended
	jobs  float64 // of that, until Nomad had the drain as complete: the replacement healthy, too
	down  float64 // of that, podman stopped to units started
	set   time.Time
	low   int // the fewest containers of the service
}

func bench(ctx context.Context, rounds int) error {
	var all []measure
	for range rounds {
		m, err := round(ctx, io.Discard)
		if err != nil {
			return err
		}
		all = append(all, m)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Out of service: a Nomad node\n\nWritten by `make bench-nomad` on %s: %d CPUs, %d rounds. A service of two containers on two\nnodes (Nomad 1.11.3, nomad-driver-podman 0.4.1, rootless podman 4.3.1), one of which is migrated; a\nreplacement counts as healthy after one second. The service never had less than %d container.\n\n| | median | all rounds, s |\n| --- | --- | --- |\n",
		time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), rounds, lowest(all))
	for _, row := range []struct {
		name string
		of   func(measure) float64
	}{
		{"drain set to node eligible", func(m measure) float64 { return m.out }},
		{"of that, until the job's last container on the node had ended", func(m measure) float64 { return m.ended }},
		{"of that, the job's own: until its replacement was healthy and Nomad had the drain as complete", func(m measure) float64 { return m.jobs }},
		{"of that, ours", func(m measure) float64 { return m.out - m.jobs }},
		{"of ours, podman down", func(m measure) float64 { return m.down }},
		{"of ours, drain seen and node given back", func(m measure) float64 { return m.out - m.jobs - m.down }},
	} {
		var v []float64
		for _, m := range all {
			v = append(v, row.of(m))
		}
		words := fmt.Sprintf("%.1f", v)
		slices.Sort(v)
		fmt.Fprintf(&b, "| %s | %.1f s | %s |\n", row.name, v[len(v)/2], strings.Trim(words, "[]"))
	}
	fmt.Print(b.String())
	return os.WriteFile("docs/benchmarks-nomad.md", []byte(b.String()), 0o644)
}

func lowest(all []measure) int {
	low := all[0].low
	for _, m := range all {
		low = min(low, m.low)
	}
	return low
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

var errNoStep = errors.New("cannot measure: a step is missing")

// read takes the times of the steps from JSON lines, and tells them.
func (m *measure) read(log io.Reader, w io.Writer) error {
	at := map[string]time.Time{}
	for sc := bufio.NewScanner(log); sc.Scan(); {
		var l struct {
			Type   string    `json:"message_type"`
			Time   time.Time `json:"time"`
			Step   string    `json:"step"`
			Title  string    `json:"title"`
			Status string    `json:"status"`
			Text   string    `json:"text"`
			Error  string    `json:"error"`
			Secs   float64   `json:"seconds"`
		}
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			return fmt.Errorf("cannot read %q: %w", sc.Text(), err)
		}
		at[l.Step+" "+l.Status] = l.Time
		switch {
		case l.Type == "step" && l.Status == "done":
			fmt.Fprintf(w, "  %-60s %5.1f s\n", l.Title, l.Secs)
		case l.Type == "note" || l.Error != "":
			fmt.Fprintf(w, "  %s%s\n", l.Text, l.Error)
		}
	}
	for _, k := range []string{"drain begin", "undrain done", "stop begin", "start done"} {
		if at[k].IsZero() {
			return fmt.Errorf("%w: %s", errNoStep, k)
		}
	}
	m.out = at["undrain done"].Sub(at["drain begin"]).Seconds()
	m.down = at["start done"].Sub(at["stop begin"]).Seconds()
	m.set = at["drain begin"]
	return nil
}

// jobsPart finds when the last container of the service on the drained node ended.
func (m *measure) jobsPart(c *nomad.Cluster, drained time.Time) error {
	allocs, err := c.Allocs("web")
	var last time.Time
	for _, a := range allocs {
		if t := a.TaskStates["main"]; a.NodeID == c.Clients[0].ID && t != nil && t.FinishedAt.After(last) {
			last = t.FinishedAt
		}
	}
	m.ended, m.jobs = last.Sub(m.set).Seconds(), drained.Sub(m.set).Seconds()
	return err
}

// watch counts the running containers of the service until stop is called, and
// sees when the drain is complete.
func watch(ctx context.Context, c *nomad.Cluster) (stop func() (low int, drained time.Time)) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	low := 1 << 30
	var drained time.Time
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if allocs, err := c.Allocs("web"); err == nil {
				n := 0
				for _, a := range allocs {
					if a.ClientStatus == api.AllocClientStatusRunning {
						n++
					}
				}
				low = min(low, n)
			}
			n, err := c.Node(c.Clients[0])
			if err == nil && drained.IsZero() && n.LastDrain != nil && n.LastDrain.Status == api.DrainStatusComplete {
				drained = time.Now()
			}
			time.Sleep(30 * time.Millisecond)
		}
	}()
	return func() (int, time.Time) {
		cancel()
		<-done
		return low, drained
	}
}
