package integration

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
)

// TestCephFSSweep kills a move into CephFS at its points, as TestRelocateSweep does
// one to a disk.
func TestCephFSSweep(t *testing.T) {
	t.Parallel()
	c := newCephFS(t)
	s := &cephSweep{world: onFiles(t, c, lab.Owner), cluster: c, name: "into CephFS", keys: []string{"files"}}
	s.args = func() []string {
		args := s.toFiles()
		args[2] = fmt.Sprintf("cephfs:/round%d", s.round)
		return args
	}
	s.forget = s.evictFiles
	s.on = func() { s.onCephFS(s.before) }
	s.off = func() { s.offCephFS(s.before) }
	s.sweep(t)
}

// evictFiles has the cluster forget at once who has mounted its CephFS.
func (s *cephSweep) evictFiles() {
	s.t.Helper()
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
}
