package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
	"github.com/storagectl/storagectl/internal/podman/storageconf"
	"github.com/storagectl/storagectl/verify"
)

// Host is the machine, and the owner of the store that the checks are about.
type Host struct {
	Owner   podman.Owner
	Runner  *host.Runner
	ConfEnv []string // what decides which configuration podman reads, where the caller is the owner
	// Getenv reads the caller's environment.
	Getenv func(string) string
	// Runs are the ids of the runs of this state directory.
	Runs []string
	// Next tells by run the commands that go on with it, or tell of it; a run that was
	// rolled back has none.
	Next map[string][]string
	// Images names the devices of this host that are images of Ceph; nil: it cannot be
	// told.
	Images func(context.Context) ([]Image, error)
	// Cutover is the one of them that has podman stopped, if any: podman is not asked
	// anything then.
	Cutover string

	version func() (string, error)
	conf    func() (confSeen, error)
	info    func() (infoSeen, error)
	store   func() (storeSeen, error)
	fuse    func() (kernelSeen, error)
	records func() (recordsSeen, error)
	where   func() (verify.StoreRef, error)

	idle chan *podman.Worker // that have answered, and can be asked again
}

// Image is an image of Ceph that is a device of this host.
type Image struct {
	Device string   // /dev/rbd0, /dev/loop7
	Name   string   // POOL/IMAGE
	Flags  []string // by which storagectl relocate reaches its cluster
}

// share sets up what several checks want to know: each is asked once.
func (h *Host) share(ctx context.Context) {
	h.version = sync.OnceValues(func() (string, error) {
		_, _, text, err := h.cli().Version(ctx)
		return text, err
	})
	h.conf = sync.OnceValues(func() (confSeen, error) { return h.lookConf(ctx) })
	h.where = sync.OnceValues(h.lookRoot)
	h.info = sync.OnceValues(func() (infoSeen, error) { return h.lookInfo(ctx) })
	h.store = sync.OnceValues(func() (storeSeen, error) { return h.lookStore(ctx) })
	h.fuse = sync.OnceValues(func() (kernelSeen, error) { return askOwner[kernelSeen](ctx, h, opKernel, none{}) })
	h.records = sync.OnceValues(func() (recordsSeen, error) {
		g, r, d, err := h.root()
		if err != nil {
			return recordsSeen{}, err
		}
		if d == "" {
			return recordsSeen{}, errNoStore
		}
		return askOwner[recordsSeen](ctx, h, opRecords, ref(g, r, d))
	})
	h.idle = make(chan *podman.Worker, atOnce)
}

// dismiss ends the workers that wait for a question.
func (h *Host) dismiss() {
	for {
		select {
		case w := <-h.idle:
			go func() { _ = w.Close() }() // it ends with this process at the latest
		default:
			return
		}
	}
}

// podmanLimit is how long podman may take to say what it uses.
const podmanLimit = 15 * time.Second

func (h *Host) cli() podman.CLI {
	return podman.CLI{Owner: h.Owner, Runner: h.Runner, Extra: h.ConfEnv, Limit: podmanLimit}
}

// Podman is why podman cannot be asked anything here, nil if it can. [NotSeen] makes
// a finding of it.
func (h *Host) Podman() error {
	_, err := h.info()
	return err
}

// self reports whether the caller is the store's owner, so that the caller's
// environment is the owner's.
func (h *Host) self() bool { return uint32(os.Getuid()) == h.Owner.UID }

// as puts a command in the words in which root runs it as the owner, wherever root is:
// podman goes nowhere from a folder that the owner may not enter, or with root's HOME.
func (h *Host) as(command string) string {
	if h.Owner.Rootful() || h.self() {
		return command
	}
	return fmt.Sprintf("runuser -u %[1]s -- env -C %[2]s HOME=%[2]s XDG_RUNTIME_DIR=/run/user/%[3]d %[4]s", h.Owner.Name, word(h.Owner.Home), h.Owner.UID, command)
}

// userFlag is how storagectl is told whose store it is.
func (h *Host) userFlag() string {
	if h.Owner.Rootful() {
		return ""
	}
	return " --user " + h.Owner.Name
}

// confSeen is what decides where podman's store is, before podman is asked.
type confSeen struct {
	Layers    []storageconf.Layer   `json:"layers"`
	Asked     []storageconf.Setting `json:"asked"` // what the files say
	Effective []storageconf.Setting `json:"effective"`
	Databases []libpoddb.Facts      `json:"databases"`
	DBProblem string                `json:"dbProblem,omitempty"` // why they could not be read
	There     bool                  `json:"there"`               // the graphroot
}

func (c confSeen) effective(name string) storageconf.Setting { return setting(c.Effective, name) }

func setting(all []storageconf.Setting, name string) storageconf.Setting {
	for _, s := range all {
		if s.Name == name {
			return s
		}
	}
	return storageconf.Setting{Name: name}
}

var errNoStore = errors.New("there is no store yet: podman has not been used")

func (h *Host) lookConf(ctx context.Context) (confSeen, error) {
	version, err := h.version()
	if err != nil {
		return confSeen{}, err
	}
	env := map[string]string{}
	for _, kv := range h.ConfEnv {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	if h.Owner.RuntimeDir != "" {
		env["XDG_RUNTIME_DIR"] = h.Owner.RuntimeDir
	}
	return askOwner[confSeen](ctx, h, opConf, storageconf.Owner{
		Podman: version, Rootless: !h.Owner.Rootful(), UID: int(h.Owner.UID), Home: h.Owner.Home, Env: env,
	})
}

// infoSeen is what podman info says.
type infoSeen struct {
	podman.Info
	More struct {
		Host struct {
			CgroupVersion     string   `json:"cgroupVersion"`
			CgroupControllers []string `json:"cgroupControllers"`
			NetworkBackend    string   `json:"networkBackend"`
			OCIRuntime        struct {
				Name string `json:"name"`
				Path string `json:"path"`
			} `json:"ociRuntime"`
			Security struct {
				AppArmor bool `json:"apparmorEnabled"`
				SELinux  bool `json:"selinuxEnabled"`
			} `json:"security"`
		} `json:"host"`
	}
}

// lookInfo asks podman what it uses; only where there is a store, since podman
// makes one where there is none.
func (h *Host) lookInfo(ctx context.Context) (infoSeen, error) {
	c, err := h.conf()
	if err != nil {
		return infoSeen{}, err
	}
	if !c.There || len(c.Databases) == 0 && c.DBProblem == "" {
		return infoSeen{}, errNoStore
	}
	if err := h.canRun(); err != nil {
		return infoSeen{}, err
	}
	out, err := h.cli().Run(ctx, nil, podman.InfoArgs()...)
	if err != nil {
		return infoSeen{}, fmt.Errorf("podman info does not work: %w", err)
	}
	var i infoSeen
	if i.Info, err = podman.DecodeInfo(out); err != nil {
		return infoSeen{}, err
	}
	if err := json.Unmarshal(out, &i.More); err != nil {
		return infoSeen{}, fmt.Errorf("cannot read podman info: %w", err)
	}
	return i, nil
}

// canRun keeps podman from being started where it would make itself at home
// elsewhere than usual, or get in the way of a run.
func (h *Host) canRun() error {
	if h.Cutover != "" {
		return fmt.Errorf("run %s has podman stopped, which would make itself another store now (storagectl status %s)", h.Cutover, h.Cutover)
	}
	if !h.Owner.Rootful() && h.Owner.RuntimeDir == "" && host.HasSystemd() {
		return fmt.Errorf("%s has no runtime folder, and podman would make do with another (storagectl doctor%s --check runtime-dir)", h.Owner.Name, h.userFlag())
	}
	return nil
}

// rootPatience is how long podman may take to say where its store is, before its
// configuration and database, which decide it, are believed: that leaves a check
// time to look there.
const rootPatience = 5 * time.Second

// lookRoot is the graphroot and the driver, from podman where it answers, else from
// its configuration.
func (h *Host) lookRoot() (verify.StoreRef, error) {
	said := make(chan infoSeen, 1)
	go func() {
		if i, err := h.info(); err == nil {
			said <- i
		}
		close(said)
	}()
	select {
	case i, is := <-said:
		if is {
			return ref(filepath.Clean(i.Store.GraphRoot), filepath.Clean(i.Store.RunRoot), i.Store.GraphDriverName), nil
		}
	case <-time.After(rootPatience):
	}
	c, err := h.conf()
	switch {
	case err != nil:
		return verify.StoreRef{}, err
	case !c.There:
		return verify.StoreRef{}, errNoStore
	}
	return ref(c.effective("graphroot").Value, c.effective("runroot").Value, c.effective("driver").Value), nil
}

func (h *Host) root() (graphRoot, runRoot, driver string, err error) {
	r, err := h.where()
	return r.GraphRoot, r.RunRoot, r.Driver, err
}

// rooted makes a check of a function that needs the place of the store.
func rooted(look func(ctx context.Context, h *Host, graphRoot, runRoot, driver string) Finding) func(context.Context, *Host) Finding {
	return func(ctx context.Context, h *Host) Finding {
		g, r, d, err := h.root()
		if err != nil {
			return notSeen(err)
		}
		return look(ctx, h, g, r, d)
	}
}

// NotSeen is the finding where podman cannot be asked: absent only where there is
// nothing to ask, and unknown where it does not answer.
func NotSeen(err error) Finding { return notSeen(err) }

// notSeen is a finding where what is looked at is not there, or not known.
func notSeen(err error) Finding {
	if errors.Is(err, errNoStore) || errors.Is(err, podman.ErrNoPodman) {
		return Finding{Outcome: Absent, Saw: err.Error()}
	}
	return unknown(err)
}

// withInfo makes a check of a function that needs podman's word.
func withInfo(look func(ctx context.Context, h *Host, i infoSeen) Finding) func(context.Context, *Host) Finding {
	return func(ctx context.Context, h *Host) Finding {
		i, err := h.info()
		if err != nil {
			return notSeen(err)
		}
		return look(ctx, h, i)
	}
}

// askOwner has a worker of the store's owner answer one question. One that has
// answered is asked again; one that hangs holds up no other question, and is not.
func askOwner[R any](ctx context.Context, h *Host, op string, args any) (R, error) {
	w, err := h.worker(ctx)
	if err != nil {
		var none R
		return none, err
	}
	return askBy[R](ctx, h, w, op, args)
}

// awake is a worker that has answered: its start, on a busy machine some seconds, is no
// part of the time that what is asked of it may take.
func (h *Host) awake(ctx context.Context) (*podman.Worker, error) {
	w, err := h.worker(ctx)
	if err == nil {
		err = w.Call(ctx, opMounts, "/", nil, nil)
	}
	return w, err
}

func askBy[R any](ctx context.Context, h *Host, w *podman.Worker, op string, args any) (R, error) {
	var r R
	err := w.Call(ctx, op, args, &r, nil)
	var fault *podman.Fault
	if ctx.Err() == nil && (err == nil || errors.As(err, &fault)) && op != opKernel && op != opCheck { // these have a /tmp of their own now
		select {
		case h.idle <- w:
			return r, err
		default:
		}
	}
	go func() { _ = w.Close() }() // it ends with this process at the latest
	return r, err
}

// worker gives one that waits for a question, or a new one.
func (h *Host) worker(ctx context.Context) (*podman.Worker, error) {
	select {
	case w := <-h.idle:
		return w, nil
	default:
		return podman.StartWorker(ctx, h.Owner, nil, h.ConfEnv...)
	}
}
