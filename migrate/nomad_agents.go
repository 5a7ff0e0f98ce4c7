package migrate

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/storagectl/storagectl/internal/host"
)

// nomadAgents are the processes of a /proc that are Nomad agents, by their folders there,
// and those of them that may be clients: all but those that are seen to be a server alone.
// One in another network, of a machine's container, is an agent of that machine.
func nomadAgents(proc string) (agents, clients []string) {
	here, _ := os.Readlink(filepath.Join(proc, "self", "ns", "net"))
	lines, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "cmdline"))
	for _, path := range lines {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // gone
		}
		argv := bytes.Split(b, []byte{0})
		if filepath.Base(string(argv[0])) != "nomad" || len(argv) < 2 || string(argv[1]) != "agent" {
			continue
		}
		if net, err := os.Readlink(filepath.Join(filepath.Dir(path), "ns", "net")); err == nil && net != here && here != "" {
			continue
		}
		agents = append(agents, filepath.Dir(path))
		if !serverAlone(filepath.Dir(path)) {
			clients = append(clients, filepath.Dir(path))
		}
	}
	return agents, clients
}

// nomadUnits are the services of the agents that may place containers in a store: those
// that run as root or as its owner. What runs as anybody else is none of ours to hold back,
// nor is a service that an agent is in without being what it runs: who begins one by cron
// or a login is in the service of those.
func nomadUnits(clients []string, owner uint32, main func(unit string) int) []string {
	var units []string
	for _, dir := range clients {
		uid, ok := host.UserOf(dir)
		unit := host.ServiceOf(dir)
		own := unit == fmt.Sprintf("user@%d.service", owner)
		if ok && (uid == 0 || uid == owner) && unit != "" && (own || fmt.Sprint(main(unit)) == filepath.Base(dir)) {
			units = append(units, unit)
		}
	}
	slices.Sort(units)
	return slices.Compact(units)
}

// serverAlone says whether an agent has a server's raft log open and no client's
// state (client/state/db_bolt.go and nomad/server.go of Nomad keep both open while
// they live). Whose files cannot be seen may be a client.
func serverAlone(dir string) bool {
	fds, _ := filepath.Glob(filepath.Join(dir, "fd", "*"))
	var open []string
	for _, fd := range fds {
		if path, err := os.Readlink(fd); err == nil {
			open = append(open, filepath.Base(path))
		}
	}
	return slices.Contains(open, "raft.db") && !slices.Contains(open, "state.db")
}

// mainPIDs tells the main process of a system's service, 0 where none is told.
func mainPIDs(ctx context.Context) func(unit string) int {
	return func(unit string) int {
		b, err := host.SystemBus(ctx)
		if err != nil {
			return 0
		}
		defer b.Close()
		return b.MainPID(ctx, unit)
	}
}
