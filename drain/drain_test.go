package drain

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
)

func opts(run string) Options {
	return Options{Run: run, Deadline: 30 * time.Second, Meta: map[string]string{"storagectl.operator": "test"}}
}

func wait(limit time.Duration) WaitOptions {
	return WaitOptions{Limit: limit, Containers: func(context.Context) ([]string, error) { return nil, nil }}
}

// TestDrain is the life of a drain on two nodes, and its bad days, one after the
// other on the same cluster.
func TestDrain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	a, _ := c.addClient("alpha")
	b, agentB := c.addClient("beta")
	cl := c.client(c.token)

	t.Run("find", func(t *testing.T) {
		ctx := bounded(t)
		nodes, err := cl.HostNodes(ctx, Find{Driver: testDriver})
		if err != nil || len(nodes) != 2 || !nodes[0].Eligible {
			t.Errorf("nodes of this host: %v, %v", nodes, err)
		}
		nodes, err = cl.HostNodes(ctx, Find{Driver: testDriver, Nodes: []string{"beta"}})
		if err != nil || len(nodes) != 1 || nodes[0].ID != b.ID {
			t.Errorf("beta: %v, %v", nodes, err)
		}
		nodes, err = cl.HostNodes(ctx, Find{Driver: testDriver, Nodes: []string{agentB.addr(), "alpha"}})
		if err != nil || len(nodes) != 2 || nodes[0].ID != b.ID || nodes[1].ID != a.ID {
			t.Errorf("the agent of beta, and alpha: %v, %v", nodes, err)
		}
		if _, err := cl.HostNodes(ctx, Find{Nodes: []string{c.servers[0].addr()}}); !errors.Is(err, ErrNoNode) {
			t.Errorf("a server's agent: %v", err)
		}
		if _, err := cl.HostNodes(ctx, Find{Nodes: []string{"gamma"}}); !errors.Is(err, ErrNoNode) {
			t.Errorf("gamma: %v", err)
		}
		if _, err := cl.HostNodes(ctx, Find{Driver: "podman"}); !errors.Is(err, ErrNoNode) {
			t.Errorf("no node has podman: %v", err)
		}
	})

	t.Run("drain and return", func(t *testing.T) {
		ctx := bounded(t)
		c.run(t, "web", "service", 2, "")
		o := opts("r1")
		if err := cl.Drain(ctx, a, o); err != nil {
			t.Fatal(err)
		}
		if err := cl.Drain(ctx, a, o); err != nil {
			t.Errorf("again: %v", err)
		}
		if err := cl.Wait(ctx, a, o, wait(time.Minute)); err != nil {
			t.Fatal(err)
		}
		n := c.node(a)
		if n.DrainStrategy != nil || n.SchedulingEligibility != "ineligible" || n.LastDrain.Meta[MetaRun] != "r1" {
			t.Errorf("drained: %+v", n.LastDrain)
		}
		if done, err := cl.Empty(ctx, a, o, nil); err != nil || !done {
			t.Errorf("empty: %v, %v", done, err)
		}
		if err := cl.StillOut(ctx, a, o); err != nil {
			t.Error(err)
		}
		if err := cl.Return(ctx, a, ReturnOptions{Options: o, Driver: testDriver, Limit: time.Minute}); err != nil {
			t.Fatal(err)
		}
		if n := c.node(a); n.SchedulingEligibility != "eligible" {
			t.Error("not eligible again")
		}
		eventually(t, 20*time.Second, "both of the job's containers", func() bool { return len(c.running("web")) == 2 })
		var e *EligibleError
		if err := cl.StillOut(ctx, a, o); !errors.As(err, &e) {
			t.Errorf("eligible again: %v", err)
		}
	})

	// All that is read through the proxy is minutes off: drains, nodes and slots
	// of a cluster whose clock is not ours.
	for _, off := range []time.Duration{-7 * time.Minute, 9 * time.Minute} {
		t.Run("clock skew "+off.String(), func(t *testing.T) {
			ctx := bounded(t)
			cl, err := New(Config{Address: skewed(t, c.servers[0].addr(), off), token: newSecret(c.token)})
			if err != nil {
				t.Fatal(err)
			}
			lease, err := cl.AcquireSlot(ctx, SlotOptions{Slots: 1, Run: "skew", Owner: "me", TTL: 10 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			o := opts("skew" + off.String())
			if err := errors.Join(cl.Drain(ctx, a, o), cl.Wait(ctx, a, o, wait(time.Minute)), cl.StillOut(ctx, a, o), lease.Check(ctx)); err != nil {
				t.Fatal(err)
			}
			s, err := cl.Look(ctx, a, testDriver)
			if d := time.Until(s.LastUpdated) - off; err != nil || d > time.Minute || d < -time.Minute {
				t.Fatalf("the clock is not off by %s: it says %s, %v", off, s.LastUpdated, err)
			}
			if err := errors.Join(cl.Return(ctx, a, ReturnOptions{Options: o, Driver: testDriver, Limit: time.Minute}), lease.Release(ctx)); err != nil {
				t.Fatal(err)
			}
			rs, err := cl.Canary(ctx, a, CanaryOptions{Driver: testDriver, Limit: time.Minute, Variants: []Variant{{Name: "plain"}}})
			if err != nil || !rs[0].OK {
				t.Errorf("canary: %+v, %v", rs, err)
			}
			if n := c.node(a); n.SchedulingEligibility != "eligible" {
				t.Error("not eligible again")
			}
		})
	}

	t.Run("ineligible before", func(t *testing.T) {
		ctx := bounded(t)
		if _, err := c.admin().Nodes().ToggleEligibility(a.ID, false, nil); err != nil {
			t.Fatal(err)
		}
		nodes, err := cl.HostNodes(ctx, Find{Nodes: []string{a.ID}})
		if err != nil {
			t.Fatal(err)
		}
		o := opts("r2")
		if err := errors.Join(cl.Drain(ctx, nodes[0], o), cl.Wait(ctx, nodes[0], o, wait(time.Minute)),
			cl.Return(ctx, nodes[0], ReturnOptions{Options: o, Driver: testDriver, Limit: time.Minute})); err != nil {
			t.Fatal(err)
		}
		if n := c.node(a); n.SchedulingEligibility != "ineligible" {
			t.Error("the node was made eligible, and was not before")
		}
		c.reset(a)
	})

	t.Run("cancelled by somebody else", func(t *testing.T) {
		ctx := bounded(t)
		other := c.tokenFor("node {\n policy = \"write\"\n}")
		c.run(t, "slow", "service", 1, a.ID) // it has no other place
		o := opts("r3")
		if err := cl.Drain(ctx, a, o); err != nil {
			t.Fatal(err)
		}
		// Held by a container, so that the drain's end is not the node's.
		w := wait(time.Minute)
		w.Containers = func(context.Context) ([]string, error) { return []string{"c"}, nil }
		cancel := sync.OnceFunc(func() {
			if _, err := c.api(0, other.SecretID).Nodes().UpdateDrain(a.ID, nil, true, nil); err != nil {
				t.Error(err)
			}
		})
		w.Progress = func(Progress) { cancel() }
		err := cl.Wait(ctx, a, o, w)
		var e *CanceledError
		if !errors.As(err, &e) {
			t.Fatalf("cancelled: %v", err)
		}
		if e.AccessorID != other.AccessorID {
			t.Errorf("cancelled by %q, not %q", e.AccessorID, other.AccessorID)
		}
		c.reset(a)
	})

	t.Run("drained for somebody else", func(t *testing.T) {
		ctx := bounded(t)
		c.run(t, "slow", "service", 1, a.ID)
		_, err := c.admin().Nodes().UpdateDrainOpts(a.ID, &api.DrainOptions{DrainSpec: &api.DrainSpec{}, Meta: map[string]string{"reason": "kernel"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.node(a).DrainStrategy != nil {
			var e *ForeignDrainError
			if err := cl.Drain(ctx, a, opts("r4")); !errors.As(err, &e) || e.Meta["reason"] != "kernel" {
				t.Errorf("drained for another: %v", err)
			}
		} else {
			t.Error("the other's drain was over at once")
		}
		c.reset(a)
	})

	t.Run("eligible in the middle", func(t *testing.T) {
		ctx := bounded(t)
		o := opts("r5")
		if err := errors.Join(cl.Drain(ctx, a, o), cl.Wait(ctx, a, o, wait(time.Minute))); err != nil {
			t.Fatal(err)
		}
		c.reset(a)
		var e *EligibleError
		if err := cl.StillOut(ctx, a, o); !errors.As(err, &e) {
			t.Errorf("before the cutover: %v", err)
		}
		if err := cl.Return(ctx, a, ReturnOptions{Options: o, Driver: testDriver, Limit: time.Minute}); !errors.As(err, &e) {
			t.Errorf("before the return: %v", err)
		}
	})

	t.Run("container left", func(t *testing.T) {
		ctx := bounded(t)
		o := opts("r6")
		if err := cl.Drain(ctx, a, o); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "the drain is over", func() bool { return c.node(a).DrainStrategy == nil })
		w := wait(3 * time.Second)
		w.Containers = func(context.Context) ([]string, error) { return []string{"web-1"}, nil }
		var e *AliveError
		if err := cl.Wait(ctx, a, o, w); !errors.As(err, &e) || len(e.Containers) != 1 || e.Draining {
			t.Errorf("a container is left: %v", err)
		}
		c.reset(a)
	})

	t.Run("system jobs", func(t *testing.T) {
		ctx := bounded(t)
		c.run(t, "csi", "system", 1, a.ID)
		o := opts("r6s")
		o.IgnoreSystem = true
		if err := errors.Join(cl.Drain(ctx, a, o), cl.Wait(ctx, a, o, wait(time.Minute))); err != nil {
			t.Fatal(err)
		}
		if n := len(c.running("csi")); n != 1 {
			t.Errorf("%d allocations of a system job that was to be left", n)
		}
		c.reset(a)
		o = opts("r6t")
		w, seen := wait(time.Minute), 0
		w.Progress = func(p Progress) { seen = max(seen, p.ByJob["csi"]) }
		if err := errors.Join(cl.Drain(ctx, a, o), cl.Wait(ctx, a, o, w)); err != nil {
			t.Fatal(err)
		}
		if n := len(c.running("csi")); n != 0 || seen != 1 {
			t.Errorf("%d allocations of a system job are left; at most %d were told", n, seen)
		}
		c.reset(a)
	})

	t.Run("driver not healthy", func(t *testing.T) {
		ctx := bounded(t)
		o := opts("r7")
		if err := errors.Join(cl.Drain(ctx, a, o), cl.Wait(ctx, a, o, wait(time.Minute))); err != nil {
			t.Fatal(err)
		}
		var e *DriverError
		if err := cl.Return(ctx, a, ReturnOptions{Options: o, Driver: "podman", Limit: 3 * time.Second}); !errors.As(err, &e) {
			t.Errorf("no driver: %v", err)
		}
		if n := c.node(a); n.SchedulingEligibility != "ineligible" {
			t.Error("eligible without a driver")
		}
		c.reset(a)
	})

	t.Run("own allocation", func(t *testing.T) {
		ctx := bounded(t)
		own := c.run(t, "own", "batch", 1, a.ID)[0]
		c.run(t, "guest", "service", 1, "")
		o := opts("r8")
		o.OwnAlloc = own.ID
		if err := errors.Join(cl.Drain(ctx, a, o), cl.Wait(ctx, a, o, wait(time.Minute))); err != nil {
			t.Fatal(err)
		}
		if n := c.node(a); n.DrainStrategy != nil || n.SchedulingEligibility != "ineligible" {
			t.Errorf("after: %v, %s", n.DrainStrategy, n.SchedulingEligibility)
		}
		if len(c.running("own")) != 1 {
			t.Error("our own allocation was stopped")
		}
		if err := cl.StillOut(ctx, a, o); err != nil {
			t.Error(err)
		}
		if err := cl.Return(ctx, a, ReturnOptions{Options: o, Driver: testDriver, Limit: time.Minute}); err != nil {
			t.Fatal(err)
		}
		if n := c.node(a); n.SchedulingEligibility != "eligible" {
			t.Error("not eligible again")
		}

		// Another node is drained as ever, though our allocation is not on it.
		o = opts("r8b")
		o.OwnAlloc = own.ID
		if err := errors.Join(cl.Drain(ctx, b, o), cl.Wait(ctx, b, o, wait(time.Minute))); err != nil {
			t.Fatal(err)
		}
		if n := c.node(b); n.LastDrain.Status != api.DrainStatusComplete || n.SchedulingEligibility != "ineligible" {
			t.Errorf("another node: %+v", n.LastDrain)
		}
		c.reset(b)
	})

	t.Run("canary", func(t *testing.T) {
		rs, err := cl.Canary(bounded(t), a, CanaryOptions{Driver: testDriver, Limit: time.Minute, Variants: []Variant{{Name: "plain"}}})
		if err != nil || len(rs) != 1 || !rs[0].OK || rs[0].Exit != canaryExit {
			t.Errorf("canary: %+v, %v", rs, err)
		}
	})

	t.Run("deadline passed while the client is silent", func(t *testing.T) {
		ctx := bounded(t)
		c.run(t, "stuck", "service", 1, b.ID)
		// What a podman that is down does: nobody can stop the allocation.
		if err := agentB.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		o := opts("r9")
		o.Deadline = 2 * time.Second
		if err := cl.Drain(ctx, b, o); err != nil {
			t.Fatal(err)
		}
		var e *AliveError
		if err := cl.Wait(ctx, b, o, wait(8*time.Second)); !errors.As(err, &e) || len(e.Allocs) != 1 {
			t.Errorf("an allocation is alive: %v", err)
		}
		t.Logf("nomad said the drain is %s, and we said: %v", c.node(b).LastDrain.Status, e)
		if err := agentB.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		c.reset(b)
	})

	t.Run("another id", func(t *testing.T) {
		ctx := bounded(t)
		o := opts("r10")
		if err := errors.Join(cl.Drain(ctx, b, o), cl.Wait(ctx, b, o, wait(time.Minute))); err != nil {
			t.Fatal(err)
		}
		agentB.end()
		if err := os.RemoveAll(filepath.Join(agentB.dir, "data")); err != nil {
			t.Fatal(err)
		}
		c.startClient(agentB, "beta")
		eventually(t, 60*time.Second, "the change is seen", func() bool {
			err := cl.StillOut(ctx, b, o)
			var e *ChangedError
			return errors.As(err, &e) && e.Was == b.ID && e.Now != ""
		})
	})
}

// reset gives a node back behind the program's back.
func (c *cluster) reset(n Node) {
	c.t.Helper()
	if _, err := c.admin().Nodes().UpdateDrain(n.ID, nil, true, nil); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.admin().Nodes().ToggleEligibility(n.ID, true, nil); err != nil {
		c.t.Fatal(err)
	}
}
