package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/integration/lab/nomad"
)

// A measure is what one round took, in seconds.
type measure struct {
	out   float64            // drain set to node eligible
	ended float64            // of that, until the last container had ended
	jobs  float64            // of that, until Nomad had the drain as complete: the replacement healthy, too
	down  float64            // of that, podman stopped to units started
	steps map[string]float64 // ours, by name
	set   time.Time
	low   int // the fewest containers of the service
}

// ours is the part that is not the job's shutdown and move.
func (m measure) ours() float64 { return m.out - m.jobs }

// seen is what passed between Nomad's word and the drain believed.
func (m measure) seen() float64 { return m.steps["drain"] - m.jobs }

// section begins Nomad's part of docs/benchmarks.md, which is the last one there.
const section = "\n## A Nomad node out of service\n"

func bench(ctx context.Context, rounds int) error {
	before, err := load()
	if err != nil {
		return err
	}
	var all []measure
	for i := range rounds {
		m, err := round(ctx, io.Discard)
		if err != nil {
			return err
		}
		fmt.Printf("round %d: %.1f s, ours %.1f s: %v\n", i+1, m.out, m.ours(), m.steps)
		all = append(all, m)
	}
	after, err := load()
	if err != nil {
		return err
	}
	row := func(name string, of func(measure) float64) string {
		var v []float64
		for _, m := range all {
			v = append(v, of(m))
		}
		words := fmt.Sprintf("%.1f", v)
		slices.Sort(v)
		return fmt.Sprintf("| %s | %.1f | %s |\n", name, v[len(v)/2], strings.Trim(words, "[]"))
	}
	const head = "| | median, s | all rounds, s |\n| --- | --- | --- |\n"
	short := row("drain set to node eligible", func(m measure) float64 { return m.out }) +
		row("the job's own: until Nomad had the drain as complete, its replacement healthy", func(m measure) float64 { return m.jobs }) +
		row("**ours**", measure.ours)
	text := fmt.Sprintf("# Out of service: a Nomad node\n\n`make bench-nomad` wrote this on %s: %d CPUs, %d rounds, 1-minute load %s before the first\nand %s after the last.\n"+
		"A service of two containers on two nodes (Nomad 1.11.3, nomad-driver-podman 0.4.1, rootless podman 4.3.1),\n"+
		"one of which is migrated; a replacement counts as healthy after one second. The service never had less than\n%d container.\n\n",
		time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), rounds, before, after, lowest(all)) + head + short +
		row("of the job's own, until its container on the node had ended", func(m measure) float64 { return m.ended }) +
		row("of ours, podman down", func(m measure) float64 { return m.down }) +
		"\n## Ours, step by step\n\n" + head +
		row("the drain seen to be over, after Nomad said so", measure.seen)
	for _, step := range benchSteps() {
		text += row(step, func(m measure) float64 { return m.steps[step] })
	}
	text += "\nOf undrain 11 s are waited for a driver before 0.6.2, which fails tasks for a while if it looked at its\n" +
		"podman in the wrong moment ([nomad.md](nomad.md), the canary); a newer one is believed at once.\n"
	fmt.Print(text)
	if err := os.WriteFile("docs/benchmarks-nomad.md", []byte(text), 0o644); err != nil {
		return err
	}
	const report = "docs/benchmarks.md"
	whole, err := os.ReadFile(report)
	if err != nil {
		return err
	}
	whole, _, _ = bytes.Cut(whole, []byte(section))
	whole = append(whole, section+"\nFrom `make bench-nomad`, 1-minute load "+before+" before and "+after+" after it;\nstep by step in [benchmarks-nomad.md](benchmarks-nomad.md).\n\n"+head+short...)
	return os.WriteFile(report, whole, 0o644)
}

// benchSteps are those between the end of the drain and the node given back.
func benchSteps() []string {
	return []string{"stop", "stage-rest", "swap", "repoint", "storage-conf", "clear-run-state", "verify", "start", "undrain"}
}

// load is the machine's 1-minute load, which says how much others did on it.
func load() (string, error) {
	b, err := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(b), " ")
	return one, err
}

func lowest(all []measure) int {
	low := all[0].low
	for _, m := range all {
		low = min(low, m.low)
	}
	return low
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
	m.steps = map[string]float64{}
	for _, step := range append(benchSteps(), "drain") {
		m.steps[step] = at[step+" done"].Sub(at[step+" begin"]).Seconds()
	}
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
