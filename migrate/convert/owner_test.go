package convert

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestAsOwner runs the tests that need no devices once more as an unprivileged
// store owner is run: root of a user namespace that maps to uid 2000 and its
// subordinate ids, in a mount namespace of its own. There deletions are still
// 0:0 devices, and opaque folders are marked by user.overlay.opaque.
func TestAsOwner(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chown(dir, 2000, 2000))
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	const tests = "^(TestEveryKindOfChange|TestLayersWithoutList|TestMappedLayer|TestNamesDanglingManifestLists|TestFollowsTheSource|TestAdditionalStore|TestContainers|TestDamage|TestKilledAnywhere|TestOtherBoot|TestSurveyAndStagedWriteNothing|TestRandomLayers|TestToVfs|TestMappedToVfs|TestMappedUnfuse)$"
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.run", tests)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir, "XDG_RUNTIME_DIR="+dir, "STORAGECTL_CONVERT_OWNER=1")
	ids := func() []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: 0, HostID: 2000, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 65536}}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: ids(), GidMappings: ids(), GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), "\n--- PASS"); n != strings.Count(tests, "|")+1 {
		t.Errorf("%d tests passed:\n%s", n, out)
	}
}
