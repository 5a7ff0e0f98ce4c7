package convert

import (
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

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/host"
)

// viewDeadline bounds how long a mount program may take to begin and to end.
const viewDeadline = time.Minute

// A view is a folder in which a layer's whole tree is seen: on vfs the layer's own,
// on overlay a read-only mount of the layer and all below it, in a folder of the
// stage. The driver's own mount point is not used: somebody may have the layer
// mounted there, and the driver would take that away.
type view struct {
	dir   string
	close func() error // after which nothing is mounted, and no process is left
}

// view shows a layer of the source.
func (o *Options) view(ctx context.Context, l *layer) (view, error) {
	if o.Source.Driver == vfs {
		return view{l.dir(), func() error { return nil }}, nil
	}
	top := filepath.Join(o.tmp(), "view")
	if err := os.MkdirAll(top, 0o700); err != nil {
		return view{}, err
	}
	at, err := os.MkdirTemp(top, short(l.ID)+"-")
	if err != nil {
		return view{}, err
	}
	dir, empty := filepath.Join(at, "merged"), filepath.Join(at, "empty")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(empty, 0o700)); err != nil {
		return view{}, err
	}
	lowers := l.stack()
	if len(lowers) == 1 { // without an upper folder the kernel wants two below
		lowers = append(lowers, empty)
	}
	if o.Source.Program == "" {
		err = o.mountNative(lowers, dir)
		if err != nil {
			return view{}, fmt.Errorf("mounting layer %s: %w", short(l.ID), err)
		}
		return view{dir, func() error { return unmountView(dir) }}, nil
	}
	wait, err := o.mountByProgram(ctx, lowers, dir)
	if err != nil {
		return view{}, fmt.Errorf("mounting layer %s by %s: %w", short(l.ID), o.Source.Program, err)
	}
	return view{dir, func() error { return errors.Join(unmountView(dir), wait()) }}, nil
}

// mountNative names the folders by descriptors: their paths may be longer than what
// mount(2) takes, and may hold what separates them.
func (o *Options) mountNative(lowers []string, dir string) error {
	var data strings.Builder
	data.WriteString("lowerdir=")
	for i, path := range lowers {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &pathError{"open", path, err}
		}
		defer unix.Close(fd)
		if i > 0 {
			data.WriteByte(':')
		}
		fmt.Fprintf(&data, "/proc/self/fd/%d", fd)
	}
	switch {
	case strings.HasPrefix(overlayAttr(""), "user."):
		data.WriteString(",userxattr")
	case o.metacopy():
		data.WriteString(",metacopy=on")
	}
	if err := unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY, data.String()); err != nil {
		return &pathError{"mount overlay on", dir, err}
	}
	return nil
}

// metacopy reports whether the store's mounts leave the data of changed files below.
func (o *Options) metacopy() bool {
	for _, opt := range o.Source.Options {
		if k, v, _ := strings.Cut(opt, "="); strings.HasSuffix(k, ".mountopt") && strings.Contains(","+v+",", ",metacopy=on,") {
			return true
		}
	}
	return false
}

// mountByProgram starts the mount program, which ends with this process or when the
// mount is taken away; wait returns when it has ended. The mount table tells when to
// look, and another device that the mount is there: what the folder itself lies on may
// be FUSE, too (ceph-fuse).
func (o *Options) mountByProgram(ctx context.Context, lowers []string, dir string) (wait func() error, err error) {
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer table.Close()
	var empty, now unix.Stat_t
	if err := unix.Lstat(dir, &empty); err != nil {
		return nil, &pathError{"stat", dir, err}
	}
	said := &host.Tail{}
	cmd := exec.Command(o.Source.Program, "-f", "-o", "lowerdir="+strings.Join(lowers, ":"), dir) //nolint:noctx // it lives until the mount is taken away
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	release, err := host.StartFor(cmd, false)
	if err != nil {
		return nil, err
	}
	var result error
	ended := make(chan struct{})
	go func() {
		result = cmd.Wait()
		release()
		close(ended)
	}()
	wait = func() error {
		select {
		case <-ended:
			return result
		case <-time.After(viewDeadline):
			_ = cmd.Process.Kill() // it may have ended by now
			<-ended
			return fmt.Errorf("%s did not end within %s", o.Source.Program, brief.Time(viewDeadline))
		}
	}
	give := func(err error) (func() error, error) {
		_ = cmd.Process.Kill() // it may have ended by now
		<-ended
		return nil, errors.Join(err, unmountView(dir))
	}
	for deadline := time.Now().Add(viewDeadline); ; {
		if err := unix.Lstat(dir, &now); err != nil {
			return give(&pathError{"stat", dir, err})
		}
		if now.Dev != empty.Dev {
			return wait, nil
		}
		select {
		case <-ended:
			return nil, errors.Join(errors.New("it ended: "+said.String()), result)
		default:
		}
		if err := ctx.Err(); err != nil {
			return give(err)
		}
		if time.Now().After(deadline) {
			return give(fmt.Errorf("nothing was mounted within %s: %s", brief.Time(viewDeadline), said))
		}
		fds := []unix.PollFd{{Fd: int32(table.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, 100); err != nil && !errors.Is(err, unix.EINTR) {
			return give(err)
		}
	}
}

// unmountView takes a view's mount away, if it is there.
func unmountView(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return &pathError{"unmount", dir, err}
	}
	return nil
}
