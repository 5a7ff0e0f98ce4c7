package main

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/nomadtest"
	"github.com/storagectl/storagectl/migrate"
)

// drainedByHand is a fake of Nomad with two nodes that are held.
func drainedByHand(t *testing.T) (*app, *nomadtest.Fake, *held) {
	t.Helper()
	a, f := &app{stateDir: t.TempDir()}, nomadtest.New(t, "a", "b")
	h := &held{User: "hashi", Run: "drain-1", Since: time.Now(), Use: migrate.NomadUse{Config: drain.Config{Address: f.URL},
		Nodes: []drain.Node{{ID: "a", Name: "node-a", Eligible: true}, {ID: "b", Name: "node-b", Eligible: true}}}}
	if err := a.writeHeld(h); err != nil {
		t.Fatal(err)
	}
	c, err := h.client()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.setDrains(t.Context(), c, h, h.options(migrate.Outage{}), true); err != nil {
		t.Fatal(err)
	}
	f.Complete("a")
	f.Complete("b")
	return a, f, h
}

// TestUndrainTwice: an undrain that stopped half-way goes on.
func TestUndrainTwice(t *testing.T) {
	a, f, _ := drainedByHand(t)
	undrain := func() error {
		h, err := a.readHeld()
		if err != nil {
			t.Fatal(err)
		}
		if len(h.Marks) != 2 {
			t.Errorf("the drains are not remembered: %+v", h.Marks)
		}
		c, err := h.client()
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.giveBack(t.Context(), c, h, 3*time.Second)
		return err
	}
	f.Do(func() { f.Nodes["b"].Drivers["podman"].Healthy = false })
	var ill *drain.DriverError
	if err := undrain(); !errors.As(err, &ill) || !f.Eligible("a") || f.Eligible("b") {
		t.Fatalf("the second node's driver is ill: %v", err)
	}
	f.Do(func() { f.Nodes["b"].Drivers["podman"].Healthy = true })
	if err := undrain(); err != nil || !f.Eligible("b") {
		t.Errorf("again: %v", err)
	}
	if h, err := a.readHeld(); h != nil || err != nil {
		t.Errorf("still held: %+v, %v", h, err)
	}
}

// TestUndrainLeaves: what another hand drained is told once, and left so.
func TestUndrainLeaves(t *testing.T) {
	a, f, h := drainedByHand(t)
	f.Drain("b", &api.DrainSpec{}, false, map[string]string{"why": "bad RAM"}, "bob")
	f.Complete("b")
	c, err := h.client()
	if err != nil {
		t.Fatal(err)
	}
	var foreign *drain.ForeignDrainError
	if _, err := a.giveBack(t.Context(), c, h, 3*time.Second); !errors.As(err, &foreign) {
		t.Errorf("%v", err)
	}
	left, err := a.giveBack(t.Context(), c, h, 3*time.Second)
	if err != nil || len(left) != 1 || left[0] != "node-b" || f.Eligible("b") || !f.Eligible("a") {
		t.Errorf("again: %v, %v", left, err)
	}
}

// TestHeldRefuses: what is drained by hand is in the way of a migration, and of a
// drain for another user.
func TestHeldRefuses(t *testing.T) {
	_, _, h := drainedByHand(t)
	var r *migrate.Refusal
	if err := h.refuse("other", ""); !errors.As(err, &r) || r.ID != "drained" {
		t.Errorf("another user: %v", err)
	}
	if err := h.refuse("", ""); !errors.As(err, &r) || r.Hint != "storagectl undrain first, or --nomad off" {
		t.Errorf("a migration: %v", err)
	}
	h2 := *h
	h2.User = "" // of an older release
	if err := errors.Join(h.refuse("hashi", ""), h2.refuse("hashi", ""), (*held)(nil).refuse("", "")); err != nil {
		t.Error(err)
	}
}

// TestHeldByWhom: a runbook neither joins nor gives back what a person or another run
// has drained, and a person does not join what a run gives back in its turn.
func TestHeldByWhom(t *testing.T) {
	a := &app{stateDir: t.TempDir()}
	const task, undrain, other = "0002-runbook-aaaa/drain", "0002-runbook-aaaa/undrain", "0003-runbook-bbbb/drain"
	for _, c := range []struct {
		drained, by    string
		joins, returns bool
	}{
		{"", "", true, true},
		{"", task, false, false},
		{task, "", false, true},
		{task, task, true, true},
		{task, undrain, true, true},
		{task, other, false, false},
	} {
		h := &held{User: "hashi", Parent: c.drained}
		if err := a.writeHeld(h); err != nil {
			t.Fatal(err)
		}
		var r *migrate.Refusal
		if err := h.refuse("hashi", c.by); (err == nil) != c.joins || err != nil && (!errors.As(err, &r) || r.ID != "drained") {
			t.Errorf("%q drains what %q has drained: %v", c.by, c.drained, err)
		}
		a.parent = c.by
		if _, err := a.toReturn(); (err == nil) != c.returns || err != nil && (!errors.As(err, &r) || r.ID != "not-drained") {
			t.Errorf("%q gives back what %q has drained: %v", c.by, c.drained, err)
		}
		if by, err := a.heldBy(); by != c.drained || err != nil {
			t.Errorf("held by %q, %v", by, err)
		}
	}
}

// TestNothingHeld: a drain that is refused at once leaves nothing to undrain.
func TestNothingHeld(t *testing.T) {
	a, f, h := drainedByHand(t)
	f.SetEligible("a", true)
	f.Drain("a", nil, false, nil, "bob")
	h.Run, h.Marks = "drain-2", nil
	f.SetEligible("a", false)
	c, err := h.client()
	if err != nil {
		t.Fatal(err)
	}
	var r *migrate.Refusal
	if err := a.setDrains(t.Context(), c, h, h.options(migrate.Outage{}), true); !errors.As(err, &r) || r.ID != "nomad-moved" {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(a.heldPath()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("held: %v", err)
	}
}
