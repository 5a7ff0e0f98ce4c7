package integration

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
)

// TestRBDSweep kills a move onto an image at its points, as TestRelocateSweep does one
// to a disk. The image is mapped by librbd and FUSE.
func TestRBDSweep(t *testing.T) {
	t.Parallel()
	c := newCeph(t)
	s := &cephSweep{world: joined(t, c, lab.Owner), cluster: c, name: "onto RBD", keys: []string{"store"}}
	s.args, s.forget = s.toRound, s.removeImages
	s.on, s.off = s.onRound, s.offRound
	s.sweep(t)
}

// image is the image of this round: no other node's, as with [world.toImage].
func (s *cephSweep) image() string { return fmt.Sprintf("%s-round%d", s.node.Name, s.round) }

// toRound is the move onto it.
func (s *cephSweep) toRound() []string {
	args := s.toImage("--size", "1G", "--mapper", "fuse")
	args[2] = "rbd/" + s.image()
	return args
}

// watchers are the addresses of who has an image open.
func (s *cephSweep) watchers(image string) []string {
	s.t.Helper()
	out, err := s.cluster.RBD(s.ctx, "status", "--format", "json", "rbd/"+image)
	if err != nil {
		s.t.Fatal(err)
	}
	var status struct{ Watchers []struct{ Address string } }
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	var addrs []string
	for _, w := range status.Watchers {
		addrs = append(addrs, w.Address)
	}
	return addrs
}

func (s *cephSweep) images() []string {
	s.t.Helper()
	out, err := s.cluster.RBD(s.ctx, "ls", "rbd")
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Fields(out)
}

// removeImages removes what earlier rounds left: the cluster keeps its data in memory. Of
// a mapper that died with its node the cluster would think for half a minute that it lives.
func (s *cephSweep) removeImages() {
	s.t.Helper()
	for _, image := range s.images() {
		for _, addr := range s.watchers(image) {
			if _, err := s.cluster.Ceph(s.ctx, "osd", "blocklist", "add", addr); err != nil {
				s.t.Fatal(err)
			}
		}
		s.until("image "+image+" is gone", time.Minute, func() (bool, string) {
			_, err := s.cluster.RBD(s.ctx, "rm", "--no-progress", "rbd/"+image)
			return err == nil, fmt.Sprint(err)
		})
	}
}

// onRound asserts that the store is on this round's image, whole, and after a commit
// nowhere else.
func (s *cephSweep) onRound() {
	s.t.Helper()
	s.onImage(s.before)
	out := s.script("root", "findmnt -nro SOURCE "+s.graphroot()+" | tail -1; readlink -f /dev/rbd/rbd/"+s.image())
	if f := strings.Fields(out); len(f) != 2 || f[0] != f[1] {
		s.t.Errorf("the store is not on %s: %s", s.image(), out)
	}
	if out := s.script("root", "ls -d "+s.graphroot()+".storagectl-* 2>/dev/null || true; ls /run/storagectl/mounts"); s.way.killed != nil && out != "" {
		s.t.Errorf("left after the commit: %s", out)
	}
}

// offRound asserts that the store is where it was, that nothing of the image is left on
// the host, and that nobody has it open.
func (s *cephSweep) offRound() {
	s.t.Helper()
	s.same("the store", s.before, s.manifest())
	if out := s.script("root", `findmnt -nR `+s.graphroot()+` || true; pgrep -a storagectl || true; losetup -nlO BACK-FILE | grep `+s.image()+` || true
find /run/storagectl/mounts /run/storagectl/rbd /etc/storagectl/rbd -mindepth 1 2>/dev/null || true
find /dev/rbd -type l 2>/dev/null || true
ls -d `+s.graphroot()+`.storagectl-* /etc/systemd/system/storagectl-rbd-* /etc/systemd/system/*storage.*mount /etc/systemd/system/*.d/50-storagectl-* 2>/dev/null || true`); out != "" {
		s.t.Errorf("left: %s", out)
	}
	if slices.Contains(s.images(), s.image()) {
		if addrs := s.watchers(s.image()); len(addrs) > 0 {
			s.t.Errorf("image %s is open at %v", s.image(), addrs)
		}
	}
}
