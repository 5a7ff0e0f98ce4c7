package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab/ceph"
)

// cephSweep is one node whose store is moved onto a cluster, and killed, again and again.
type cephSweep struct {
	*world
	way
	cluster *ceph.Cluster
	name    string // in the report
	keys    []string
	round   int
	before  inventory
	store   inventory
	points  int // of a move

	args    func() []string // the move, to a target of this round's own
	forget  func()          // has the cluster forget the node, which is dead
	on, off func()          // assert where the store is
}

// sweep takes all ways, one after the other: at one point of each, or with
// STORAGECTL_SWEEP=full at all.
func (s *cephSweep) sweep(t *testing.T) {
	mode := os.Getenv("STORAGECTL_SWEEP")
	full := mode == "full" || mode == "half"
	report := newSweepReport(t)
	s.before, s.store = s.manifest(), s.world.store()
	for i, way := range ways() {
		if way.killed != nil && mode == "" {
			continue
		}
		t.Run(strings.ReplaceAll(way.name, " ", "-"), func(t *testing.T) {
			defer s.in(t)()
			s.way = way
			start, tried, failed := time.Now(), 0, 0
			points := s.count()
			at := chosen(t, points, i, full)
			if mode == "" {
				at = []int{points * (2 + 3*i) / 7} // on its way to the target resumed, in the cutover rolled back
			}
			defer func() { report.add("bookworm", s.user+", "+s.name, way.name, points, tried, tried-failed, start) }()
			for _, n := range at {
				tried++
				if !t.Run(fmt.Sprintf("point-%d-of-%d", n, points), func(t *testing.T) {
					defer s.in(t)()
					s.at(n)
				}) {
					failed++
				}
				if failed == 5 {
					t.Fatal("enough failures to look at")
				}
			}
		})
	}
}

// in has a test of its own judge what is done until out.
func (s *cephSweep) in(t *testing.T) (out func()) {
	was := s.t
	s.t = t
	return func() { s.t = was }
}

// count is how many points what is killed has.
func (s *cephSweep) count() int {
	s.t.Helper()
	if s.way.killed == nil && s.points > 0 {
		return s.points
	}
	if s.round > 0 { // else it has just been booted
		s.reset()
	}
	if s.way.killed == nil {
		s.points = s.world.points(s.args()...)
		return s.points
	}
	s.must(s.args()...)
	return s.world.points(s.way.killed...)
}

// reset boots the node as it was, and has the cluster forget what it was.
func (s *cephSweep) reset() {
	s.t.Helper()
	if err := s.node.Reset(s.ctx); err != nil {
		s.t.Fatal(err)
	}
	s.forget()
	s.round++
	if err := s.cluster.Install(s.ctx, s.node, s.keys...); err != nil {
		s.t.Fatal(err)
	}
	s.podman("ps")
}

func (s *cephSweep) at(n int) {
	s.t.Helper()
	s.reset()
	s.killAndGoOn(n, s.way, s.args(), s.off, s.on)
	if s.back {
		s.same("the folders of the store", s.store, s.world.store())
	}
}
