package rbd

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/cephlink/cephtest"
	"github.com/storagectl/storagectl/internal/host"
)

// childEnv makes this test's program another host: it maps the image that the
// value describes, in whatever network it was started, tells how that went, and
// unmaps it when its input ends.
const childEnv = "STORAGECTL_RBD_CHILD"

type childOrder struct {
	Helper  string
	Cluster cephlink.Cluster
	RunDir  string
	Spec    Spec
	Mapper  Mapper // fuse if empty
	Unit    bool   // by a unit of systemd; it is left there
}

type childReport struct {
	Mapping Mapping
	Error   string
	Held    bool
}

func child() int {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var o childOrder
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &o); err != nil {
		return 2
	}
	var r childReport
	link, err := cephlink.Start(ctx, cephlink.Options{Path: o.Helper, Cluster: o.Cluster})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	h := &Host{Link: link, Run: &host.Runner{}, RunDir: o.RunDir, StaleTime: time.Second}
	fmt.Println("ready")
	in := bufio.NewReader(os.Stdin)
	_, _ = in.ReadString('\n') // go
	r.Mapping, err = h.Map(ctx, o.Spec, MapOptions{Mapper: cmp.Or(o.Mapper, Fuse), Unit: o.Unit, Wait: 15 * time.Minute, FailFull: true})
	if err != nil {
		var held *HeldError
		r.Error, r.Held = err.Error(), errors.As(err, &held) || cephlink.IDOf(err) == cephlink.Held
	}
	_ = json.NewEncoder(os.Stdout).Encode(r)
	_, _ = io.Copy(io.Discard, in)
	if r.Error == "" && !o.Unit {
		if err := h.Unmap(ctx, r.Mapping); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return 0
}

// other is a running child.
type other struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func newOther(t *testing.T, c *cephtest.Cluster, netns string, spec Spec) *other {
	t.Helper()
	order, err := json.Marshal(childOrder{Helper: c.Helper, Cluster: c.Admin(), RunDir: t.TempDir(), Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	argv := []string{os.Args[0]}
	if netns != "" {
		argv = append([]string{"ip", "netns", "exec", netns}, argv...)
	}
	o := &other{t: t, cmd: exec.Command(argv[0], argv[1:]...)}
	o.cmd.Env = append(os.Environ(), childEnv+"="+string(order))
	o.cmd.Stderr = os.Stderr
	if o.in, err = o.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := o.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	o.out = bufio.NewReader(out)
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.end)
	if line, err := o.out.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the other host says %q: %v", line, err)
	}
	return o
}

func (o *other) start() { _, _ = io.WriteString(o.in, "\n") }

func (o *other) report() childReport {
	o.t.Helper()
	var r childReport
	line, err := o.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err != nil {
		o.t.Fatalf("the other host says %q: %v", line, err)
	}
	return r
}

func (o *other) end() {
	if o.in != nil {
		_ = o.in.Close()
		_ = o.cmd.Wait()
		o.in = nil
	}
}

// kill is a power cut of the other host.
func (o *other) kill(r childReport) {
	_ = o.cmd.Process.Kill()
	_ = o.cmd.Wait()
	_ = syscall.Kill(r.Mapping.PID, syscall.SIGKILL)
	o.in = nil
}

func joined(t *testing.T, c *cephtest.Cluster) (netns, addr string) {
	t.Helper()
	out, err := c.Lab("join", c.Name)
	if err != nil {
		t.Fatal(err)
	}
	path, addr, _ := strings.Cut(out, " ")
	return strings.TrimPrefix(path, "/run/netns/"), addr
}

// hubCluster is a cluster whose hosts have addresses of their own.
func hubCluster(t *testing.T) *cephtest.Cluster {
	t.Helper()
	c, err := cephtest.Start("..", true, 2<<30)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// namesake maps an image of the same name in another cluster on this host: the two are
// not taken for one another.
func namesake(t *testing.T, c *cephtest.Cluster, spec Spec) {
	t.Helper()
	cluster.Tool(t, "rbd", "create", "--size", "100M", spec.String())
	h := admin(t)
	m := mustMap(t, h, spec)
	there := &Host{Link: hubLink(t, c), Run: h.Run, RunDir: h.RunDir}
	if _, err := there.Map(t.Context(), spec, MapOptions{Mapper: Fuse}); err == nil || !strings.Contains(err.Error(), "of the cluster "+cluster.FSID) {
		t.Errorf("taken for the other cluster's: %v", err)
	}
	img, err := there.Look(t.Context(), spec)
	if err != nil || img.FSID != c.FSID || m.Of(img.FSID) || !m.Of(cluster.FSID) {
		t.Errorf("%+v is of %s: %v", m, img.FSID, err)
	}
	if err := h.Unmap(t.Context(), m); err != nil {
		t.Error(err)
	}
}

// TestTwoHosts: an image that another host has is refused with that host's
// address; of two that map at once one wins, each time, and what it wrote is
// whole; a dead holder is taken over by who may and wants to.
func TestTwoHosts(t *testing.T) {
	t.Parallel() // it mostly waits
	c := hubCluster(t)
	c.Tool(t, "rbd", "create", "--size", "400M", "rbd/shared")
	spec := Spec{Pool: "rbd", Image: "shared"}
	namesake(t, c, spec)
	nsA, addrA := joined(t, c)
	nsB, _ := joined(t, c)

	a := newOther(t, c, nsA, spec)
	a.start()
	ra := a.report()
	if ra.Error != "" {
		t.Fatal(ra.Error)
	}
	sh(t, `mkfs.xfs -q "$1"`, ra.Mapping.Device)
	dir := mountFS(t, ra.Mapping.Device)
	want := fill(t, dir, 7, 60)
	b := newOther(t, c, nsB, spec)
	b.start()
	if rb := b.report(); !rb.Held || !strings.Contains(rb.Error, addrA) {
		t.Errorf("the second host: %+v; want a refusal that names %s", rb, addrA)
	}
	b.end()
	sh(t, `umount "$1"`, dir)
	a.end()

	for round := range 8 {
		a, b := newOther(t, c, nsA, spec), newOther(t, c, nsB, spec)
		a.start()
		b.start()
		ra, rb := a.report(), b.report()
		if (ra.Error == "") == (rb.Error == "") || ra.Error != "" && !ra.Held || rb.Error != "" && !rb.Held {
			t.Fatalf("round %d: %+v and %+v", round, ra, rb)
		}
		won := ra
		if ra.Error != "" {
			won = rb
		}
		dir := mountFS(t, won.Mapping.Device)
		if sum(t, dir) != want {
			t.Errorf("round %d: files are not as they were", round)
		}
		want = fill(t, dir, uint64(100+round), 20)
		sh(t, `umount "$1"; xfs_repair -n "$2" 2>&1`, dir, won.Mapping.Device)
		a.end()
		b.end()
	}
	takeOver(t, c, spec, nsA, nsB, want)
}

// hubLink asks from the cluster's own network, where no address is another
// host's; as client.admin unless told otherwise.
func hubLink(t *testing.T, c *cephtest.Cluster, as ...cephlink.Cluster) *cephlink.Client {
	t.Helper()
	script := t.TempDir() + "/helper"
	if err := os.WriteFile(script, []byte(fmt.Sprintf("#!/bin/sh\nexec ip netns exec %s %s \"$@\"\n", c.Netns, c.Helper)), 0o755); err != nil {
		t.Fatal(err)
	}
	link, err := cephlink.Start(t.Context(), cephlink.Options{Path: script, Cluster: append(as, c.Admin())[0]})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = link.Close() })
	return link
}

// takeOver: host A dies with the image mapped.
func takeOver(t *testing.T, c *cephtest.Cluster, spec Spec, nsA, nsB, want string) {
	a := newOther(t, c, nsA, spec)
	a.start()
	ra := a.report()
	if ra.Error != "" {
		t.Fatal(ra.Error)
	}
	a.kill(ra)
	t.Cleanup(func() { _ = CleanServe(context.Background(), ra.Mapping.Dir, "", "") })

	open := func(as cephlink.Cluster) *Host {
		return &Host{Link: hubLink(t, c, as), Run: &host.Runner{}, RunDir: t.TempDir(), StaleTime: time.Second}
	}
	h := open(c.Admin())
	img, err := h.Look(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.TakeOver(t.Context(), img, TakeOverOptions{}); err == nil && len(img.Watchers) > 0 {
		t.Error("a holder that still counts as alive was shut out")
	}
	for end := time.Now().Add(time.Minute); len(img.Watchers) > 0; time.Sleep(time.Second) {
		if img, err = h.Look(t.Context(), spec); err != nil || time.Now().After(end) {
			t.Fatalf("%+v, %v", img, err)
		}
	}
	if len(img.Lockers) != 1 || img.Lockers[0].Alive {
		t.Fatalf("the dead host's lock: %+v", img.Lockers)
	}
	if m, err := h.Map(t.Context(), spec, MapOptions{Mapper: Fuse}); err == nil {
		t.Fatalf("mapped over a dead host's lock without being told to: %+v", m)
	}
	poor := open(cephlink.Cluster{Conf: c.Conf, User: "poor", Keyring: c.User(t, "poor", "mon", "allow r", "osd", "profile rbd")})
	if err := poor.TakeOver(t.Context(), img, TakeOverOptions{}); cephlink.IDOf(err) != cephlink.NoRight {
		t.Errorf("taken over without the right: %v", err)
	}
	if now, err := h.Look(t.Context(), spec); err != nil || len(now.Lockers) != 1 {
		t.Errorf("after the refusal: %+v, %v", now.Lockers, err)
	}
	seen := img
	seen.Lockers = nil
	seen.Watchers = []Watcher{{Addr: "10.9.9.9:0/1", Client: 1}}
	if err := h.TakeOver(t.Context(), seen, TakeOverOptions{Live: true}); cephlink.IDOf(err) != cephlink.Held {
		t.Errorf("taken from a holder that was not seen: %v", err)
	}
	if err := h.TakeOver(t.Context(), img, TakeOverOptions{}); err != nil {
		t.Fatal(err)
	}
	if list := c.Ceph(t, "osd", "blocklist", "ls"); !strings.Contains(list, strings.TrimPrefix(img.Lockers[0].Addr, "v1:")) {
		t.Errorf("%s is not on the blocklist: %s", img.Lockers[0].Addr, list)
	}
	b := newOther(t, c, nsB, spec)
	b.start()
	rb := b.report()
	if rb.Error != "" {
		t.Fatal(rb.Error)
	}
	dir := mountFS(t, rb.Mapping.Device)
	if sum(t, dir) != want {
		t.Error("files are not as they were before the take-over")
	}
	sh(t, `umount "$1"`, dir)
	b.end()
}
