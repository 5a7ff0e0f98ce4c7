package host

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// flagless is a folder of a filesystem that renames as CephFS does: with flags never.
type flagless struct{ *fusefs.LoopbackNode }

func (f *flagless) Rename(ctx context.Context, name string, to fusefs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if flags != 0 {
		return syscall.EINVAL
	}
	return f.LoopbackNode.Rename(ctx, name, to, newName, flags)
}

func (f *flagless) WrapChild(_ context.Context, ops fusefs.InodeEmbedder) fusefs.InodeEmbedder {
	return &flagless{ops.(*fusefs.LoopbackNode)}
}

// mountFlagless mounts such a filesystem.
func mountFlagless(t *testing.T) string {
	t.Helper()
	dir, behind := t.TempDir(), t.TempDir()
	loopback, err := fusefs.NewLoopbackRoot(behind)
	if err != nil {
		t.Fatal(err)
	}
	root := &flagless{loopback.(*fusefs.LoopbackNode)}
	no := time.Duration(0)
	server, err := fusefs.Mount(dir, root, &fusefs.Options{AttrTimeout: &no, EntryTimeout: &no, NegativeTimeout: &no,
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "flagless"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestRenameNew: what is renamed replaces nothing, also where the filesystem knows no
// such rename; there only folders are renamed.
func TestRenameNew(t *testing.T) {
	for name, c := range map[string]struct {
		dir   string
		flags bool
	}{"with flags": {t.TempDir(), true}, "without": {mountFlagless(t), false}} {
		t.Run(name, func(t *testing.T) {
			path := func(name string) string { return filepath.Join(c.dir, name) }
			rename := func(from, to string) error {
				return RenameNew(unix.AT_FDCWD, path(from), unix.AT_FDCWD, path(to))
			}
			for _, d := range []string{"a/in", "empty", "full/in"} {
				if err := os.MkdirAll(path(d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(path("file"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, taken := range []string{"empty", "full", "file"} {
				if err := rename("a", taken); !errors.Is(err, fs.ErrExist) {
					t.Errorf("to %s: %v", taken, err)
				}
			}
			if err := rename("gone", "b"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("of nothing: %v", err)
			}
			if err := rename("a", "b"); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(path("b/in")); err != nil {
				t.Error(err)
			}
			if err := rename("file", "other"); c.flags && err != nil || !c.flags && !errors.Is(err, unix.EINVAL) {
				t.Errorf("a file: %v", err)
			}
		})
	}
}

// TestRenameFreeTaken: who takes the name after the look keeps what they have there.
func TestRenameFreeTaken(t *testing.T) {
	dir := t.TempDir()
	stop, ended := make(chan struct{}), make(chan struct{})
	to := filepath.Join(dir, "to")
	go func() { // somebody who makes and removes a folder with something in it
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.MkdirAll(filepath.Join(to, "theirs"), 0o755)
				_ = os.RemoveAll(to)
			}
		}
	}()
	for range 2000 {
		from := filepath.Join(dir, "from")
		if err := os.MkdirAll(filepath.Join(from, "ours"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := renameFree(unix.AT_FDCWD, from, unix.AT_FDCWD, to); err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatal(err)
		}
	}
	close(stop)
	<-ended
}
