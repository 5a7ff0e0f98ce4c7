package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/verify/doctor"
)

// nomadChecks ask the agents of this host, and no other.
func nomadChecks(*app) []doctor.Check {
	return []doctor.Check{
		{
			ID: "nomad", Group: "nomad", Title: "Nomad's node, its driver, and what the token may",
			Why:   "A run that moves a store drains the nodes that place containers in it. What the token may not see, Nomad leaves out without a word; a driver that is unhealthy places nothing. Who reads a management token from here may do everything in the cluster.",
			Mends: "Start the agent or podman.socket; give the token the policy that is named, or make one that has no more than that; storagectl undrain gives a node back.",
			Limit: 15 * time.Second,
			Look:  lookNomad,
		},
	}
}

func lookNomad(ctx context.Context, h *doctor.Host) doctor.Finding {
	if err := h.Podman(); err != nil { // it would be asked for containers of Nomad's
		return doctor.NotSeen(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 12*time.Second)
	defer cancel()
	cli := podman.CLI{Owner: h.Owner, Runner: h.Runner, Extra: h.ConfEnv, Limit: 10 * time.Second}
	use, refusal, err := migrate.FindNomad(ctx, cli, migrate.Outage{Nomad: migrate.NomadAuto})
	switch {
	case err != nil:
		return doctor.Finding{Outcome: doctor.Unknown, Saw: err.Error()}
	case refusal != nil:
		mend := []string{refusal.Hint}
		if refusal.Policy != "" {
			mend = append(mend, "nomad acl policy apply storagectl FILE, with: "+strings.Join(strings.Fields(refusal.Policy), " "))
		}
		return doctor.Finding{Outcome: doctor.Problem, Saw: refusal.Text, Mend: mend}
	case use == nil:
		return doctor.Finding{Outcome: doctor.Absent, Saw: "no agent of Nomad's places containers in this store"}
	}
	c, err := drain.New(use.Config)
	if err != nil {
		return doctor.Finding{Outcome: doctor.Unknown, Saw: err.Error()}
	}
	f := doctor.Finding{Outcome: doctor.OK}
	var saw []string
	for _, n := range use.Nodes {
		s, err := c.Look(ctx, n, "podman")
		if err != nil {
			return doctor.Finding{Outcome: doctor.Unknown, Saw: err.Error()}
		}
		switch {
		case !s.DriverDetected || !s.DriverHealthy:
			saw = append(saw, fmt.Sprintf("%s: the driver podman is not healthy: %s", n.Name, s.DriverSays))
			f.Outcome, f.Mend = doctor.Problem, append(f.Mend, "see that podman.socket answers (socket-answers); Nomad notices within 40 s")
		case !s.Eligible:
			saw = append(saw, n.Name+" is not eligible for work")
			f.Outcome, f.Mend = doctor.Warning, append(f.Mend, "nomad node eligibility -enable "+n.ID)
		default:
			saw = append(saw, n.Name+": eligible, driver healthy")
		}
	}
	all, err := c.Management(ctx)
	if err != nil {
		return doctor.Finding{Outcome: doctor.Unknown, Saw: err.Error()}
	}
	if all {
		saw = append(saw, "the token is a management token, which may do everything in the cluster")
		if f.Outcome == doctor.OK {
			f.Outcome = doctor.Warning
		}
		f.Mend = append(f.Mend, "nomad acl policy apply storagectl FILE, with: "+strings.Join(strings.Fields(drain.Policy(drain.Rights{})), " ")+" (and each namespace with jobs here); then nomad acl token create -name storagectl -policy storagectl")
	}
	f.Saw = strings.Join(saw, "; ")
	return f
}
