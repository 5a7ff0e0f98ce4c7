package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// The steps of the job as its JSON names them.
const (
	stageStep  = "stage"
	proveStep  = "prove"
	stopStep   = "stop"
	verifyStep = "verify"
)

// A job is what podman is stopped for.
type job struct {
	args  []string
	down  []string // its steps from the stop to verified
	ready string   // a script before the first run
	again string   // and after each rollback
}

func migrating() job {
	return job{args: []string{"migrate", "--to", "overlay"},
		down: []string{stopStep, "stage-rest", "swap", "repoint", "storage-conf", "clear-run-state", verifyStep}}
}

// relocating moves the store to a second filesystem of the node, on the same disk.
func relocating() job {
	return job{args: []string{"relocate", "--path", "/srv/target"},
		down: []string{stopStep, "manifest", "swap", "copy-rest", "mount", verifyStep},
		ready: `truncate -s 30G /opt/bench-target.img; mkfs.xfs -q /opt/bench-target.img; mkdir -p /srv/target
printf '/opt/bench-target.img /srv/target xfs loop,noatime 0 0\n' >>/etc/fstab; systemctl daemon-reload; mount /srv/target`,
		again: "rm -rf /srv/target/storage-" + lab.Owner,
	}
}

// A sample is one run of one method.
type sample struct {
	seconds float64
	written int64
	peak    int64
	prove   float64 // seconds of the comparison after staging
}

func boot(ctx context.Context, gigabytes float64, entries int) (*lab.Node, error) {
	seed, err := images.Bulk(ctx, "bookworm", lab.Owner, gigabytes, entries)
	if err != nil {
		return nil, err
	}
	return lab.Boot(ctx, lab.Options{Release: "bookworm", Seed: seed, FS: "ext4", Size: "40G"})
}

func count(ctx context.Context, n *lab.Node) (content, error) {
	out, err := n.Script(ctx, "root", `cd `+lab.GraphRoot+`; du -sb . | cut -f1; find . | wc -l; ls -d vfs-images/*/ | wc -l`)
	if err != nil {
		return content{}, err
	}
	var c content
	_, err = fmt.Sscan(out, &c.Bytes, &c.Entries, &c.Images)
	return c, err
}

// compare runs each method on one store, in turns.
func compare(ctx context.Context, rounds int, gigabytes float64) (c content, all []method, err error) {
	n, err := boot(ctx, gigabytes, 0)
	if err != nil {
		return c, nil, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if c, err = count(ctx, n); err != nil {
		return c, nil, err
	}
	const names = `names=$(podman images --format '{{.Repository}}:{{.Tag}}'); G=` + lab.GraphRoot + `; R=/run/user/2000/containers; `
	methods := []struct {
		name string
		run  func() (sample, error)
	}{
		{"storagectl, staging", func() (sample, error) { return staging(ctx, n) }},
		{"skopeo copy of each image", func() (sample, error) {
			return script(ctx, n, "skopeo", names+`for i in $names; do skopeo copy -q "containers-storage:[vfs@$G+$R]$i" "containers-storage:[overlay@$PWD/g+$PWD/r]$i"; done`)
		}},
		{"podman save -m \\| podman load", func() (sample, error) {
			return script(ctx, n, "podman", names+`podman save -q -m $names | podman --root "$PWD/g" --runroot "$PWD/r" --storage-driver overlay load -q >/dev/null`)
		}},
		{"cp -al (no overlay store)", func() (sample, error) {
			return script(ctx, n, "cp", names+`cp -al $G/vfs $G/vfs-layers $G/vfs-images .`)
		}},
	}
	samples := make([][]sample, len(methods))
	for round := range rounds {
		for i, m := range methods {
			s, err := m.run()
			if err != nil {
				return c, nil, fmt.Errorf("cannot measure %s: %w", m.name, err)
			}
			fmt.Fprintf(os.Stderr, "round %d: %s: %.2f s, %d MB written, peak %d MB\n", round+1, m.name, s.seconds, s.written/1e6, s.peak>>20)
			samples[i] = append(samples[i], s)
		}
	}
	for i, m := range methods {
		var runs, prove []float64
		var written, peak []int64
		for _, s := range samples[i] {
			runs, written, peak = append(runs, s.seconds), append(written, s.written), append(peak, s.peak)
			prove = append(prove, s.prove)
		}
		all = append(all, method{Name: m.name, Seconds: median(runs), Runs: runs, Written: median(written), Peak: median(peak), Prove: median(prove)})
	}
	return c, all, nil
}

// script measures a shell script of the owner, in a folder of its own on the
// store's filesystem, in the owner's user namespace.
func script(ctx context.Context, n *lab.Node, program, text string) (sample, error) {
	if err := cold(); err != nil {
		return sample{}, err
	}
	before, err := written(ctx, n)
	if err != nil {
		return sample{}, err
	}
	cmd := n.Cmd(ctx, lab.Owner, "podman", "unshare", "bash", "-euo", "pipefail", "-c", "mkdir ~/bench; cd ~/bench; "+text)
	var errs strings.Builder
	cmd.Stderr = &errs
	var s sample
	stop := watchMemory(n, program, &s.peak)
	start := time.Now()
	if err := cmd.Run(); err != nil {
		stop()
		return sample{}, fmt.Errorf("%w: %s", err, errs.String())
	}
	s.seconds = time.Since(start).Seconds()
	stop()
	after, err := written(ctx, n)
	if err != nil {
		return sample{}, err
	}
	s.written = after - before
	// The overlay driver mounts its folder on itself, and podman's pause process
	// keeps the mount namespace.
	_, err = n.Run(ctx, lab.Owner, "podman", "unshare", "sh", "-c",
		`if mountpoint -q "$1/g/overlay"; then umount "$1/g/overlay"; fi; rm -rf "$1"`, "sh", lab.Home+"/bench")
	return s, err
}

// staging measures the stage step of a migration, which is rolled back after.
func staging(ctx context.Context, n *lab.Node) (sample, error) {
	if err := cold(); err != nil {
		return sample{}, err
	}
	var s sample
	var before int64
	stop := watchMemory(n, "storagectl", &s.peak)
	_, err := migrating().run(ctx, n, func(e event) error {
		var err error
		switch {
		case e.Step == stageStep && e.Status == "begin":
			before, err = written(ctx, n)
		case e.Step == stageStep && e.Status == "done":
			var after int64
			after, err = written(ctx, n)
			s.seconds, s.written = e.Seconds, after-before
		case e.Step == proveStep && e.Status == "done":
			s.prove = e.Seconds
		}
		return err
	})
	stop()
	if err == nil {
		_, err = n.Run(ctx, "root", "storagectl", "rollback")
	}
	if err == nil && s.seconds == 0 {
		err = errors.New("the run told of no stage step")
	}
	return s, err
}

// An event is a line of storagectl's JSON output about a step.
type event struct {
	Type    string    `json:"message_type"`
	Time    time.Time `json:"time"`
	Step    string    `json:"step"`
	Status  string    `json:"status"`
	Seconds float64   `json:"seconds"`
}

func (j job) run(ctx context.Context, n *lab.Node, each func(event) error) ([]event, error) {
	cmd := n.Cmd(ctx, "root", append(append([]string{"storagectl"}, j.args...), "--user", lab.Owner, "--yes", "--json")...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var all []event
	var failed error
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil || e.Type != "step" {
			continue
		}
		all = append(all, e)
		failed = errors.Join(failed, each(e))
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("cannot %s: %w: %s", j.args[0], err, errs.String())
	}
	return all, failed
}

// downtime does a job with a store of a size, again and again.
func (j job) downtime(ctx context.Context, rounds int, gigabytes float64, entries int) (d down, err error) {
	n, err := boot(ctx, gigabytes, entries)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if d.Store, err = count(ctx, n); err != nil {
		return d, err
	}
	d.Gigabytes, d.Asked = gigabytes, entries
	if j.ready != "" {
		if _, err := n.Script(ctx, "root", j.ready); err != nil {
			return d, err
		}
	}
	var totals []float64
	steps := map[string][]float64{}
	for range rounds {
		if err := cold(); err != nil {
			return d, err
		}
		start := time.Now()
		events, err := j.run(ctx, n, func(event) error { return nil })
		if err != nil {
			return d, err
		}
		totals = append(totals, time.Since(start).Seconds())
		var from, to time.Time
		for _, e := range events {
			switch {
			case e.Step == stopStep && e.Status == "begin":
				from = e.Time
			case e.Step == verifyStep && e.Status == "done":
				to = e.Time
			}
			if e.Status == "done" {
				steps[e.Step] = append(steps[e.Step], e.Seconds)
			}
		}
		if from.IsZero() || to.IsZero() {
			return d, errors.New("cannot see when podman was down")
		}
		d.Runs = append(d.Runs, to.Sub(from).Seconds())
		fmt.Fprintf(os.Stderr, "%g GB: down %.2f s of %.2f s\n", gigabytes, to.Sub(from).Seconds(), totals[len(totals)-1])
		if _, err := n.Run(ctx, "root", "storagectl", "rollback"); err != nil {
			return d, err
		}
		if j.again != "" {
			if _, err := n.Script(ctx, "root", j.again); err != nil {
				return d, err
			}
		}
	}
	d.Seconds, d.Total, d.Steps = median(d.Runs), median(totals), map[string]float64{}
	for name, s := range steps {
		d.Steps[name] = median(s)
	}
	return d, nil
}

// cold writes out what is dirty and drops the caches of the machine.
func cold() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// written is how many bytes the device of the node's data has taken since it
// exists, all that was dirty included.
func written(ctx context.Context, n *lab.Node) (int64, error) {
	syscall.Sync()
	out, err := exec.CommandContext(ctx, "findmnt", "-n", "-o", "MAJ:MIN", "-N", strconv.Itoa(n.Pid()), "/opt").Output()
	if err != nil {
		return 0, fmt.Errorf("cannot find the device of the node's data: %w", err)
	}
	b, err := os.ReadFile(filepath.Join("/sys/dev/block", strings.TrimSpace(string(out)), "stat"))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b)) // Documentation/block/stat.rst: field 7 is sectors written, of 512 bytes
	sectors, err := strconv.ParseInt(f[6], 10, 64)
	return sectors * 512, err
}

// watchMemory looks at the node's processes of a program 50 times a second and
// keeps the sum of their peaks, until stop is called.
func watchMemory(n *lab.Node, program string, peak *int64) (stop func()) {
	names, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/uts", n.Pid())) // tells the node's processes from others
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			var sum int64
			dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
			for _, dir := range dirs {
				exe, err := os.Readlink(dir + "/exe")
				if err != nil || filepath.Base(exe) != program {
					continue
				}
				if uts, err := os.Readlink(dir + "/ns/uts"); err != nil || uts != names {
					continue
				}
				sum += highWater(dir)
			}
			*peak = max(*peak, sum)
		}
	})
	return func() { close(done); wg.Wait() }
}

// highWater is the peak of a process's resident memory in bytes, 0 if it is gone.
func highWater(dir string) int64 {
	b, err := os.ReadFile(dir + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				return 0
			}
			return kb << 10
		}
	}
	return 0
}
