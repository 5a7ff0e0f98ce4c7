package verify

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containers/storage/pkg/reexec"
)

func TestMain(m *testing.M) {
	if reexec.Init() { // containers/storage runs this program again for some mounts
		return
	}
	os.Exit(m.Run())
}

// testPodman is real podman on a store of its own.
type testPodman struct {
	ref StoreRef
	env []string
	arg []string
}

func newPodman(t *testing.T, driver string) testPodman {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "containers.conf")
	// The machine's cgroups may have no controllers.
	text := "[containers]\npids_limit = 0\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := testPodman{
		ref: StoreRef{GraphRoot: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"), Driver: driver},
		env: append(os.Environ(), "CONTAINERS_CONF="+conf),
	}
	p.arg = []string{"--root", p.ref.GraphRoot, "--runroot", p.ref.RunRoot, "--tmpdir", filepath.Join(dir, "tmp"), "--storage-driver", driver}
	t.Cleanup(func() {
		// The overlay driver leaves its folder mounted on itself.
		if out, err := exec.Command("umount", "-q", filepath.Join(p.ref.GraphRoot, "overlay")).CombinedOutput(); driver == "overlay" && err != nil {
			t.Logf("umount: %v %s", err, out)
		}
	})
	return p
}

func (p testPodman) run(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "podman", append(append([]string{}, p.arg...), args...)...)
	cmd.Env, cmd.Stdin = p.env, stdin
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, &podmanError{err: err, stderr: strings.TrimSpace(stderr.String())}
	}
	return out, nil
}

func (p testPodman) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := p.run(t.Context(), nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

type podmanError struct {
	err    error
	stderr string
}

func (e *podmanError) Error() string { return e.err.Error() + ": " + e.stderr }
func (e *podmanError) Unwrap() error { return e.err }

var errTest = errors.New("broken by the test")
