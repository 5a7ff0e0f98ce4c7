package rbd

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/cephlink"
)

// writer writes a file of MiBs in the background and sends how that ended.
func writer(path string, mib int, sync bool) <-chan error {
	done := make(chan error, 1)
	go func() {
		f, err := os.Create(path)
		if err != nil {
			done <- err
			return
		}
		b := make([]byte, 1<<20)
		for i := range mib {
			for k := range b {
				b[k] = byte(i + k*7)
			}
			if _, err = f.Write(b); err == nil && sync {
				err = f.Sync()
			}
			if err != nil {
				break
			}
		}
		done <- errors.Join(err, f.Sync(), f.Close())
	}()
	return done
}

// steady writes and syncs pieces of a file until it is stopped.
type steady struct {
	pieces atomic.Int64
	stop   atomic.Bool
	ended  chan error
}

func writeOn(path string) *steady {
	w := &steady{ended: make(chan error, 1)}
	go func() {
		f, err := os.Create(path)
		b := bytes.Repeat([]byte("piece"), 50000)
		for i := int64(0); err == nil && !w.stop.Load(); i++ {
			if _, err = f.WriteAt(b, i%400*int64(len(b))); err == nil {
				err = f.Sync()
			}
			w.pieces.Add(1)
		}
		w.ended <- errors.Join(err, f.Close())
	}()
	return w
}

// moves fails the test unless more is written within a minute.
func (w *steady) moves(t *testing.T) {
	t.Helper()
	from := w.pieces.Load()
	for end := time.Now().Add(time.Minute); w.pieces.Load() < from+5; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) || len(w.ended) > 0 {
			t.Fatal("nothing more is written")
		}
	}
}

// stands fails the test unless the writing comes to a stand: what was under way may
// still end.
func (w *steady) stands(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end) && len(w.ended) == 0; {
		from := w.pieces.Load()
		time.Sleep(2 * time.Second)
		if w.pieces.Load() == from && len(w.ended) == 0 {
			return
		}
	}
	t.Error("written without an OSD")
}

// TestOSDStopped: the OSD is frozen, and then stopped and started, while a file
// is written. The writer waits and goes on, requests end in time, and the
// filesystem is whole.
func TestOSDStopped(t *testing.T) {
	h := admin(t)
	spec := newImage(t, h, 512<<20)
	m := mustMap(t, h, spec)
	sh(t, `mkfs.ext4 -q "$1"`, m.Device)
	dir := mountFS(t, m.Device)
	w := writeOn(filepath.Join(dir, "f1"))
	w.moves(t)
	cluster.Daemon(t, "freeze", "osd")
	w.stands(t)
	slow := newHost(t, cluster.Admin())
	ctx := testContext(t)
	{
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		start := time.Now()
		if _, err := slow.Look(ctx, spec); cephlink.IDOf(err) != cephlink.TooSlow {
			t.Errorf("a look without an OSD: %v", err)
		}
		if d := time.Since(start); d > 8*time.Second {
			t.Errorf("a look took %s", d)
		}
		cancel()
	}
	cluster.Daemon(t, "thaw", "osd")
	w.moves(t)
	cluster.Daemon(t, "stop", "osd")
	w.stands(t)
	cluster.Daemon(t, "start", "osd")
	w.moves(t)
	w.stop.Store(true)
	if err := <-w.ended; err != nil {
		t.Fatal(err)
	}
	cluster.Healthy(t)
	want := sum(t, dir)
	sh(t, `umount "$1"; e2fsck -fn "$2" 2>&1`, dir, m.Device)
	if err := h.Unmap(testContext(t), m); err != nil {
		t.Fatal(err)
	}
	if dir := mountFS(t, mustMap(t, h, spec).Device); sum(t, dir) != want {
		t.Error("files are not as they were written")
	} else {
		sh(t, `umount "$1"`, dir)
	}
}

// TestFull: the pool is full in the middle of a file. The writer gets ENOSPC in
// seconds instead of waiting, and when there is room again the device works on.
func TestFull(t *testing.T) {
	h := admin(t)
	cluster.Ceph(t, "osd", "pool", "create", "small", "8")
	cluster.Tool(t, "rbd", "pool", "init", "small")
	spec := Spec{Pool: "small", Image: "full"}
	if err := h.Create(t.Context(), spec, CreateOptions{Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	m := mustMap(t, h, spec)
	t.Cleanup(func() {
		if err := errors.Join(h.Unmap(testContext(t), m), h.Remove(testContext(t), spec)); err != nil {
			t.Error(err)
		}
	})
	raw := Spec{Pool: "small", Image: "raw"}
	if err := h.Create(t.Context(), raw, CreateOptions{Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	device := mustMap(t, h, raw)
	t.Cleanup(func() {
		if err := errors.Join(h.Unmap(testContext(t), device), h.Remove(testContext(t), raw)); err != nil {
			t.Error(err)
		}
	})
	sh(t, `mkfs.ext4 -q "$1"`, m.Device)
	dir := mountFS(t, m.Device)
	want := fill(t, dir, 3, 30)
	sh(t, `mkdir "$1/more"; sync -f "$1"`, dir)
	cluster.Ceph(t, "osd", "pool", "set-quota", "small", "max_bytes", "67108864")
	// The monitors see what is used some seconds later. What is written where data
	// is already needs no room: hence new files.
	var err error
	for i := 0; err == nil && i < 40; i++ {
		path := filepath.Join(dir, "more", strconv.Itoa(i))
		select {
		case err = <-writer(path, 20, true):
		case <-time.After(40 * time.Second):
			t.Fatal("a writer waits in a full pool")
		}
		time.Sleep(time.Second) // the monitors have their own time
	}
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.EROFS) {
		t.Errorf("written into a full pool: %v", err)
	}
	t.Logf("the writer got: %v", err)
	// More than any cache takes, and as fast as it goes: that must end, too, and be told.
	sh(t, `code=0; timeout 60 dd if=/dev/urandom of="$1" bs=1M count=200 conv=fsync || code=$?; test $code = 1`, device.Device)
	cluster.Ceph(t, "osd", "pool", "set-quota", "small", "max_bytes", "0")
	for end := time.Now().Add(30 * time.Second); strings.Contains(cluster.Ceph(t, "osd", "pool", "ls", "detail"), "full_quota"); time.Sleep(time.Second) {
		if time.Now().After(end) {
			t.Fatal("the pool stays full")
		}
	}
	// ext4 may have stopped over its own journal; the device has not.
	sh(t, `umount "$1"; e2fsck -fy "$2" >/dev/null 2>&1 || true; e2fsck -fn "$2" 2>&1`, dir, m.Device)
	dir = mountFS(t, m.Device)
	_ = os.RemoveAll(filepath.Join(dir, "more"))
	if sum(t, dir) != want {
		t.Error("what was written before is not there")
	}
	if err := <-writer(filepath.Join(dir, "again"), 100, false); err != nil {
		t.Errorf("there is room again: %v", err)
	}
	sh(t, `umount "$1"`, dir)
}

// TestHelperKilled: the process behind a device is killed. The device gives
// errors, which is told; nothing is left in the way of mapping again once it is
// unmounted, and what was flushed is there.
func TestHelperKilled(t *testing.T) {
	t.Parallel() // it mostly waits
	h := admin(t)
	h.StaleTime = 50 * time.Second // a watch lives on for half a minute
	spec := newImage(t, h, 400<<20)
	m := mustMap(t, h, spec)
	sh(t, `mkfs.xfs -q "$1"`, m.Device)
	dir := mountFS(t, m.Device)
	want := fill(t, dir, 4, 40)
	sh(t, `sync -f "$1"`, dir)
	if err := syscall.Kill(m.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		ms, err := h.Mapped(t.Context(), spec)
		if err != nil || len(ms) != 1 {
			t.Fatalf("%+v, %v", ms, err)
		}
		if ms[0].Dead {
			break
		}
		if time.Now().After(end) {
			t.Fatal("its death does not show")
		}
	}
	if got, err := h.Map(t.Context(), spec, MapOptions{Mapper: Fuse}); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("mapped again under a mounted filesystem: %+v, %v", got, err)
	}
	sh(t, `umount "$1"`, dir)
	m = mustMap(t, h, spec)
	if dir = mountFS(t, m.Device); sum(t, dir) != want {
		t.Error("files are not as they were written")
	}
	sh(t, `umount "$1"`, dir)
	if left := sh(t, `losetup --noheadings --list --output BACK-FILE`); strings.Count(left, h.RunDir) != 1 {
		t.Errorf("loop devices: %s", left)
	}
}

// TestRequestKilled: the helper is killed in a request. The error has its last
// words, and a new helper goes on.
func TestRequestKilled(t *testing.T) {
	h := admin(t)
	if err := syscall.Kill(h.Link.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_, err := h.Look(t.Context(), Spec{Pool: "rbd", Image: "x"})
	if cephlink.IDOf(err) != cephlink.HelperDied || !strings.Contains(err.Error(), "killed") {
		t.Errorf("%v", err)
	}
	if _, err = h.Look(t.Context(), Spec{Pool: "rbd", Image: "x"}); cephlink.IDOf(err) != cephlink.HelperDied {
		t.Errorf("asked again: %v", err)
	}
	if _, err := admin(t).Look(t.Context(), Spec{Pool: "rbd", Image: "x"}); cephlink.IDOf(err) != cephlink.NoImage {
		t.Errorf("a new helper: %v", err)
	}
}
