package rbd

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/cephlink/cephtest"
	"github.com/storagectl/storagectl/internal/host"
)

// The tests run against a real cluster of the lab. This kernel need not have
// rbd: mapper fuse is tested; krbd has its own test, in a kernel that has it.
var cluster *cephtest.Cluster

const apartEnv = "STORAGECTL_RBD_APART"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	// In mounts of their own, which no namespace that is made meanwhile elsewhere
	// on the machine takes a copy of: a copy keeps a device busy.
	if os.Getenv(apartEnv) == "" {
		err := syscall.Exec("/usr/bin/unshare", append([]string{"unshare", "-m", "--propagation", "private", "sh", "-c", `mount --make-rshared / && exec "$0" "$@"`}, os.Args...), append(os.Environ(), apartEnv+"=1"))
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	c, err := cephtest.Start("..", false, 3<<30)
	if err != nil {
		fmt.Fprintf(os.Stderr, "cannot start a cluster: %v\n", err)
		os.Exit(1)
	}
	cluster = c
	code := m.Run()
	if err := c.Close(); err != nil {
		fmt.Fprintf(os.Stderr, "cannot end the cluster: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

func newHost(t *testing.T, as cephlink.Cluster) *Host {
	t.Helper()
	return &Host{Link: cluster.Link(t, as), Run: &host.Runner{}, RunDir: t.TempDir(), StaleTime: time.Second}
}

func admin(t *testing.T) *Host { t.Helper(); return newHost(t, cluster.Admin()) }

// newImage makes an image that is gone when the test ends.
func newImage(t *testing.T, h *Host, size int64) Spec {
	t.Helper()
	spec := Spec{Pool: "rbd", Image: strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))}
	if err := h.Create(t.Context(), spec, CreateOptions{Size: size}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // with a connection of its own: the test may have ended the other
		h := &Host{Link: cluster.Link(t, cluster.Admin()), Run: h.Run, RunDir: h.RunDir}
		ctx := testContext(t)
		ms, err := h.Mapped(ctx, spec)
		for _, m := range ms {
			err = errors.Join(err, h.Unmap(ctx, m))
		}
		if err == nil {
			err = h.Remove(ctx, spec)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("cannot clean up: %v", err)
		}
	})
	return spec
}

func mustMap(t *testing.T, h *Host, spec Spec) Mapping {
	t.Helper()
	m, err := h.Map(t.Context(), spec, MapOptions{Mapper: Fuse})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// sh runs a script on the host and fails the test with its output.
func sh(t *testing.T, script string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(testContext(t), "sh", append([]string{"-euc", script, "sh"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// mountFS mounts a device at a folder that it returns, until the test ends.
func mountFS(t *testing.T, device string) string {
	t.Helper()
	dir := t.TempDir()
	sh(t, `mount "$1" "$2"`, device, dir)
	t.Cleanup(func() { _ = exec.Command("umount", dir).Run() }) // it may be unmounted by then
	return dir
}

// fill writes files of many sizes and returns their sum.
func fill(t *testing.T, dir string, seed uint64, n int) string {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, seed))
	for i := range n {
		b := make([]byte, r.IntN(1<<(4+i%18)))
		for k := range b {
			b[k] = byte(r.Uint32())
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("f", i)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return sum(t, dir)
}

func sum(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(h, "%s %d\n", e.Name(), len(b))
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestRoundTrip: made, mapped, formatted, written, trimmed, unmapped, mapped
// again: all is there. Nothing is left behind.
func TestRoundTrip(t *testing.T) {
	h := admin(t)
	spec := newImage(t, h, 512<<20)
	img, err := h.Look(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if img.Size != 512<<20 || !img.HasFeature("exclusive-lock") || len(img.Foreign()) != 0 {
		t.Errorf("a new image is %+v", img)
	}
	if err := h.Create(t.Context(), spec, CreateOptions{Size: 1 << 20}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made twice: %v", err)
	}
	m := mustMap(t, h, spec)
	if again := mustMap(t, h, spec); again != m {
		t.Errorf("mapped twice: %+v and %+v", m, again)
	}
	if to, err := os.Readlink(spec.Link()); err != nil || to != m.Device {
		t.Errorf("%s leads to %q: %v", spec.Link(), to, err)
	}
	if size, err := h.DeviceSize(m.Device); err != nil || size != 512<<20 {
		t.Errorf("%s has %d bytes: %v", m.Device, size, err)
	}
	sh(t, `mkfs.xfs -q "$1"`, m.Device)
	dir := mountFS(t, m.Device)
	want := fill(t, dir, 1, 200)
	if err := h.Unmap(t.Context(), m); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("a mounted device was unmapped: %v", err)
	}
	sh(t, `fstrim "$1"; umount "$1"; mount "$2" "$1"`, dir, m.Device)
	if got := sum(t, dir); got != want {
		t.Error("files changed by fstrim")
	}
	sh(t, `umount "$1"`, dir)
	if err := h.Unmap(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := h.Unmap(t.Context(), m); err != nil {
		t.Errorf("unmapped twice: %v", err)
	}
	if ms, err := h.Mapped(t.Context(), spec); err != nil || len(ms) != 0 {
		t.Errorf("still mapped: %v, %v", ms, err)
	}
	if left, _ := filepath.Glob(h.RunDir + "/*"); len(left) != 1 { // the log
		t.Errorf("left behind: %v", left)
	}
	if _, err := os.Lstat(spec.Link()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %s", spec.Link())
	}
	if img, err = h.Look(t.Context(), spec); err != nil || len(img.Watchers)+len(img.Lockers) != 0 {
		t.Errorf("still held: %+v, %v", img, err)
	}
	m = mustMap(t, h, spec)
	sh(t, `xfs_repair -n "$1" 2>&1`, m.Device)
	dir = mountFS(t, m.Device)
	if got := sum(t, dir); got != want {
		t.Error("files are not as they were written")
	}
	sh(t, `umount "$1"`, dir)
}

// TestZeros: what is discarded reads as zeros, at whatever bounds, and the rest
// stays.
func TestZeros(t *testing.T) {
	h := admin(t)
	spec := newImage(t, h, 32<<20)
	m := mustMap(t, h, spec)
	sh(t, `head -c 33554432 /dev/zero | tr '\0' x | dd of="$1" bs=1M oflag=direct status=none
		blkdiscard --offset 4096 --length 8192 "$1"
		blkdiscard --offset 3145728 --length 9437184 "$1"
		blkdiscard --zeroout --offset 20971520 --length 1536 "$1"`, m.Device)
	b, err := os.ReadFile(m.Device)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("x"), 32<<20)
	for _, hole := range [][2]int{{4096, 8192}, {3145728, 9437184}, {20971520, 1536}} {
		clear(want[hole[0] : hole[0]+hole[1]])
	}
	for i := range want {
		if b[i] != want[i] {
			t.Fatalf("byte %d is %q, not %q", i, b[i], want[i])
		}
	}
}

// TestOddSize: an image that ends within a sector is a device like any other, but
// for that end.
func TestOddSize(t *testing.T) {
	h := admin(t)
	spec := newImage(t, h, 32<<20+1000)
	m := mustMap(t, h, spec)
	if size, err := h.DeviceSize(m.Device); err != nil || size != 32<<20+512 {
		t.Errorf("%s has %d bytes: %v", m.Device, size, err)
	}
	if to, err := os.Readlink(spec.Link()); err != nil || to != m.Device || !strings.HasPrefix(to, "/dev/loop") {
		t.Errorf("%s leads to %q, and the device is %q: %v", spec.Link(), to, m.Device, err)
	}
}

// TestGrow: an image grows while a filesystem on it is mounted and written to.
func TestGrow(t *testing.T) {
	h := admin(t)
	spec := newImage(t, h, 400<<20)
	m := mustMap(t, h, spec)
	sh(t, `mkfs.xfs -q "$1"`, m.Device)
	dir := mountFS(t, m.Device)
	want := fill(t, dir, 2, 50)
	if now, err := h.Resize(t.Context(), spec, 900<<20); err != nil || now != 900<<20 {
		t.Fatalf("%d, %v", now, err)
	}
	if err := h.Grown(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if size, err := h.DeviceSize(m.Device); err != nil || size != 900<<20 {
		t.Errorf("the device has %d bytes: %v", size, err)
	}
	sh(t, `xfs_growfs "$1"; test "$(df --output=size -B1M "$1" | tail -1)" -gt 700`, dir)
	if now, err := h.Resize(t.Context(), spec, 1<<20); err != nil || now != 900<<20 {
		t.Errorf("made smaller: %d, %v", now, err)
	}
	if sum(t, dir) != want {
		t.Error("files changed")
	}
	sh(t, `umount "$1"`, dir)
}
