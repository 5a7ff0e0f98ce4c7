package integration

import (
	"context"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
	"github.com/storagectl/storagectl/integration/lab/nomad"
)

// A nomadWorld is a cluster with two nodes that have images in a rootless vfs
// store.
type nomadWorld struct {
	*nomad.Cluster
	t   testing.TB
	ctx context.Context
	a   *world // on the first node
	b   *world
}

func newNomadWorld(t testing.TB, opts nomad.Options) *nomadWorld {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	t.Cleanup(cancel)
	seed, err := images.Store(ctx, "bookworm", lab.Owner, images.Small)
	if err != nil {
		t.Fatal(err)
	}
	c, err := nomad.Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("cannot remove the cluster: %v", err)
		}
	})
	w := &nomadWorld{Cluster: c, t: t, ctx: ctx}
	for range 2 {
		if _, err := c.AddClient(ctx, lab.Options{Release: "bookworm", Seed: seed}); err != nil {
			t.Fatal(err)
		}
	}
	w.a = &world{t: t, ctx: ctx, node: c.Clients[0].Node, user: lab.Owner}
	w.b = &world{t: t, ctx: ctx, node: c.Clients[1].Node, user: lab.Owner}
	return w
}

func TestNomadLab(t *testing.T) {
	began := time.Now()
	w := newNomadWorld(t, nomad.Options{})
	t.Logf("up after %s", time.Since(began))
	if err := w.RunJob(w.ctx, nomad.ServiceJob("web", "localhost/lab/base:1", 2), 2); err != nil {
		t.Fatal(err)
	}
	t.Logf("job after %s", time.Since(began))
	t.Log(w.a.podman("ps", "-a", "--format", "json"))
}
