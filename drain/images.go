package drain

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// JobName is a name that a job's task has in its configuration.
type JobName struct {
	Name      string // of an image, or what stands before the first colon of a volume
	Job       string
	Namespace string
}

// JobNames are the images and named volumes of all tasks that Nomad may still place on
// one of the nodes, by the podman driver: of jobs that are neither stopped nor, if they end
// by themselves, over, of the versions that such a job may be reverted to by itself, and of
// what is placed on the nodes. Where it is placed is
// judged by datacenter and node pool alone; other constraints may change.
//
// allocs are those whose containers are seen here: one that the token cannot see, or a
// namespace whose jobs it may not read, is a [*RightsError].
func (c *Client) JobNames(ctx context.Context, nodes []Node, r Rights) ([]JobName, error) {
	spaces, err := c.namespaces(ctx)
	if err != nil {
		return nil, err
	}
	for _, ns := range r.Namespaces {
		if !slices.Contains(spaces, ns) {
			spaces = append(spaces, ns)
		}
	}
	var all []JobName
	var blind []string
	for _, ns := range spaces {
		names, err := c.namesIn(ctx, ns, nodes)
		if forbidden(err) {
			blind = append(blind, ns)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read Nomad's jobs: %w", err)
		}
		all = append(all, names...)
	}
	names, err := c.namesHere(ctx, nodes)
	if err == nil {
		all = append(all, names...)
	}
	if status(err) == http.StatusForbidden {
		return nil, readRights([]string{"node:read"}, spaces)
	}
	if err != nil {
		return nil, err
	}
	unseen, err := c.unseen(ctx, nodes, r.Allocs)
	if status(err) == http.StatusForbidden {
		return nil, readRights([]string{"node:read"}, spaces)
	}
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, ns := range blind {
		missing = append(missing, "list-jobs and read-job in namespace "+ns)
	}
	if len(unseen) > 0 && len(blind) == 0 {
		missing, spaces = append(missing, "read-job in the namespace of the allocations "+strings.Join(unseen, ", ")), []string{"*"}
	}
	if len(missing) > 0 {
		return nil, readRights(missing, spaces)
	}
	return all, nil
}

// readRights is the error of a token that may not read jobs.
func readRights(missing, spaces []string) *RightsError {
	var b strings.Builder
	b.WriteString("node {\n  policy = \"read\"\n}\n")
	for _, ns := range spaces {
		fmt.Fprintf(&b, "namespace %q {\n  capabilities = [\"list-jobs\", \"read-job\"]\n}\n", ns)
	}
	return &RightsError{Missing: missing, Policy: b.String()}
}

func (c *Client) namesIn(ctx context.Context, ns string, nodes []Node) ([]JobName, error) {
	q := func(ctx context.Context) *api.QueryOptions {
		o := query(ctx)
		o.Namespace = ns
		return o
	}
	var stubs []*api.JobListStub
	if err := c.few(ctx, func(ctx context.Context) (err error) {
		stubs, _, err = c.api.Jobs().List(q(ctx))
		return err
	}); err != nil {
		return nil, err
	}
	var all []JobName
	for _, s := range stubs {
		over := s.Status == "dead" && (s.Type == api.JobTypeBatch || s.Type == api.JobTypeSysbatch)
		if s.Stop || over && !s.Periodic && !s.ParameterizedJob { // a service that is scaled to zero is dead, too
			continue
		}
		var job *api.Job
		err := c.few(ctx, func(ctx context.Context) (err error) {
			job, _, err = c.api.Jobs().Info(s.ID, q(ctx))
			return err
		})
		if status(err) == http.StatusNotFound {
			continue // purged meanwhile
		}
		if err != nil {
			return nil, err
		}
		if !placeable(job, nodes) {
			continue
		}
		all = append(all, namesOf(job, ns)...)
		if !reverts(job) {
			continue
		}
		var versions []*api.Job
		err = c.few(ctx, func(ctx context.Context) (err error) {
			versions, _, _, err = c.api.Jobs().Versions(s.ID, false, q(ctx))
			return err
		})
		if err != nil && status(err) != http.StatusNotFound {
			return nil, err
		}
		for _, v := range versions {
			if v.Stable != nil && *v.Stable {
				all = append(all, namesOf(v, ns)...)
			}
		}
	}
	return all, nil
}

// namesHere are the names of what is placed on the nodes: in a rollout that is paused
// that is an older version of its job, which is restarted as such.
func (c *Client) namesHere(ctx context.Context, nodes []Node) ([]JobName, error) {
	var all []JobName
	for _, n := range nodes {
		allocs, err := c.allocs(ctx, n.ID)
		if err != nil {
			return nil, err
		}
		for _, a := range allocs {
			over := a.ClientStatus == api.AllocClientStatusComplete ||
				(a.ClientStatus == api.AllocClientStatusFailed || a.ClientStatus == api.AllocClientStatusLost) && (a.DesiredStatus != api.AllocDesiredStatusRun || a.NextAllocation != "")
			if a.Job != nil && a.Job.ID != nil && !over {
				all = append(all, namesOf(a.Job, a.Namespace)...)
			}
		}
	}
	return all, nil
}

// placeable says whether a job's datacenters and node pool have one of the nodes.
func placeable(job *api.Job, nodes []Node) bool {
	pool := ""
	if job.NodePool != nil {
		pool = *job.NodePool
	}
	return slices.ContainsFunc(nodes, func(n Node) bool {
		if pool != "" && pool != "all" && n.Pool != "" && pool != n.Pool {
			return false
		}
		return len(job.Datacenters) == 0 || n.Datacenter == "" ||
			slices.ContainsFunc(job.Datacenters, func(dc string) bool { return Like(dc, n.Datacenter) })
	})
}

// reverts says whether Nomad goes back to an older version of a job by itself.
func reverts(job *api.Job) bool {
	auto := func(u *api.UpdateStrategy) bool { return u != nil && u.AutoRevert != nil && *u.AutoRevert }
	return auto(job.Update) || slices.ContainsFunc(job.TaskGroups, func(g *api.TaskGroup) bool { return auto(g.Update) })
}

func namesOf(job *api.Job, ns string) []JobName {
	var all []JobName
	add := func(name string) {
		if name != "" && !strings.HasPrefix(name, "/") {
			all = append(all, JobName{Name: name, Job: *job.ID, Namespace: ns})
		}
	}
	for _, g := range job.TaskGroups {
		for _, t := range g.Tasks {
			if t.Driver != "podman" {
				continue
			}
			if image, is := t.Config["image"].(string); is {
				add(image)
			}
			volumes, _ := t.Config["volumes"].([]any)
			for _, v := range volumes {
				if text, is := v.(string); is {
					name, _, _ := strings.Cut(text, ":")
					add(name)
				}
			}
		}
	}
	return all
}
