package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/migrate"
)

func newResume(a *app) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "resume [RUN]",
		Short: "Go on with a run that was interrupted, failed or was cut off",
		Long: `resume goes on where a run stopped. A step that the journal calls done is left alone;
one that was begun is looked at, and done again if its effect is not there. A run
that was on its way back goes on back, and one whose commit was cut off is
committed. RUN left out is the latest run.

` + exitHelp,
		Example: "  storagectl resume\n  storagectl resume --dry-run           what is done and what is left, as status tells it\n  storagectl resume 0003-migrate-9f2c",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
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
			return a.with(cmd.Context(), run, func(s *migrate.Session) error {
				if st.Phase == engine.PhaseRollingBack {
					return s.Rollback(cmd.Context())
				}
				return s.Forward(cmd.Context(), s.Inputs.Request.Commit || committing(st))
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what is done and what is left, and write nothing")
	return cmd
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
		Args:    cobra.MaximumNArgs(1),
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
				return &migrate.Refusal{ID: "committed", Text: fmt.Sprintf("cannot roll back: run %s is committed: there is no old store to return to", run)}
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
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			run, st, err := a.find(runArg(args))
			if err != nil {
				return err
			}
			if st.Phase == engine.PhaseRunning && !committing(st) {
				return &migrate.Refusal{ID: "not-finished", Text: fmt.Sprintf("cannot commit: run %s is not finished", run),
					Hint: "storagectl resume finishes it first"}
			}
			if st.Phase == engine.PhaseRolledBack || st.Phase == engine.PhaseRollingBack {
				return &migrate.Refusal{ID: "rolled-back", Text: fmt.Sprintf("cannot commit: run %s is %s", run, phaseWord(st.Phase))}
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
	return run, st, err
}

// with opens a run and goes on with it.
func (a *app) with(ctx context.Context, run string, f func(*migrate.Session) error) error {
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

func newStatus(a *app) *cobra.Command {
	var cluster bool
	var path, tokenFile string
	cmd := &cobra.Command{
		Use:   "status [RUN]",
		Short: "Tell where a run stands",
		Long: `status tells what a run has done, what is left, and what can be done now. It changes
nothing and needs no lock. RUN left out is the latest run.

` + exitHelp,
		Example: "  storagectl status\n  storagectl status 0003-migrate-9f2c --json\n  storagectl status --cluster",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cluster {
				return a.cluster(cmd.Context(), path, tokenFile)
			}
			run, st, err := a.find(runArg(args))
			if err != nil {
				return err
			}
			return a.tellStatus(run, st)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&cluster, "cluster", false, "tell which maintenance slots of the Nomad cluster are held")
	f.StringVar(&path, "slot-path", drain.DefaultSlotPath, "path of the slots among Nomad's variables")
	f.StringVar(&tokenFile, "nomad-token-file", "", "a file with the token, closed to others (default: NOMAD_TOKEN)")
	return cmd
}

type statusStep struct {
	Name  string      `json:"name"`
	Title string      `json:"title"`
	Mark  engine.Mark `json:"mark"`
}

type statusMessage struct {
	Run       string       `json:"run"`
	Job       string       `json:"job"`
	Owner     string       `json:"owner"`
	GraphRoot string       `json:"graphRoot"`
	Phase     engine.Phase `json:"phase"`
	Active    bool         `json:"active"` // a process is at it now
	Error     string       `json:"error,omitempty"`
	Started   time.Time    `json:"started"`
	Last      time.Time    `json:"last"`
	Steps     []statusStep `json:"steps"`
	Held      []string     `json:"held,omitempty"` // Nomad nodes that the run keeps out of service
	Next      []string     `json:"next"`           // the commands that make sense now
}

func (a *app) status(run string, st engine.State) (statusMessage, error) {
	in, err := migrate.DecodeInputs(st)
	if err != nil {
		return statusMessage{}, err
	}
	plan, err := migrate.Outline(st)
	if err != nil {
		return statusMessage{}, err
	}
	m := statusMessage{Run: run, Job: st.Header.Job, Owner: in.Owner.Name, GraphRoot: in.Store.GraphRoot, Phase: st.Phase,
		Error: st.Error, Started: st.Started(), Last: st.Last()}
	if m.Active, err = a.dir().Locked(st.Header.Store); err != nil {
		return m, err
	}
	for _, p := range plan {
		m.Steps = append(m.Steps, statusStep{p.Name, p.Title, st.Steps[p.Name].Mark})
	}
	m.Held = migrate.HeldNodes(st, in)
	final, err := migrate.NoWayBack(st)
	if err != nil {
		return m, err
	}
	switch {
	case m.Active:
	case st.Phase == engine.PhaseRunning && final:
		m.Next = []string{"storagectl resume " + run}
	case st.Phase == engine.PhaseRunning:
		m.Next = []string{"storagectl resume " + run, "storagectl rollback " + run}
	case st.Phase == engine.PhaseRollingBack:
		m.Next = []string{"storagectl resume " + run}
	case st.Phase == engine.PhaseFinished:
		m.Next = []string{"storagectl commit " + run, "storagectl rollback " + run}
	}
	return m, nil
}

func (a *app) tellStatus(run string, st engine.State) error {
	m, err := a.status(run, st)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "run      %s (%s of %s's store %s)\n", m.Run, m.Job, m.Owner, oneLine(m.GraphRoot))
	fmt.Fprintf(&b, "phase    %s", m.Phase)
	switch {
	case m.Active:
		b.WriteString(", at work now")
	case !m.Phase.Over():
		b.WriteString(", stopped")
	}
	fmt.Fprintf(&b, "\nstarted  %s, last word %s\n", m.Started.Format(time.RFC3339), m.Last.Format(time.RFC3339))
	if m.Error != "" {
		fmt.Fprintf(&b, "stopped  because: %s\n", quoted(m.Error))
	}
	for i, s := range m.Steps {
		mark := string(s.Mark)
		if s.Mark == engine.MarkNone {
			mark = "-"
		}
		fmt.Fprintf(&b, "  %2d %-7s %s\n", i+1, mark, s.Title)
	}
	for _, n := range m.Held {
		fmt.Fprintf(&b, "held     Nomad node %s is ineligible until this run has ended\n", n)
	}
	for _, n := range m.Next {
		fmt.Fprintf(&b, "next     %s\n", n)
	}
	a.out.result("status", m, b.String())
	return nil
}

func newHistory(a *app) *cobra.Command {
	var fixes bool
	cmd := &cobra.Command{
		Use:   "history",
		Short: "List the runs of this host",
		Long: `history lists the runs of this state directory, the oldest first: the run, when it
began, where it stands, whose store, and where that is. Runs that a user began are
not in root's state directory, and the other way round. The runs of doctor --fix are
not among them: --doctor lists those.

` + exitHelp,
		Example: "  storagectl history\n  storagectl history --json\n  storagectl history --doctor",
		RunE: func(*cobra.Command, []string) error {
			if fixes {
				return a.fixHistory()
			}
			runs, err := a.dir().List()
			if err != nil {
				return err
			}
			if len(runs) == 0 && !a.json { // as messages, no runs are no messages
				a.out.say(fmt.Sprintf("No run was begun yet (in %s).\n", a.stateDir))
			}
			for _, run := range runs {
				st, err := engine.Read(a.dir().RunPath(run))
				if err != nil {
					a.out.note(fmt.Sprintf("%s: %v", run, err))
					continue
				}
				m, err := a.status(run, st)
				if err != nil {
					a.out.note(fmt.Sprintf("%s: %v", run, err))
					continue
				}
				a.out.result("run", m, fmt.Sprintf("%-24s %s  %-12s %s %s\n", run, m.Started.Format(time.RFC3339), m.Phase, m.Owner, oneLine(m.GraphRoot)))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&fixes, "doctor", false, "list the runs of doctor --fix instead")
	return cmd
}
