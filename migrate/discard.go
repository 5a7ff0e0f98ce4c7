package migrate

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
)

// dropContainers removes podman's containers and pods from the new store, on
// the operator's word. The old store and the saved database still have them, so
// that a rollback brings them back. Volumes stay.
func (s *Session) dropContainers(ctx context.Context) error {
	db, err := s.database(ctx)
	if err != nil {
		return err
	}
	var ids, names []string
	for _, c := range db.Containers {
		ids, names = append(ids, c.ID), append(names, c.Name)
	}
	if s.facts.Dropped == nil {
		if err := s.learn(func(f *Facts) { f.Dropped = &names }); err != nil {
			return err
		}
	}
	// The containers one by one, without their volumes: to remove a pod removes
	// the anonymous volumes of all in it, and volumes have no copy. What is left
	// of a pod then is its infra container, which has none.
	infra := map[string]bool{}
	for _, c := range db.Containers {
		infra[c.ID] = c.Infra
	}
	ids = slices.DeleteFunc(ids, func(id string) bool { return infra[id] })
	if len(ids) > 0 {
		if _, err := s.patient().Run(ctx, nil, append([]string{"rm", "--force"}, ids...)...); err != nil {
			return err
		}
	}
	if len(db.Pods) > 0 {
		if _, err := s.patient().Run(ctx, nil, append([]string{"pod", "rm", "--force"}, db.Pods...)...); err != nil {
			return err
		}
	}
	return s.volumesStay(ctx)
}

// volumesStay looks whether all volumes from before are still there.
func (s *Session) volumesStay(ctx context.Context) error {
	before, err := s.readManifest()
	if err != nil {
		return err
	}
	db, err := s.database(ctx)
	if err != nil {
		return err
	}
	for _, o := range before.Podman.Objects {
		if o.Kind == "volume" && !slices.Contains(db.Volumes, o.Name) {
			return fmt.Errorf("%w: the volume %s went with its container", ErrVerification, o.Name)
		}
	}
	return nil
}

func (s *Session) containersDropped(ctx context.Context) (bool, error) {
	db, err := s.database(ctx)
	return len(db.Containers) == 0 && len(db.Pods) == 0, err
}

// reset is podman's own. It says success whatever happens, so isReset looks.
// The registry logins in the runroot, which it would delete, are moved out and
// back; a crash in between leaves them aside, and isReset says so.
func (s *Session) reset(ctx context.Context) error {
	if err := s.stillOut(ctx); err != nil {
		return err
	}
	if err := s.nothingOfOthers(ctx); err != nil {
		return err
	}
	if _, err := ask[none](ctx, s, opLoginsOut, s.logins()); err != nil {
		return err
	}
	_, err := s.patient().Run(ctx, nil, "system", "reset", "--force")
	if _, back := ask[none](ctx, s, opLoginsBack, s.logins()); err != nil || back != nil {
		return errors.Join(err, back)
	}
	if _, err := ask[none](ctx, s, opDropEmpty, dropArgs{s.Inputs.Store.GraphRoot, s.Inputs.Store.Driver}); err != nil {
		return err
	}
	if ok, err := s.isReset(ctx); err != nil || ok {
		return err
	}
	return fmt.Errorf("podman system reset reported success, but the store still holds %s", strings.Join(s.leftAfterReset(ctx), ", "))
}

// deletionLimit is how long podman may delete: its time grows with the store,
// and to kill it half-way gains nothing. The step tells meanwhile that it is at it.
const deletionLimit = 24 * time.Hour

// patient is podman for what deletes much.
func (s *Session) patient() podman.CLI {
	cli := s.cli
	cli.Limit = deletionLimit
	return cli
}

// nothingOfOthers looks once more, now that podman is stopped, that the reset
// deletes nothing but podman's. Volumes are podman's to make: it knew them when
// the plan was made.
func (s *Session) nothingOfOthers(ctx context.Context) error {
	args := s.resetArgs(libpoddb.Facts{})
	args.VolumePath = ""
	l, err := ask[resetLook](ctx, s, opResetLook, args)
	if err != nil {
		return err
	}
	if rs := l.refusals(); len(rs) > 0 {
		return rs[0]
	}
	look, err := ask[storeLook](ctx, s, opLook, pathArg{s.Inputs.Store.GraphRoot})
	if err != nil {
		return err
	}
	if others := slices.Concat(look.Leftover, look.Foreign, look.Mounts); len(others) > 0 {
		return fmt.Errorf("cannot reset: %s holds what is not podman's: %s; move it away, then go on", s.Inputs.Store.GraphRoot, few(others))
	}
	return nil
}

// resetArgs asks what a reset would delete of a store whose database is db.
func (s *Session) resetArgs(db libpoddb.Facts) resetArgs {
	st := s.Inputs.Store
	a := resetArgs{GraphRoot: st.GraphRoot, Driver: st.Driver, RunRoot: st.RunRoot, TmpDir: db.TmpDir,
		VolumePath: st.VolumePath, Volumes: db.Volumes, Home: s.Inputs.Owner.Home}
	for _, c := range db.Containers {
		a.Containers = append(a.Containers, c.ID)
	}
	return a
}

func (s *Session) logins() loginsArgs {
	root := s.Inputs.Store.RunRoot
	return loginsArgs{RunRoot: root, Aside: loginsAside(root, s.ID)}
}

// isReset observes that the old driver's store and the database's objects are
// gone, and that the registry logins are where they were.
func (s *Session) isReset(ctx context.Context) (bool, error) {
	if back, err := ask[bool](ctx, s, opGone, pathArg{filepath.Join(s.logins().Aside, logins)}); err != nil || !back {
		return false, err
	}
	for _, part := range storeParts(s.Inputs.Store.Driver) {
		gone, err := ask[bool](ctx, s, opGone, pathArg{s.swap().live(part)})
		if err != nil || !gone {
			return false, err
		}
	}
	dbs, err := ask[[]libpoddb.Facts](ctx, s, opDBFind, dbFindArgs{s.Inputs.Store.GraphRoot})
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(dbs, func(f libpoddb.Facts) bool { return f.Objects() > 0 || f.GraphDriver == s.Inputs.Store.Driver }), nil
}

func (s *Session) leftAfterReset(ctx context.Context) []string {
	var left []string
	for _, part := range storeParts(s.Inputs.Store.Driver) {
		if gone, err := ask[bool](ctx, s, opGone, pathArg{s.swap().live(part)}); err != nil || !gone {
			left = append(left, part)
		}
	}
	if len(left) == 0 {
		return []string{"podman's database"}
	}
	return left
}
