package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
)

// Podman 6 knows BoltDB no more. Podman 5.8 and later can move what is in it to
// SQLite (podman system migrate --migrate-db), but not safely beside other podman
// processes, and a move that is cut off leaves half a SQLite database, which podman
// takes for the whole from then on. So it is done while podman is stopped, looked
// at, and done again or taken back from the saved file.

// migrateDBDeadline bounds the move of a database: some milliseconds a container.
const migrateDBDeadline = 10 * time.Minute

// DatabaseOnly reports whether a job moves podman's database, and nothing else.
func (in Inputs) DatabaseOnly() bool {
	return in.Request.MigrateDB && in.Request.Relocate == nil && in.Request.To == in.Store.Driver
}

// databaseSteps move the database of the stopped podman; no steps where that is not
// asked for. The manifest of before is taken first.
func (s *Session) databaseSteps() []engine.Step {
	if !s.Inputs.Request.MigrateDB {
		return nil
	}
	stopped := []string{stepStop}
	return []engine.Step{
		{Name: stepManifest, Title: "take the manifest of the stopped store", Needs: stopped, Do: s.takeManifest},
		{Name: stepMigrateDB, Title: "move podman's database to SQLite", Needs: stopped,
			Holds: s.databaseMoved, Do: s.moveDatabase, Undo: s.moveDatabaseBack},
	}
}

// databaseOnlySteps are a job of their own where the store is on the wanted driver.
func (s *Session) databaseOnlySteps() []engine.Step {
	return slices.Concat([]engine.Step{
		{Name: stepStop, Title: "stop podman", Pausable: true,
			Holds: s.stopped, Do: s.stop, Undo: s.putBack},
	}, s.databaseSteps(), []engine.Step{
		{Name: stepVerify, Title: "verify against the manifest and run a container", Needs: []string{stepStop},
			Do: s.verify},
		{Name: stepStart, Title: "start what ran before",
			Holds: s.started, Do: s.startUnits},
		{Name: stepCommit, Title: "remove the old database", Final: true,
			Holds: s.folderGone, Do: s.removeOld},
	})
}

// dbPath is where podman's database is at this point of the run.
func (s *Session) dbPath() string {
	if s.facts.NewDB != "" && s.journal.State().Steps[stepMigrateDB].Mark == engine.MarkDone {
		return s.facts.NewDB
	}
	return s.Inputs.Store.Database
}

// databases finds the BoltDB that the run began with, if it is in its place, and
// what of SQLite is there.
func (s *Session) databases(ctx context.Context) (bolt *libpoddb.Facts, lite []libpoddb.Facts, err error) {
	all, err := ask[[]libpoddb.Facts](ctx, s, opDBFind, dbFindArgs{s.Inputs.Store.GraphRoot})
	for _, f := range all {
		switch {
		case f.Path == s.Inputs.Store.Database:
			bolt = &f
		case f.Kind == libpoddb.SQLite:
			lite = append(lite, f)
		}
	}
	return bolt, lite, err
}

// databaseMoved observes that there is one database, SQLite, with all that the old
// one held.
func (s *Session) databaseMoved(ctx context.Context) (bool, error) {
	if s.oldDB() == nil || s.facts.NewDB == "" {
		return false, nil
	}
	bolt, lite, err := s.databases(ctx)
	return err == nil && bolt == nil && len(lite) == 1 && lite[0].Path == s.facts.NewDB && lostObjects(*s.oldDB(), lite[0]) == "", err
}

func (s *Session) moveDatabase(ctx context.Context) error {
	bolt, lite, err := s.databases(ctx)
	if err != nil {
		return err
	}
	if err := s.saveOldDatabase(ctx, bolt); err != nil {
		return err
	}
	var failure error
	if bolt != nil {
		for _, half := range lite { // of a try that was cut off
			if err := s.setDatabaseAside(ctx, half); err != nil {
				return err
			}
		}
		s.point("before move-db")
		cli := s.cli
		cli.Limit = migrateDBDeadline
		_, failure = cli.Run(ctx, nil, "system", "migrate", "--migrate-db") // what it did is looked at
		s.point("before after-move-db")
		if bolt, lite, err = s.databases(ctx); err != nil {
			return err
		}
	}
	if bolt != nil || len(lite) != 1 {
		return fmt.Errorf("podman did not move its database: %w", cmp.Or(failure, errors.New("it gives no reason")))
	}
	if lost := lostObjects(*s.oldDB(), lite[0]); lost != "" {
		return fmt.Errorf("podman moved its database, and the new one lacks %s", lost)
	}
	// What podman renamed is no file of the store's any more.
	if _, err := ask[none](ctx, s, opDBAside, dbArgs{Path: s.Inputs.Store.Database + "-old", Saved: s.db().Saved}); err != nil {
		return err
	}
	return s.learn(func(f *Facts) { f.NewDB = lite[0].Path })
}

// oldDB is what the database held that podman is to move, nil until that was seen.
func (s *Session) oldDB() *libpoddb.Facts {
	if n := len(s.facts.OldDBAnew); n > 0 {
		return &s.facts.OldDBAnew[n-1]
	}
	return s.facts.OldDB
}

// saveOldDatabase keeps the database that podman is to move, and what it holds. A run
// that was cut off before podman had moved it may find it changed, because somebody used
// podman in between: then it is kept as it is now, so that a rollback brings that back,
// too. What is gone from it is nothing to go on with: a rollback would put it on record
// again without its files.
func (s *Session) saveOldDatabase(ctx context.Context, bolt *libpoddb.Facts) error {
	path, known := s.Inputs.Store.Database, s.oldDB()
	if bolt == nil && known == nil {
		return fmt.Errorf("cannot find podman's database %s any more", path)
	}
	unmoved := bolt != nil && s.facts.NewDB == ""
	if unmoved && known != nil {
		if less := lostObjects(*known, *bolt); less != "" {
			return fmt.Errorf("podman was used while this run was cut off: its database %s knows no more of %s; a rollback puts that on record again, and keeps the database as it is now", path, less)
		}
	}
	save := dbArgs{Path: path, Saved: s.db().Saved, Anew: unmoved}
	if _, err := ask[none](ctx, s, opDBSave, save); err != nil {
		return err
	}
	if known != nil && (!unmoved || lostObjects(*bolt, *known) == "") {
		return nil
	}
	return s.learn(func(f *Facts) {
		if known == nil {
			f.OldDB = bolt
		} else {
			f.OldDBAnew = append(slices.Clone(f.OldDBAnew), *bolt)
		}
	})
}

// setDatabaseAside moves a database into the run's folder, which a commit removes: so
// not one that knows what the old one does not, because somebody used podman in between.
func (s *Session) setDatabaseAside(ctx context.Context, f libpoddb.Facts) error {
	if more := lostObjects(f, *s.oldDB()); more != "" {
		return fmt.Errorf("podman was used while its database was moved: %s knows of %s and the old one does not; a rollback keeps both", f.Path, more)
	}
	_, err := ask[none](ctx, s, opDBAside, dbArgs{Path: f.Path, Saved: s.db().Saved})
	return err
}

// moveDatabaseBack puts the saved BoltDB back and the SQLite database aside. Podman
// may have been used since, also after a run that was cut off: what it noted is named,
// and the run's folder kept for it. A BoltDB that was never moved stays as it is.
func (s *Session) moveDatabaseBack(ctx context.Context) error {
	if s.oldDB() == nil {
		return s.dropDatabaseFolder(ctx)
	}
	before := *s.oldDB()
	bolt, lite, err := s.databases(ctx)
	if err == nil && bolt == nil { // else one of SQLite may be half a one
		err = s.noteThawed(lite)
	}
	if err != nil {
		return err
	}
	// One that lacks something is podman's beginning of a new one.
	unmoved := bolt != nil && s.facts.NewDB == "" && lostObjects(before, *bolt) == ""
	since := slices.Clone(lite)
	if bolt != nil && !unmoved {
		since = append(since, *bolt)
	}
	if err := s.noteSince(since); err != nil {
		return err
	}
	for _, f := range lite {
		if _, err := ask[none](ctx, s, opDBAside, dbArgs{Path: f.Path, Saved: s.db().Saved}); err != nil {
			return err
		}
	}
	s.point("before between-dbs")
	if unmoved {
		return s.dropDatabaseFolder(ctx)
	}
	if _, err := ask[none](ctx, s, opDBRestore, dbArgs{Path: s.Inputs.Store.Database, Saved: s.db().Saved}); err != nil {
		return err
	}
	// Podman's own copy, where the run was cut off before it was set aside.
	if _, err := ask[none](ctx, s, opDBAside, dbArgs{Path: s.Inputs.Store.Database + "-old", Saved: s.db().Saved}); err != nil {
		return err
	}
	return s.dropDatabaseFolder(ctx)
}

// noteSince notes what databases know that the saved one does not, before they go
// aside: the run's folder is kept for it. After a cutover the way back of the store has
// noted it.
func (s *Session) noteSince(dbs []libpoddb.Facts) error {
	if !s.journal.State().Steps[stepSwap].Begun.IsZero() {
		return nil
	}
	kept := slices.Clone(s.facts.KeptNew)
	for _, f := range dbs {
		if more := lostObjects(f, *s.oldDB()); more != "" && !slices.Contains(kept, more) {
			kept = append(kept, more)
		}
		if less := lostObjects(*s.oldDB(), f); less != "" && s.facts.NewDB == f.Path {
			if err := s.note("removed since the database was moved, and on record again: %s", less); err != nil {
				return err
			}
		}
	}
	if len(kept) == len(s.facts.KeptNew) {
		return nil
	}
	return s.learn(func(f *Facts) { f.KeptNew = kept })
}

// dropDatabaseFolder removes the run's folder where no other step does, unless it holds
// what the old database does not know.
func (s *Session) dropDatabaseFolder(ctx context.Context) error {
	if !s.Inputs.DatabaseOnly() {
		return nil
	}
	if len(s.facts.KeptNew) > 0 {
		return s.note("%s is kept, with podman's database of then in db/: that knows what the old one does not: %s", s.folder(), strings.Join(s.facts.KeptNew, ", "))
	}
	_, err := ask[none](ctx, s, opRemove, pathArg{s.folder()})
	return err
}

// lostObjects names what a has and b has not: containers by id, name and pod, pods
// and volumes by name. "" if there is nothing.
func lostObjects(a, b libpoddb.Facts) string {
	var lost []string
	for _, c := range a.Containers {
		if !slices.ContainsFunc(b.Containers, func(o libpoddb.Container) bool {
			return o.ID == c.ID && o.Name == c.Name && o.Pod == c.Pod && o.Infra == c.Infra && o.Init == c.Init && o.Image == c.Image
		}) {
			lost = append(lost, "container "+c.Name)
		}
	}
	for kind, names := range map[string][2][]string{"pod ": {a.Pods, b.Pods}, "volume ": {a.Volumes, b.Volumes}} {
		for _, n := range names[0] {
			if !slices.Contains(names[1], n) {
				lost = append(lost, kind+n)
			}
		}
	}
	slices.Sort(lost)
	return strings.Join(lost, ", ")
}

// databaseOnly judges a job that moves the database alone. Containers have to stop
// for it, and lose nothing by it.
func (a *Assessment) databaseOnly(ctx context.Context, s *Session) error {
	a.Inputs.Request.Containers = Keep
	if err := a.units(ctx, s); err != nil {
		return err
	}
	if err := a.running(ctx, s.cli); err != nil {
		return err
	}
	a.plan(s)
	return nil
}

// migrateDB judges --migrate-db. Where the database is SQLite already there is
// nothing to be done.
func (a *Assessment) migrateDB() {
	if len(a.Refusals) > 0 {
		return
	}
	asked, bolt := a.Inputs.Request.MigrateDB, a.Inputs.Store.DBKind == libpoddb.BoltDB
	var major, minor int
	_, err := fmt.Sscanf(a.Inputs.Podman, "%d.%d", &major, &minor)
	can := err == nil && (major > 5 || major == 5 && minor >= 8)
	switch {
	case asked && !bolt:
		a.Inputs.Request.MigrateDB = false
		a.Notes = append(a.Notes, "podman's database is SQLite already")
	case asked && !can:
		a.refuse("migrate-db", "leave --migrate-db out until podman 5.8 is installed; podman 6 then needs it",
			"podman %s cannot move its database from BoltDB to SQLite; podman 5.8 is the first that can", a.Inputs.Podman)
	case bolt && can && !asked:
		a.Notes = append(a.Notes, "podman "+a.Inputs.Podman+" moves its database to SQLite by itself at the next boot; with --migrate-db this run does it, and can take it back")
	}
}
