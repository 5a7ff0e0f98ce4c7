package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks/prune"
)

// pruneDetail is what the audit tells of a prune.
type pruneDetail struct {
	Rules   prune.Rules `json:"rules"`
	Parent  string      `json:"parent,omitempty"`
	Freed   uint64      `json:"freed_bytes"`
	Removed []gone      `json:"removed"`
}

// gone is a thing that was removed.
type gone struct {
	Kind prune.Kind `json:"kind"`
	ID   string     `json:"id"`
	Name string     `json:"name"`
}

// pruneBegun is what the audit tells of a prune before it removes anything.
type pruneBegun struct {
	Rules  prune.Rules `json:"rules"`
	Parent string      `json:"parent,omitempty"`
	Chosen []gone      `json:"chosen"`
}

// tellPruneBegins tells the audit what a prune is about to remove: one that is cut off
// has no journal that could tell. It does not fail the prune.
func (a *app) tellPruneBegins(ctx context.Context, m pruneMessage) {
	detail := pruneBegun{Rules: m.Rules, Parent: a.parent}
	for _, t := range m.Things {
		if t.Verdict == prune.Remove || t.Verdict == prune.Spare { // more goes if what goes before frees less than was estimated
			detail.Chosen = append(detail.Chosen, gone{t.Kind, t.ID, t.Name})
		}
	}
	if len(detail.Chosen) == 0 {
		return
	}
	entry := tell.Entry{Event: "prune-begin", Job: "prune", By: (*tell.Actor)(a.actor()), Version: version, Owner: m.Owner, Store: m.GraphRoot}
	if _, err := a.appendPrune(ctx, entry, detail); err != nil {
		a.out.note(fmt.Sprintf("the audit was not told: %v", err))
	}
}

// appendPrune tells the audit of a prune. The store is locked meanwhile: it waits no longer
// for the audit than a run does.
func (a *app) appendPrune(ctx context.Context, entry tell.Entry, detail any) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, auditLimit)
	defer cancel()
	var err error
	if entry.Detail, err = json.Marshal(detail); err != nil {
		return "", err
	}
	return a.audit().Append(ctx, entry)
}

// tellPrune tells the world of a prune, which is no run, when the operator has been
// told. Nothing of it fails the prune.
func (a *app) tellPrune(ctx context.Context, m pruneMessage, last prune.Last, why error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hearLimit)
	defer cancel()
	entry := tell.Entry{Event: "prune", Job: "prune", By: (*tell.Actor)(a.actor()), Version: version, Owner: m.Owner, Store: m.GraphRoot, Exit: &last.ExitCode}
	e := tell.Event{Point: tell.Done, Time: last.Time, Command: a.command, Job: "prune", Owner: m.Owner, Store: m.GraphRoot, Exit: last.ExitCode,
		Text: fmt.Sprintf("prune freed about %s of the store of %s", migrate.Bytes(m.Freed), m.Owner)}
	priority := tell.PriNotice
	if why != nil {
		e.Point, e.Error, entry.Error, priority = tell.Failed, why.Error(), why.Error(), tell.PriError
	}
	e.Host, _ = os.Hostname() // a host without a name has none to tell
	detail := pruneDetail{Rules: m.Rules, Parent: last.Parent, Freed: m.Freed}
	for _, t := range m.Things {
		if t.Verdict == prune.Removed {
			detail.Removed = append(detail.Removed, gone{t.Kind, t.ID, t.Name})
		}
	}
	var err error
	if e.Audit, err = a.appendPrune(ctx, entry, detail); err != nil {
		a.out.after(fmt.Sprintf("the audit was not told: %v", err))
	}
	sender, log := tell.NewSender(a.conf.Notify), tell.NewJournald()
	sender.Send(e)
	log.Log(clean(e.Text), priority, map[string]string{"MESSAGE_ID": tell.MessageID(e.Point), "STORAGECTL_POINT": string(e.Point), "STORAGECTL_COMMAND": e.Command,
		"STORAGECTL_JOB": e.Job, "STORAGECTL_OWNER": e.Owner, "STORAGECTL_STORE": e.Store, "STORAGECTL_ERROR": e.Error, "STORAGECTL_EXIT": fmt.Sprint(e.Exit), "STORAGECTL_AUDIT": e.Audit})
	if a.conf.Metrics.Dir != "" {
		if err := a.writeMetrics(ctx); err != nil {
			a.out.after(err.Error())
		}
	}
	log.Close(ctx)
	for _, err := range sender.Close(ctx) {
		a.out.after(err.Error())
	}
}

// pruneFile is the part of what prune keeps of its last work that is measured.
type pruneFile struct {
	Time      time.Time `json:"time"`
	Owner     string    `json:"owner"`
	GraphRoot string    `json:"graphRoot"`
	Seconds   float64   `json:"seconds"`
	ExitCode  int       `json:"exit_code"`
	Freed     int64     `json:"freed_bytes"`
}
