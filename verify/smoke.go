package verify

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/storagectl/storagectl/verify/smoke"
)

// SmokeOptions say how to smoke test.
type SmokeOptions struct {
	// Driver is the graph driver that podman must be on; empty: any.
	Driver string
	// Run is the id that what the test makes is labelled with.
	Run string
	// Image is an image of the store to run instead of the one that comes with
	// the binary. The program is copied into the container, so any image does.
	Image string
}

// SmokeReport is what a smoke test saw.
type SmokeReport struct {
	PodmanVersion string  `json:"podman_version"`
	Overlay       Overlay `json:"overlay"`
	Image         string  `json:"image"`
	// Driver is what podman info says, ContainerDriver what the container that
	// ran was on, and RootFS the type of its root as the kernel told it there:
	// overlay, fuse, or the number of the filesystem.
	Driver          string `json:"driver"`
	ContainerDriver string `json:"container_driver"`
	RootFS          string `json:"root_fs"`
	// Removed is the ids of leftovers of earlier tests that were removed.
	Removed []string      `json:"removed,omitempty"`
	Took    time.Duration `json:"took_ns"`
}

// Overlay is how podman mounts overlay here.
type Overlay struct {
	// Native is true when the kernel mounts containers' roots; Reason says why
	// when it does not.
	Native bool   `json:"native"`
	Reason string `json:"reason,omitempty"`
	// NativeDiff is podman's "Native Overlay Diff"; false alone only makes
	// commits and pushes slower.
	NativeDiff   string `json:"native_diff,omitempty"`
	BackingFS    string `json:"backing_fs,omitempty"`
	MountProgram string `json:"mount_program,omitempty"`
}

// Magic numbers of statfs(2), linux/magic.h.
const (
	overlayMagic = 0x794c7630
	fuseMagic    = 0x65735546
)

// smokeExit is the status that the container is told to end with. It is one
// that neither podman (125 to 127) nor a default (0) gives.
const smokeExit = 42

// smokeDeadline bounds a whole smoke test; it takes about a second.
const smokeDeadline = 3 * time.Minute

// cleanupDeadline bounds the removal of what a failed test made.
const cleanupDeadline = 30 * time.Second

// ErrSmoke is wrapped by each error that says that podman or a container did
// not do what it must. Other errors mean that the test could not be made.
var ErrSmoke = errors.New("smoke test failed")

// Smoke shows that podman works on its store. podman info must say the wanted
// driver; a container without network must run, get its argument, see its
// image's layers merged, write a file that can be read back, end with the
// status it was told, and be gone after it was removed. The image, if it was
// brought along, is removed too. Leftovers of a test that was killed are
// removed first. It changes nothing else. The report holds what was seen up to
// an error.
func Smoke(ctx context.Context, podman Podman, opts SmokeOptions) (SmokeReport, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, smokeDeadline)
	defer cancel()
	t := smokeTest{podman: podman, opts: opts, nonce: rand.Text()}
	t.name = "storagectl-smoke-" + strings.ToLower(t.nonce[:12])
	err := t.run(ctx)
	if err != nil && t.made {
		// What the test made must not stay, also when ctx has ended.
		cctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanupDeadline)
		defer stop()
		if _, cerr := t.sweep(cctx); cerr != nil {
			err = errors.Join(err, fmt.Errorf("cannot remove what the test left: %w", cerr))
		}
	}
	t.report.Took = time.Since(start)
	if err != nil {
		return t.report, fmt.Errorf("cannot pass smoke test: %w", err)
	}
	return t.report, nil
}

type smokeTest struct {
	podman Podman
	opts   SmokeOptions
	nonce  string
	name   string // of the container
	made   bool   // something may have to be removed
	report SmokeReport
}

func (t *smokeTest) run(ctx context.Context) error {
	info, err := t.podman.info(ctx)
	if err != nil {
		return err
	}
	t.report.PodmanVersion = info.Version.Version
	t.report.Driver = info.Store.GraphDriverName
	t.report.Overlay = overlayOf(info)
	if t.opts.Driver != "" && t.opts.Driver != t.report.Driver {
		return fmt.Errorf("%w: podman is on driver %q, not %q", ErrSmoke, t.report.Driver, t.opts.Driver)
	}
	if t.report.Removed, err = t.sweep(ctx); err != nil {
		return err
	}
	t.made = true
	out, err := t.container(ctx)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(out)) == 0 {
		// Podman 4.3.1 on a loaded machine was seen to lose what a container
		// writes before it is attached to. Its log has it.
		if out, err = t.podman.call(ctx, nil, "logs", t.name); err != nil {
			return fmt.Errorf("%w: %w", ErrSmoke, err)
		}
	}
	if err := t.judgeOutput(out); err != nil {
		return err
	}
	if err := t.judgeState(ctx); err != nil {
		return err
	}
	if err := t.readBack(ctx); err != nil {
		return err
	}
	return t.remove(ctx)
}

// container runs the container and returns its output.
func (t *smokeTest) container(ctx context.Context) ([]byte, error) {
	label := smoke.Label + "=" + t.opts.Run
	common := []string{"--name", t.name, "--label", label, "--network", "none", "--pull", "never"}
	args := []string{t.nonce, strconv.Itoa(smokeExit)}
	if t.opts.Image == "" {
		name, archive, err := smoke.Image()
		if err != nil {
			return nil, err
		}
		t.report.Image = name
		if _, err := t.podman.call(ctx, bytes.NewReader(archive), "load", "--quiet"); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSmoke, err)
		}
		run := slices.Concat([]string{"run"}, common, []string{name}, args, []string{"layers"})
		return t.exits(t.podman.call(ctx, nil, run...))
	}
	t.report.Image = t.opts.Image
	archive, err := smoke.ProgramArchive()
	if err != nil {
		return nil, err
	}
	create := slices.Concat([]string{"create"}, common, []string{"--user", "0:0", "--workdir", "/", "--entrypoint", smoke.Program, t.opts.Image}, args)
	if _, err := t.podman.call(ctx, nil, create...); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSmoke, err)
	}
	if _, err := t.podman.call(ctx, bytes.NewReader(archive), "cp", "-", t.name+":/"); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSmoke, err)
	}
	return t.exits(t.podman.call(ctx, nil, "start", "--attach", t.name))
}

// exits takes the result of an attached run, which must have ended with smokeExit.
func (t *smokeTest) exits(out []byte, err error) ([]byte, error) {
	if err == nil {
		return nil, fmt.Errorf("%w: the container ended with status 0, not %d", ErrSmoke, smokeExit)
	}
	if code, ok := exitCode(err); !ok || code != smokeExit {
		return nil, fmt.Errorf("%w: the container did not end with status %d: %w", ErrSmoke, smokeExit, err)
	}
	return out, nil
}

func (t *smokeTest) judgeOutput(out []byte) error {
	var said struct {
		Smoke string `json:"smoke"`
		Magic int64  `json:"root_fs_magic"`
	}
	if err := json.Unmarshal(out, &said); err != nil {
		return fmt.Errorf("%w: cannot read the container's output %q: %w", ErrSmoke, out, err)
	}
	if said.Smoke != t.nonce {
		return fmt.Errorf("%w: the container answered %q, not %q", ErrSmoke, said.Smoke, t.nonce)
	}
	switch uint32(said.Magic) {
	case overlayMagic:
		t.report.RootFS = "overlay"
	case fuseMagic:
		t.report.RootFS = "fuse"
	default:
		t.report.RootFS = fmt.Sprintf("%#x", uint32(said.Magic))
	}
	if t.report.Driver != "overlay" {
		return nil
	}
	// podman falls back to fuse-overlayfs without a word, so what the
	// container saw outranks what podman says.
	switch {
	case t.report.RootFS == "overlay":
		t.report.Overlay.Native, t.report.Overlay.Reason = true, ""
	case t.report.Overlay.Native:
		t.report.Overlay.Native = false
		t.report.Overlay.Reason = fmt.Sprintf("a container's root is of type %s: podman fell back to a mount program over %s", t.report.RootFS, orUnknown(t.report.Overlay.BackingFS))
	}
	return nil
}

func (t *smokeTest) judgeState(ctx context.Context) error {
	out, err := t.podman.call(ctx, nil, "container", "inspect", t.name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSmoke, err)
	}
	var seen []struct {
		Driver string
		State  struct {
			Status   string
			ExitCode int
		}
	}
	if err := json.Unmarshal(out, &seen); err != nil || len(seen) != 1 {
		return fmt.Errorf("%w: cannot read podman container inspect: %d objects, %w", ErrSmoke, len(seen), err)
	}
	c := seen[0]
	t.report.ContainerDriver = c.Driver
	// "stopped" is a container that has ended and that conmon's clean-up has not
	// reached yet (seen with podman 5.4.2).
	if (c.State.Status != "exited" && c.State.Status != "stopped") || c.State.ExitCode != smokeExit {
		return fmt.Errorf("%w: podman says that the container is %q with status %d, not \"exited\" with %d", ErrSmoke, c.State.Status, c.State.ExitCode, smokeExit)
	}
	if c.Driver != t.report.Driver {
		return fmt.Errorf("%w: the container is on driver %q, podman on %q", ErrSmoke, c.Driver, t.report.Driver)
	}
	return nil
}

// readBack fetches the file that the container wrote.
func (t *smokeTest) readBack(ctx context.Context) error {
	out, err := t.podman.call(ctx, nil, "cp", t.name+":"+smoke.OutFile, "-")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSmoke, err)
	}
	r := tar.NewReader(bytes.NewReader(out))
	if _, err := r.Next(); err != nil {
		return fmt.Errorf("%w: cannot read back %s: %w", ErrSmoke, smoke.OutFile, err)
	}
	got, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("%w: cannot read back %s: %w", ErrSmoke, smoke.OutFile, err)
	}
	if string(got) != t.nonce {
		return fmt.Errorf("%w: %s holds %q, not %q", ErrSmoke, smoke.OutFile, got, t.nonce)
	}
	return nil
}

// remove removes what the test made and sees that it is gone.
func (t *smokeTest) remove(ctx context.Context) error {
	// An image may declare volumes; podman has made them for the container.
	if _, err := t.podman.call(ctx, nil, "rm", "--force", "--volumes", t.name); err != nil {
		return fmt.Errorf("%w: %w", ErrSmoke, err)
	}
	if err := t.gone(ctx, "container", t.name); err != nil {
		return err
	}
	if t.opts.Image != "" {
		return nil
	}
	if _, err := t.podman.call(ctx, nil, "rmi", t.report.Image); err != nil {
		return fmt.Errorf("%w: %w", ErrSmoke, err)
	}
	return t.gone(ctx, "image", t.report.Image)
}

// gone asks podman whether a container or image exists: status 1 says no.
func (t *smokeTest) gone(ctx context.Context, kind, name string) error {
	_, err := t.podman.call(ctx, nil, kind, "exists", name)
	if err == nil {
		return fmt.Errorf("%w: %s %s is still there after it was removed", ErrSmoke, kind, name)
	}
	if code, ok := exitCode(err); !ok || code != 1 {
		return fmt.Errorf("%w: cannot see whether %s %s is gone: %w", ErrSmoke, kind, name, err)
	}
	return nil
}

// sweep removes what smoke tests have left behind, this one's or earlier
// ones', and returns the ids. Only things with the smoke test's label, or in
// the smoke image's repository, are touched.
func (t *smokeTest) sweep(ctx context.Context) ([]string, error) {
	containers, err := t.ids(ctx, "ps", "--all", "--quiet", "--no-trunc", "--filter", "label="+smoke.Label)
	if err != nil {
		return nil, err
	}
	if len(containers) > 0 {
		if _, err := t.podman.call(ctx, nil, append([]string{"rm", "--force", "--volumes"}, containers...)...); err != nil {
			return nil, err
		}
	}
	images, err := t.ids(ctx, "images", "--quiet", "--no-trunc", "--filter", "label="+smoke.Label+"=image")
	if err != nil {
		return nil, err
	}
	if len(images) > 0 {
		if _, err := t.podman.call(ctx, nil, append([]string{"rmi", "--force"}, images...)...); err != nil {
			return nil, err
		}
	}
	return append(containers, images...), nil
}

func (t *smokeTest) ids(ctx context.Context, args ...string) ([]string, error) {
	out, err := t.podman.call(ctx, nil, args...)
	if err != nil {
		return nil, err
	}
	ids := strings.Fields(string(out))
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// overlayOf reads from podman info how overlay is mounted, as far as it says.
func overlayOf(info podmanInfo) Overlay {
	if info.Store.GraphDriverName != "overlay" {
		return Overlay{Reason: "podman is on driver " + info.Store.GraphDriverName}
	}
	o := Overlay{
		Native:     true,
		NativeDiff: info.Store.GraphStatus["Native Overlay Diff"],
		BackingFS:  info.Store.GraphStatus["Backing Filesystem"],
	}
	program, set := info.Store.GraphOptions["overlay.mount_program"]
	if !set {
		return o
	}
	switch p := program.(type) {
	case string:
		o.MountProgram = p
	case map[string]any:
		o.MountProgram, _ = p["Executable"].(string)
	}
	o.Native = false
	o.Reason = "mount_program is set to " + orUnknown(o.MountProgram)
	return o
}

func orUnknown(s string) string {
	if s == "" {
		return "something unknown"
	}
	return s
}
