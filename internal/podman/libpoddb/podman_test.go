package libpoddb

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// realStore is a vfs store made by the podman of this machine.
type realStore struct {
	t                           *testing.T
	dir, root, run, tmp, driver string
}

// newRealStore makes a store with a volume, a pod and two containers in states
// "configured", with the driver's name in places where it must stay.
func newRealStore(t *testing.T) *realStore {
	t.Helper()
	dir := t.TempDir()
	s := &realStore{t: t, dir: dir, root: filepath.Join(dir, "root"), run: filepath.Join(dir, "run"), tmp: filepath.Join(dir, "tmp"), driver: "vfs"}
	img := filepath.Join(dir, "img")
	if err := os.MkdirAll(img, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(img, "hello"), []byte("hi\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tarball := filepath.Join(dir, "img.tar")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "tar", "-C", img, "-cf", tarball, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	s.podman("import", tarball, "localhost/tiny:1")
	s.podman("volume", "create", "vol1")
	s.podman("pod", "create", "--name", "pod1", "--infra=false")
	s.podman("create", "--name", "c1", "--label", "path="+s.root+"/vfs-containers/x", "--env", "P="+s.root+"/vfs-containers/y",
		"--annotation", "a="+s.root+"/vfs-containers/z", "--env", `Q=<a&b>"\`, "-v", "vol1:/v", "-v", dir+"/img:/vfs-containers", "localhost/tiny:1", "/bin/true", s.root+"/vfs-containers/arg")
	s.podman("create", "--name", "c2", "--pod", "pod1", "localhost/tiny:1", "/bin/true")
	return s
}

func (s *realStore) db() string { return filepath.Join(s.root, "libpod", "bolt_state.db") }

func (s *realStore) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// A storage.conf of its own: none of the machine's matters.
	conf := filepath.Join(s.dir, "storage.conf")
	text := "[storage]\ndriver = \"" + s.driver + "\"\ngraphroot = \"" + s.root + "\"\nrunroot = \"" + s.run + "\"\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return "", err
	}
	all := []string{"--tmpdir", s.tmp, "--events-backend", "none", "--cgroup-manager", "cgroupfs"}
	cmd := exec.CommandContext(ctx, "podman", append(all, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_STORAGE_CONF="+conf)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (s *realStore) podman(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// TestRealPodmanFollows: podman obeys the database against its configuration,
// and after SetDriver it uses the new driver without a word, with its
// containers, pod and volume known as before.
func TestRealPodmanFollows(t *testing.T) {
	ctx := context.Background()
	s := newRealStore(t)
	// The overlay driver mounts its folder upon itself.
	t.Cleanup(func() { _ = syscall.Unmount(filepath.Join(s.root, "overlay"), syscall.MNT_DETACH) })
	objects := func() string {
		t.Helper()
		return s.podman("ps", "-a", "--format", "{{.ID}} {{.Names}} {{.Pod}} {{.Labels}}", "--sort", "names") + s.podman("volume", "ls", "-q") + s.podman("pod", "ps", "-q")
	}
	before := objects()

	s.driver = "overlay"
	if out := s.podman("info", "--format", "{{.Store.GraphDriverName}}"); !strings.HasSuffix(out, "vfs") || !strings.Contains(out, "overwritten by graph driver") {
		t.Errorf("podman did not put the database first: %q", out)
	}
	if err := SetDriver(ctx, s.db(), "vfs", "overlay", Moves{}); err != nil {
		t.Fatal(err)
	}
	if out := s.podman("info", "--format", "{{.Store.GraphDriverName}}"); out != "overlay" {
		t.Errorf("podman says %q", out)
	}
	if after := objects(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}
