// Command benchrelocate measures the copying of a store to another filesystem
// against what people use today: cold caches, methods alternating, medians. It
// prints a table and writes docs/benchmarks-relocate.md. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type settings struct {
	files, large, rounds int
	rbd                  int64
	flat                 string
	dir, out             string
}

func main() {
	var s settings
	flag.IntVar(&s.files, "files", 200_000, "small files of the tree")
	flag.IntVar(&s.large, "large", 6, "files of 100 to 160 MB in it, and of 512 MB for dd: half as many")
	flag.IntVar(&s.rounds, "rounds", 5, "runs of each method; the table has the median")
	flag.Int64Var(&s.rbd, "rbd", 0, "GiB of memory for a Ceph of the lab whose images the destinations are; 0: they lie on the same disk")
	flag.StringVar(&s.flat, "flat", "10000,1000000", "numbers of files that the peak memory is measured with; empty: none")
	flag.StringVar(&s.dir, "dir", os.TempDir(), "where the images of the filesystems are made")
	flag.StringVar(&s.out, "out", "docs/benchmarks-relocate.md", "where the report goes")
	flag.Parse()
	// A mount of ours must not be captured by another namespace, or its device
	// stays busy: the work is done in a namespace of our own.
	if os.Getenv("BENCHRELOCATE") == "" {
		os.Exit(again())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 4*time.Hour)
	defer cancel()
	if err := run(ctx, s); err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

func again() int {
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "BENCHRELOCATE=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, "error:", err)
		}
		return 1
	}
	return 0
}

func run(ctx context.Context, s settings) (err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make the mounts private: %w", err)
	}
	b := &bench{settings: s, before: load(), runs: map[string][]measured{}}
	if b.dir, err = os.MkdirTemp(s.dir, "benchrelocate"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.clean()) }()
	if s.rbd > 0 {
		if b.pool, err = newPool(ctx, s.rbd<<30); err != nil {
			return err
		}
	}
	b.program = filepath.Join(b.dir, "treecopy")
	if _, err := b.measure(ctx, "", "go", "build", "-o", b.program, "./migrate/treecopy/cmd/treecopy"); err != nil {
		return err
	}
	b.src = filepath.Join(b.dir, "src")
	if err := b.mount(ctx, "ext4", b.src); err != nil {
		return err
	}
	fmt.Printf("making %d files…\n", s.files)
	if b.tree, err = makeTree(ctx, b.src, s.files, s.large); err != nil {
		return err
	}
	for i := range s.rounds {
		if err := b.round(ctx, i); err != nil {
			return err
		}
	}
	if err := b.unmount(b.src); err != nil {
		return err
	}
	for i := range min(s.rounds, s.rounds*s.large) { // none without large files
		if err := b.largeRound(ctx, i); err != nil {
			return err
		}
	}
	if err := b.unmount(b.src + "-large"); err != nil {
		return err
	}
	for n := range strings.SplitSeq(s.flat, ",") {
		if n == "" {
			continue
		}
		count, err := strconv.Atoi(n)
		if err != nil {
			return err
		}
		if err := b.flatRound(ctx, count); err != nil {
			return err
		}
	}
	text := b.markdown()
	fmt.Println(text)
	return os.WriteFile(s.out, []byte(text), 0o644)
}

// round is one run of each method on the tree.
func (b *bench) round(ctx context.Context, i int) error {
	type step struct {
		name, on string // on: whose destination
		args     []string
	}
	index := filepath.Join(b.dir, "index")
	at := func(name string) string { return filepath.Join(b.dir, "dst-"+name) + "/" }
	src := b.src + "/"
	rsync := []string{"rsync", "-aHAX", "--numeric-ids", "--delete", src, at("rsync")}
	ours := []string{b.program, "-index", index, src, at("treecopy")}
	copies := []step{
		{"treecopy", "treecopy", ours},
		{"rsync -aHAX --numeric-ids", "rsync", rsync},
		{"cp -a", "cp", []string{"cp", "-a", src + ".", at("cp")}},
		{"tar | tar", "tar", []string{"sh", "-c", fmt.Sprintf("tar -C %s --xattrs --acls --numeric-owner -cf - . | tar -C %s --xattrs --xattrs-include='*' --acls --numeric-owner -xpf -", src, at("tar"))}},
	}
	// Each method is first in some round.
	copies = append(copies[i%len(copies):], copies[:i%len(copies)]...)
	if err := os.RemoveAll(index); err != nil {
		return err
	}
	for _, c := range copies {
		if err := b.mount(ctx, "xfs", at(c.on)); err != nil {
			return err
		}
		if err := b.step(ctx, c.name, at(c.on), c.args...); err != nil {
			return err
		}
		if c.on == "cp" || c.on == "tar" {
			if err := b.unmount(at(c.on)); err != nil {
				return err
			}
		}
	}
	defer func() { _ = b.unmount(at("treecopy")); _ = b.unmount(at("rsync")) }()
	pairs := [][2]step{
		{{"treecopy, nothing changed", "treecopy", append([]string{b.program, "-strict"}, ours[1:]...)}, {"rsync, nothing changed", "rsync", rsync}},
		{{"treecopy, verify", "treecopy", append([]string{b.program, "-verify"}, ours[1:]...)}, {"rsync -c", "rsync", append([]string{"rsync", "-c"}, rsync[1:]...)}},
		{{"treecopy, 1 % changed", "treecopy", append([]string{b.program, "-strict"}, ours[1:]...)}, {"rsync, 1 % changed", "rsync", rsync}},
	}
	for n, pair := range pairs {
		if n == 2 {
			if err := b.tree.change(b.src, i); err != nil {
				return err
			}
		}
		if i%2 == 1 {
			pair[0], pair[1] = pair[1], pair[0]
		}
		for _, c := range pair {
			if err := b.step(ctx, c.name, at(c.on), c.args...); err != nil {
				return err
			}
		}
	}
	// Both agree, as a third sees it.
	out, err := exec.CommandContext(ctx, "rsync", "-aHAXni", "--delete", "--numeric-ids", src, at("treecopy")).Output()
	if err != nil || len(out) > 0 {
		return fmt.Errorf("rsync would still change the copy: %w\n%.500s", err, out)
	}
	return nil
}

// largeRound copies a few large files with dd and with treecopy.
func (b *bench) largeRound(ctx context.Context, i int) error {
	src, dst := b.src+"-large", filepath.Join(b.dir, "dst-large")
	n := max(1, b.large/2)
	if i == 0 {
		if err := b.mount(ctx, "ext4", src); err != nil {
			return err
		}
		for f := range n {
			if err := makeFile(filepath.Join(src, strconv.Itoa(f)), 512<<20, uint64(f)); err != nil {
				return err
			}
		}
		b.largeBytes = int64(n) * 512 << 20
	}
	dd := fmt.Sprintf("for f in %s/*; do dd if=$f of=%s/${f##*/} bs=1M status=none || exit 1; done", src, dst)
	index := filepath.Join(b.dir, "index-large")
	steps := [][]string{{"sh", "-c", dd}, {b.program, "-index", index, src, dst}}
	names := []string{"dd bs=1M", "treecopy, large files"}
	for k := range steps {
		k = (k + i) % 2
		if err := os.RemoveAll(index); err != nil {
			return err
		}
		if err := b.mount(ctx, "xfs", dst); err != nil {
			return err
		}
		if err := b.step(ctx, names[k], dst, steps[k]...); err != nil {
			return err
		}
		if err := b.unmount(dst); err != nil {
			return err
		}
	}
	return nil
}

// flatRound looks at the memory that so many files take.
func (b *bench) flatRound(ctx context.Context, n int) error {
	src, dst := b.src+"-flat", filepath.Join(b.dir, "dst-flat")
	if err := b.mount(ctx, "ext4", src); err != nil {
		return err
	}
	if err := makeEmpty(ctx, src, n); err != nil {
		return err
	}
	if err := b.mount(ctx, "xfs", dst); err != nil {
		return err
	}
	index := filepath.Join(b.dir, "index-flat")
	for _, c := range [][]string{{"copy"}, {"nothing changed", "-strict"}, {"verify", "-verify"}} {
		args := append([]string{b.program}, c[1:]...)
		if err := b.step(ctx, fmt.Sprintf("%d files, %s", n, c[0]), dst, append(args, "-index", index, src, dst)...); err != nil {
			return err
		}
	}
	b.flats = append(b.flats, n)
	return errors.Join(b.unmount(dst), b.unmount(src), os.RemoveAll(index))
}
