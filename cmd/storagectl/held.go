package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/migrate"
)

// held is what a drain by hand remembers until the undrain.
type held struct {
	Use   migrate.NomadUse `json:"use"`
	User  string           `json:"user,omitempty"` // whose store it is
	Run   string           `json:"run"`
	Since time.Time        `json:"since"`
	// Parent is the task, RUN/TASK, of the runbook whose drain it is; "": a person's.
	Parent string `json:"parent,omitempty"`
	// Marks are the drains as they were set, by node id.
	Marks map[string]drain.Mark `json:"marks,omitempty"`
	// Returning says that an undrain has begun: nodes may be back in service.
	Returning bool `json:"returning,omitempty"`
}

func (a *app) heldPath() string { return filepath.Join(a.stateDir, "drain.json") }

// readHeld returns nil where nothing is held.
func (a *app) readHeld() (*held, error) {
	b, err := os.ReadFile(a.heldPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var h held
	if err == nil {
		err = json.Unmarshal(b, &h)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read what was drained: %w", err)
	}
	return &h, nil
}

func (h *held) options(o migrate.Outage) drain.Options {
	return drain.Options{Run: h.Run, Deadline: o.Deadline, IgnoreSystem: o.IgnoreSystem, OwnAlloc: h.Use.OwnAlloc,
		Meta: map[string]string{"storagectl.operator": h.Use.Operator, "storagectl.reason": o.Reason, "storagectl.step": "by hand"}}
}

// client is Nomad's, which knows the drains that were set by hand.
func (h *held) client() (*drain.Client, error) {
	c, err := drain.New(h.Use.Config.Now(drain.FromEnv(os.Getenv)))
	if err == nil {
		c.Marks = h.Marks
	}
	return c, err
}

// heldBy names the task, RUN/TASK, of the runbook whose drain is held; "": there is
// none, or it is a person's.
func (a *app) heldBy() (string, error) {
	h, err := a.readHeld()
	if h == nil {
		return "", err
	}
	return h.Parent, err
}

// toReturn is what an undrain gives back. That of a runbook leaves alone what a person
// or another run has drained: they want the node as it is.
func (a *app) toReturn() (*held, error) {
	h, err := a.readHeld()
	switch {
	case err != nil:
		return nil, err
	case h == nil:
		return nil, &migrate.Refusal{ID: "not-drained", Text: "cannot undrain: nothing is drained by \"storagectl drain\"", Hint: "a run gives its nodes back itself: storagectl status"}
	case a.parent != "" && runOf(h.Parent) != runOf(a.parent):
		return nil, &migrate.Refusal{ID: "not-drained", Text: fmt.Sprintf("cannot undrain: no task of run %s has drained a node that is not given back; what is drained since %s is not its own", runOf(a.parent), h.Since.Format(time.RFC3339)),
			Hint: "storagectl undrain gives that back"}
	}
	return h, nil
}

// runOf is the run of a task, RUN/TASK.
func runOf(parent string) string {
	run, _, _ := strings.Cut(parent, "/")
	return run
}

// refuse says what is in the way of a drain for a user's store by a task of a runbook,
// or by a person; user is "" for a migration, which takes nodes out of service itself.
func (h *held) refuse(user, parent string) error {
	if h == nil || user != "" && (h.User == "" || h.User == user) && runOf(h.Parent) == runOf(parent) {
		return nil
	}
	whose := ""
	if h.User != "" {
		whose = " for the store of " + h.User
	}
	hint := "storagectl undrain first"
	if of := runOf(h.Parent); of != "" {
		whose += " for run " + of
		hint += ", or storagectl resume " + of + ", if it is not over"
	}
	if user == "" {
		hint += ", or --nomad off"
	}
	return &migrate.Refusal{ID: "drained", Text: fmt.Sprintf("\"storagectl drain\" has taken nodes out of service%s since %s", whose, h.Since.Format(time.RFC3339)), Hint: hint}
}

func (a *app) writeHeld(h *held) error {
	b, err := json.Marshal(h)
	if err == nil {
		err = os.MkdirAll(a.stateDir, 0o700)
	}
	if err == nil {
		err = renameio.WriteFile(a.heldPath(), b, 0o600)
	}
	if err == nil { // before Nomad is told anything: a power cut must not have it forgotten
		err = errors.Join(host.SyncDir(a.stateDir), host.SyncDir(filepath.Dir(a.stateDir)))
	}
	if err != nil {
		return fmt.Errorf("cannot remember what is drained: %w", err)
	}
	return nil
}

func (a *app) forgetHeld() error {
	err := os.Remove(a.heldPath())
	if err == nil {
		err = host.SyncDir(a.stateDir)
	}
	if err != nil {
		return fmt.Errorf("cannot forget the drain: %w", err)
	}
	return nil
}
