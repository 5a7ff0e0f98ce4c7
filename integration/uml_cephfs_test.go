//go:build uml

package integration

import (
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
)

// TestUMLRelocateCephFS: a store on vfs goes into a folder of CephFS that the
// kernel mounts, is there after an ordered restart and after a power cut, with
// podman waiting for it, and comes back.
func TestUMLRelocateCephFS(t *testing.T) {
	c := newCephFS(t)
	w := newMachine(t, c, lab.Owner, "files")
	before := w.manifest()
	began := time.Now()
	w.must(w.toFiles()...)
	t.Logf("moved after %.0f s", time.Since(began).Seconds())
	w.onKernelCephFS()
	w.restart((*lab.Node).Poweroff)
	w.onKernelCephFS()
	w.same("the store", before, w.manifest())
	w.restart((*lab.Node).Kill)
	w.onKernelCephFS()
	w.must("rollback")
	w.offCephFS(before)
}

// onKernelCephFS asserts that the store is on CephFS by the kernel's client, that
// what runs at boot ran on it, that no unit failed, and that nobody but root sees
// the key.
func (w *world) onKernelCephFS() {
	w.t.Helper()
	w.ranAtBoot()
	out := w.script("root", `findmnt -nro SOURCE,FSTYPE `+w.graphroot()+`
systemctl --failed --no-legend --plain | cut -d' ' -f1
key=$(sed -n 's/.*key = //p' /etc/ceph/ceph.client.files.keyring)
grep -rlF "$key" /proc/mounts /etc/fstab /etc/systemd || true`)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "systemd-1 ") || !strings.Contains(lines[1], "/storage-"+w.user+" ceph") {
		w.t.Errorf("the store is not where it should be, or something failed, or the key is seen: %s", out)
	}
}
