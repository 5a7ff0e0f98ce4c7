package main

import (
	"errors"
	"testing"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

// TestOneStateDir: what goes on after a boot is for one state directory, and another one
// is not silently left out, nor put in its place.
func TestOneStateDir(t *testing.T) {
	units := t.TempDir()
	first, second := &app{stateDir: "/var/lib/storagectl"}, &app{stateDir: "/srv/100% other"}
	if err := first.oneState(units); err != nil {
		t.Errorf("nothing is installed: %v", err)
	}
	u, err := runbooks.ResumeService([]string{"/usr/bin/storagectl", "resume", "--boot"}, "/var/lib/storagectl/runs")
	if err == nil {
		err = host.WriteUnit(units, u)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := first.oneState(units); err != nil {
		t.Errorf("the same again: %v", err)
	}
	var r *migrate.Refusal
	if err := second.oneState(units); !errors.As(err, &r) || r.ID != "other-state-dir" {
		t.Errorf("another: %v", err)
	}
}
