package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman"
)

// Held is a store that is looked at, and can be locked, for work that is no run.
type Held struct {
	Owner  podman.Owner
	CLI    podman.CLI
	Worker *podman.Worker
	// Uncommitted are the finished runs that still keep an old store of this owner's.
	Uncommitted []string
	// Nomad is a run on a store of this owner's that took Nomad's nodes out of service,
	// the last one; "": none did.
	Nomad string

	env  Env
	lock *os.File
}

// Take looks whose store it is, and that no run is in the way: one that is at work is
// [engine.ErrLocked], one that stands half-way a [Refusal], before podman is asked
// anything. user is "" for the caller.
func Take(ctx context.Context, env Env, user string) (*Held, error) {
	a := &Assessment{Inputs: Inputs{Request: Request{User: user}}}
	owner, ok, err := a.owner(ctx, env.Runner)
	if err != nil || !ok {
		return nil, a.first(err)
	}
	a.Inputs.Owner, a.Inputs.ConfEnv = owner, ConfEnv(owner)
	if _, err := a.unfinished(env.Dir); err != nil || len(a.Refusals) > 0 {
		return nil, a.first(err)
	}
	h := &Held{Owner: owner, CLI: podman.CLI{Owner: owner, Runner: env.Runner, Extra: a.Inputs.ConfEnv}, env: env}
	if ok, err := a.version(ctx, h.CLI); err != nil || !ok {
		return nil, a.first(err)
	}
	if h.Uncommitted, h.Nomad, err = runsOf(env.Dir, owner.UID); err != nil {
		return nil, err
	}
	if h.Worker, err = podman.StartWorker(ctx, owner, env.Point, a.Inputs.ConfEnv...); err != nil {
		return nil, err
	}
	return h, nil
}

// first is err, or the first refusal.
func (a *Assessment) first(err error) error {
	if err == nil && len(a.Refusals) > 0 {
		return &a.Refusals[0]
	}
	return err
}

// runsOf names the runs on stores of a user that are finished, and not committed; and the
// last that had to do with Nomad.
func runsOf(dir engine.Dir, uid uint32) (uncommitted []string, nomad string, err error) {
	runs, err := dir.List()
	if err != nil {
		return nil, "", err
	}
	for _, run := range runs {
		st, err := engine.Read(dir.RunPath(run))
		if err != nil {
			continue // a journal that cannot be read is told of by history
		}
		in, err := DecodeInputs(st)
		if err != nil || in.Owner.UID != uid {
			continue
		}
		if in.Nomad != nil {
			nomad = run
		}
		if st.Phase == engine.PhaseFinished {
			uncommitted = append(uncommitted, run)
		}
	}
	return uncommitted, nomad, nil
}

// Key names the lock of the store in graphRoot.
func (h *Held) Key(graphRoot string) string {
	return Inputs{Owner: h.Owner, Store: Store{GraphRoot: graphRoot}}.StoreKey()
}

// Lock keeps runs from the store, until Close: in the state directory, where who is told
// to others that ask, and in the graphroot, for those with another one. It fails with
// [engine.ErrLocked] if a run holds the store, and refuses if one stands half-way by now.
func (h *Held) Lock(ctx context.Context, graphRoot, who string) (err error) {
	if h.lock, err = h.env.Dir.LockFor(h.Key(graphRoot), who); err != nil {
		return err
	}
	if err := h.halfway(h.Key(graphRoot)); err != nil {
		return err
	}
	s := &Session{env: h.env, worker: h.Worker}
	_, err = ask[none](ctx, s, opLock, pathArg{graphRoot})
	if faultKind(err) == faultLocked {
		return fmt.Errorf("cannot lock %s: %w", graphRoot, engine.ErrLocked)
	}
	return err
}

// halfway refuses if a run on the store that is locked now is not over: it began and was
// cut off since Take looked.
func (h *Held) halfway(key string) error {
	runs, err := h.env.Dir.List()
	if err != nil {
		return err
	}
	for _, run := range runs {
		st, err := engine.Read(h.env.Dir.RunPath(run))
		if err == nil && st.Header.Store == key && !st.Phase.Over() {
			return &Refusal{ID: "unfinished", Text: fmt.Sprintf("run %s on the store of %s is not finished", run, h.Owner.Name),
				Hint: fmt.Sprintf("storagectl resume %s finishes it, storagectl rollback %s undoes it", run, run)}
		}
	}
	return nil
}

// Close lets go of the store.
func (h *Held) Close() error {
	err := h.Worker.Close()
	if h.lock != nil {
		err = errors.Join(err, h.lock.Close())
	}
	return err
}
