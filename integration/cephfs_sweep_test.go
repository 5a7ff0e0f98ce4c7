package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/ceph"
)

// TestCephFSSweep kills a move into CephFS at its points, as TestRelocateSweep does
// one to a disk: at one of each way, or with STORAGECTL_SWEEP=full at all.
func TestCephFSSweep(t *testing.T) {
	t.Parallel()
	mode := os.Getenv("STORAGECTL_SWEEP")
	full := mode == "full" || mode == "half"
	c := newCephFS(t)
	w := onFiles(t, c, lab.Owner)
	s := &filesSweep{world: w, cluster: c, before: w.manifest(), store: w.store()}
	for i, way := range ways() {
		s.way = way
		s.reset()
		args := s.args()
		if way.killed != nil {
			if !full {
				continue
			}
			s.must(args...)
			args = way.killed
		}
		points := s.points(args...)
		at := chosen(t, points, i, full)
		if mode == "" {
			at = []int{points * (2 + 3*i) / 7} // resumed: unmounted, and not yet mounted to be read back
		}
		for _, n := range at {
			t.Run(fmt.Sprintf("%s/point-%d-of-%d", strings.ReplaceAll(way.name, " ", "-"), n, points), func(t *testing.T) {
				w := *s.world
				w.t = t
				again := *s
				again.world = &w
				defer func() { s.round = again.round }()
				again.at(n)
			})
		}
	}
}

// filesSweep is one node whose store is moved into CephFS, and killed, again and again.
type filesSweep struct {
	*world
	way
	cluster *ceph.Cluster
	before  inventory
	store   inventory
	round   int
}

// args move into a folder of this round's own.
func (s *filesSweep) args() []string {
	args := s.toFiles()
	args[2] = fmt.Sprintf("cephfs:/round%d", s.round)
	return args
}

// reset boots the node as it was, and has the cluster forget its clients at once.
func (s *filesSweep) reset() {
	s.t.Helper()
	s.round++
	if err := s.node.Reset(s.ctx); err != nil {
		s.t.Fatal(err)
	}
	out, err := s.cluster.Ceph(s.ctx, "tell", "mds.a", "session", "ls")
	if err != nil {
		s.t.Fatal(err)
	}
	var clients []struct{ ID int64 }
	if err := json.Unmarshal([]byte(out), &clients); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	for _, c := range clients {
		if _, err := s.cluster.Ceph(s.ctx, "tell", "mds.a", "client", "evict", fmt.Sprintf("id=%d", c.ID)); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := s.cluster.Install(s.ctx, s.node, "files"); err != nil {
		s.t.Fatal(err)
	}
	s.podman("ps")
}

func (s *filesSweep) at(n int) {
	s.t.Helper()
	s.reset()
	s.killAndGoOn(n, s.way, s.args(), func() { s.offCephFS(s.before) }, func() { s.onCephFS(s.before) })
	if s.back {
		s.same("the folders of the store", s.store, s.world.store())
	}
}
