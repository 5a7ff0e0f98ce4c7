package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
	"github.com/storagectl/storagectl/internal/podman/storageconf"
	"github.com/storagectl/storagectl/verify"
	"github.com/storagectl/storagectl/verify/dockerapi"
)

// What doctor asks the owner's worker. All but the changes only look.
const (
	opConf    = "doctor-conf"
	opStore   = "doctor-store"
	opRecords = "doctor-records"
	opFiles   = "doctor-files"
	opLocks   = "doctor-locks"
	opKernel  = "doctor-kernel"
	opSocket  = "doctor-socket"
	opUnits   = "doctor-units"

	opSocketFile = "doctor-socket-file"
	opCNI        = "doctor-cni"
	opEnvFile    = "doctor-environment"
	opMounts     = "doctor-mount"

	opVolumes  = "verify-volumes"
	opManifest = "verify-manifest"
	opData     = "verify-data"
	opReplay   = "verify-docker-api"
	opCheck    = "verify-check"

	opFileIs   = "doctor-file-is"
	opFilePut  = "doctor-file-put"
	opFuseOnly = "doctor-fuse-only"
)

type none struct{}

// Handlers are the answers of an owner's worker to what doctor asks. uid is the
// owner's as the machine numbers users.
func Handlers(uid int) map[string]podman.Handler {
	return map[string]podman.Handler{
		opConf: podman.Handle(func(ctx context.Context, o storageconf.Owner, _ func(any)) (confSeen, error) { return seeConf(ctx, o) }),
		opStore: podman.Handle(func(_ context.Context, a storeArgs, _ func(any)) (storeSeen, error) {
			return seeStore(a)
		}),
		opRecords: podman.Handle(func(ctx context.Context, r verify.StoreRef, _ func(any)) (recordsSeen, error) {
			return seeRecords(ctx, r)
		}),
		opFiles: podman.Handle(func(ctx context.Context, r verify.StoreRef, _ func(any)) (verify.QuickReport, error) {
			return verify.Quick(ctx, r, filesBudget)
		}),
		opLocks: podman.Handle(func(_ context.Context, a storeArgs, _ func(any)) (map[string]string, error) {
			return lockFiles(a.GraphRoot, a.RunRoot), nil
		}),
		opKernel: podman.Handle(func(context.Context, none, func(any)) (kernelSeen, error) { return seeKernel(), nil }),
		opSocket: podman.Handle(func(ctx context.Context, path string, _ func(any)) (socketSeen, error) {
			return seeSocket(ctx, path, true), nil
		}),
		opSocketFile: podman.Handle(func(ctx context.Context, path string, _ func(any)) (socketSeen, error) {
			return seeSocket(ctx, path, false), nil
		}),
		opUnits: podman.Handle(func(ctx context.Context, units []string, _ func(any)) (map[string]host.UnitState, error) {
			return seeUnits(ctx, uid, units)
		}),
		opCNI: podman.Handle(func(ctx context.Context, dir string, _ func(any)) ([]cniSeen, error) { return seeCNI(ctx, dir) }),
		opEnvFile: podman.Handle(func(_ context.Context, pattern string, _ func(any)) ([]envSeen, error) {
			return seeEnvironment(pattern)
		}),
		opMounts: podman.Handle(func(_ context.Context, path string, _ func(any)) (none, error) { return none{}, tryMount(path) }),
		opVolumes: podman.Handle(func(_ context.Context, paths []string, _ func(any)) ([]string, error) {
			return seeVolumes(paths), nil
		}),
		opReplay: podman.Handle(func(ctx context.Context, o dockerapi.Options, _ func(any)) (replayed, error) {
			return replay(ctx, o), nil
		}),
		opCheck: podman.Handle(func(ctx context.Context, r verify.StoreRef, _ func(any)) (verify.CheckReport, error) {
			return checkStore(ctx, r)
		}),
		opManifest: podman.Handle(func(ctx context.Context, r verify.StoreRef, _ func(any)) (verify.StorePart, error) {
			return verify.StoreManifest(ctx, r)
		}),
		opData: podman.Handle(func(ctx context.Context, a dataArgs, p func(any)) (verify.ReadReport, error) {
			return verify.ReadData(ctx, a.Store, a.Options, func(q verify.ReadProgress) { p(q) })
		}),
		opFileIs:   podman.Handle(func(_ context.Context, path string, _ func(any)) (fileIs, error) { return readSmall(path) }),
		opFilePut:  podman.Handle(func(_ context.Context, a filePut, _ func(any)) (none, error) { return none{}, a.put() }),
		opFuseOnly: podman.Handle(func(_ context.Context, graphRoot string, _ func(any)) (string, error) { return madeByFuse(graphRoot) }),
	}
}

// seeConf reads podman's configuration and its database, as podman would.
func seeConf(ctx context.Context, o storageconf.Owner) (confSeen, error) {
	layers, err := storageconf.Layers(o)
	if err != nil {
		return confSeen{}, err
	}
	c := confSeen{Layers: layers, Asked: storageconf.Effective(o, layers, libpoddb.Facts{})}
	root := setting(c.Asked, "graphroot").Value
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second) // a database that is locked
	defer cancel()
	if c.Databases, err = libpoddb.Find(ctx, root, ""); err != nil {
		c.DBProblem = err.Error()
	}
	db, err := libpoddb.Choose(c.Databases, o.Podman, "")
	if err != nil {
		c.DBProblem = err.Error()
	}
	c.Effective = storageconf.Effective(o, layers, db)
	_, err = os.Stat(setting(c.Effective, "graphroot").Value)
	c.There = err == nil
	return c, nil
}

// kernelSeen is what the owner's processes get from the kernel.
type kernelSeen struct {
	Overlay   string `json:"overlay,omitempty"` // why no overlay can be mounted
	Fuse      string `json:"fuse,omitempty"`    // why /dev/fuse cannot be opened
	Tun       string `json:"tun,omitempty"`     // why /dev/net/tun cannot be opened
	FuseThere bool   `json:"fuseThere"`
	TunThere  bool   `json:"tunThere"`
}

// seeKernel tries an overlay of two folders in memory, in the worker's own mount
// namespace, and opens the devices.
func seeKernel() kernelSeen {
	var k kernelSeen
	open := func(path string) (why string, there bool) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil {
			f.Close()
			return "", true
		}
		return reason(err), !errors.Is(err, fs.ErrNotExist)
	}
	k.Fuse, k.FuseThere = open("/dev/fuse")
	k.Tun, k.TunThere = open("/dev/net/tun")
	if err := tryOverlay(); err != nil {
		k.Overlay = err.Error()
	}
	return k
}

func tryOverlay() error {
	// The mount namespace is this worker's alone: what is mounted goes with it.
	const at = "/tmp"
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("a tmpfs cannot be mounted to try it on: %s", reason(err))
	}
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(at, d), 0o755); err != nil {
			return err
		}
	}
	data := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", at)
	if in, err := os.ReadFile("/proc/self/uid_map"); err == nil && len(strings.Fields(string(in))) > 1 && strings.Fields(string(in))[1] != "0" {
		data += ",userxattr"
	}
	if err := unix.Mount("overlay", filepath.Join(at, "merged"), "overlay", 0, data); err != nil {
		return fmt.Errorf("the kernel refuses to mount one: %s", reason(err))
	}
	return nil
}

// reason is an error without the names that a check says itself.
func reason(err error) string {
	var e unix.Errno
	if errors.As(err, &e) {
		return e.Error()
	}
	return err.Error()
}

// socketSeen is what is at a path where a socket should be.
type socketSeen struct {
	Path    string `json:"path"`
	Why     string `json:"why,omitempty"` // why nobody answers
	There   bool   `json:"there"`
	Socket  bool   `json:"socket"`
	Link    string `json:"link,omitempty"` // where a symbolic link leads
	Mode    uint32 `json:"mode"`
	GID     uint32 `json:"gid"`
	Version string `json:"version,omitempty"` // of the engine
	API     string `json:"api,omitempty"`
	Engine  string `json:"engine,omitempty"`
}

// seeSocket looks at a socket, and may ask for the version behind it.
func seeSocket(ctx context.Context, path string, ask bool) socketSeen {
	s := socketSeen{Path: path}
	s.Link, _ = os.Readlink(path)
	fi, err := os.Stat(path)
	if err != nil {
		if _, lerr := os.Lstat(path); lerr == nil {
			s.There = true
		}
		s.Why = reason(err)
		return s
	}
	s.There, s.Socket, s.Mode = true, fi.Mode()&fs.ModeSocket != 0, uint32(fi.Mode().Perm())
	if st, is := fi.Sys().(*syscall.Stat_t); is {
		s.GID = st.Gid
	}
	if !s.Socket {
		s.Why = "it is no socket"
		return s
	}
	if !ask {
		return s
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	ctx, cancel := context.WithTimeout(ctx, socketLimit)
	defer cancel()
	if err := s.ask(ctx, client); err != nil {
		s.Why = err.Error()
	}
	return s
}
