package integration

import (
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
)

// TestRelocateForgotten: a run that was cut off when it had made its image, and was
// forgotten, is rolled back when another run has long moved another store onto that
// image: nothing is taken from that one.
func TestRelocateForgotten(t *testing.T) {
	t.Parallel()
	c := newCeph(t)
	w := joined(t, c, lab.Owner)
	before := w.manifest()
	w.killedAt("systemctl", append(w.notMine(), "--size", "1G")...) // its image is made, and about to be served
	w.must(w.toImage()...)
	w.onImage(before)
	w.must("rollback", "1")
	w.onImage(before)
	w.must("commit", "2")
	w.powerCut()
	w.onImage(before)
}
