package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// child makes a process of this test binary that runs one Sync.
func (f *fixture) child() (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	f.Helper()
	spec, err := json.Marshal(f.opts)
	must(f, err)
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), childVar+"="+string(spec))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	return cmd, &out, &errs
}

// Killed at any moment and run again, a Sync ends as if nothing had happened.
func TestKilledAnywhere(t *testing.T) {
	f := newFixture(t)
	top := rich(f)
	for i := range 6 {
		var items []item
		for j := range 400 {
			items = append(items, file(fmt.Sprintf("bulk%d/d%d/f%d", i, j%20, j), "x"))
		}
		top = f.layer(top, items...)
	}
	f.image(top, "localhost/big:1")
	start := time.Now()
	cmd, _, errs := f.child()
	if err := cmd.Run(); err != nil {
		t.Fatal(err, errs)
	}
	whole := time.Since(start)
	before := tree(t, f.opts.Source.GraphRoot)
	killed, finished := 0, 0
	const steps = 24
	for i := range steps {
		if i%4 == 0 { // else go on from what the last kill left
			must(t, os.RemoveAll(f.opts.Stage))
		}
		cmd, _, errs := f.child()
		start, ended := time.Now(), make(chan error, 1)
		must(t, cmd.Start())
		go func() { ended <- cmd.Wait() }()
		var err error
		select {
		case err = <-ended:
			if i%4 == 0 { // the machine is quicker by now
				whole = time.Since(start)
			}
		case <-time.After(whole * time.Duration(i) / steps):
			_ = cmd.Process.Kill() // it may just have ended
			err = <-ended
		}
		var exit *exec.ExitError
		switch {
		case err == nil:
			finished++
		case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled():
			killed++
		default:
			t.Fatal(err, errs)
		}
		if i%4 == 3 {
			f.sync()
			f.prove()
		}
	}
	if killed < steps/6 {
		t.Errorf("only %d of %d were killed, %d ended before", killed, steps, finished)
	}
	if after := tree(t, f.opts.Source.GraphRoot); !slices.Equal(before, after) {
		t.Error("the source was changed")
	}
}

// Killed just when a layer's link file was made, a Sync keeps the other layers.
func TestKilledBeforeLink(t *testing.T) {
	f := newFixture(t)
	f.image(rich(f), "localhost/rich:1")
	f.sync()
	links := filepath.Join(f.opts.overlayHome(), "l")
	before := tree(t, links)
	half := filepath.Join(f.opts.overlayHome(), fmt.Sprintf("%064x", 0xdead))
	must(t, os.MkdirAll(filepath.Join(half, "diff"), 0o700))
	must(t, os.WriteFile(filepath.Join(half, "link"), nil, 0o644))
	if r := f.sync(); len(r.NewLayers) > 0 || !slices.Contains(r.DroppedLayers, filepath.Base(half)) {
		t.Errorf("made anew: %v, dropped: %v", r.NewLayers, r.DroppedLayers)
	}
	if after := tree(t, links); !slices.Equal(before, after) {
		t.Errorf("the links were\n%v\nand are\n%v", before, after)
	}
	f.prove()
}

// After a reboot only what the records name is believed: the rest may not have
// reached the disk.
func TestOtherBoot(t *testing.T) {
	f := newFixture(t)
	f.image(rich(f), "localhost/rich:1")
	f.sync()
	age := func() {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(f.opts.receipts(), "*.json"))
		must(t, err)
		for _, n := range names {
			data, err := os.ReadFile(n)
			must(t, err)
			var r receipt
			must(t, json.Unmarshal(data, &r))
			r.Boot = "another"
			data, err = json.Marshal(r)
			must(t, err)
			must(t, os.WriteFile(n, data, 0o600))
		}
	}
	age()
	if r := f.sync(); r.Changed {
		t.Errorf("flushed layers were made anew: %+v", r)
	}
	age()
	must(t, os.Remove(f.opts.stagedFile("layers", "layers.json")))
	if r := f.sync(); len(r.NewLayers) != r.Layers {
		t.Errorf("layers that may be torn were believed: %+v", r)
	}
	f.prove()
}

func TestSurveyAndStagedWriteNothing(t *testing.T) {
	f := newFixture(t)
	f.image(rich(f), "localhost/rich:1")
	all := func() []string { return append(tree(t, f.opts.Source.GraphRoot), tree(t, f.opts.Source.RunRoot)...) }
	before := all()
	e := f.survey()
	if e.Method != Link || e.Layers != 3 || e.Images != 1 || e.Entries < 40 || e.BytesNeeded <= 0 || len(e.Damage) > 0 {
		t.Errorf("estimate %+v", e)
	}
	if ok, why, err := Staged(context.Background(), f.opts); ok || err != nil || len(why) == 0 {
		t.Errorf("staged: %v %v %v", ok, why, err)
	}
	if !slices.Equal(before, all()) || exists(f.opts.Stage) {
		t.Error("something was written")
	}
	r := f.sync()
	if e.Entries < r.Linked {
		t.Errorf("%d entries were told, %d linked", e.Entries, r.Linked)
	}
}

func TestRefusals(t *testing.T) {
	for name, o := range map[string]Options{
		"driver":    {Source: Store{GraphRoot: "/x", Driver: "overlay"}, Stage: "/x/s"},
		"root":      {Source: Store{GraphRoot: "/", Driver: "vfs"}, Stage: "/x/s"},
		"same":      {Source: Store{GraphRoot: "/x", Driver: "vfs"}, Stage: "/x/"},
		"no stage":  {Source: Store{GraphRoot: "/x", Driver: "vfs"}},
		"relative ": {Source: Store{GraphRoot: "x", Driver: "vfs"}, Stage: "/x/s"},
	} {
		if _, err := Sync(context.Background(), o); err == nil || !strings.HasPrefix(err.Error(), "cannot ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// mount puts a small filesystem at a new folder.
func mount(t *testing.T, kind string, mb int) string {
	t.Helper()
	dir := t.TempDir()
	var cmd *exec.Cmd
	if kind == "tmpfs" {
		cmd = exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mb), "tmpfs", dir)
	} else {
		img := filepath.Join(t.TempDir(), "disk")
		must(t, os.WriteFile(img, nil, 0o600))
		must(t, os.Truncate(img, int64(mb)<<20))
		if out, err := exec.CommandContext(t.Context(), "mkfs."+kind, "-q", img).CombinedOutput(); err != nil {
			t.Fatal(string(out), err)
		}
		cmd = exec.CommandContext(t.Context(), "mount", "-o", "loop", img, dir)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(string(out), err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error("something is left mounted or open:", err)
		}
	})
	return dir
}

// On each filesystem the staged store is right, linked where store and stage
// are one filesystem, else copied.
func TestFilesystems(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind+" inside", func(t *testing.T) {
			f := newFixtureAt(t, filepath.Join(mount(t, kind, 320), "store"), t.TempDir())
			f.image(rich(f), "localhost/rich:1")
			if r := f.sync(); r.Copied+r.Reflinked != 0 {
				t.Errorf("counts %+v", r.Counts)
			}
			f.prove()
		})
	}
	for _, kind := range []string{"tmpfs", "ext4", "xfs"} {
		t.Run("to "+kind, func(t *testing.T) {
			f := newFixture(t)
			f.image(rich(f), "localhost/rich:1")
			f.opts.Stage = filepath.Join(mount(t, kind, 320), "stage")
			e := f.survey()
			if e.Method != Copy || e.BytesNeeded < e.Bytes {
				t.Errorf("estimate %+v", e)
			}
			if r := f.sync(); r.Copied == 0 || r.Bytes == 0 {
				t.Errorf("counts %+v", r.Counts)
			}
			f.prove()
		})
	}
}

// A bind mount of the same filesystem cannot be linked into, but xfs can share
// blocks.
func TestReflink(t *testing.T) {
	root := mount(t, "xfs", 320)
	bound := t.TempDir()
	must(t, os.Mkdir(filepath.Join(root, "stage"), 0o700))
	must(t, unix.Mount(filepath.Join(root, "stage"), bound, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(bound, 0)) })
	f := newFixtureAt(t, filepath.Join(root, "store"), t.TempDir())
	f.image(rich(f), "localhost/rich:1")
	f.opts.Stage = filepath.Join(bound, "s")
	if e := f.survey(); e.Method != Reflink {
		t.Errorf("estimate %+v", e)
	}
	if r := f.sync(); r.Reflinked == 0 || r.Bytes != 0 {
		t.Errorf("counts %+v", r.Counts)
	}
	f.prove()
}

// A full disk is told as such; with room again the next Sync ends well.
func TestNoSpace(t *testing.T) {
	disk := mount(t, "ext4", 64)
	f := newFixtureAt(t, filepath.Join(disk, "store"), t.TempDir())
	top := rich(f)
	var items []item
	for i := range 1500 {
		items = append(items, file(fmt.Sprintf("many%d/sub/f", i), "x"))
	}
	f.image(f.layer(top, items...), "localhost/many:1")
	ballast := filepath.Join(disk, "ballast")
	fill := func(keep int64) {
		t.Helper()
		file, err := os.Create(ballast)
		must(t, err)
		size := int64(0)
		for ; unix.Fallocate(int(file.Fd()), 0, size, 64<<10) == nil; size += 64 << 10 {
		}
		must(t, file.Truncate(max(size-keep, 0)))
		must(t, file.Close())
	}
	failures := 0
	for keep := int64(256 << 10); ; keep += 2 << 20 {
		fill(keep)
		before := tree(t, f.opts.Source.GraphRoot)
		_, err := Sync(context.Background(), f.opts)
		if !slices.Equal(before, tree(t, f.opts.Source.GraphRoot)) {
			t.Fatal("the source was changed")
		}
		must(t, os.Remove(ballast))
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("not told as a full disk: %v", err)
		}
		failures++
	}
	if failures < 2 {
		t.Errorf("the disk was full only %d times", failures)
	}
	f.sync()
	f.prove()
	if r, err := os.ReadDir(f.opts.overlayHome()); err != nil || len(r) != 5 {
		t.Errorf("%d things in the staged store: %v %v", len(r), r, err)
	}
}

// ext4 gives an inode 65000 names. A file that has them all is copied, and its
// names in the layer stay one file.
func TestTooManyLinks(t *testing.T) {
	disk := mount(t, "ext4", 256)
	f := newFixtureAt(t, filepath.Join(disk, "store"), t.TempDir())
	top := f.layer("", file("a", "much linked"), hardlink("b", "a"), file("c", "other"))
	f.image(top, "localhost/linked:1")
	file := filepath.Join(f.opts.Source.GraphRoot, "vfs/dir", top, "a")
	must(t, os.Mkdir(filepath.Join(disk, "names"), 0o700))
	n := 2
	for ; ; n++ {
		err := os.Link(file, filepath.Join(disk, "names", fmt.Sprint(n)))
		if errors.Is(err, unix.EMLINK) {
			break
		}
		must(t, err)
	}
	r := f.sync()
	if r.Copied != 1 || r.Linked != 2 {
		t.Errorf("inode with %d names: counts %+v", n, r.Counts)
	}
	f.prove()
	// With room for one name of the two, both still have to be one file.
	must(t, os.Remove(filepath.Join(disk, "names", "2")))
	must(t, os.RemoveAll(f.opts.Stage))
	f.sync()
	f.prove()
}

// Images are added and removed all the while.
func TestBesideALiveStore(t *testing.T) {
	f := newFixture(t)
	f.image(rich(f), "localhost/keep:1")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			var items []item
			for j := range 60 {
				items = append(items, file(fmt.Sprintf("w/f%d", j), "x"))
			}
			img := f.image(f.layer(f.layer("", items...), file("on", "top")), fmt.Sprintf("localhost/come:%d", f.n))
			if f.n%2 == 0 {
				continue
			}
			if _, err := f.store.DeleteImage(img, true); err != nil {
				t.Error(err)
				return
			}
		}
	})
	phases := map[string]bool{}
	var telling atomic.Bool
	f.opts.Progress = func(p Progress) {
		if telling.Swap(true) {
			t.Error("progress is told concurrently")
		}
		phases[p.Phase] = true
		telling.Store(false)
	}
	vanished := 0
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); {
		r, err := Sync(context.Background(), f.opts)
		if err != nil {
			t.Error(err)
			break
		}
		vanished += len(r.Vanished)
	}
	close(stop)
	wg.Wait()
	t.Log("vanished while staged:", vanished)
	if !phases["layers"] || !phases["images"] || !phases["flush"] {
		t.Errorf("phases told: %v", phases)
	}
	f.sync()
	f.prove()
}

func TestOneAtATime(t *testing.T) {
	f := newFixture(t)
	f.image(f.layer("", file("f", "x")))
	f.sync()
	unlock, err := lockStage(t.Context(), &f.opts)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Sync(ctx, f.opts); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second sync went in: %v", err)
	}
	must(t, unlock())
}

// Where overlay cannot be mounted nothing is staged, and nothing is left that
// would make podman believe in a mount program.
func TestNoNativeOverlay(t *testing.T) {
	base, merged := mount(t, "tmpfs", 64), t.TempDir()
	for _, d := range []string{"lower", "upper", "work"} {
		must(t, os.Mkdir(filepath.Join(base, d), 0o755))
	}
	must(t, unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", base)))
	t.Cleanup(func() { must(t, unix.Unmount(merged, 0)) })
	f := newFixture(t)
	f.image(f.layer("", file("f", "x")))
	f.opts.Stage = filepath.Join(merged, "stage")
	if _, err := Sync(t.Context(), f.opts); !errors.Is(err, ErrNoNativeOverlay) {
		t.Errorf("not told: %v", err)
	}
	if exists(filepath.Join(f.opts.overlayHome(), mountProgramFlag)) {
		t.Error("a sign of a mount program is left")
	}
}
