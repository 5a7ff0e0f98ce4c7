package drain

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestRights: what is missing is told, and the policy that is told lifts it.
func TestRights(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	a, _ := c.addClient("alpha")
	alloc := c.run(t, "web", "service", 1, "")[0]
	ctx := bounded(t)
	rights := Rights{Allocs: []string{alloc.ID}, SlotPath: DefaultSlotPath, Canary: "default"}
	for name, policy := range map[string]string{
		"node:write":  `namespace "default" { capabilities = ["read-job", "submit-job"] }` + "\nnode {\n policy = \"read\"\n}",
		"read-job":    "node {\n policy = \"write\"\n}",
		"read-logs":   "node {\n policy = \"write\"\n}\n" + `namespace "default" { capabilities = ["read-job", "submit-job"] }`,
		"submit-job":  "node {\n policy = \"write\"\n}\n" + `namespace "default" { capabilities = ["read-job"] }`,
		"variables ":  "node {\n policy = \"write\"\n}\n" + `namespace "default" { capabilities = ["read-job", "submit-job"] }`,
		"all of them": `agent { policy = "read" }`,
	} {
		t.Run(name, func(t *testing.T) {
			err := c.client(c.tokenFor(policy).SecretID).CheckRights(ctx, []Node{a}, rights)
			var e *RightsError
			if !errors.As(err, &e) {
				t.Fatalf("not refused: %v", err)
			}
			if name != "all of them" && !strings.Contains(e.Error(), name) {
				t.Errorf("no word of it in %v", e)
			}
			if err := c.client(c.tokenFor(e.Policy).SecretID).CheckRights(ctx, []Node{a}, rights); err != nil {
				t.Errorf("with the policy that was told: %v\n%s", err, e.Policy)
			}
		})
	}
	// And the whole life with the least policy.
	least := c.client(c.tokenFor(Policy(rights)).SecretID)
	nodes, err := least.HostNodes(ctx, Find{Driver: testDriver})
	if err != nil || len(nodes) != 1 {
		t.Fatalf("nodes: %v, %v", nodes, err)
	}
	o := opts("r1")
	if err := errors.Join(least.CheckRights(ctx, nodes, rights), least.Drain(ctx, a, o), least.Wait(ctx, a, o, wait(time.Minute)),
		least.Return(ctx, a, ReturnOptions{Options: o, Driver: testDriver, Limit: time.Minute})); err != nil {
		t.Fatal(err)
	}
	rs, err := least.Canary(ctx, a, CanaryOptions{Driver: testDriver, Limit: time.Minute, Variants: []Variant{{Name: "plain"}}})
	if err != nil || !rs[0].OK {
		t.Errorf("canary with the least policy: %+v, %v", rs, err)
	}
}

// TestSlots: never more than N at a time; a dead owner's slot is free again; a
// resumed run takes its own; a lost one is told.
func TestSlots(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	cl := c.client(c.tokenFor(Policy(Rights{SlotPath: DefaultSlotPath})).SecretID)
	ctx := bounded(t)
	o := SlotOptions{Slots: 2, Run: "r", Owner: "me@here", TTL: 10 * time.Second}

	var mu sync.Mutex
	var wg sync.WaitGroup
	now, most := 0, 0
	for range 5 {
		wg.Go(func() {
			l, err := cl.AcquireSlot(ctx, o)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now--
			mu.Unlock()
			if err := l.Release(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most > 2 || most == 0 {
		t.Errorf("%d held a slot at once", most)
	}

	o.Slots = 1
	l, err := cl.AcquireSlot(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	slots, err := cl.Slots(ctx, "")
	if err != nil || len(slots) != 2 || !slots[0].Held || slots[0].Owner != "me@here" || slots[0].Since.IsZero() || slots[1].Held {
		t.Errorf("slots: %+v, %v", slots, err)
	}
	l.Leave() // as a crash does
	began := time.Now()
	mine := o
	mine.Mine = &l.Ref
	again, err := cl.AcquireSlot(ctx, mine)
	if err != nil || again.Ref != l.Ref || time.Since(began) > 6*time.Second {
		t.Fatalf("its own slot again: %v after %s", err, time.Since(began))
	}
	again.Leave()
	began = time.Now()
	next, err := cl.AcquireSlot(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a dead owner's slot was free after %s", time.Since(began).Round(time.Second))
	// Somebody takes the slot away.
	if err := cl.ReleaseSlot(ctx, next.Ref); err != nil {
		t.Fatal(err)
	}
	select {
	case <-next.Lost():
	case <-time.After(15 * time.Second):
		t.Error("the loss was not told")
	}
	if !errors.Is(next.Err(), ErrLost) {
		t.Error("no error after the loss")
	}
	// A look tells it before the next renewal would.
	if next, err = cl.AcquireSlot(ctx, o); err != nil {
		t.Fatal(err)
	}
	if err := next.Check(ctx); err != nil {
		t.Errorf("a slot that is held: %v", err)
	}
	if err := cl.ReleaseSlot(ctx, next.Ref); err != nil {
		t.Fatal(err)
	}
	if err := next.Check(ctx); !errors.Is(err, ErrLost) {
		t.Errorf("a slot that was taken away: %v", err)
	}
	next.Leave()
}

func TestMatches(t *testing.T) {
	labels := map[string]string{"io.prefect.flow-run-id": "1", "role": "batch-7", "path": "a/b", "odd": "[x] y"}
	for pattern, want := range map[string]bool{
		"io.prefect.*": true, "role=batch-*": true, "role=web": false, "role": true, "io.prefect": false, "*=1": true,
		"io.*": true, "path=*": true, "path=*/b": true, "path=a*c": false, "odd=[x]*": true, "odd=[a-z]*": false, "odd=?x*": false,
		"io.*flow*id": true, "io.*flow*flow*": false, "*": true,
	} {
		if got := Matches(labels, []string{pattern}); got != want {
			t.Errorf("%s: %v", pattern, got)
		}
	}
	if err := CheckPatterns([]string{"=x"}); err == nil {
		t.Error("a pattern without a key is good")
	}
	if alloc, is := IsNomads([]string{"web-8c4bd0f4-5a6e-7f0c-9b3a-0123456789ab"}, nil); !is || alloc != "8c4bd0f4-5a6e-7f0c-9b3a-0123456789ab" {
		t.Errorf("by name: %q, %v", alloc, is)
	}
	if _, is := IsNomads([]string{"web-1"}, map[string]string{"app": "x"}); is {
		t.Error("any container is Nomad's")
	}
}

func TestServes(t *testing.T) {
	for _, c := range []struct {
		attrs        map[string]string
		owner, roots bool
	}{
		{nil, true, true},
		{map[string]string{"driver.podman.rootless": "true"}, true, false},
		{map[string]string{"driver.podman.rootless": "false", "driver.podman.version": "5"}, false, true},
		{map[string]string{"driver.podman.rootless": "0", "driver.podman.app1.rootless": "1"}, true, true},
		{map[string]string{"driver.podman.app1.rootless": "true", "driver.podman.app2.rootless": "true"}, true, false},
	} {
		if got := serves(c.attrs, true); got != c.owner {
			t.Errorf("a rootless store, %v: %v", c.attrs, got)
		}
		if got := serves(c.attrs, false); got != c.roots {
			t.Errorf("root's store, %v: %v", c.attrs, got)
		}
	}
}
