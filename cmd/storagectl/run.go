package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

// resumeOptions are the flags of resume.
type resumeOptions struct {
	now, asBegun bool
	exec         string
}

func newResume(a *app) *cobra.Command {
	var dryRun, boot bool
	var policy string
	var o resumeOptions
	cmd := &cobra.Command{
		Use:   "resume [RUN]",
		Short: "Go on with a run that was interrupted, failed or was cut off",
		Long: `resume goes on where a run stopped. A step that the journal calls done is left alone;
one that was begun is looked at, and done again if its effect is not there. A run
that was on its way back goes on back, and one whose commit was cut off is
committed. RUN left out is the latest run.

A run with a maintenance window goes on only while that is open; with --now at once.

The run of a runbook goes on with the runs of its tasks. If its file was changed since
it was begun, that is refused (exit 12) with the lines that differ; --as-begun goes on
with what it was. A command of the runbook's that was cut off is not run again without
a word: --exec again, or --exec done if it has done its work.

--boot is for storagectl-resume.service (docs/unattended.md): it takes up every run
that is not over, the oldest first. A step that failed, or that was taken up so before
and cut off again, is left for a person (exit 3).

` + exitHelp,
		Example: "  storagectl resume\n  storagectl resume --now               although the maintenance window is closed\n  storagectl resume --dry-run           what is done and what is left, as status tells it\n  storagectl resume 0003-migrate-9f2c\n  storagectl resume --boot --policy rollback\n  storagectl resume 0007-runbook-11a0 --as-begun\n  storagectl resume 0007-runbook-11a0 --exec again",
		Args:    oneRun,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.exec != "" && o.exec != runbooks.ExecAgain && o.exec != runbooks.ExecDone {
				return usagef("cannot use --exec %q: it is again or done", o.exec)
			}
			switch err := checkPolicy(policy); {
			case err != nil:
				return err
			case boot && (dryRun || len(args) > 0):
				return usagef("cannot use --boot with --dry-run or a RUN: it takes up every run")
			case boot:
				return a.boot(cmd.Context(), policy)
			case cmd.Flags().Changed("policy"):
				return usagef("cannot use --policy without --boot")
			}
			run, st, err := a.find(runArg(args))
			if err != nil {
				return err
			}
			if dryRun {
				return a.tellStatus(run, st)
			}
			switch st.Phase {
			case engine.PhaseFinished, engine.PhaseCommitted, engine.PhaseRolledBack:
				a.tellNothing(run, st.Phase, fmt.Sprintf("Run %s is %s; there is nothing to resume.\n", run, phaseWord(st.Phase)))
				return nil
			}
			return a.goOnWith(cmd.Context(), run, st, false, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&dryRun, "dry-run", false, "show what is done and what is left, and write nothing")
	f.BoolVar(&boot, "boot", false, "take up every run that is not over")
	f.StringVar(&policy, "policy", policyResume, "what --boot does with a run: resume, rollback or wait (for a person)")
	nowFlag(f, &o.now)
	f.BoolVar(&o.asBegun, "as-begun", false, "of a runbook that was changed since: go on with it as it was when the run was begun")
	f.StringVar(&o.exec, "exec", "", "of a runbook, for its command that was cut off: again (run it once more) or done (it has done its work)")
	return cmd
}

// goOnWith goes on with a run that is not over, or takes it back.
func (a *app) goOnWith(ctx context.Context, run string, st engine.State, back bool, o resumeOptions) error {
	if st.Header.Job == runbooks.Job && back {
		return a.withRunbook(ctx, run, false, "", func(s *runbooks.Session) error { return s.Rollback(ctx) })
	}
	if st.Header.Job == runbooks.Job {
		return a.resumeRunbook(ctx, run, st, o)
	}
	a.anytime = o.now
	return a.with(ctx, run, func(s *migrate.Session) error {
		if back || st.Phase == engine.PhaseRollingBack {
			return s.Rollback(ctx)
		}
		return s.Forward(ctx, s.Inputs.Request.Commit || committing(st))
	})
}

func newRollback(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rollback [RUN]",
		Short: "Put everything back as it was before a run",
		Long: `rollback takes back, last first, each step that was begun: the old store returns, with
podman's database and storage.conf as they were, and what ran before runs again.
What was made in the new store since is kept aside, and named. It is possible
until the old store is removed, and it does not ask. Containers that the old store
has are stopped, and started again on it; while others run it is refused. Ctrl-C
waits for the current step. RUN left out is the latest run.

` + exitHelp,
		Example: "  storagectl rollback\n  storagectl rollback 0003-migrate-9f2c",
		Args:    oneRun,
		RunE: func(cmd *cobra.Command, args []string) error {
			run, st, err := a.find(runArg(args))
			if err != nil {
				return err
			}
			switch st.Phase {
			case engine.PhaseRolledBack:
				a.tellNothing(run, st.Phase, fmt.Sprintf("Run %s was rolled back before; there is nothing to do.\n", run))
				return nil
			case engine.PhaseCommitted:
				why := "there is no old store to return to"
				if st.Header.Job == runbooks.Job {
					why = "nothing of its tasks can be taken back any more"
				}
				return &migrate.Refusal{ID: "committed", Text: fmt.Sprintf("cannot roll back: run %s is committed: %s", run, why)}
			}
			if st.Header.Job == runbooks.Job {
				return a.withRunbook(cmd.Context(), run, false, "", func(s *runbooks.Session) error { return s.Rollback(cmd.Context()) })
			}
			return a.with(cmd.Context(), run, func(s *migrate.Session) error { return s.Rollback(cmd.Context()) })
		},
	}
}

func newCommit(a *app) *cobra.Command {
	var lost bool
	cmd := &cobra.Command{
		Use:   "commit [RUN]",
		Short: "Remove the old store of a finished run",
		Long: `commit removes the old store that a finished run kept, and frees its space. It is the
only step without a way back; at a terminal it asks first, and tells whose store
it is, where it lies and what it frees. RUN left out is the latest run.

A store that relocate has moved away from a mount of its own is on that disk until the
commit. If that disk is lost for good, --old-lost ends the run without it.

` + exitHelp,
		Example: "  storagectl commit\n  storagectl commit 0003-migrate-9f2c --yes\n  storagectl commit --old-lost",
		Args:    oneRun,
		RunE: func(cmd *cobra.Command, args []string) error {
			run, st, err := a.find(runArg(args))
			if err != nil {
				return err
			}
			if runbook := st.Header.Job == runbooks.Job; st.Phase == engine.PhaseRunning && (runbook && !committingRunbook(st) || !runbook && !committing(st)) {
				return &migrate.Refusal{ID: "not-finished", Text: fmt.Sprintf("cannot commit: run %s is not finished", run),
					Hint: "storagectl resume finishes it first"}
			}
			if st.Phase == engine.PhaseRolledBack || st.Phase == engine.PhaseRollingBack {
				return &migrate.Refusal{ID: "rolled-back", Text: fmt.Sprintf("cannot commit: run %s is %s", run, phaseWord(st.Phase))}
			}
			if st.Header.Job == runbooks.Job {
				return a.commitRunbook(cmd.Context(), run, st)
			}
			question := !a.yes && !a.json && st.Phase == engine.PhaseFinished && term.IsTerminal(int(a.stdin.Fd()))
			a.oldLost = lost
			return a.with(cmd.Context(), run, func(s *migrate.Session) error {
				if there, err := s.OldThere(); err != nil {
					return err
				} else if lost && there {
					return &migrate.Refusal{ID: "old-there", Text: "the old store is not lost: it is in " + oneLine(s.Inputs.OldStore(s.ID)), Hint: "storagectl commit " + s.ID}
				}
				if question {
					if err := a.askCommit(cmd.Context(), s); err != nil {
						return err
					}
				}
				return s.Forward(cmd.Context(), true)
			})
		},
	}
	cmd.Flags().BoolVar(&lost, "old-lost", false, "the disk of the old store is lost for good: go on without it")
	return cmd
}

// askCommit asks before a run's old store is deleted.
func (a *app) askCommit(ctx context.Context, s *migrate.Session) error {
	bytes, err := s.Reclaimable(ctx)
	if err != nil {
		return err
	}
	a.out.say(commitText(s.Inputs, s.ID, bytes))
	return a.askWord(ctx)
}

func commitText(in migrate.Inputs, run string, bytes uint64) string {
	return fmt.Sprintf(`This deletes for good the old %s store of %s, which run %s keeps in
  %s
and frees %s. There is no rollback after it.
`, in.Store.Driver, in.Owner.Name, run, oneLine(in.OldStore(run)), migrate.Bytes(bytes))
}

// tellNothing tells that a run needs nothing done.
func (a *app) tellNothing(run string, phase engine.Phase, text string) {
	a.out.result("nothing", struct {
		Run   string       `json:"run"`
		Phase engine.Phase `json:"phase"`
	}{run, phase}, text)
}

// phaseWord is a phase in words.
func phaseWord(p engine.Phase) string { return strings.ReplaceAll(string(p), "-", " ") }

// committing reports whether a run was cut off inside its commit.
func committing(st engine.State) bool {
	last := st.Header.Steps[len(st.Header.Steps)-1]
	return st.Steps[last].Mark == engine.MarkBegun
}

// find resolves a run and reads its journal, without a lock.
func (a *app) find(name string) (string, engine.State, error) {
	run, err := a.dir().Find(name)
	if err != nil {
		return "", engine.State{}, err
	}
	st, err := engine.Read(a.dir().RunPath(run))
	if err != nil || name != "" {
		return run, st, err
	}
	// The latest run is the runbook's, and not that of one of its tasks; unless that alone
	// stands half-way.
	parent, err := runbooks.ParentOf(st)
	if of, _, is := strings.Cut(parent, "/"); err == nil && is {
		if above, err := engine.Read(a.dir().RunPath(of)); err == nil && (st.Phase.Over() || !above.Phase.Over()) {
			return of, above, nil
		}
	}
	return run, st, nil
}

// with opens a run and goes on with it.
func (a *app) with(ctx context.Context, run string, f func(*migrate.Session) error) error {
	a.configureAnyhow()
	began := time.Now()
	s, err := migrate.Open(ctx, a.env(), run)
	if err != nil {
		e := &runError{error: fmt.Errorf("cannot take up run %s: %w", run, err)}
		if st, err := engine.Read(a.dir().RunPath(run)); err == nil {
			e.final, _ = migrate.NoWayBack(st) // a hint's word: a run that cannot be read has none
		}
		return e
	}
	return a.goOn(ctx, s, began, func() error { return f(s) })
}
