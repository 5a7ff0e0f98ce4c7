package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

type bench struct {
	settings
	program    string
	src        string
	disks      []*disk
	pool       *pool // nil: the destinations lie on the same disk
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
	all     float64 // seconds of CPU of the whole machine: the above, kernel threads, a cluster's daemons
	peak    int64   // resident bytes of its largest process
	used    int64   // of the destination after it
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
	fmt.Printf("%-32s %7.2f s  %6.1f s of CPU, %6.1f in all  %5.0f MiB resident  %7.0f MB used\n", name, m.seconds, m.cpu, m.all, float64(m.peak)/(1<<20), float64(m.used)/1e6)
	return nil
}

func (b *bench) measure(ctx context.Context, dst, name string, args ...string) (measured, error) {
	var m measured
	start, before := time.Now(), busy()
	usage, err := small(ctx, append([]string{name}, args...))
	if err != nil {
		return m, fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
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
		m.seconds, m.all = time.Since(start).Seconds(), busy()-before
		var s unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &s); err != nil {
			return m, err
		}
		m.used = int64(s.Blocks-s.Bfree) * s.Bsize
	}
	m.cpu = time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
	m.peak = usage.Maxrss << 10
	return m, nil
}

// small runs a command to its end and tells what it used. The peak of a process is never
// below the size of the one that starts it, whose memory it has until its execve(2): so a
// shell starts it, and by its end hands it to us, its subreaper, to be waited for. It
// begins after that: one that ends before would be waited for by the shell.
func small(ctx context.Context, argv []string) (usage unix.Rusage, err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return usage, err
	}
	said, err := os.CreateTemp("", "benchrelocate")
	if err != nil {
		return usage, err
	}
	defer said.Close()
	if err := os.Remove(said.Name()); err != nil {
		return usage, err
	}
	wait, begin, err := os.Pipe()
	if err != nil {
		return usage, err
	}
	defer begin.Close() // twice does no harm
	sh := exec.CommandContext(ctx, "sh", append([]string{"-c", `{ read -r _; exec "$@" </dev/null 3<&-; } <&3 >/dev/null & echo $!`, "sh"}, argv...)...)
	sh.Stderr, sh.ExtraFiles = said, []*os.File{wait}
	out, err := sh.Output()
	if err = errors.Join(err, wait.Close()); err != nil {
		return usage, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		return usage, err
	}
	stop := context.AfterFunc(ctx, func() { _ = unix.Kill(pid, unix.SIGKILL) })
	defer stop()
	if err := begin.Close(); err != nil {
		return usage, err
	}
	var status unix.WaitStatus
	for {
		if _, err = unix.Wait4(pid, &status, 0, &usage); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil || status.ExitStatus() == 0 {
		return usage, err
	}
	words, err := io.ReadAll(io.NewSectionReader(said, 0, 4096))
	return usage, errors.Join(fmt.Errorf("it ended with %d (signal %d): %s", status.ExitStatus(), status.Signal(), words), err)
}

// busy is how many seconds the machine's processors have worked since it started, of
// all processors together: proc(5), the first line of /proc/stat, in hundredths.
func busy() float64 {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var sum float64
	for i, word := range strings.Fields(line)[1:] {
		if i == 3 || i == 4 || i >= 8 { // idle, waiting for a disk; guests are counted as users already
			continue
		}
		n, err := strconv.ParseFloat(word, 64)
		if err != nil {
			return 0
		}
		sum += n / 100
	}
	return sum
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
