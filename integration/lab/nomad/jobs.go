package nomad

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"
)

// ServiceJob is a service of count podman containers, at most one a node unless
// there are fewer nodes.
func ServiceJob(id, image string, count int) *api.Job {
	task := api.NewTask("main", "podman").SetConfig("image", image).
		SetConfig("command", "/bin/busybox").SetConfig("args", []string{"sleep", "100000"}).
		SetConfig("network_mode", "none").SetConfig("init", false)
	task.KillTimeout = new(2 * time.Second)
	task.Resources = &api.Resources{CPU: new(20), MemoryMB: new(32)}
	task.LogConfig = &api.LogConfig{MaxFiles: new(1), MaxFileSizeMB: new(1)}
	group := api.NewTaskGroup("group", count).AddTask(task)
	group.EphemeralDisk = &api.EphemeralDisk{SizeMB: new(10)}
	group.Migrate = &api.MigrateStrategy{MaxParallel: new(1), HealthCheck: new("task_states"),
		MinHealthyTime: new(time.Second), HealthyDeadline: new(time.Minute)}
	group.Update = &api.UpdateStrategy{HealthCheck: new("task_states"), MinHealthyTime: new(time.Second)}
	job := api.NewServiceJob(id, id, "global", 50).AddTaskGroup(group).AddDatacenter("dc1")
	job.Spreads = []*api.Spread{{Attribute: "${node.unique.id}", Weight: new(int8(100))}}
	return job
}

// RunJob registers a job and waits until count allocations of it run.
func (c *Cluster) RunJob(ctx context.Context, job *api.Job, count int) error {
	client, err := c.API(c.Token)
	if err != nil {
		return err
	}
	if _, _, err := client.Jobs().Register(job, nil); err != nil {
		return err
	}
	var why string
	err = poll(ctx, 4*time.Minute, "the job running", func() (bool, error) {
		allocs, err := c.Allocs(*job.ID)
		if err != nil {
			return false, err
		}
		running := 0
		why = ""
		for _, a := range allocs {
			if a.ClientStatus == api.AllocClientStatusRunning {
				running++
			}
			for _, t := range a.TaskStates {
				for _, e := range t.Events {
					why += "\n" + e.Type + ": " + e.DisplayMessage
				}
			}
		}
		return running >= count, nil
	})
	if err != nil {
		return errors.Join(err, fmt.Errorf("its last word: %s", why))
	}
	return nil
}

// Allocs lists the allocations of a job.
func (c *Cluster) Allocs(job string) ([]*api.AllocationListStub, error) {
	client, err := c.API(c.Token)
	if err != nil {
		return nil, err
	}
	allocs, _, err := client.Jobs().Allocations(job, true, nil)
	return allocs, err
}

// On holds a job to a client's node.
func On(job *api.Job, cl *Client) *api.Job {
	return job.Constrain(api.NewConstraint("${node.unique.id}", "=", cl.ID))
}

// ExecJob is a job of one command, without a container.
func ExecJob(id, kind string, argv ...string) *api.Job {
	task := api.NewTask("main", "raw_exec").SetConfig("command", argv[0]).SetConfig("args", argv[1:])
	task.Resources = &api.Resources{CPU: new(20), MemoryMB: new(32)}
	task.LogConfig = &api.LogConfig{MaxFiles: new(1), MaxFileSizeMB: new(1)}
	group := api.NewTaskGroup("group", 1).AddTask(task)
	group.EphemeralDisk = &api.EphemeralDisk{SizeMB: new(10)}
	group.RestartPolicy = &api.RestartPolicy{Attempts: new(0), Mode: new("fail")}
	group.ReschedulePolicy = &api.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)}
	return &api.Job{ID: &id, Name: &id, Type: &kind, Datacenters: []string{"*"}, TaskGroups: []*api.TaskGroup{group}}
}

// FinishJob registers a batch job and waits until its allocation has ended.
func (c *Cluster) FinishJob(ctx context.Context, job *api.Job, limit time.Duration) (*api.AllocationListStub, error) {
	client, err := c.API(c.Token)
	if err != nil {
		return nil, err
	}
	reg, _, err := client.Jobs().Register(job, nil)
	if err != nil {
		return nil, err
	}
	var last *api.AllocationListStub
	err = poll(ctx, limit, "the end of job "+*job.ID, func() (bool, error) {
		allocs, err := c.Allocs(*job.ID)
		if err != nil {
			return false, nil //nolint:nilerr // not yet
		}
		for _, a := range allocs { // those of an earlier job of that name, too
			if a.CreateIndex > reg.JobModifyIndex {
				last = a
			}
		}
		if last == nil {
			return false, nil
		}
		return slices.Contains([]string{api.AllocClientStatusComplete, api.AllocClientStatusFailed, api.AllocClientStatusLost}, last.ClientStatus), nil
	})
	return last, err
}

// Log is what an allocation's task has written to stdout and stderr.
func (cl *Client) Log(ctx context.Context, alloc, task string) (string, error) {
	return cl.Run(ctx, "root", "sh", "-c", `cat "/var/lib/$1/data/alloc/$2/alloc/logs/$3".std*`, "sh", cl.unit, alloc, task)
}
