package integration

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
)

// What a store on a disk of its own needs of systemd: automounts, drop-ins, their
// order in a cold boot, and a boot in which the disk is lost. The tests of the
// host's verbs do it, in a node, as their own program.
func TestMountUnitsOfANode(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	bin := filepath.Join(t.TempDir(), "host.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-tags="+tags, "-o", bin, "./internal/host")
	build.Dir = root(t)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, release := range []string{"bookworm", "trixie"} { // systemd 252 and 257
		t.Run(release, func(t *testing.T) { mountUnits(ctx, t, release, bin) })
	}
}

func mountUnits(ctx context.Context, t *testing.T, release, bin string) {
	node, err := lab.Boot(ctx, lab.Options{Release: release, Udev: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	})
	part := func(name string, tests ...string) {
		t.Helper()
		if err := node.CopyIn(ctx, "root", bin, "/root/host.test"); err != nil {
			t.Fatal(err)
		}
		out, err := node.Script(ctx, "root", "chmod +x /root/host.test; STORAGECTL_TEST_NODE="+name+" /root/host.test -test.v -test.run '^TestNode'")
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		for _, test := range tests {
			if !strings.Contains(out, "--- PASS: "+test) {
				t.Errorf("%s did not run:\n%s", test, out)
			}
		}
	}
	powerCut := func() {
		t.Helper()
		if err := node.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		if err := node.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	part("verbs", "TestNodeMountUnits", "TestNodeMountUnitFiles", "TestNodeDropIns")
	part("prepare", "TestNodePrepareColdBoot")
	powerCut()
	part("booted", "TestNodeAfterColdBoot")
	powerCut()
	part("lost", "TestNodeAfterDiskIsLost")
}
