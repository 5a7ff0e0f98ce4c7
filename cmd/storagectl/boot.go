package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

// What is done at boot with a run that was cut off.
const (
	policyResume   = "resume"
	policyRollback = "rollback"
	policyWait     = "wait"
)

func checkPolicy(p string) error {
	switch p {
	case policyResume, policyRollback, policyWait:
		return nil
	}
	return usagef("cannot use --policy %q: it is resume, rollback or wait", p)
}

// bootDeadline bounds the wait for the managers of users, beside whom the run works.
const bootDeadline = 2 * time.Minute

// boot takes up each run that is not over, the oldest first. One that cannot be gone
// on with does not keep the others from it; the worst of what became of them is the
// error.
func (a *app) boot(ctx context.Context, policy string) error {
	// What cannot be read may be a run that was cut off.
	var worst error
	open, err := a.unfinishedBut(func(run string, err error) {
		err = fmt.Errorf("cannot see whether run %s was cut off: %w", run, err)
		a.tellError(err, exitCode(err))
		worst = told(err)
	})
	if err != nil {
		return err
	}
	if len(open) == 0 && worst != nil {
		return worst
	}
	if len(open) == 0 {
		a.out.result("nothing", struct{}{}, "No run was cut off; there is nothing to go on with.\n")
		return nil
	}
	a.life.begin(ctx, migrate.Inputs{}.Patience)
	a.awaitUsers(ctx)
	for _, run := range open {
		err := a.takeUp(ctx, run, policy)
		if err == nil {
			continue
		}
		if errors.Is(err, engine.ErrInterrupted) {
			return err
		}
		if !errors.Is(err, errTold) {
			a.tellError(err, exitCode(err))
		}
		if worst == nil || graver(exitCode(err), exitCode(worst)) {
			worst = told(err)
		}
	}
	return worst
}

// graver says which of two ends is to be told: that a run waits is the mildest.
func graver(a, b int) bool {
	order := []int{exitRefused, exitLocked, exitJournal, exitFailed, exitUnverified}
	rank := func(code int) int {
		for i, c := range order {
			if c == code {
				return i
			}
		}
		return -1
	}
	return rank(a) > rank(b)
}

// unfinished names the runs that are not over. Journals that cannot be read are told
// of, and left.
func (a *app) unfinished() ([]string, error) {
	return a.unfinishedBut(func(run string, err error) { a.out.note(fmt.Sprintf("%s: %v", run, err)) })
}

// unfinishedBut is unfinished, and has unread told what cannot be read.
func (a *app) unfinishedBut(unread func(run string, err error)) ([]string, error) {
	runs, err := a.dir().List()
	if err != nil {
		return nil, err
	}
	var open []string
	for _, run := range runs {
		st, err := engine.Read(a.dir().RunPath(run))
		if err != nil {
			unread(run, err)
		} else if !st.Phase.Over() {
			open = append(open, run)
		}
	}
	return open, nil
}

// takeUp goes on with a run by itself, or rolls it back, unless that would do again
// what has failed.
func (a *app) takeUp(ctx context.Context, run, policy string) error {
	st, err := engine.Read(a.dir().RunPath(run)) // what came before it may have ended it
	if err != nil || st.Phase.Over() {
		return err
	}
	if active, err := a.await(ctx, st.Header.Store, func(who string) bool { return who == run }); err != nil || active {
		return err
	}
	if st, err = engine.Read(a.dir().RunPath(run)); err != nil || st.Phase.Over() { // what it waited for
		return err
	}
	if above, err := a.ofRunbook(st); err != nil || above {
		return err
	}
	back, err := goesBack(st, &policy)
	if err != nil {
		return err
	}
	if policy == policyWait && st.Phase == engine.PhaseRunning {
		a.out.note(fmt.Sprintf("run %s is not over, and waits for a person: storagectl resume %s, or storagectl rollback %s", run, run, run))
		return nil
	}
	at, err := a.mayGoOn(run, st, back)
	if err != nil {
		return err
	}
	a.out.note(fmt.Sprintf("run %s was cut off: it is %s", run, map[bool]string{false: "gone on with", true: "taken back"}[back]))
	return a.tried(at, a.goOnWith(ctx, run, st, back, resumeOptions{}))
}

// ofRunbook says whether a run is that of a task of a runbook's run which is not over:
// that takes it up.
func (a *app) ofRunbook(st engine.State) (bool, error) {
	parent, err := runbooks.ParentOf(st)
	of, _, is := strings.Cut(parent, "/")
	if err != nil || !is {
		return false, err
	}
	above, err := engine.Read(a.dir().RunPath(of))
	if errors.Is(err, engine.ErrNoRun) {
		return false, nil
	}
	return err == nil && !above.Phase.Over(), err
}

// goesBack says whether a run is taken back: it is on its way back, or the policy says
// so and there is a way back. The policy of a runbook's run is its own.
func goesBack(st engine.State, policy *string) (back bool, err error) {
	var final bool
	if st.Header.Job == runbooks.Job {
		in, err := runbooks.DecodeInputs(st)
		if err != nil {
			return false, err
		}
		final = in.Committing(st)
		if in.Policy != "" {
			*policy = in.Policy
		}
	} else if final, err = migrate.NoWayBack(st); err != nil {
		return false, err
	}
	return st.Phase == engine.PhaseRollingBack || *policy == policyRollback && !final, nil
}

// mayGoOn remembers that a run is taken up by itself, or refuses that. The step of a
// runbook is a job with steps of its own: what counts is where that was cut off. at is
// the run that remembers it.
func (a *app) mayGoOn(run string, st engine.State, back bool) (at string, err error) {
	at = run
	if st.Header.Job == runbooks.Job && st.Failed == "" {
		task, err := a.cutTask(run)
		if err != nil {
			return "", err
		}
		if task != "" {
			at = task
		}
	}
	err = a.try(at, back)
	var again *engine.AgainError
	if errors.As(err, &again) {
		return "", &migrate.Refusal{ID: "again", Text: fmt.Sprintf("cannot go on with run %s by itself: %s", at, again.Why),
			Hint: fmt.Sprintf("nothing was changed now; storagectl status %s, then storagectl resume %s or storagectl rollback %s", at, run, run)}
	}
	return at, err
}

// tried is how a try at a run ended. That the run could not even be opened is no try: what
// it lacked, such as its user, may be there after the next boot.
func (a *app) tried(run string, why error) error {
	if why == nil {
		return nil
	}
	if err := a.change(run, func(j *engine.Journal) error { return j.Untried(why) }); err != nil {
		a.out.note(err.Error())
	}
	return why
}

// cutTask is the run of a runbook's task that is not over; "": none.
func (a *app) cutTask(run string) (string, error) {
	open, err := a.unfinished()
	if err != nil {
		return "", err
	}
	for _, child := range open {
		st, err := engine.Read(a.dir().RunPath(child))
		if err != nil {
			return "", err
		}
		if parent, err := runbooks.ParentOf(st); err != nil {
			return "", err
		} else if strings.HasPrefix(parent, run+"/") {
			return child, nil
		}
	}
	return "", nil
}

// othersLimit bounds the wait for what others do with a store, or for another runbook:
// they have deadlines of their own.
const othersLimit = 24 * time.Hour

// await waits while somebody has a lock who is none of mine; active is that one of mine
// has it. Nobody would ask again for a run that is not taken up.
func (a *app) await(ctx context.Context, store string, mine func(who string) bool) (active bool, err error) {
	tick := time.NewTicker(time.Second) // a lock that is let go sends no word
	defer tick.Stop()
	for began, told := time.Now(), false; ; told = true {
		who, held, err := a.dir().Holder(store)
		if err != nil || !held || mine(who) {
			return held, err
		}
		if time.Since(began) > othersLimit {
			return false, fmt.Errorf("cannot wait any longer: %w: %s", engine.ErrLocked, who)
		}
		if !told && who != "" {
			a.out.note("waiting for the end of " + who)
		}
		a.life.sign()
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("%w while it waited for the end of %s", engine.ErrInterrupted, who)
		case <-tick.C:
		}
	}
}

// awaitRunbooks waits while a runbook of another file is at work.
func (a *app) awaitRunbooks(ctx context.Context, origin string) error {
	a.life.begin(ctx, migrate.Inputs{}.Patience)
	_, err := a.await(ctx, runbooks.Job, func(who string) bool {
		st, err := engine.Read(a.dir().RunPath(who))
		if who == "" || err != nil {
			return false
		}
		in, err := runbooks.DecodeInputs(st)
		return err == nil && in.Origin == origin
	})
	return err
}

// goOnUnattended takes up the run of a runbook that is not over, if there is one.
func (a *app) goOnUnattended(ctx context.Context, origin string) (there bool, err error) {
	open, err := a.unfinished()
	if err != nil {
		return false, err
	}
	for _, run := range open {
		st, err := engine.Read(a.dir().RunPath(run))
		if err != nil || st.Header.Job != runbooks.Job {
			continue
		}
		in, err := runbooks.DecodeInputs(st)
		if err != nil {
			return true, err
		}
		if in.Origin != origin {
			continue
		}
		if active, _, err := a.dir().AtWork(st.Header.Store, run); err != nil {
			return true, err
		} else if active {
			a.tellNothing(run, st.Phase, fmt.Sprintf("Run %s of this runbook is under way already; there is nothing to do.\n", run))
			return true, nil
		}
		at, err := a.mayGoOn(run, st, st.Phase == engine.PhaseRollingBack)
		if err != nil {
			return true, err
		}
		a.out.note(fmt.Sprintf("run %s of this runbook is not over: it is gone on with", run))
		return true, a.tried(at, a.goOnWith(ctx, run, st, st.Phase == engine.PhaseRollingBack, resumeOptions{}))
	}
	return false, nil
}

// try remembers in the run's journal that it is taken up by itself, or why it is not.
func (a *app) try(run string, back bool) error {
	return a.change(run, func(j *engine.Journal) error {
		st := j.State()
		err := st.Unattended(back)
		if err == nil {
			return j.Try(back)
		}
		if last := st.Records[len(st.Records)-1]; last.Text != err.Error() { // once is enough
			err = errors.Join(err, j.Note("", err.Error()))
		}
		return err
	})
}

// change writes to the journal of a run that nobody is at.
func (a *app) change(run string, write func(*engine.Journal) error) error {
	dir := a.dir().RunPath(run)
	st, err := engine.Read(dir)
	if err != nil {
		return err
	}
	lock, err := a.dir().Lock(st.Header.Store)
	if err != nil {
		return err
	}
	defer lock.Close()
	j, err := engine.Open(dir, engine.Options{Point: a.point})
	if err != nil {
		return err
	}
	return errors.Join(write(j), j.Close())
}

// awaitUsers waits for the managers of users. That one is late is but noted: a run says
// itself what it misses.
func (a *app) awaitUsers(ctx context.Context) {
	if err := awaitUsers(ctx); err != nil {
		a.out.note(err.Error())
	}
}

// awaitUsers waits for the managers of those users that have one at boot: a run works
// with their units and by their buses.
func awaitUsers(ctx context.Context) error {
	if !host.HasSystemd() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	names, err := os.ReadDir("/var/lib/systemd/linger")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot see which users linger: %w", err)
	}
	bus, err := host.SystemBus(ctx)
	if err != nil {
		return err
	}
	defer bus.Close()
	var late []string
	for _, n := range names {
		u, err := user.Lookup(n.Name())
		if err != nil {
			continue // a user who is gone
		}
		if err := bus.AwaitUp(ctx, "user@"+u.Uid+".service"); err != nil {
			late = append(late, n.Name())
		}
	}
	if len(late) > 0 {
		return fmt.Errorf("the managers of these users are not up yet: %s", strings.Join(late, ", "))
	}
	return nil
}
