package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
	"github.com/storagectl/storagectl/migrate/convert"
	"github.com/storagectl/storagectl/verify"
)

// The requests that a job sends to its owner worker.
const (
	opLook       = "look"
	opLock       = "lock"
	opProcesses  = "processes"
	opUnits      = "units"
	opUnitActive = "unit-active"
	opUnitPIDs   = "unit-pid-files"
	opUnitFiles  = "unit-files"
	opUnitReload = "unit-reload"
	opUnitStop   = "unit-stop"
	opUnitStart  = "unit-start"
	opPing       = "ping"
	opSurvey     = "survey"
	opSync       = "sync"
	opStaged     = "staged"
	opCompare    = "compare"
	opChanged    = "changed"
	opManifest   = "manifest"
	opSample     = "sample"
	opSizes      = "sizes"
	opSwapIn     = "swap-in"
	opNewLive    = "new-live"
	opSwapOut    = "swap-out"
	opSwapDo     = "swap-do"
	opSwapUndo   = "swap-undo"
	opPlaced     = "placed"
	opPlace      = "place"
	opDropEmpty  = "drop-empty"
	opResetLook  = "reset-look"
	opLoginsOut  = "logins-out"
	opLoginsBack = "logins-back"
	opDBFind     = "db-find"
	opDBSave     = "db-save"
	opDBSaved    = "db-saved"
	opDBSet      = "db-set"
	opDBRestore  = "db-restore"
	opDBRight    = "db-right"
	opConfRead   = "conf-read"
	opConfWrite  = "conf-write"
	opConfRemove = "conf-remove"
	opConfPlan   = "conf-plan"
	opRunCleared = "run-cleared"
	opRunClear   = "run-clear"
	opRunRestore = "run-restore"
	opRunForget  = "run-forget"
	opReclaim    = "reclaim"
	opWeigh      = "weigh"
	opRemove     = "remove"
	opGone       = "gone"
	opMounts     = "mounts"
	opDBAside    = "db-aside"

	opReplay      = "docker-api"
	opReplaySweep = "docker-api-sweep"

	opCopy        = "copy"
	opReadBack    = "read-back"
	opEmptyTarget = "empty-target"
	opEmptyCopy   = "empty-copy"
	opEmptyAside  = "empty-aside"
	opEmptyOld    = "empty-old"
	opMakeHome    = "make-home"
	opProbe       = "probe-target"

	opUnitFilesMove = "unit-files-move"
	opBundle        = "bundle"
)

// The kinds of faults that the worker's answers are told apart by.
const (
	faultLocked   = "locked"
	faultDamaged  = "damaged"
	faultNoNative = "no-native-overlay"
	faultBoth     = "two-databases"
	faultSchema   = "unknown-schema"
	faultNoRoom   = "no-room"
	faultUnlike   = "unconvertible"
)

// none is the argument or result of a request that has none.
type none struct{}

type pathArg struct {
	Path string `json:"path"`
}

// worker is what an owner worker keeps between requests.
type worker struct {
	uid  int // of the owner, outside the namespace
	lock *os.File
}

// Handlers are the answers of an owner worker whose store belongs to the user
// uid, as the machine (not the worker's namespace) numbers users.
func Handlers(uid int) map[string]podman.Handler {
	w := &worker{uid: uid}
	all := map[string]podman.Handler{
		opLook: podman.Handle(func(_ context.Context, a pathArg, _ func(any)) (storeLook, error) {
			return lookAtStore(a.Path)
		}),
		opLock: podman.Handle(func(ctx context.Context, a pathArg, _ func(any)) (_ none, err error) {
			if w.lock == nil {
				w.lock, err = lockStore(ctx, a.Path)
			}
			return none{}, faulty(err)
		}),
		opProcesses: podman.Handle(func(_ context.Context, a processArgs, _ func(any)) ([]process, error) {
			return podmanProcesses(a.EndPause)
		}),
		opUnits: podman.Handle(func(ctx context.Context, _ none, _ func(any)) (units []string, err error) {
			if w.noUnits() {
				return nil, nil
			}
			err = w.withBus(ctx, func(b *host.Bus) (err error) { // the owner is root in here
				units, err = b.PodmanUnits(ctx, 0, ownUsers(w.uid)...)
				return err
			})
			return units, err
		}),
		opUnitActive: podman.Handle(func(ctx context.Context, units []string, _ func(any)) (active []string, err error) {
			if w.noUnits() {
				return nil, nil
			}
			err = w.withBus(ctx, func(b *host.Bus) error {
				for _, u := range units {
					up, err := b.Active(ctx, u)
					if err != nil {
						return err
					}
					if up {
						active = append(active, u)
					}
				}
				return nil
			})
			return active, err
		}),
		opUnitPIDs:      podman.Handle(w.unitPIDs),
		opUnitFiles:     podman.Handle(w.unitFiles),
		opUnitFilesMove: podman.Handle(w.moveUnitFiles),
		opBundle:        podman.Handle(moveBundle),
		opUnitReload: podman.Handle(func(ctx context.Context, _ none, _ func(any)) (none, error) {
			return none{}, w.withBus(ctx, func(b *host.Bus) error { return b.Reload(ctx) })
		}),
		opUnitStop: podman.Handle(func(ctx context.Context, unit string, _ func(any)) (none, error) {
			return none{}, w.withBus(ctx, func(b *host.Bus) error { return b.Stop(ctx, unit) })
		}),
		opUnitStart: podman.Handle(func(ctx context.Context, unit string, _ func(any)) (none, error) {
			return none{}, w.withBus(ctx, func(b *host.Bus) error { return b.Start(ctx, unit) })
		}),
		opPing: podman.Handle(func(ctx context.Context, unit string, _ func(any)) (none, error) {
			return none{}, w.ping(ctx, unit)
		}),
		opReplay: podman.Handle(func(ctx context.Context, unit string, _ func(any)) (replayed, error) {
			return w.replayCalls(ctx, unit)
		}),
		opReplaySweep: podman.Handle(func(ctx context.Context, unit string, _ func(any)) (none, error) {
			return none{}, w.replaySweep(ctx, unit)
		}),
		opSurvey: podman.Handle(func(ctx context.Context, o convert.Options, p func(any)) (convert.Estimate, error) {
			if err := seeOverlay(o.Source.Driver, o.Source.GraphRoot); err != nil {
				return convert.Estimate{}, err
			}
			e, err := convert.Survey(ctx, o)
			return e, faulty(err)
		}),
		opSync: podman.Handle(func(ctx context.Context, o convert.Options, p func(any)) (convert.Report, error) {
			if err := seeOverlay(o.Source.Driver, o.Source.GraphRoot); err != nil {
				return convert.Report{}, err
			}
			o.Progress = func(c convert.Progress) { p(c) }
			r, err := convert.Sync(ctx, o)
			return r, faulty(err)
		}),
		opStaged: podman.Handle(func(ctx context.Context, o convert.Options, _ func(any)) (stagedAnswer, error) {
			ok, why, err := convert.Staged(ctx, o)
			return stagedAnswer{ok, why}, faulty(err)
		}),
		opCompare: podman.Handle(func(ctx context.Context, a compareArgs, p func(any)) (convert.Proof, error) {
			if err := seeOverlay(a.Source.Driver, a.Source.GraphRoot); err != nil {
				return convert.Proof{}, err
			}
			a.Progress = func(c convert.Progress) { p(c) }
			proof, err := convert.Compare(ctx, a.Options, a.Images, convert.CompareOptions{ContainersOnly: len(a.Images) == 0, Known: a.Known})
			return proof, faulty(err)
		}),
		opChanged: podman.Handle(func(ctx context.Context, o convert.Options, _ func(any)) ([]string, error) {
			if err := seeOverlay(o.Source.Driver, o.Source.GraphRoot); err != nil {
				return nil, err
			}
			ids, err := convert.ChangedContainers(ctx, o)
			return ids, faulty(err)
		}),
		opManifest: podman.Handle(func(ctx context.Context, a verify.StoreRef, _ func(any)) (verify.StorePart, error) {
			return verify.StoreManifest(ctx, a)
		}),
		opSizes: podman.Handle(func(ctx context.Context, a sizesArgs, _ func(any)) (map[string]int64, error) {
			return verify.LayerSizes(ctx, a.Store, a.Layers)
		}),
		opSample: podman.Handle(func(ctx context.Context, a sampleArgs, _ func(any)) (verify.Sample, error) {
			if err := os.MkdirAll(a.Scratch, 0o700); err != nil {
				return verify.Sample{}, fmt.Errorf("cannot make room for a sample of files: %w", err)
			}
			if a.Again != nil {
				return a.Again.Again(ctx, a.Store, a.Scratch)
			}
			return verify.TakeSample(ctx, a.Store, a.Scratch, verify.SampleOptions{Images: a.Images, Seed: a.Store.GraphRoot})
		}),
		opSwapIn:  podman.Handle(func(_ context.Context, s swap, _ func(any)) (bool, error) { return s.in() }),
		opNewLive: podman.Handle(func(_ context.Context, s swap, _ func(any)) (bool, error) { return s.newLive() }),
		opSwapOut: podman.Handle(func(_ context.Context, s swap, _ func(any)) (bool, error) { return s.out() }),
		opSwapDo: podman.Handle(func(_ context.Context, s swap, _ func(any)) (string, error) {
			strays, err := s.do()
			return strays, faulty(err)
		}),
		opSwapUndo: podman.Handle(func(_ context.Context, s swap, _ func(any)) (string, error) {
			strays, err := s.undo()
			return strays, faulty(err)
		}),
		opPlaced: podman.Handle(func(_ context.Context, s swap, _ func(any)) (bool, error) { return s.placed() }),
		opPlace: podman.Handle(func(_ context.Context, s swap, _ func(any)) (string, error) {
			var strays string
			if err := s.arrive(&strays); err != nil {
				return strays, faulty(err)
			}
			return strays, s.sync()
		}),
		opDropEmpty: podman.Handle(func(_ context.Context, a dropArgs, _ func(any)) (none, error) {
			return none{}, dropEmpty(a.GraphRoot, a.Driver)
		}),
		opResetLook:  podman.Handle(func(_ context.Context, a resetArgs, _ func(any)) (resetLook, error) { return lookAtReset(a) }),
		opLoginsOut:  podman.Handle(func(_ context.Context, a loginsArgs, _ func(any)) (none, error) { return none{}, loginsOut(a) }),
		opLoginsBack: podman.Handle(func(_ context.Context, a loginsArgs, _ func(any)) (none, error) { return none{}, loginsBack(a) }),
		opDBFind: podman.Handle(func(ctx context.Context, a dbFindArgs, _ func(any)) ([]libpoddb.Facts, error) {
			f, err := libpoddb.Find(ctx, a.GraphRoot, "")
			return f, faulty(err)
		}),
		opDBSave: podman.Handle(func(ctx context.Context, a dbArgs, _ func(any)) (none, error) {
			if a.Anew {
				return none{}, faulty(libpoddb.SaveAnew(ctx, a.Path, a.Saved))
			}
			return none{}, faulty(libpoddb.Save(ctx, a.Path, a.Saved))
		}),
		opDBSaved: podman.Handle(func(_ context.Context, a dbArgs, _ func(any)) (bool, error) {
			return libpoddb.Saved(a.Saved, a.Path)
		}),
		opDBSet: podman.Handle(func(ctx context.Context, a dbArgs, _ func(any)) (none, error) {
			return none{}, faulty(libpoddb.SetDriver(ctx, a.Path, a.From, a.To, libpoddb.Moves{}))
		}),
		opDBRight: podman.Handle(func(ctx context.Context, a dbArgs, _ func(any)) (bool, error) {
			left, err := libpoddb.Preview(ctx, a.Path, a.From, a.To, libpoddb.Moves{})
			// What containers have mounted at the moment does not matter.
			commands := slices.ContainsFunc(left, func(c libpoddb.Change) bool { return strings.Contains(c.Field, "exitCommand") })
			return !commands, faulty(err)
		}),
		opDBRestore: podman.Handle(func(ctx context.Context, a dbArgs, _ func(any)) (none, error) {
			return none{}, faulty(libpoddb.Restore(ctx, a.Saved, a.Path))
		}),
		opConfRead:   podman.Handle(readConf),
		opConfWrite:  podman.Handle(writeConf),
		opConfRemove: podman.Handle(removeConf),
		opConfPlan:   podman.Handle(planConf),
		opRunCleared: podman.Handle(func(_ context.Context, a runArgs, _ func(any)) (bool, error) {
			return runStateCleared(a)
		}),
		opRunClear: podman.Handle(func(ctx context.Context, a runArgs, _ func(any)) (none, error) {
			if a.For != "" && !a.Same {
				if err := carryRunFolders(ctx, a.RunRoot, a.Driver, a.For); err != nil {
					return none{}, err
				}
			}
			return none{}, clearRunState(a)
		}),
		opRunRestore: podman.Handle(func(_ context.Context, a runArgs, _ func(any)) (none, error) {
			return none{}, restoreRunState(a)
		}),
		opRunForget: podman.Handle(func(_ context.Context, a runArgs, _ func(any)) (none, error) {
			return none{}, forgetRunState(a.Aside)
		}),
		opReclaim: podman.Handle(func(ctx context.Context, a pathArg, _ func(any)) (uint64, error) {
			return reclaimable(ctx, a.Path)
		}),
		opRemove: podman.Handle(func(_ context.Context, a pathArg, _ func(any)) (none, error) {
			return none{}, removeFolder(a.Path)
		}),
		opMounts: podman.Handle(func(_ context.Context, a pathArg, _ func(any)) ([]string, error) {
			return oldMounts(a.Path)
		}),
		opDBAside: podman.Handle(func(_ context.Context, a dbArgs, _ func(any)) (none, error) {
			return none{}, databaseAside(a.Path, a.Saved)
		}),
		opGone: podman.Handle(func(_ context.Context, a pathArg, _ func(any)) (bool, error) {
			there, err := exists(a.Path)
			return !there, err
		}),
	}
	maps.Copy(all, copyHandlers())
	return all
}

type stagedAnswer struct {
	OK  bool     `json:"ok"`
	Why []string `json:"why,omitempty"`
}

type compareArgs struct {
	convert.Options
	Images []string `json:"images"`          // none: the containers
	Known  []string `json:"known,omitempty"` // of these, those that were compared before
}

type sampleArgs struct {
	Store   verify.StoreRef `json:"store"`
	Scratch string          `json:"scratch"`
	Images  []string        `json:"images,omitempty"` // to choose from
	Again   *verify.Sample  `json:"again,omitempty"`  // the same entries once more
}

type dropArgs struct {
	GraphRoot string `json:"graphRoot"`
	Driver    string `json:"driver"`
}

type dbFindArgs struct {
	GraphRoot string `json:"graphRoot"`
}

type dbArgs struct {
	Path  string `json:"path"`
	Saved string `json:"saved"` // folder of the saved copy
	From  string `json:"from,omitempty"`
	To    string `json:"to,omitempty"`
	Anew  bool   `json:"anew,omitempty"` // of a save: a copy of before is replaced if it is another
}

type runArgs struct {
	RunRoot string `json:"runRoot"`
	Driver  string `json:"driver"`
	Aside   string `json:"aside"`          // where run state is put
	For     string `json:"for,omitempty"`  // the driver that gets a copy of the containers' run folders
	Same    bool   `json:"same,omitempty"` // the driver keeps its name, so the containers' run folders stay
}

// withBus lends f the bus of the systemd manager that has the owner's units.
// Without a runtime directory the owner has no manager running, and no units.
func (w *worker) withBus(ctx context.Context, f func(*host.Bus) error) error {
	var b *host.Bus
	var err error
	if w.uid == 0 {
		b, err = host.SystemBus(ctx)
	} else {
		b, err = host.UserBus(ctx, os.Getenv("XDG_RUNTIME_DIR"), w.uid)
	}
	if err != nil {
		return err
	}
	defer b.Close()
	return f(b)
}

// noUnits reports whether the owner has no systemd running.
func (w *worker) noUnits() bool { return w.uid != 0 && os.Getenv("XDG_RUNTIME_DIR") == "" }

// faulty gives an error the kind that it is told by on the other side.
func faulty(err error) error {
	if err == nil {
		return nil
	}
	f := &podman.Fault{Text: err.Error()}
	var damage *convert.DamageError
	switch {
	case errors.Is(err, engine.ErrLocked), errors.Is(err, convert.ErrBusy):
		f.Kind = faultLocked
	case errors.As(err, &damage):
		f.Kind = faultDamaged
		f.Detail, _ = json.Marshal(damage.Damage) // plain data: it marshals
	case errors.Is(err, convert.ErrUnconvertible):
		f.Kind = faultUnlike
	case errors.Is(err, convert.ErrNoNativeOverlay):
		f.Kind = faultNoNative
	case errors.Is(err, libpoddb.ErrBoth):
		f.Kind = faultBoth
	case errors.Is(err, libpoddb.ErrSchema):
		f.Kind = faultSchema
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		f.Kind = faultNoRoom
	case errors.Is(err, context.Canceled):
		f.Kind = podman.KindCanceled
	}
	return f
}

// faultKind is the kind of the worker's fault in err, "" for any other error.
func faultKind(err error) string {
	var f *podman.Fault
	if errors.As(err, &f) {
		return f.Kind
	}
	return ""
}
