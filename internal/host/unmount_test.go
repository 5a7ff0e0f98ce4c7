package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestUnmountTellsWhoIsInTheWay(t *testing.T) {
	at := t.TempDir()
	mountAt(t, "busy", at, "tmpfs", 0, "size=1m")
	must(t, os.WriteFile(filepath.Join(at, "file"), nil, 0o600))
	cmd := exec.Command("sleep", "60")
	cmd.Dir = at
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := Unmount(ctx, at)
	var busy *BusyError
	if !errors.As(err, &busy) || len(busy.Holders) != 1 {
		t.Fatalf("%v", err)
	}
	want := Holder{PID: cmd.Process.Pid, Name: "sleep", How: "folder", Path: at}
	if busy.Holders[0] != want {
		t.Errorf("%+v", busy.Holders[0])
	}
	if s := err.Error(); !strings.Contains(s, fmt.Sprintf("sleep[%d] (folder %s)", cmd.Process.Pid, at)) {
		t.Error(s)
	}
	// It ends while we wait.
	go func() {
		time.Sleep(200 * time.Millisecond)
		_ = cmd.Process.Kill()
	}()
	must(t, Unmount(t.Context(), at))
}

func TestUnmountTellsOfMountsBelow(t *testing.T) {
	at := t.TempDir()
	mountAt(t, "outer", at, "tmpfs", 0, "size=1m")
	inner := mkdir(t, at, "overlay")
	mountAt(t, "inner", inner, "tmpfs", 0, "size=1m")
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	var busy *BusyError
	if err := Unmount(ctx, at); !errors.As(err, &busy) || len(busy.Mounts) != 1 || !strings.HasSuffix(err.Error(), "used by the mount at "+inner) {
		t.Errorf("%v", err)
	}
	must(t, Unmount(t.Context(), inner), Unmount(t.Context(), at))
	many := (&BusyError{Holders: make([]Holder, 20)}).Error()
	if !strings.HasSuffix(many, "and 12 more") {
		t.Error(many)
	}
}

func TestHoldersFindEveryUse(t *testing.T) {
	at := t.TempDir()
	mountAt(t, "held", at, "tmpfs", 0, "size=9m")
	command(t, "cp", "/bin/sleep", filepath.Join(at, "sleep"))
	var st unix.Stat_t
	must(t, unix.Stat(at, &st))
	start := func(argv ...string) *exec.Cmd {
		cmd := exec.Command(argv[0], argv[1:]...)
		must(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd
	}
	program := start(filepath.Join(at, "sleep"), "60")
	file := start("sh", "-c", "exec sleep 60 9>"+filepath.Join(at, "open"))
	space := start("unshare", "-m", "sleep", "60")
	want := map[int]string{program.Process.Pid: "program", file.Process.Pid: "file", space.Process.Pid: "mount"}
	deadline := time.Now().Add(5 * time.Second)
	for {
		got := map[int]string{}
		for _, h := range Holders(st.Dev) {
			got[h.PID] = h.How
		}
		if fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v, want %v", got, want)
		}
		time.Sleep(20 * time.Millisecond) // they are on their way to exec
	}
}

func TestUnmountRefuses(t *testing.T) {
	dir := t.TempDir()
	at := mkdir(t, dir, "at")
	mountAt(t, "stays", at, "tmpfs", 0, "size=1m")
	must(t, os.Symlink("at", filepath.Join(dir, "link")))
	for _, path := range []string{dir, filepath.Join(dir, "link"), filepath.Join(dir, "none"), "/"} {
		if err := Unmount(t.Context(), path); err == nil {
			t.Errorf("unmounted %s", path)
		}
	}
	if got := mountedAt(t, at); !slices.Equal(got, []string{"stays"}) {
		t.Errorf("%q", got)
	}
	// An automount that nobody has used yet, with this process as its daemon.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	auto := mkdir(t, dir, "auto")
	data := fmt.Sprintf("fd=%d,pgrp=%d,minproto=5,maxproto=5,direct", w.Fd(), unix.Getpgrp())
	mountAt(t, "automount", auto, "autofs", 0, data)
	if err := Unmount(t.Context(), auto); err == nil || !strings.Contains(err.Error(), "automount") {
		t.Errorf("%v", err)
	}
	table, err := Mounts()
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := table.At(auto); ok {
		t.Errorf("%+v", m)
	}
	// With the filesystem on it, only that goes.
	mountAt(t, "used", auto, "tmpfs", 0, "size=1m")
	if got := mountedAt(t, auto); !slices.Equal(got, []string{"used", "automount"}) {
		t.Errorf("%q", got)
	}
	must(t, Unmount(t.Context(), auto))
	if got := mountedAt(t, auto); !slices.Equal(got, []string{"automount"}) {
		t.Errorf("%q", got)
	}
}
