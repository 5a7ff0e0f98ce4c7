package verify

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/verify/smoke"
)

func needSmokeProgram(t *testing.T) {
	t.Helper()
	if _, err := smoke.ProgramBytes(); err != nil {
		t.Fatalf("%v; for tests: go generate ./verify/...", err)
	}
}

// left is what a smoke test could leave in a store.
func left(t *testing.T, p testPodman) string {
	t.Helper()
	return p.must(t, "ps", "-a", "-q") + p.must(t, "images", "-a", "-q")
}

func TestSmoke(t *testing.T) {
	needSmokeProgram(t)
	for _, driver := range []string{"vfs", "overlay"} {
		t.Run(driver, func(t *testing.T) {
			p := newPodman(t, driver)
			r, err := Smoke(t.Context(), p.run, SmokeOptions{Driver: driver, Run: "r1"})
			if err != nil {
				t.Fatal(err)
			}
			if r.Driver != driver || r.ContainerDriver != driver || r.PodmanVersion == "" {
				t.Errorf("report %+v", r)
			}
			if driver == "overlay" && (r.RootFS != "overlay" || !r.Overlay.Native || r.Overlay.BackingFS == "") {
				t.Errorf("report %+v", r)
			}
			if driver == "vfs" && (r.RootFS == "overlay" || r.Overlay.Native) {
				t.Errorf("report %+v", r)
			}
			if got := left(t, p); got != "" {
				t.Errorf("left behind: %s", got)
			}
			t.Logf("took %s", r.Took)
		})
	}
}

func TestSmokeOwnImage(t *testing.T) {
	needSmokeProgram(t)
	p := newPodman(t, "overlay")
	// An image without a program of its own, that declares a volume, a user and
	// an entry point that does not exist.
	name := importImage(t, p, "localhost/mine:1", "--change", "VOLUME /v", "--change", "USER 7", "--change", `ENTRYPOINT ["/no"]`)
	r, err := Smoke(t.Context(), p.run, SmokeOptions{Driver: "overlay", Image: name})
	if err != nil {
		t.Fatal(err)
	}
	if r.Image != name || r.RootFS != "overlay" {
		t.Errorf("report %+v", r)
	}
	p.must(t, "image", "exists", name)
	if got := p.must(t, "ps", "-a", "-q") + p.must(t, "volume", "ls", "-q"); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

func importImage(t *testing.T, p testPodman, name string, options ...string) string {
	t.Helper()
	archive := tarOf(t, entry{name: "etc/", mode: 0o755}, entry{name: "etc/hello", mode: 0o644, data: "hello"})
	args := slices.Concat([]string{"import"}, options, []string{"-", name})
	if out, err := p.run(t.Context(), bytes.NewReader(archive), args...); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	return name
}

func TestSmokeWrongDriver(t *testing.T) {
	p := newPodman(t, "vfs")
	r, err := Smoke(t.Context(), p.run, SmokeOptions{Driver: "overlay"})
	if !errors.Is(err, ErrSmoke) || r.Driver != "vfs" {
		t.Fatalf("%+v, %v", r, err)
	}
	if got := left(t, p); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

// Each call of podman is made to fail, in turn, until nothing more is left to
// fail: the test must say so, leave nothing, and the next one must pass. Then
// the same with a test that is killed, which leaves what it made.
func TestSmokeEveryCallFails(t *testing.T) {
	needSmokeProgram(t)
	p := newPodman(t, "overlay")
	for n := 0; ; n++ {
		calls, failed := 0, ""
		broken := func(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
			if calls++; calls == n+1 {
				failed = strings.Join(args, " ")
				return nil, errTest
			}
			return p.run(ctx, stdin, args...)
		}
		_, err := Smoke(t.Context(), broken, SmokeOptions{Driver: "overlay", Run: "fails"})
		if failed == "" {
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d calls", n)
			return
		}
		if !errors.Is(err, errTest) {
			t.Errorf("call %d (%s) failed and the test said %v", n, failed, err)
		}
		if got := left(t, p); got != "" {
			t.Errorf("call %d (%s) failed and left %s", n, failed, got)
		}
	}
}

func TestSmokeSweepsLeftovers(t *testing.T) {
	needSmokeProgram(t)
	p := newPodman(t, "overlay")
	mine := importImage(t, p, "localhost/mine:1")
	p.must(t, "create", "--name", "mine", mine, "/x")
	before := p.must(t, "ps", "-a", "-q", "--no-trunc")
	// Everything fails from the third call after the container ran, removal too.
	dead := false
	killed := func(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
		if dead {
			return nil, errTest
		}
		dead = slices.Contains(args, "run")
		return p.run(ctx, stdin, args...)
	}
	if _, err := Smoke(t.Context(), killed, SmokeOptions{Run: "killed"}); !errors.Is(err, errTest) {
		t.Fatal(err)
	}
	if n := len(strings.Fields(p.must(t, "ps", "-a", "-q"))); n != 2 {
		t.Fatalf("%d containers, want mine and the leftover", n)
	}
	r, err := Smoke(t.Context(), p.run, SmokeOptions{Run: "next"})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Removed) != 2 {
		t.Errorf("removed %v, want a container and an image", r.Removed)
	}
	if after := p.must(t, "ps", "-a", "-q", "--no-trunc"); after != before {
		t.Errorf("containers %q, were %q", after, before)
	}
	p.must(t, "image", "exists", mine)
}

// A podman that lies or stays silent must not pass.
func TestSmokeIsNotFooled(t *testing.T) {
	needSmokeProgram(t)
	p := newPodman(t, "overlay")
	for _, lie := range []struct {
		on  string
		out string
		err error
	}{
		{on: "run"},
		{on: "run", out: `{"smoke":"other","root_fs_magic":1}`, err: &host.ExitError{Code: 42}},
		{on: "run", err: &host.ExitError{Code: 42}},
		{on: "inspect", out: `[]`},
		{on: "inspect", out: `[{"Driver":"overlay","State":{"Status":"running"}}]`},
		{on: "inspect", out: `[{"Driver":"vfs","State":{"Status":"exited","ExitCode":42}}]`},
		{on: "cp"},
		{on: "rm"},
		{on: "rmi"},
	} {
		liar := func(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
			if slices.Contains(args, lie.on) {
				return []byte(lie.out), lie.err
			}
			return p.run(ctx, stdin, args...)
		}
		if r, err := Smoke(t.Context(), liar, SmokeOptions{Driver: "overlay"}); !errors.Is(err, ErrSmoke) {
			t.Errorf("%+v passed: %+v, %v", lie, r, err)
		}
		if _, err := (&smokeTest{podman: p.run}).sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSmokeHeedsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	hang := func(ctx context.Context, _ io.Reader, _ ...string) ([]byte, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if _, err := Smoke(ctx, hang, SmokeOptions{}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestOverlayReason(t *testing.T) {
	var info podmanInfo
	info.Store.GraphDriverName = "overlay"
	info.Store.GraphOptions = map[string]any{"overlay.mount_program": map[string]any{"Executable": "/usr/bin/fuse-overlayfs"}}
	o := overlayOf(info)
	if o.Native || o.MountProgram != "/usr/bin/fuse-overlayfs" || o.Reason == "" {
		t.Errorf("%+v", o)
	}
	// A silent fallback is seen by what the container says of its root.
	st := smokeTest{nonce: "n", report: SmokeReport{Driver: "overlay", Overlay: Overlay{Native: true, BackingFS: "extfs"}}}
	if err := st.judgeOutput([]byte(`{"smoke":"n","root_fs_magic":1702057286}`)); err != nil {
		t.Fatal(err)
	}
	if st.report.Overlay.Native || st.report.Overlay.Reason == "" || st.report.RootFS != "fuse" {
		t.Errorf("%+v", st.report)
	}
}
