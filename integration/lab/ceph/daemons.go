package ceph

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A daemon is a process of the cluster.
type daemon struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	<-d.ended
}

func idOf(name string) string {
	if name == "osd" {
		return "0"
	}
	return "a"
}

// Log is the file with what a daemon (mon, mgr, osd, mds) wrote.
func (c *Cluster) Log(name string) string { return filepath.Join(c.dir, "log", name) }

func (c *Cluster) startDaemon(name string) error {
	log, err := os.OpenFile(c.Log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	// Not bound to a context: it lives until Close or the end of this process.
	cmd := c.command(context.Background(), "ceph-"+name, "--foreground", "-i", idOf(name), "--conf", c.daemonConf())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if !c.opts.Keep {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	d := &daemon{cmd, make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends the death signal when the thread that forked ends.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(d.ended)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	c.mu.Lock()
	c.daemons[name] = d
	c.mu.Unlock()
	return nil
}

// pids are the processes of a daemon, whoever started it.
func (c *Cluster) pids(name string) []int { return find(c.dir, "ceph-"+name) }

// find lists the processes that were started with the configuration of the
// cluster in dir, and with the given program ("": any).
func find(dir, program string) []int {
	var out []int
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well formed
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it is gone
		}
		argv := strings.Split(string(bytes.TrimRight(b, "\x00")), "\x00")
		ours := false
		for i, a := range argv {
			ours = ours || i > 0 && a == filepath.Join(dir, "ceph.conf")
		}
		if ours && (program == "" || filepath.Base(argv[0]) == program) {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			out = append(out, pid)
		}
	}
	return out
}

// killAll kills the daemons of the cluster in dir, and waits until they are gone.
func killAll(dir string) error {
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		left := find(dir, "")
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("cannot end the processes %v", left)
		}
		for _, pid := range left {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
	}
}

// Stop ends a daemon (mon, mgr, osd, mds) in order: an OSD writes its memory to
// disk, and has its data when it is started again.
func (c *Cluster) Stop(ctx context.Context, name string) error {
	pids := c.pids(name)
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return poll(ctx, 3*time.Minute, "the end of "+name, func() (bool, error) { return len(c.pids(name)) == 0, nil })
}

// Start starts a daemon that was stopped. It may be up later: see WaitHealthy.
func (c *Cluster) Start(name string) error { return c.startDaemon(name) }

// WaitHealthy waits until all daemons do their work.
func (c *Cluster) WaitHealthy(ctx context.Context) error { return c.ready(ctx) }

// Freeze stops a daemon's processes as they are (SIGSTOP), and Thaw lets them go
// on: requests to it wait meanwhile.
func (c *Cluster) Freeze(name string) error { return c.signal(name, syscall.SIGSTOP) }

// Thaw undoes Freeze.
func (c *Cluster) Thaw(name string) error { return c.signal(name, syscall.SIGCONT) }

func (c *Cluster) signal(name string, sig syscall.Signal) error {
	pids := c.pids(name)
	if len(pids) == 0 {
		return fmt.Errorf("cannot signal %s: it does not run", name)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil {
			return err
		}
	}
	return nil
}
