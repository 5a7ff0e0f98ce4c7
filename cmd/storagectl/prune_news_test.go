package main

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/runbooks/prune"
)

// TestPruneBegins: what a prune is about to remove stands in the audit before it does; one
// that removes nothing has nothing to tell.
func TestPruneBegins(t *testing.T) {
	t.Parallel()
	a := teller(t, "prune")
	kept := prune.Thing{Kind: prune.Image, ID: "k", Verdict: prune.Keep}
	a.parent = "0001-runbook-a/prune"
	a.tellPruneBegins(t.Context(), pruneMessage{Owner: "x", Things: []prune.Thing{kept}})
	if _, err := os.Stat(a.audit().Path); !os.IsNotExist(err) {
		t.Errorf("nothing is chosen, and it is told: %v", err)
	}
	a.tellPruneBegins(t.Context(), pruneMessage{Owner: "x", GraphRoot: "/s", Things: []prune.Thing{{Kind: prune.Image, ID: "i", Name: "a:1", Verdict: prune.Remove},
		{Kind: prune.Volume, ID: "v", Name: "v", Verdict: prune.Spare}, kept}})
	chain, err := a.audit().Read()
	if err != nil || len(chain.Entries) != 1 {
		t.Fatalf("%+v, %v", chain, err)
	}
	var d pruneBegun
	e := chain.Entries[0]
	if err := json.Unmarshal(e.Detail, &d); err != nil || e.Event != "prune-begin" || e.Store != "/s" || d.Parent != a.parent || len(d.Chosen) != 2 || d.Chosen[0].Name != "a:1" {
		t.Errorf("%+v %+v %v", e, d, err)
	}
}

// TestPruneAuditHeld: another process that holds the audit does not hold a prune, and the
// store with it, for longer than a run.
func TestPruneAuditHeld(t *testing.T) {
	t.Parallel()
	a := teller(t, "prune")
	f, err := os.Create(a.audit().Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	a.tellPrune(t.Context(), pruneMessage{}, prune.Last{}, nil)
	if took := time.Since(began); took > 4*auditLimit {
		t.Errorf("it waited %s", took)
	}
}
