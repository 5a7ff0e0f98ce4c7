package rbd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/cephlink"
)

// ServeRequest tells the helper what to serve, and by which mapper: fuse, or nbd, which
// rbd-nbd does under its eyes.
type ServeRequest struct {
	Cluster cephlink.Cluster `json:"cluster"`
	Spec    Spec             `json:"spec"`
	Mapper  Mapper           `json:"mapper,omitempty"` // NBD; else fuse
	Wait    int              `json:"wait,omitempty"`   // seconds for a cluster that does not answer yet
	Dir     string           `json:"dir"`              // where its file is mounted; made if need be
	State   string           `json:"state"`            // file with its Mapping, while it serves
	Link    string           `json:"link"`             // a symlink to the device, while it serves; "" for none
}

// ServeReply is what the helper says when it serves, or cannot.
type ServeReply struct {
	Mapping *Mapping        `json:"mapping,omitempty"`
	Fault   *cephlink.Fault `json:"fault,omitempty"`
}

// ServedFile is the name of the one file in the helper's mount: the image.
const ServedFile = "image"

// UdevRule is the file with the rule by which udev gives the device of the image
// that is mounted at dir its lasting name. Without udev there is none.
func UdevRule(dir string) string {
	return filepath.Join("/run/udev/rules.d", "61-storagectl-rbd-"+filepath.Base(dir)+".rules")
}

// ServeNames are the paths of an image under a folder of run state.
func ServeNames(runDir string, spec Spec) (dir, state string) {
	base := filepath.Join(runDir, spec.name())
	return base, base + ".json"
}

// serveRequest is the request for an image on this host.
func (h *Host) serveRequest(spec Spec) ServeRequest {
	dir, state := ServeNames(h.runDir(), spec)
	return ServeRequest{Cluster: h.Link.Cluster, Spec: spec, Dir: dir, State: state, Link: spec.Link()}
}

// serve starts the process that serves an image, and returns when it does.
func (h *Host) serve(ctx context.Context, spec Spec, opts MapOptions) (Mapping, error) {
	if err := os.MkdirAll(h.runDir(), 0o700); err != nil {
		return Mapping{}, err
	}
	if opts.Unit {
		return h.serveByUnit(ctx, spec, opts)
	}
	req, err := json.Marshal(h.serveRequest(spec))
	if err != nil {
		return Mapping{}, err
	}
	log, err := os.OpenFile(h.logPath(spec), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return Mapping{}, err
	}
	defer log.Close()
	// It lives on after this program: a device must not go with who mapped it.
	cmd := exec.Command(h.Link.Path, "rbd-serve") //nolint:noctx // see above
	cmd.Env, cmd.Dir, cmd.Stdin, cmd.Stderr = toolEnv(), "/", strings.NewReader(string(req)), log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	answer, ours, err := os.Pipe()
	if err != nil {
		return Mapping{}, err
	}
	defer answer.Close()
	cmd.Stdout = ours
	if err := errors.Join(cmd.Start(), ours.Close()); err != nil {
		return Mapping{}, err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended shows in its answer
		close(ended)
	}()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	var reply ServeReply
	err = json.NewDecoder(answer).Decode(&reply)
	if err == nil && reply.Mapping != nil && ctx.Err() == nil {
		return *reply.Mapping, nil
	}
	_ = cmd.Process.Kill()
	<-ended
	switch {
	case err == nil && reply.Fault != nil:
		return Mapping{}, reply.Fault
	case ctx.Err() != nil:
		err = fmt.Errorf("the helper did not get it in time: %w", ctx.Err())
	}
	return Mapping{}, errors.Join(fmt.Errorf("the helper cannot serve it: %w%s", err, h.logged(spec)), h.clean(context.WithoutCancel(ctx), spec))
}

func (h *Host) logPath(spec Spec) string {
	dir, _ := ServeNames(h.runDir(), spec)
	return dir + ".log"
}

// logged is the end of what a process that serves wrote.
func (h *Host) logged(spec Spec) string {
	said, _ := os.ReadFile(h.logPath(spec)) // none: its unit has it in the journal
	if words := strings.TrimSpace(string(said[max(0, len(said)-2048):])); words != "" {
		return "; it said: " + words
	}
	return ""
}

// tellAgain is how often a process that serves is told to end.
const tellAgain = 2 * time.Second

// unserve ends the process that serves an image.
func (h *Host) unserve(ctx context.Context, m Mapping) error {
	if !m.Dead {
		if err := waitUnused(ctx, m.Device); err != nil {
			return err
		}
	}
	if err := h.stopUnit(ctx, m.Spec); err != nil {
		return err
	}
	for told := (time.Time{}); ; {
		start, err := startOf(m.PID)
		if err != nil || start != m.Start || m.Boot != bootID() {
			break
		}
		// Again and again: it goes on where its device is in use at that moment, if
		// only by a program that looks what is on it.
		if time.Since(told) > tellAgain {
			if err := syscall.Kill(m.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
			told = time.Now()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the helper (process %d) does not end: %w%s", m.PID, ctx.Err(), h.logged(m.Spec))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return h.clean(ctx, m.Spec)
}

// clean takes away what a process left that did not end in order: the loop
// device, the mount of which only errors come, and the state.
func (h *Host) clean(ctx context.Context, spec Spec) error {
	dir, state := ServeNames(h.runDir(), spec)
	return CleanServe(ctx, dir, state, spec.Link())
}

// CleanServe takes away what is left of a process that served an image and is
// gone. It fails with EBUSY while a filesystem on its device is still mounted.
func CleanServe(ctx context.Context, dir, state, link string) error {
	if err := os.Remove(UdevRule(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := detach(ctx, filepath.Join(dir, ServedFile)); err != nil {
		return err
	}
	b, err := os.ReadFile(state)
	if errors.Is(err, fs.ErrNotExist) {
		return unmountDead(dir)
	}
	var m Mapping
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return fmt.Errorf("cannot read what was served: %w", err)
	}
	if err := unmountDead(dir); err != nil {
		return err
	}
	if to, err := os.Readlink(link); err == nil && to == m.Device {
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(state); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// unmountDead unmounts the helper's own FUSE mount, and removes its folder.
func unmountDead(dir string) error {
	for {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not, or no longer, a mount
		}
		if err != nil {
			return fmt.Errorf("cannot unmount %s: %w", dir, err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove %s: %w", dir, err)
	}
	return nil
}

// detach frees the loop devices on a file, also those that no state tells of.
func detach(ctx context.Context, file string) error {
	all, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range all {
		b, rerr := os.ReadFile(f)
		if rerr != nil || strings.TrimSpace(string(b)) != file {
			continue // it was freed meanwhile, or is somebody else's
		}
		device := "/dev/" + strings.Split(f, "/")[3]
		if others(device, file) {
			continue
		}
		if err := waitUnused(ctx, device); err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, "losetup", "--detach", device).CombinedOutput(); err != nil {
			return fmt.Errorf("cannot detach %s: %w: %s", device, err, out)
		}
	}
	return err
}

// others tells whether a loop device is on another file of the same path, as of a
// container that shares the kernel: it is on a filesystem that answers and is not
// the one that is mounted here. That of a process that is gone answers no more.
func others(device, file string) bool {
	f, err := os.Open(device)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return false
	}
	var st unix.Stat_t
	err = unix.Stat(filepath.Dir(file), &st)
	return errors.Is(err, unix.ENOENT) || err == nil && st.Dev != info.Device
}

// waitUnused is [Unused], but lets a device be let go of: after an unmount that is
// done a moment later, in whatever mount namespaces there are copies.
func waitUnused(ctx context.Context, device string) error {
	for end := time.Now().Add(letGo); ; {
		err := Unused(device)
		if err == nil || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// letGo is how long a device may be in use after all that is known to use it is
// gone.
const letGo = 5 * time.Second

// Unused fails with EBUSY while a block device is mounted or held by another
// driver: opening it exclusively is what both do.
func Unused(device string) error {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s is in use: %w", device, err)
	}
	return unix.Close(fd)
}
