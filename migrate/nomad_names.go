package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/podman"
)

// NomadNames are the images and volumes that Nomad may ask the store of cli's owner for,
// by jobs that it could place here though nothing of theirs runs now. They are nil where
// no agent of Nomad's places containers in this store; a [Refusal] says that there is one
// and that its jobs cannot be read. before is what tells that Nomad placed some here in the
// past, "" if nothing does: one that is stopped for a while, and whose containers are
// gone, is there nevertheless.
func NomadNames(ctx context.Context, cli podman.CLI, r Outage, before string) ([]drain.JobName, *Refusal, error) {
	return nomadNames(ctx, cli, r, before, "/proc")
}

func nomadNames(ctx context.Context, cli podman.CLI, r Outage, before, proc string) ([]drain.JobName, *Refusal, error) {
	if r.Nomad == "" || r.Nomad == NomadOff {
		return nil, nil, nil
	}
	seen, refusal, err := seekNomad(ctx, cli, r, proc)
	if err != nil || refusal != nil {
		return nil, refusal, err
	}
	if seen == nil {
		if agents, _ := nomadAgents(proc); before == "" && len(agents) == 0 && os.Getenv("NOMAD_ADDR") == "" {
			before = nomadInstalled("/")
		}
		if before != "" {
			return nil, &Refusal{ID: "nomad-unseen", Text: fmt.Sprintf("Nomad is here (%s), and none that places containers in this store answers", before),
				Hint: "start its agent, or set NOMAD_ADDR or --nomad URL; --nomad off goes on without regard to its jobs"}, nil
		}
		return nil, nil, nil
	}
	names, err := seen.client.JobNames(ctx, seen.nodes, drain.Rights{Allocs: seen.allocs, Namespaces: seen.spaces})
	var rights *drain.RightsError
	switch {
	case errors.As(err, &rights):
		return nil, rightsRefusal(rights), nil
	case err != nil:
		return nil, &Refusal{ID: "nomad", Text: err.Error(), Hint: "see that Nomad's servers answer; --nomad off goes on without regard to its jobs"}, nil
	}
	return append([]drain.JobName{}, names...), nil, nil
}

// nomadInstalled is what tells that a Nomad which does not run is to run on the host of
// this root, "" if nothing does.
func nomadInstalled(root string) string {
	for _, p := range []string{"etc/nomad.d", "etc/systemd/system/nomad.service", "usr/lib/systemd/system/nomad.service", "lib/systemd/system/nomad.service"} {
		if _, err := os.Stat(filepath.Join(root, p)); err == nil {
			return "/" + p + " is there"
		}
	}
	return ""
}
