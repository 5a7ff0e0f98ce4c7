package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
)

// nomad finds out whether Nomad places containers in this store, and whether the
// run may take its nodes out of service.
func (a *Assessment) nomad(ctx context.Context, cli podman.CLI) error {
	r := a.Inputs.Request.Outage
	if r.Nomad == "" || r.Nomad == NomadOff {
		return nil
	}
	use, refusal, err := FindNomad(ctx, cli, r)
	if refusal != nil {
		a.Refusals = append(a.Refusals, *refusal)
	}
	a.Inputs.Nomad = use
	if use == nil && refusal == nil && err == nil && (r.Slots > 0 || r.Canary != "" || r.TokenFile != "") {
		a.refuse("no-nomad", "set NOMAD_ADDR or --nomad URL if there is one; else leave --slots, --canary and --nomad-token-file out",
			"no Nomad agent was found that places containers in this store, so that nothing can be limited or tried by it")
	}
	return err
}

// FindNomad finds the nodes that place containers in the store of cli's owner
// and checks the rights. All are nil where Nomad has nothing to do with it.
func FindNomad(ctx context.Context, cli podman.CLI, r Outage) (*NomadUse, *Refusal, error) {
	return findNomad(ctx, cli, r, "/proc")
}

func findNomad(ctx context.Context, cli podman.CLI, r Outage, proc string) (*NomadUse, *Refusal, error) {
	seen, refusal, err := seekNomad(ctx, cli, r, proc)
	if err != nil || refusal != nil || seen == nil {
		return nil, refusal, err
	}
	c, conf, nodes := seen.client, seen.conf, seen.nodes
	use := &NomadUse{Config: conf, Nodes: nodes, Operator: operator(), Units: seen.units}
	if id := os.Getenv(allocVar); id != "" {
		use.OwnAlloc = id
	}
	want := drain.Rights{Allocs: seen.allocs, Namespaces: seen.spaces}
	if r.Slots > 0 {
		if want.SlotPath = r.SlotPath; want.SlotPath == "" {
			want.SlotPath = drain.DefaultSlotPath
		}
	}
	if r.Canary != "" {
		if want.Canary = conf.Namespace; want.Canary == "" {
			want.Canary = "default"
		}
	}
	var rights *drain.RightsError
	if err := c.CheckRights(ctx, nodes, want); errors.As(err, &rights) {
		return nil, rightsRefusal(rights), nil
	} else if err != nil {
		return nil, nil, err
	}
	if r, err := leftovers(ctx, c, cli, use, leftLimit); r != nil || err != nil {
		return nil, r, err
	}
	for _, n := range nodes {
		s, err := c.Look(ctx, n, "podman")
		if err != nil {
			return nil, nil, err
		}
		if s.Draining {
			e := &drain.ForeignDrainError{Node: n.Name, AccessorID: s.LastAccessorID, Meta: s.LastMeta, Since: s.LastUpdated}
			var r *Refusal
			if errors.As(RefusedBy(e), &r) {
				return nil, r, nil
			}
		}
	}
	return use, nil, nil
}

// nomadSeen is Nomad as it was found: the agent that answers, and this host's nodes.
type nomadSeen struct {
	client *drain.Client
	conf   drain.Config
	nodes  []drain.Node
	allocs []string // whose containers run here
	spaces []string // namespaces that have containers here
	units  []string // services of its agents
}

// seekNomad finds the nodes that place containers in the store of cli's owner; all are nil
// where there are none.
func seekNomad(ctx context.Context, cli podman.CLI, r Outage, proc string) (*nomadSeen, *Refusal, error) {
	agents, clients := nomadAgents(proc)
	conf := drain.FromEnv(os.Getenv)
	conf.TokenFile = r.TokenFile
	conf, err := conf.Absolute()
	if err != nil {
		return nil, nil, err
	}
	auto := r.Nomad == NomadAuto
	if !auto {
		conf.Address = r.Nomad
	}
	list, err := cli.Containers(ctx)
	if err != nil {
		return nil, nil, err
	}
	var allocs, spaces []string
	theirs := false
	for _, c := range list {
		alloc, is := drain.IsNomads(c.Names, c.Labels)
		theirs = theirs || is
		if alloc != "" && drain.Running(c.State) {
			allocs = append(allocs, alloc)
		}
		if ns := c.Labels[drain.LabelNamespace]; is && ns != "" {
			spaces = append(spaces, ns)
		}
	}
	wanted := !auto || conf.Address != ""
	c, err := drain.New(conf)
	if err != nil {
		return nil, &Refusal{ID: "nomad", Text: err.Error(), Hint: "check --nomad, --nomad-token-file and the NOMAD_ variables"}, nil
	}
	if err := c.Ping(ctx); err != nil {
		switch {
		case wanted || drain.Answered(err):
			return nil, &Refusal{ID: "nomad", Text: err.Error(),
				Hint: "check NOMAD_ADDR, NOMAD_CACERT and NOMAD_CLIENT_CERT (or --nomad URL); --nomad off goes on without draining anything"}, nil
		case theirs || len(agents) > 0:
			return nil, &Refusal{ID: "nomad-unseen", Text: fmt.Sprintf("Nomad runs here, but no agent answers at %s", drain.DefaultAddress),
				Hint: "set NOMAD_ADDR or --nomad URL; --nomad off goes on without draining anything"}, nil
		}
		return nil, nil, nil
	}
	nodes, err := c.HostNodes(ctx, drain.Find{Nodes: r.Nodes, Rootless: !cli.Owner.Rootful(), Clients: len(clients)})
	var rights *drain.RightsError
	var down *drain.DownError
	var unseen *drain.UnseenError
	switch {
	case errors.As(err, &down):
		return nil, &Refusal{ID: "nomad-node", Text: err.Error(),
			Hint: "start its client and let it join (nomad node status); if it is gone for good, say by --nomad-node which nodes count; --nomad off goes on without draining anything"}, nil
	case errors.As(err, &unseen):
		return nil, &Refusal{ID: "nomad-node", Text: err.Error(),
			Hint: "see whether each has joined this cluster (nomad node status), or say by --nomad-node which nodes count; --nomad off goes on without draining anything"}, nil
	case errors.As(err, &rights):
		return nil, rightsRefusal(rights), nil
	case errors.Is(err, drain.ErrNoNode) && auto && !theirs && len(r.Nodes) == 0:
		return nil, nil, nil
	case errors.Is(err, drain.ErrNoNode):
		return nil, &Refusal{ID: "nomad-node", Text: fmt.Sprintf("cannot tell which Nomad node this host is: %v", err),
			Hint: "name it with --nomad-node (nomad node status -self); --nomad off goes on without draining anything"}, nil
	case err != nil:
		return nil, nil, err
	}
	return &nomadSeen{client: c, conf: conf, nodes: nodes, allocs: allocs, spaces: spaces, units: nomadUnits(clients, cli.Owner.UID, mainPIDs(ctx))}, nil, nil
}

func rightsRefusal(e *drain.RightsError) *Refusal {
	return &Refusal{ID: "nomad-rights", Text: e.Error(), Hint: "apply this policy to the token:", Policy: e.Policy}
}

// operator is who asks, for people who look at a drain.
func operator() string {
	name := os.Getenv("SUDO_USER")
	if u, err := user.Current(); err == nil && name == "" {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return name + "@" + host
}

// staying leaves out the containers that will be gone before podman is stopped:
// those of Nomad, and those at work that are waited for.
func (a *Assessment) staying(ctx context.Context, cli podman.CLI, cs []libpoddb.Container) ([]libpoddb.Container, error) {
	busy, use := a.Inputs.Request.Outage.Busy.Labels, a.Inputs.Nomad
	if len(cs) == 0 || (use == nil && len(busy) == 0) {
		return cs, nil
	}
	list, err := cli.Containers(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(cs), func(c libpoddb.Container) bool {
		i := slices.IndexFunc(list, func(l podman.Container) bool { return l.ID == c.ID })
		if i < 0 {
			return false
		}
		alloc, is := drain.IsNomads(list[i].Names, list[i].Labels)
		return (use != nil && is && alloc != use.OwnAlloc) || (drain.Running(list[i].State) && drain.Matches(list[i].Labels, busy))
	}), nil
}

// nodeNames is the nodes of a run, for people.
func (u *NomadUse) nodeNames() string {
	names := make([]string, len(u.Nodes))
	for i, n := range u.Nodes {
		names[i] = fmt.Sprintf("%s (%s)", n.Name, n.ID[:min(8, len(n.ID))])
		if !n.Eligible {
			names[i] += ", ineligible before and after"
		}
	}
	return strings.Join(names, ", ")
}
