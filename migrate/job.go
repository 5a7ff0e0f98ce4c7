// Package migrate has the jobs: each an ordered list of steps that reads on one
// screen, the facts it remembers, and the judgement before it begins.
package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/verify"
)

// Progress tells how far a step is. Total is 0 where the end is not known.
type Progress struct {
	Step  string `json:"step"`
	Phase string `json:"phase"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
	Unit  string `json:"unit"` // "bytes", "images", "trees", "seconds", "allocations" (docs/json.md)
	Note  string `json:"note,omitempty"`
}

// Env is what a job takes from the program around it.
type Env struct {
	Dir     engine.Dir
	Version string
	Runner  *host.Runner
	Point   func(string) // the crash sweep's; nil otherwise
	// OldLost is the operator's word that the disk of an old store is lost for good: a
	// commit goes on without it, if it cannot be reached.
	OldLost bool
	// Anytime is the operator's word that a run's maintenance window does not matter.
	Anytime bool
	// Now is the wall clock, which windows go by; nil: time.Now. It may be called from
	// any goroutine.
	Now func() time.Time
	// Actor is who has the run begun or taken up; nil: the journal does not say.
	Actor    *engine.Actor
	Progress func(Progress)
	Event    func(engine.Event)
	Note     func(string)
}

// Session is a run of a job that this process holds the lock of.
type Session struct {
	ID     string
	Inputs Inputs

	env     Env
	cli     podman.CLI
	worker  *podman.Worker
	lock    *os.File
	journal *engine.Journal
	run     *engine.Run
	plan    []engine.Step // of run
	facts   Facts

	committing bool // the steps before the last were told already
	manifested bool // this process took the manifest of the stopped store

	pass *pass // what the gate of the maintenance window let this process through with

	drainer   *drain.Client
	lease     *drain.Lease // of the slot, while this process has it
	drainMost int          // allocations that were seen to be left, at most
}

// Begin makes a new run. The caller has shown the plan and has the operator's word.
func Begin(ctx context.Context, env Env, in Inputs) (*Session, error) {
	s, err := hold(ctx, env, in, "", nil)
	if err != nil {
		return nil, err
	}
	// The lock may have come from a run that ended only now.
	look, err := ask[storeLook](ctx, s, opLook, pathArg{in.Store.GraphRoot})
	if err == nil && (!slices.Contains(look.Drivers, in.Store.Driver) || slices.Contains(look.Drivers, in.Request.To) != in.HadTo) {
		err = &Refusal{ID: "changed", Text: "the store changed since the plan was made", Hint: "look at the plan again"}
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	raw, err := json.Marshal(in)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot begin a run: %w", err), s.Close())
	}
	if s.ID, err = env.Dir.New(in.Job()); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.journal, err = engine.Create(env.Dir.RunPath(s.ID), engine.Header{
		Run: s.ID, Job: in.Job(), Store: in.StoreKey(), Version: env.Version, Inputs: raw, Steps: engine.Names(s.steps()), Actor: env.Actor,
	}, engine.Options{Point: env.Point, Now: env.Now})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s.bind()
}

// Open takes up a run that was begun before.
func Open(ctx context.Context, env Env, run string) (*Session, error) {
	st, err := engine.Read(env.Dir.RunPath(run))
	if err != nil {
		return nil, err
	}
	in, err := DecodeInputs(st)
	if err != nil {
		return nil, err
	}
	// After a reboot the runtime directory may be there no more, or again.
	if in.Owner, err = podman.LookupOwner(ctx, env.Runner, in.Owner.Name); err != nil {
		return nil, err
	}
	s, err := hold(ctx, env, in, run, func(s *Session) (err error) {
		if s.journal, err = engine.Open(env.Dir.RunPath(run), engine.Options{Point: env.Point, Now: env.Now}); err != nil {
			return err
		}
		return s.journal.LoadFacts(&s.facts)
	})
	if err != nil {
		return nil, err
	}
	if s, err = s.bind(); err != nil || env.Actor == nil {
		return s, err
	}
	if err := s.journal.TakenUp(*env.Actor); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// DecodeInputs reads a run's inputs from its state.
func DecodeInputs(st engine.State) (Inputs, error) {
	var in Inputs
	if st.Header.Job != JobMigrate && st.Header.Job != JobRelocate && st.Header.Job != JobGrow {
		return in, fmt.Errorf("cannot go on with a %q job: this release does not know it", st.Header.Job)
	}
	if err := json.Unmarshal(st.Header.Inputs, &in); err != nil {
		return in, fmt.Errorf("cannot read the run's inputs: %w", err)
	}
	return in, nil
}

// hold locks the store, in the state directory and in the graphroot. A new run has
// no name yet; of another, load reads between the two how far it is.
func hold(ctx context.Context, env Env, in Inputs, run string, load func(*Session) error) (*Session, error) {
	s := &Session{ID: run, Inputs: in, env: env}
	s.cli = podman.CLI{Owner: in.Owner, Runner: env.Runner, Extra: in.ConfEnv}
	var err error
	if s.lock, err = env.Dir.Lock(in.StoreKey()); err != nil {
		return nil, err
	}
	if load != nil {
		if err := load(s); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	if s.worker, err = podman.StartWorker(ctx, in.Owner, env.Point, in.ConfEnv...); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	err = s.lockStore(ctx)
	if faultKind(err) == faultLocked {
		err = engine.ErrLocked
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// lockStore has the worker lock the store's folder. A store that lies aside is
// locked there: what is to be mounted in its place may be lost.
func (s *Session) lockStore(ctx context.Context) error {
	if s.relocating() && s.Inputs.Store.Mount != nil && s.ID != "" && s.inForce(stepSwap) {
		return s.lockOld(ctx)
	}
	if s.relocating() && s.Inputs.Store.Mount == nil && s.ID != "" {
		if there, err := s.asideThere(); err != nil {
			return err
		} else if there {
			_, err = ask[none](ctx, s, opLock, pathArg{s.aside()})
			return err
		}
	}
	look, err := ask[storeLook](ctx, s, opLook, pathArg{s.Inputs.Store.GraphRoot})
	// A growth unmounts the store for some moments: what is locked then is its empty
	// mount point.
	if err == nil && (s.ID == "" || !s.Inputs.Growing()) {
		err = samePlace(s.Inputs, look)
	}
	if err != nil || look.RealPath == "" { // `podman system reset` removes the graphroot itself
		return err
	}
	_, err = ask[none](ctx, s, opLock, pathArg{s.Inputs.Store.GraphRoot})
	return err
}

func (s *Session) bind() (*Session, error) {
	s.plan = s.steps()
	run, err := engine.NewRun(s.journal, s.plan, s.tell)
	if err == nil {
		err = engine.Sign(s.lock, s.ID)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.run = run
	return s, nil
}

// tell passes events on. That all steps before a commit are done is no news.
func (s *Session) tell(e engine.Event) {
	if s.env.Event == nil || s.committing && e.Kind == engine.EventSkip {
		return
	}
	s.env.Event(e)
}

// Close lets go of the run: worker, journal and locks.
func (s *Session) Close() error {
	var errs []error
	if s.lease != nil {
		s.lease.Leave() // a resumed run takes it again; else it ends by itself
	}
	if s.worker != nil {
		errs = append(errs, s.worker.Close())
	}
	if s.journal != nil {
		errs = append(errs, s.journal.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Forward does what is left of the run; with commit its final step too.
//
// A failure before the store itself was touched is undone at once, if it is a
// refusal or podman is down for it: nobody gains from a podman that stays down
// beside a store that is whole. What was stopped runs again, what was staged is
// gone, and the error is returned alone; the run's phase tells.
//
// A job that keeps no old store, such as a growth, has nothing to commit: it is
// done to its end.
//
// A [*ClosedError] says that the maintenance window does not allow to go on: what had
// been taken out of service is given back by then, and the run can be resumed.
func (s *Session) Forward(ctx context.Context, commit bool) error {
	whole := s.Inputs.Request.Images == Discard || s.Inputs.Growing()
	if s.journal.State().Phase == engine.PhaseCommitted {
		return nil
	}
	if err := s.wholeRun(ctx); err != nil {
		return err
	}
	var err error
	if st := s.journal.State(); st.Phase != engine.PhaseFinished && st.Steps[stepCommit].Mark == engine.MarkNone {
		err = s.run.Forward(ctx, whole)
		if errors.Is(err, engine.ErrPaused) {
			return s.stepBack(ctx, err)
		}
		if err == nil {
			err = s.pastWindow()
		}
	}
	if err == nil && commit && !whole {
		if err := s.mayCommit(ctx); err != nil {
			return err
		}
		s.committing = true
		return s.run.Forward(ctx, true)
	}
	if err == nil || errors.Is(err, engine.ErrInterrupted) {
		return err
	}
	steps := s.journal.State().Steps
	touched := steps[stepSwap].Mark != engine.MarkNone || steps[stepReset].Mark != engine.MarkNone
	if s.Inputs.DatabaseOnly() { // until then a move that failed is taken back
		touched = steps[stepVerify].Mark != engine.MarkNone
	}
	if s.relocating() { // it is only renamed until the target takes its place
		touched = steps[stepMount].Mark != engine.MarkNone || steps[StepGrowFS].Mark != engine.MarkNone
	}
	var r *Refusal
	if refused := errors.As(err, &r); touched || !refused && steps[stepStop].Mark == engine.MarkNone {
		return err
	}
	if back := s.run.Rollback(context.WithoutCancel(ctx)); back != nil {
		return errors.Join(err, back)
	}
	if r != nil {
		return r
	}
	return err
}

// Rollback puts everything back as it was before the run. While containers run
// that neither a unit nor a drain of the run ends, it is refused before anything is touched.
func (s *Session) Rollback(ctx context.Context) error {
	if err := s.wholeRun(ctx); err != nil {
		return err
	}
	st := s.journal.State()
	if err := s.lastRun(); err != nil {
		return err
	}
	away, err := s.away(ctx)
	if err != nil {
		return err
	}
	if st.Phase == engine.PhaseFinished && !away {
		cs, err := s.cli.Containers(ctx)
		if err != nil && s.relocating() { // its disk may have died under it: that is what the way back is for
			cs, err = nil, s.note("podman does not answer: %v", err)
		}
		if err != nil {
			return err
		}
		var before verify.Manifest
		if s.Inputs.Request.keeping() {
			if before, err = s.readManifest(); err != nil {
				return err
			}
		}
		// What was there before is stopped, and started again on the old store.
		known := func(id string) bool {
			return slices.ContainsFunc(before.Podman.Objects, func(o verify.Object) bool { return o.Kind == "container" && o.ID == id })
		}
		var names []string
		for _, c := range cs {
			if _, is := drain.IsNomads(c.Names, c.Labels); is && s.Inputs.Nomad != nil {
				continue // the drain moves it away
			}
			if (c.State == "running" && !known(c.ID) || c.State == "paused") && c.Labels["PODMAN_SYSTEMD_UNIT"] == "" {
				names = append(names, c.Name())
			}
		}
		if len(names) > 0 {
			return &Refusal{ID: "running", Text: "containers run on the new store: " + strings.Join(names, ", "),
				Hint: "podman stop " + strings.Join(names, " ") + ", then roll back"}
		}
	}
	return s.run.Rollback(ctx)
}

// askDeadline bounds a request whose time does not grow with the store, or only
// a little. Its longest part is a systemd unit that takes its time to stop.
const askDeadline = 10 * time.Minute

// ask sends the worker a request and waits for its answer.
func ask[R any](ctx context.Context, s *Session, op string, args any) (R, error) {
	if !slices.Contains([]string{opRemove, opReclaim, opSizes, opEmptyTarget, opEmptyCopy, opEmptyAside, opEmptyOld}, op) { // these walk the store
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, askDeadline)
		defer cancel()
	}
	var r R
	err := s.worker.Call(ctx, op, args, &r, nil)
	return r, err
}

// learn changes the facts and makes them durable.
func (s *Session) learn(set func(*Facts)) error {
	set(&s.facts)
	return s.journal.SaveFacts(s.facts)
}

func (s *Session) note(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if s.env.Note != nil {
		s.env.Note(text)
	}
	return s.journal.Note("", text)
}
