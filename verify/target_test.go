package verify

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func probeDir(t *testing.T, dir string) TargetReport {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := namesIn(t, dir)
	r, err := ProbeTarget(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	if after := namesIn(t, dir); !slices.Equal(before, after) {
		t.Errorf("left behind: %q, was %q", after, before)
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), "storagectl-probe") {
		t.Errorf("mount left behind (%v)", err)
	}
	return r
}

func namesIn(t *testing.T, dir string) []string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

// loop makes a filesystem in a file and mounts it, in the tests' own mount namespace.
func loop(t *testing.T, options, mkfs string, args ...string) string {
	t.Helper()
	img, at := filepath.Join(t.TempDir(), "img"), t.TempDir()
	if err := errors.Join(os.WriteFile(img, nil, 0o600), os.Truncate(img, 400<<20)); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{append(append([]string{mkfs}, args...), img), {"mount", "-o", "loop" + options, img, at}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

func missing(r TargetReport) []string {
	var names []string
	for _, f := range r.Features {
		if !f.OK {
			names = append(names, f.Name)
		}
	}
	return names
}

func wantNative(t *testing.T, r TargetReport, want bool, lacks ...string) {
	t.Helper()
	if ok, why := r.Native(); ok != want {
		t.Errorf("native overlay on %s: %v, want %v: %q", r.Type, ok, want, why)
	}
	if got := missing(r); !slices.Equal(got, lacks) {
		t.Errorf("%s lacks %q, want %q: %+v", r.Type, got, lacks, r.Features)
	}
}

func TestProbeTarget(t *testing.T) {
	wantNative(t, probeDir(t, t.TempDir()), true)
	if os.Getenv(inside) == asOwner {
		return // mounts are root's
	}
	for _, tc := range []struct{ kind, options string }{{"xfs", ""}, {"ext4", ""}} {
		t.Run(tc.kind, func(t *testing.T) {
			r := probeDir(t, loop(t, tc.options, "mkfs."+tc.kind, "-q"))
			wantNative(t, r, true)
			if r.Type != tc.kind || r.UserNS || r.Free == 0 || r.Free > r.Size || r.InodesFree == 0 {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestProbeTargetFindsWhatIsMissing(t *testing.T) {
	t.Run("types in folders", func(t *testing.T) {
		r := probeDir(t, loop(t, "", "mkfs.ext4", "-q", "-O", "^filetype"))
		// An overlay can be mounted there, but shows whiteouts as files.
		wantNative(t, r, false, "type of files in folders (d_type)", "an overlay mount")
		if ok, why := r.Store(); !ok {
			t.Errorf("no store there: %q", why)
		}
	})
	t.Run("nosuid", func(t *testing.T) {
		r := probeDir(t, loop(t, ",nosuid", "mkfs.ext4", "-q"))
		wantNative(t, r, true, "mounted without nosuid")
		if w := r.Warnings(); len(w) != 1 || !strings.Contains(w[0], "setuid programs") {
			t.Errorf("%q", w)
		}
	})
	for option, name := range map[string]string{"noexec": "mounted without noexec", "ro": "mounted for writing"} {
		t.Run(option, func(t *testing.T) {
			r := probeDir(t, loop(t, ","+option, "mkfs.ext4", "-q"))
			if ok, _ := r.Store(); ok {
				t.Errorf("a store on %s: %+v", option, r.Features)
			}
			if got := missing(r); len(got) == 0 || got[0] != name {
				t.Errorf("lacks %q", got)
			}
		})
	}
	t.Run("an overlay", func(t *testing.T) {
		at, dir := t.TempDir(), t.TempDir()
		for _, d := range []string{"lower", "upper", "work"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Mount("overlay", at, "overlay", 0, "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(at, 0) })
		wantNative(t, probeDir(t, at), false, "whiteouts by mknod 0:0", "RENAME_WHITEOUT", "an overlay mount")
	})
	t.Run("memory", func(t *testing.T) {
		at := t.TempDir()
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=10m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(at, 0) })
		if r := probeDir(t, at); r.Type != "tmpfs" || r.Size != 10<<20 {
			t.Errorf("%+v", r)
		}
	})
}

func TestProbeProgram(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := ProbeProgram(t.Context(), f, "/usr/bin/fuse-overlayfs"); err != nil || !got.OK || got.Need != NeedProgram {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := ProbeProgram(t.Context(), f, "/bin/false"); err != nil || got.OK {
		t.Errorf("%+v %v", got, err)
	}
	if names := namesIn(t, dir); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
}

func TestProbeTargetGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := ProbeTarget(ctx, f); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if names := namesIn(t, dir); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
}

// The owner of a rootless store, in the user namespace that podman makes for them.
func TestProbeTargetAsOwner(t *testing.T) {
	if os.Getenv(inside) == asOwner {
		return
	}
	mine, roots := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Chown(mine, 2000, 2000), os.Chmod(filepath.Dir(mine), 0o711)); err != nil {
		t.Fatal(err)
	}
	run := func(tmp string) (string, error) {
		ids := func() []syscall.SysProcIDMap {
			return []syscall.SysProcIDMap{{ContainerID: 0, HostID: 2000, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 65536}}
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^(TestProbeTarget|TestProbeProgram|TestProbeTargetInRoots)$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"="+asOwner, "TMPDIR="+mine, "STORAGECTL_TEST_ROOTS="+tmp)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: ids(), GidMappings: ids(), GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{},
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run(roots)
	if err != nil || !strings.Contains(out, "--- PASS: TestProbeTargetInRoots") {
		t.Errorf("%v\n%s", err, out)
	}
}

// A folder that is not the owner's is no place for a store of theirs.
func TestProbeTargetInRoots(t *testing.T) {
	if os.Getenv(inside) != asOwner {
		return // the inner run of TestProbeTargetAsOwner
	}
	dir := os.Getenv("STORAGECTL_TEST_ROOTS")
	r := probeDir(t, dir)
	if ok, why := r.Store(); ok || !slices.Contains(why, "can be written to: mkdir: permission denied") || !r.UserNS {
		t.Errorf("%v %q %+v", ok, why, r)
	}
}
