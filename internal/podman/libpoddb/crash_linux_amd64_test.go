package libpoddb

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// killBefore runs a child and kills it with SIGKILL right before its nth system
// call that changes a file below dir. It tells whether the child came to its end
// before that.
func killBefore(t *testing.T, n int, dir string, cmd *exec.Cmd) (finished bool) {
	t.Helper()
	runtime.LockOSThread() // ptrace ties the child to this thread
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	const wall = 0x40000000 // wait for threads too
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, wall, nil); err != nil {
		t.Fatal(err)
	}
	const exitKill = 0x100000
	if err := syscall.PtraceSetOptions(pid, syscall.PTRACE_O_TRACESYSGOOD|syscall.PTRACE_O_TRACECLONE|exitKill); err != nil {
		t.Fatal(err)
	}
	if err := syscall.PtraceSyscall(pid, 0); err != nil {
		t.Fatal(err)
	}
	inCall := map[int]bool{}
	for count := 0; ; {
		tid, err := syscall.Wait4(-1, &ws, wall, nil)
		if err != nil {
			t.Fatalf("wait: %v", err)
		}
		if ws.Exited() || ws.Signaled() {
			if tid != pid {
				continue
			}
			if ws.Exited() && ws.ExitStatus() != 0 {
				t.Fatalf("child failed: %v", ws.ExitStatus())
			}
			return ws.Exited()
		}
		signal := 0
		switch s := ws.StopSignal(); s {
		case syscall.SIGTRAP | 0x80:
			inCall[tid] = !inCall[tid]
			var regs syscall.PtraceRegs
			if inCall[tid] && syscall.PtraceGetRegs(tid, &regs) == nil && changesFile(tid, &regs, dir) {
				count++
				if count == n {
					if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
				}
			}
		case syscall.SIGTRAP, syscall.SIGSTOP: // a new thread
		default:
			signal = int(s)
		}
		_ = syscall.PtraceSyscall(tid, signal) // ESRCH: it was just killed
	}
}

// changesFile tells the system calls that alter files or directories. The
// runtime's own writes go to other descriptors.
func changesFile(tid int, regs *syscall.PtraceRegs, dir string) bool {
	switch regs.Orig_rax {
	case syscall.SYS_WRITE, syscall.SYS_PWRITE64, syscall.SYS_FTRUNCATE, syscall.SYS_FSYNC, syscall.SYS_FDATASYNC, syscall.SYS_FALLOCATE, 326 /* copy_file_range */ :
		fd := regs.Rdi
		if regs.Orig_rax == 326 {
			fd = regs.Rdx
		}
		name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, fd))
		return err == nil && strings.HasPrefix(name, dir)
	case syscall.SYS_UNLINK, syscall.SYS_UNLINKAT, syscall.SYS_RENAME, syscall.SYS_RENAMEAT, 316 /* renameat2 */, syscall.SYS_LINK, syscall.SYS_LINKAT,
		syscall.SYS_MKDIRAT, syscall.SYS_FCHMODAT, syscall.SYS_FCHOWNAT, syscall.SYS_LCHOWN, syscall.SYS_CHOWN:
		return true
	case syscall.SYS_OPENAT, syscall.SYS_OPEN:
		flags := regs.Rdx
		if regs.Orig_rax == syscall.SYS_OPEN {
			flags = regs.Rsi
		}
		return flags&syscall.O_CREAT != 0
	}
	return false
}

// sweep kills an operation before each of its changes in turn, each time on a
// fresh copy of files; check sees the folder after the kill and after a rerun.
func sweep(t *testing.T, files map[string][]byte, op func(dir string) []string, check func(t *testing.T, dir string, whole bool)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	for n := 1; ; n++ {
		dir, err := os.MkdirTemp(t.TempDir(), "x")
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range files {
			full := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(full, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		finished := killBefore(t, n, dir, child(ctx, op(dir)...))
		check(t, dir, finished)
		if t.Failed() {
			t.Fatalf("killed before change %d", n)
		}
		if finished {
			t.Logf("%d points", n-1)
			if n < 4 {
				t.Fatal("too few points: the sweep saw no work")
			}
			return
		}
		if err := runChild(op(dir)); err != nil {
			t.Fatalf("rerun after a kill before change %d: %v", n, err)
		}
		check(t, dir, true)
		if t.Failed() {
			t.Fatalf("rerun after a kill before change %d", n)
		}
	}
}

func TestCrashes(t *testing.T) {
	ctx := context.Background()
	s := newRealStore(t)
	lite := newSQLite(t)
	liteAfter := filepath.Join(t.TempDir(), "db.sql")
	boltAfter := filepath.Join(t.TempDir(), "bolt_state.db")
	for from, to := range map[string]string{lite: liteAfter, s.db(): boltAfter} {
		if err := os.WriteFile(to, read(t, from), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := SetDriver(ctx, to, "vfs", "overlay", Moves{}); err != nil {
			t.Fatal(err)
		}
	}
	type dump = func(*testing.T, string) map[string]string
	for _, kind := range []struct {
		name, before, after string
		dump                dump
	}{{"bolt_state.db", s.db(), boltAfter, dumpBolt}, {"db.sql", lite, liteAfter, dumpSQLite}} {
		before, after := kind.dump(t, kind.before), kind.dump(t, kind.after)
		oldFile, newFile := read(t, kind.before), read(t, kind.after)
		t.Run("SetDriver "+kind.name, func(t *testing.T) {
			sweep(t, map[string][]byte{kind.name: oldFile}, func(dir string) []string {
				return []string{"set", filepath.Join(dir, kind.name), "vfs", "overlay"}
			}, func(t *testing.T, dir string, whole bool) {
				f, err := Read(ctx, filepath.Join(dir, kind.name))
				if err != nil {
					t.Fatal(err)
				}
				got := kind.dump(t, filepath.Join(dir, kind.name))
				isOld, isNew := reflect.DeepEqual(got, before), reflect.DeepEqual(got, after)
				if !isNew && (whole || !isOld) || f.GraphDriver == "overlay" != isNew {
					t.Errorf("old %v, new %v, driver %s", isOld, isNew, f.GraphDriver)
				}
			})
		})
		t.Run("Save "+kind.name, func(t *testing.T) {
			sweep(t, map[string][]byte{kind.name: oldFile}, func(dir string) []string {
				return []string{"save", filepath.Join(dir, kind.name), filepath.Join(dir, "saved")}
			}, func(t *testing.T, dir string, whole bool) {
				ok, err := Saved(filepath.Join(dir, "saved"), filepath.Join(dir, kind.name))
				if err != nil || whole && !ok {
					t.Errorf("saved %v, %v", ok, err)
				}
				if ok && !bytes.Equal(oldFile, read(t, filepath.Join(dir, "saved", kind.name))) {
					t.Error("the copy differs")
				}
				if !bytes.Equal(oldFile, read(t, filepath.Join(dir, kind.name))) {
					t.Error("the database changed")
				}
			})
		})
		t.Run("Restore "+kind.name, func(t *testing.T) {
			saved := filepath.Join(t.TempDir(), "saved")
			if err := Save(ctx, kind.before, saved); err != nil {
				t.Fatal(err)
			}
			files := map[string][]byte{kind.name: newFile}
			for _, n := range []string{kind.name, kind.name + ".saved.json"} {
				files["saved/"+n] = read(t, filepath.Join(saved, n))
			}
			sweep(t, files, func(dir string) []string {
				return []string{"restore", filepath.Join(dir, "saved"), filepath.Join(dir, kind.name)}
			}, func(t *testing.T, dir string, whole bool) {
				got := read(t, filepath.Join(dir, kind.name))
				if !bytes.Equal(got, oldFile) && (whole || !bytes.Equal(got, newFile)) {
					t.Error("neither the old nor the new")
				}
				if whole && !bytes.Equal(newFile, read(t, filepath.Join(dir, "saved", kind.name+".replaced-1"))) {
					t.Error("the replaced database is not kept")
				}
			})
		})
	}
}
