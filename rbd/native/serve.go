//go:build cgo

package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/google/renameio/v2"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/cephlink"
	link "github.com/storagectl/storagectl/internal/cephlink/native"
	"github.com/storagectl/storagectl/rbd"
)

// startTime is how long it may take until an image is served.
const startTime = 80 * time.Second

// Serve reads a [rbd.ServeRequest] from in, serves that image as a loop device,
// says so on out, and ends when it is told to by SIGTERM, unless the device is
// in use: then it goes on. For as long as it runs it has the image's exclusive
// lock, and refuses to pass it on.
func Serve(in io.Reader, out *os.File) error {
	var req rbd.ServeRequest
	if err := json.NewDecoder(in).Decode(&req); err != nil {
		return fmt.Errorf("cannot read what to serve: %w", err)
	}
	limit := max(startTime, time.Duration(req.Wait)*time.Second)
	// What hangs in a library hangs for ever. Storagectl would kill us, too.
	over := time.AfterFunc(limit, func() {
		fmt.Fprintf(os.Stderr, "the image was not served within %s\n", limit)
		os.Exit(1)
	})
	// A signal that comes before we serve ends us as usual.
	s, err := begin(req, limit)
	for req.Wait > 0 && silent(err) { // after a power cut of the whole site it may be late
		fmt.Fprintf(os.Stderr, "%v; looking again\n", err)
		signal.Reset(syscall.SIGTERM, syscall.SIGINT)
		time.Sleep(5 * time.Second) // nobody tells of a cluster that comes up
		s, err = begin(req, limit)
	}
	over.Stop()
	if err != nil {
		_ = json.NewEncoder(out).Encode(rbd.ServeReply{Fault: cephlink.FaultOf("rbd-serve", err)})
		return err
	}
	if err := json.NewEncoder(out).Encode(rbd.ServeReply{Mapping: &s.mapping}); err != nil {
		fmt.Fprintf(os.Stderr, "nobody hears that the image is served: %v\n", err)
	}
	_ = out.Close() // whoever waits for its end need not
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	return s.run()
}

// silent reports whether the cluster gave no answer at all.
func silent(err error) bool {
	if err == nil {
		return false
	}
	f := cephlink.FaultOf("rbd-serve", err)
	return f.ID == cephlink.Unreachable || f.ID == cephlink.TooSlow || errors.Is(f, syscall.ETIMEDOUT)
}

// served is an image that is a device.
type served struct {
	req     rbd.ServeRequest
	mapping rbd.Mapping
	conn    *rados.Conn
	io      *rados.IOContext
	img     *librbd.Image
	fuse    *fuse.Server
	signals chan os.Signal
}

func begin(req rbd.ServeRequest, limit time.Duration) (_ *served, err error) {
	s := &served{req: req, signals: make(chan os.Signal, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.end(context.Background()))
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	// What an earlier process left would be in the way.
	if err := rbd.CleanServe(ctx, req.Dir, req.State, req.Link); err != nil {
		return s, err
	}
	// Below /run: after a boot it is not there.
	if err := os.MkdirAll(filepath.Dir(req.State), 0o700); err != nil {
		return s, fmt.Errorf("cannot make a folder for what is served: %w", err)
	}
	if req.Mapper == rbd.NBD {
		signal.Notify(s.signals, syscall.SIGTERM, syscall.SIGINT)
		return s, s.nbd(ctx)
	}
	if err := s.lock(); err != nil {
		return s, err
	}
	protect()
	if err := os.MkdirAll(req.Dir, 0o700); err != nil {
		return s, err
	}
	signal.Notify(s.signals, syscall.SIGTERM, syscall.SIGINT)
	s.fuse, err = fuse.NewServer(newImageFS(s.img), req.Dir, &fuse.MountOptions{
		DirectMountStrict: true, DirectMountFlags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC,
		FsName: "rbd:" + req.Spec.String(), Name: "storagectl-rbd",
		MaxWrite: 1 << 20, MaxBackground: 64, DisableXAttrs: true, DisableReadDirPlus: true,
	})
	if err != nil {
		s.fuse = nil
		return s, fmt.Errorf("cannot mount the image's file: %w", err)
	}
	go s.fuse.Serve()
	if err := s.fuse.WaitMount(); err != nil {
		return s, fmt.Errorf("cannot mount the image's file: %w", err)
	}
	return s, s.device(ctx)
}

// lock opens the image and takes its exclusive lock.
func (s *served) lock() (err error) {
	options := map[string]string{
		// A part of an object that is discarded must read as zeros.
		"rbd_skip_partial_discard": "false",
		// The filesystem above flushes. Not writeback, which would make one write of small
		// ones beside each other: where the cluster is full it neither drains nor fails, its
		// flush forgets the error of an earlier write, and what is read back to prove a copy
		// would come from its memory.
		"rbd_cache": "true", "rbd_cache_writethrough_until_flush": "true", "rbd_cache_policy": "writearound",
	}
	if s.conn, err = link.Dial(s.req.Cluster, link.Limits{Connect: 30 * time.Second}, options); err != nil {
		return err
	}
	if s.io, err = openPool(s.conn, s.req.Spec); err != nil {
		return err
	}
	// A cluster that is full shall say so. Otherwise writes would wait, and with them
	// whatever writes to the device, until somebody makes room.
	if err := s.io.SetPoolFullTry(); err != nil {
		return fmt.Errorf("cannot prepare the pool: %w", err)
	}
	if s.img, err = librbd.OpenImage(s.io, s.req.Spec.Image, librbd.NoSnapshot); err != nil {
		return told(s.req.Spec, "open the image", err)
	}
	if err := s.img.LockAcquire(librbd.LockModeExclusive); err != nil {
		return told(s.req.Spec, "get the image's exclusive lock", err)
	}
	return nil
}

// device puts a loop device on the file and records the mapping.
func (s *served) device(ctx context.Context) error {
	fsid, err := s.conn.GetFSID()
	if err != nil {
		return fmt.Errorf("cannot tell the cluster's id: %w", err)
	}
	s.mapping = rbd.Mapping{Spec: s.req.Spec, Mapper: rbd.Fuse, FSID: fsid, Client: int64(s.conn.GetInstanceID()),
		Dir: s.req.Dir, File: filepath.Join(s.req.Dir, rbd.ServedFile)}
	if err := s.mapping.Process(os.Getpid()); err != nil {
		return err
	}
	s.rule(ctx, fmt.Sprintf(`KERNEL=="loop[0-9]*", ATTR{loop/backing_file}=="%s"`, pattern(s.mapping.File)))
	cmd := exec.CommandContext(ctx, "losetup", "--find", "--show", "--direct-io=on", s.mapping.File)
	var words strings.Builder // it warns of an image that ends within a sector
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("cannot make a loop device: %w: %s", err, strings.TrimSpace(words.String()))
	}
	s.mapping.Device = strings.TrimSpace(string(out))
	return s.show(ctx)
}

// show records the mapping, and gives its device the lasting name.
func (s *served) show(ctx context.Context) error {
	b, err := json.Marshal(s.mapping)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(s.req.State, b, 0o600); err != nil {
		return fmt.Errorf("cannot record what is served: %w", err)
	}
	return s.link(ctx)
}

// run serves until it is told to end and may.
func (s *served) run() error {
	for range s.signals {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		err := s.end(ctx)
		cancel()
		if err == nil {
			return nil
		}
		if s.fuse == nil && s.req.Mapper != rbd.NBD {
			return err
		}
		fmt.Fprintf(os.Stderr, "still serving %s: %v\n", s.req.Spec, err)
	}
	return nil
}

// end takes all back, in order: nothing of the image is let go while something
// above it may still write.
func (s *served) end(ctx context.Context) error {
	if s.req.Mapper == rbd.NBD {
		return s.endNBD(ctx)
	}
	if server := s.fuse; server != nil {
		if err := rbd.CleanServe(ctx, s.req.Dir, s.req.State, s.req.Link); err != nil {
			return err
		}
		s.fuse = nil
		// A copy of the mount in another mount namespace keeps it from ending. It
		// does with this process.
		over := make(chan struct{})
		go func() {
			server.Wait()
			close(over)
		}()
		select {
		case <-over:
		case <-time.After(2 * time.Second):
		}
	}
	var errs []error
	if s.img != nil {
		// Closing writes back what is cached and releases the lock.
		errs = append(errs, s.img.Flush(), s.img.Close())
	}
	if s.io != nil {
		s.io.Destroy()
	}
	if s.conn != nil {
		s.conn.Shutdown()
	}
	s.img, s.io, s.conn = nil, nil, nil
	return errors.Join(errs...)
}

// protect asks the kernel not to make this process wait for its own device when
// memory is short, and not to kill it first. Where it may not ask, it is served
// all the same.
func protect() {
	_ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(-1000)), 0)
}
