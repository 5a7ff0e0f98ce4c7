package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// TestRelocateSweep kills a relocation at its points, as TestSweep does a
// migration; a whole sweep does the way home and a conversion on the way, too.
func TestRelocateSweep(t *testing.T) {
	mode := os.Getenv("STORAGECTL_SWEEP")
	full := mode == "full" || mode == "half"
	report := newSweepReport(t)
	const homeAgain, convertedToo = "home again", "relocated to overlay"
	type cell struct{ user, move string }
	cells := []cell{{lab.Owner, "relocated"}}
	if mode != "" {
		cells = append(cells, cell{"root", "relocated"})
		for _, user := range []string{lab.Owner, "root"} {
			cells = append(cells, cell{user, homeAgain}, cell{user, convertedToo})
		}
	}
	for _, c := range cells {
		for i, way := range ways() {
			t.Run(c.user+"/"+strings.ReplaceAll(c.move, " ", "-")+"/"+strings.ReplaceAll(way.name, " ", "-"), func(t *testing.T) {
				t.Parallel()
				s := &moveSweep{world: newWorld(t, "bookworm", c.user, images.Small), way: way, homeward: c.move == homeAgain}
				if c.move == convertedToo {
					s.to = "overlay"
				}
				start := time.Now()
				s.reset()
				s.before = s.manifest()
				args := s.args()
				if way.killed != nil {
					s.must(args...)
					args = way.killed
				}
				points := s.points(args...)
				tried, failed := 0, 0
				defer func() { report.add("bookworm", c.user+", "+c.move, way.name, points, tried, tried-failed, start) }()
				for _, n := range chosen(t, points, i, full) {
					tried++
					if !t.Run(fmt.Sprintf("point-%d-of-%d", n, points), func(t *testing.T) {
						w := *s.world
						w.t = t
						(&moveSweep{world: &w, way: way, homeward: s.homeward, to: s.to, before: s.before}).at(n)
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
}

// moveSweep is one node whose store is moved, and killed, again and again.
type moveSweep struct {
	*world
	way
	homeward bool   // what is killed is the way home, from where a committed run has moved it
	to       string // the driver to convert to; "": none
	before   inventory
	boots    string // what a boot was told at the last reset
}

func (s *moveSweep) args() []string {
	if s.homeward {
		return s.world.homeward()
	}
	return s.there()
}

// there is the way to another folder.
func (s *moveSweep) there() []string {
	args := s.relocate()
	args[2] = s.target()
	if s.to != "" {
		args = append(args, "--to", s.to)
	}
	return args
}

func (s *moveSweep) target() string {
	if s.to != "" {
		return "/srv/disk"
	}
	return "/opt/there"
}

func (s *moveSweep) reset() {
	s.t.Helper()
	if err := s.node.Reset(s.ctx); err != nil {
		s.t.Fatal(err)
	}
	if s.to != "" { // a filesystem of its own: else files are linked
		s.disk("xfs", "1G")
	}
	s.script("root", "mkdir -p /opt/there")
	s.podman("ps")
	if s.homeward {
		s.must(append(s.there(), "--commit")...)
	}
	s.boots = s.booted()
}

func (s *moveSweep) at(n int) {
	s.t.Helper()
	s.reset()
	s.killAndGoOn(n, s.way, s.args(), s.asItWas, s.moved)
}

// moved asserts that the store is where it was to go.
func (s *moveSweep) moved() {
	s.t.Helper()
	if s.homeward {
		s.isHome(s.before)
		if out := s.script("root", "ls -d /opt/there/storage-* 2>/dev/null || true"); s.way.killed != nil && out != "" {
			s.t.Errorf("left after the commit: %s", out)
		}
		return
	}
	s.same("the store", s.before, s.manifest())
	if d := s.driver(); s.to != "" && d != s.to {
		s.t.Errorf("podman is on %s", d)
	}
	if out := s.script("root", "stat -c %i "+s.graphroot()+" "+s.target()+"/storage-"+s.user); len(strings.Fields(out)) != 2 || strings.Fields(out)[0] != strings.Fields(out)[1] {
		s.t.Errorf("the store is not on the target: %s", out)
	}
}

// asItWas asserts that the store is where it was, and that boots are told of it as
// they were, byte for byte.
func (s *moveSweep) asItWas() {
	s.t.Helper()
	s.same("the store", s.before, s.manifest())
	if d := s.driver(); s.to != "" && d != "vfs" {
		s.t.Errorf("podman is on %s", d)
	}
	if now := s.booted(); now != s.boots {
		s.t.Errorf("a boot is told otherwise than before:\n%s\n--- before\n%s", now, s.boots)
	}
	if out := s.script("root", "ls -d "+s.graphroot()+".storagectl-* 2>/dev/null | grep -v -e -new$ || true; ls /run/storagectl/mounts 2>/dev/null || true"); out != "" {
		s.t.Errorf("left: %s", out)
	}
}
