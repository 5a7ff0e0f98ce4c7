package drain

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/internal/nomadtest"
)

// These tests are about other hands on the same nodes, at the worst moments.

func faked(t *testing.T) (*nomadtest.Fake, *Client, Node) {
	t.Helper()
	f := nomadtest.New(t, "a")
	c, err := New(Config{Address: f.URL})
	if err != nil {
		t.Fatal(err)
	}
	return f, c, nodeOf(f.Nodes["a"])
}

var byHand = Options{Run: "r1", Deadline: time.Minute}

func nothing(context.Context) ([]string, error) { return nil, nil }

// set drains the node and lets the drain complete.
func set(t *testing.T, f *nomadtest.Fake, c *Client, n Node) {
	t.Helper()
	if err := c.Drain(t.Context(), n, byHand); err != nil {
		t.Fatal(err)
	}
	f.Complete(n.ID)
}

func job(id, status string) *api.Allocation {
	return &api.Allocation{ID: id, JobID: "db", ClientStatus: status}
}

const alloc1 = "11111111-2222-3333-4444-555555555555"

// TestMoved: a node that another hand took out of service since the plan is not
// given back for it.
func TestMoved(t *testing.T) {
	f, c, n := faked(t)
	var moved *MovedError
	f.SetEligible("a", false)
	if err := c.Drain(t.Context(), n, byHand); !errors.As(err, &moved) || moved.Eligible || len(f.Drains) > 0 {
		t.Errorf("ineligible since the plan: %v", err)
	}
	f.SetEligible("a", true)
	f.Drain("a", &api.DrainSpec{}, false, map[string]string{"message": "bad RAM"}, "bob")
	f.Complete("a")
	if err := c.Drain(t.Context(), n, byHand); !errors.As(err, &moved) || len(f.Drains) > 0 {
		t.Errorf("drained by another since the plan: %v", err)
	}
	n.Eligible = false
	f.SetEligible("a", true)
	if err := c.Drain(t.Context(), n, byHand); !errors.As(err, &moved) || !moved.Eligible {
		t.Errorf("eligible since the plan: %v", err)
	}
	// Its own drain is none.
	f.SetEligible("a", true)
	n.Eligible = true
	set(t, f, c, n)
	if err := c.Drain(t.Context(), n, byHand); err != nil {
		t.Errorf("again after its own drain: %v", err)
	}
}

// TestReplaced: a drain that another hand replaced without a Meta keeps ours, and
// is theirs all the same.
func TestReplaced(t *testing.T) {
	for name, by := range map[string]string{"another token": "bob", "without ACLs": nomadtest.Accessor} {
		t.Run(name, func(t *testing.T) {
			f, c, n := faked(t)
			if err := c.Drain(t.Context(), n, byHand); err != nil {
				t.Fatal(err)
			}
			kept := c.Marks
			f.Drain("a", &api.DrainSpec{Deadline: time.Second}, false, nil, by)
			again, err := New(c.Config)
			if err != nil {
				t.Fatal(err)
			}
			again.Marks = kept
			var foreign *ForeignDrainError
			for _, c := range []*Client{c, again} { // this process, and one that resumes
				if err := c.Wait(t.Context(), n, byHand, WaitOptions{Limit: time.Second, Containers: nothing}); !errors.As(err, &foreign) {
					t.Errorf("while it drains: %v", err)
				}
				if err := c.Drain(t.Context(), n, byHand); !errors.As(err, &foreign) {
					t.Errorf("a second drain: %v", err)
				}
			}
			if by == nomadtest.Accessor {
				return // a drain that is over has no spec to compare
			}
			f.Complete("a")
			if err := c.Return(t.Context(), n, ReturnOptions{Options: byHand, Limit: time.Second}); !errors.As(err, &foreign) || f.Eligible("a") {
				t.Errorf("when it is complete: %v, eligible %v", err, f.Eligible("a"))
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		f, c, n := faked(t)
		if err := c.Drain(t.Context(), n, byHand); err != nil {
			t.Fatal(err)
		}
		f.Drain("a", nil, false, nil, "bob") // -keep-ineligible
		var canceled *CanceledError
		if err := c.Wait(t.Context(), n, byHand, WaitOptions{Limit: time.Second, Containers: nothing}); !errors.As(err, &canceled) || canceled.AccessorID != "bob" {
			t.Errorf("%v", err)
		}
		s, err := c.Look(t.Context(), n, "podman")
		if err != nil || c.Ours(s, byHand.Run) {
			t.Errorf("a cancelled drain is ours: %v", err)
		}
		if err := c.Drain(t.Context(), n, byHand); err != nil { // a resume
			t.Error(err)
		}
	})
	t.Run("a second drain of the run, cut off before it was written down", func(t *testing.T) {
		f, c, n := faked(t)
		set(t, f, c, n)
		was := c.Marks["a"]
		f.SetEligible("a", true)
		set(t, f, c, n)
		c.Marks = map[string]Mark{"a": was}
		if err := c.StillOut(t.Context(), n, byHand); err != nil {
			t.Error(err)
		}
	})
}

// TestStillOutAllocs: a node that was eligible for a while has allocations again.
func TestStillOutAllocs(t *testing.T) {
	f, c, n := faked(t)
	set(t, f, c, n)
	if err := c.StillOut(t.Context(), n, byHand); err != nil {
		t.Fatal(err)
	}
	f.Do(func() { f.Allocs["a"] = []*api.Allocation{job(alloc1, "running")} })
	var alive *AliveError
	if err := c.StillOut(t.Context(), n, byHand); !errors.As(err, &alive) || strings.Join(alive.Allocs, "") != "db/11111111" {
		t.Errorf("%v", err)
	}
	own := byHand
	own.OwnAlloc = alloc1
	if err := c.StillOut(t.Context(), n, own); err != nil {
		t.Errorf("the own allocation: %v", err)
	}
}

// TestDown: what Nomad says of a node that it does not hear is not believed.
func TestDown(t *testing.T) {
	f, c, n := faked(t)
	set(t, f, c, n)
	f.Do(func() {
		f.Nodes["a"].Status = api.NodeStatusDown
		f.Allocs["a"] = []*api.Allocation{job(alloc1, "lost")}
	})
	var alive *AliveError
	err := c.Wait(t.Context(), n, byHand, WaitOptions{Limit: time.Second, Containers: nothing})
	if !errors.As(err, &alive) || !strings.Contains(err.Error(), "calls it down") {
		t.Errorf("%v", err)
	}
	if done, err := c.Empty(t.Context(), n, byHand, nothing); done || err != nil {
		t.Errorf("empty: %v, %v", done, err)
	}
}

// TestOwnOver: the allocation that a run began in is over, and needs no care.
func TestOwnOver(t *testing.T) {
	f, c, n := faked(t)
	f.Allocs["a"] = []*api.Allocation{job(alloc1, "failed")}
	o := byHand
	o.OwnAlloc = alloc1
	if err := c.Drain(t.Context(), n, o); err != nil || f.Drains[0].Deadline != time.Minute {
		t.Errorf("%v: %+v", err, f.Drains)
	}
}

// TestSlotGone: a slot whose variable was deleted, or unlocked, is not ours.
func TestSlotGone(t *testing.T) {
	for _, c := range []struct {
		code int
		text string
	}{
		{404, "variable doesn't exist"}, {409, "variable doesn't hold a lock"}, {400, "missing lock information"},
		{500, "variable doesn't exist"}, {500, "variable doesn't hold a lock"},
	} {
		f, cl, _ := faked(t)
		f.Lock = func(op string) (int, string) {
			if op == "acquire" {
				return 0, ""
			}
			return c.code, c.text
		}
		began := time.Now()
		if err := cl.ReleaseSlot(t.Context(), SlotRef{Path: "x/1", Lock: "old"}); err != nil || time.Since(began) > 5*time.Second {
			t.Errorf("%d %s: released: %v", c.code, c.text, err)
		}
		if c.code == 500 {
			continue
		}
		l, err := cl.AcquireSlot(t.Context(), SlotOptions{Slots: 1, Run: "r1", Mine: &SlotRef{Path: "x/1", Lock: "old"}})
		if err != nil {
			t.Errorf("%d: %v", c.code, err)
			continue
		}
		l.Leave()
	}
}

// TestSlotSince: a lock is held from some moment after it was asked for; a slow
// answer, or a slow note of the holder, does not make it last longer.
func TestSlotSince(t *testing.T) {
	const ttl, slow = 2 * time.Second, 1200 * time.Millisecond
	for name, mine := range map[string]*SlotRef{"new": nil, "kept": {Path: "x/1", Lock: "old"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, c, _ := faked(t)
			first := true
			f.Lock = func(string) (int, string) {
				if first {
					first = false
					time.Sleep(slow)
					return 0, ""
				}
				return 500, "no leader"
			}
			began := time.Now()
			l, err := c.AcquireSlot(t.Context(), SlotOptions{Slots: 1, Run: "r1", TTL: ttl, Mine: mine})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Leave()
			select {
			case <-l.Lost():
				if took := time.Since(began); took < ttl || took > ttl+slow/2 {
					t.Errorf("lost after %s", took)
				}
			case <-time.After(3 * ttl):
				t.Error("never lost")
			}
		})
	}
}

// TestLeftover: containers that no allocation owns are told at once, with what to
// do, and no drain is waited for that cannot end; those of the host's other node
// are waited for.
func TestLeftover(t *testing.T) {
	f := nomadtest.New(t, "a", "b")
	c, err := New(Config{Address: f.URL})
	if err != nil {
		t.Fatal(err)
	}
	a, b := nodeOf(f.Nodes["a"]), nodeOf(f.Nodes["b"])
	set(t, f, c, a)
	w := WaitOptions{Limit: time.Minute, Settle: 300 * time.Millisecond, Nodes: []Node{a, b},
		Containers: func(context.Context) ([]string, error) { return []string{"db-" + alloc1}, nil }}
	var alive *AliveError
	began := time.Now()
	if err := c.Wait(t.Context(), a, byHand, w); !errors.As(err, &alive) || !strings.HasSuffix(err.Error(), "podman rm -f db-"+alloc1) {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("after %s", took)
	}
	f.Do(func() { f.Allocs["b"] = []*api.Allocation{job(alloc1, "running")} })
	w.Limit = 2 * time.Second
	if err := c.Wait(t.Context(), a, byHand, w); !errors.As(err, &alive) || len(alive.Leftover) > 0 || time.Since(began) < w.Limit {
		t.Errorf("of the other node: %v", err)
	}
}

// TestHostNodesUnseen: a node of this host that Nomad does not hear of, and a
// client that is none of the cluster's nodes, are not passed over.
func TestHostNodesUnseen(t *testing.T) {
	f := nomadtest.New(t, "a", "b")
	c, err := New(Config{Address: f.URL})
	if err != nil {
		t.Fatal(err)
	}
	look := func(clients int) ([]Node, error) {
		return c.HostNodes(t.Context(), Find{Rootless: true, Clients: clients})
	}
	if nodes, err := look(2); err != nil || len(nodes) != 2 {
		t.Errorf("%v, %v", nodes, err)
	}
	var unseen *UnseenError
	if _, err := look(3); !errors.As(err, &unseen) || unseen.Nodes != 2 {
		t.Errorf("three clients, two nodes: %v", err)
	}
	f.Do(func() { f.Nodes["b"].Status = api.NodeStatusDown })
	var down *DownError
	if _, err := look(1); !errors.As(err, &down) || down.ID != "b" {
		t.Errorf("one is down: %v", err)
	}
	f.Do(func() { f.Nodes["b"].Attributes["driver.podman.rootless"] = "false" })
	if nodes, err := look(1); err != nil || len(nodes) != 1 {
		t.Errorf("down, and of another store: %v, %v", nodes, err)
	}
	f.Do(func() {
		delete(f.Nodes["b"].Attributes, "driver.podman.rootless")
		f.Nodes["b"].HTTPAddr = f.Nodes["a"].HTTPAddr
	})
	if nodes, err := look(1); err != nil || len(nodes) != 1 {
		t.Errorf("one that is another by now: %v, %v", nodes, err)
	}
}
