package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type bench struct {
	settings
	program    string
	src        string
	tree       tree
	largeBytes int64
	flats      []int
	before     string
	order      []string
	runs       map[string][]measured
}

// measured is one run of one command.
type measured struct {
	seconds float64 // until all is on the disk
	cpu     float64 // seconds of the processes, not of the kernel's own threads
	peak    int64   // resident bytes of its largest process
	used    int64   // of the destination after it
}

// cold leaves nothing of our filesystems in memory, and leaves alone what others
// have there: they are unmounted, their images dropped, and mounted anew.
func (b *bench) cold(ctx context.Context) error {
	images, err := filepath.Glob(filepath.Join(b.dir, "*.img"))
	if err != nil {
		return err
	}
	for _, image := range images {
		dir := strings.TrimSuffix(image, ".img")
		if err := unix.Unmount(dir, 0); err != nil {
			return fmt.Errorf("cannot unmount %s: %w", dir, err)
		}
		f, err := os.OpenFile(image, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		err = errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
		if err != nil {
			return err
		}
		if err := b.attach(ctx, dir); err != nil {
			return err
		}
	}
	return nil
}

// step runs a command with cold caches and keeps what was measured.
func (b *bench) step(ctx context.Context, name, dst string, args ...string) error {
	if err := b.cold(ctx); err != nil {
		return err
	}
	m, err := b.measure(ctx, dst, args[0], args[1:]...)
	if err != nil {
		return err
	}
	if _, ok := b.runs[name]; !ok {
		b.order = append(b.order, name)
	}
	b.runs[name] = append(b.runs[name], m)
	fmt.Printf("%-32s %7.2f s  %6.1f s of CPU  %5.0f MiB resident  %7.0f MB used\n", name, m.seconds, m.cpu, float64(m.peak)/(1<<20), float64(m.used)/1e6)
	return nil
}

func (b *bench) measure(ctx context.Context, dst, name string, args ...string) (measured, error) {
	var m measured
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return m, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	if dst != "" {
		f, err := os.Open(dst)
		if err != nil {
			return m, err
		}
		defer f.Close()
		if err := unix.Syncfs(int(f.Fd())); err != nil {
			return m, err
		}
		m.seconds = time.Since(start).Seconds()
		var s unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &s); err != nil {
			return m, err
		}
		m.used = int64(s.Blocks-s.Bfree) * s.Bsize
	}
	m.cpu = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		m.peak = usage.Maxrss << 10
	}
	return m, nil
}

// mount makes an empty filesystem on a loop device.
func (b *bench) mount(ctx context.Context, kind, dir string) error {
	dir = filepath.Clean(dir)
	f, err := os.Create(dir + ".img")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(64 << 30); err != nil {
		return err
	}
	if _, err := b.measure(ctx, "", "mkfs."+kind, "-q", dir+".img"); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := b.attach(ctx, dir); err != nil {
		return err
	}
	// Not every method leaves it out.
	if err := os.Remove(filepath.Join(dir, "lost+found")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (b *bench) attach(ctx context.Context, dir string) error {
	if _, err := b.measure(ctx, "", "mount", "-o", "loop", dir+".img", dir); err != nil {
		return err
	}
	// ext4 would write its inode tables in the background; XFS knows no such option.
	_ = exec.CommandContext(ctx, "mount", "-o", "remount,noinit_itable", dir).Run()
	return nil
}

func (b *bench) unmount(dir string) error {
	dir = filepath.Clean(dir)
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Errorf("cannot unmount %s: %w", dir, err)
	}
	return os.Remove(dir + ".img")
}

// clean leaves nothing, whatever happened before.
func (b *bench) clean() error {
	mounted, err := filepath.Glob(filepath.Join(b.dir, "*.img"))
	if err != nil {
		return err
	}
	for _, image := range mounted {
		_ = unix.Unmount(strings.TrimSuffix(image, ".img"), 0) // it may be unmounted already
	}
	return os.RemoveAll(b.dir)
}

// load is how busy the machine was in the last minute.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	one, _, _ := strings.Cut(string(text), " ")
	return one
}
