package drain

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"
)

func podmanJob(id, image string, change func(*api.Job)) *api.Job {
	j := api.NewServiceJob(id, id, "global", 50)
	j.Datacenters, j.NodePool, j.Status = []string{"*"}, ptr("default"), ptr("running")
	j.AddTaskGroup(api.NewTaskGroup("g", 1).AddTask(api.NewTask("t", "podman").SetConfig("image", image)))
	if change != nil {
		change(j)
	}
	return j
}

func ptr[T any](v T) *T { return &v }

// TestJobNames: what a job may still ask this node for is named, and nothing else.
func TestJobNames(t *testing.T) {
	f, c, n := faked(t)
	n.Datacenter, n.Pool = "dc1", "default"
	one := func(id string, change func(*api.Job)) {
		f.Jobs[id] = []*api.Job{podmanJob(id, "img-"+id+":1", change)}
	}
	f.Jobs = map[string][]*api.Job{}
	one("service", nil)
	one("here", func(j *api.Job) { j.Datacenters = []string{"other", "dc*"} })
	one("elsewhere", func(j *api.Job) { j.Datacenters = []string{"dc2"} })
	one("pool", func(j *api.Job) { j.NodePool = ptr("gpu") })
	one("all-pools", func(j *api.Job) { j.NodePool = ptr("all") })
	one("stopped", func(j *api.Job) { j.Stop, j.Status = ptr(true), ptr("dead") })
	one("over", func(j *api.Job) { j.Status, j.Type = ptr("dead"), ptr("batch") })
	one("scaled-to-zero", func(j *api.Job) { j.Status = ptr("dead") })
	one("nightly", func(j *api.Job) { j.Status, j.Type, j.Periodic = ptr("dead"), ptr("batch"), &api.PeriodicConfig{} })
	one("docker", func(j *api.Job) { j.TaskGroups[0].Tasks[0].Driver = "docker" })
	one("data", func(j *api.Job) {
		j.TaskGroups[0].Tasks[0].SetConfig("volumes", []string{"db:/var/lib/db", "/srv:/srv:ro"})
	})
	reverts := func(j *api.Job) { j.TaskGroups[0].Update = &api.UpdateStrategy{AutoRevert: ptr(true)} }
	f.Jobs["reverts"] = []*api.Job{podmanJob("reverts", "img-reverts:3", reverts),
		podmanJob("reverts", "img-reverts:2", nil), podmanJob("reverts", "img-reverts:1", func(j *api.Job) { j.Stable = ptr(true) })}

	// A rollout that is paused: the version before runs on here, and is restarted here.
	alloc := func(id, client, desired, next string) *api.Allocation {
		return &api.Allocation{ID: id, Namespace: "default", ClientStatus: client, DesiredStatus: desired, NextAllocation: next, Job: podmanJob("service", "img-"+id+":0", nil)}
	}
	f.Allocs = map[string][]*api.Allocation{n.ID: {alloc("runs", "running", "run", ""), alloc("to-stop", "running", "stop", ""), alloc("failed", "failed", "run", ""),
		alloc("moved", "failed", "run", "x"), alloc("ended", "complete", "run", ""), alloc("stopped-here", "failed", "stop", ""), {ID: "bare", ClientStatus: "running"}}}

	names, err := c.JobNames(t.Context(), []Node{n}, Rights{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range names {
		got = append(got, n.Name)
	}
	slices.Sort(got)
	want := []string{"db", "img-all-pools:1", "img-data:1", "img-failed:0", "img-here:1", "img-nightly:1", "img-reverts:1", "img-reverts:3", "img-runs:0", "img-scaled-to-zero:1", "img-service:1", "img-to-stop:0"}
	if !slices.Equal(got, want) {
		t.Errorf("\n got %v\nwant %v", got, want)
	}

	f.Do(func() { f.Blind = true })
	var rights *RightsError
	if _, err := c.JobNames(t.Context(), []Node{n}, Rights{}); !errors.As(err, &rights) || !strings.Contains(rights.Policy, "list-jobs") {
		t.Errorf("a token that may not read jobs: %v", err)
	}
}
