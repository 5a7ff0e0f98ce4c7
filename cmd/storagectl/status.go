package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

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
		Args:    oneRun,
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
	// Of a runbook's task, what became of it and the run that it made.
	Outcome string `json:"outcome,omitempty"`
	Run     string `json:"run,omitempty"`
	Text    string `json:"text,omitempty"`
}

type statusMessage struct {
	Run       string       `json:"run"`
	Job       string       `json:"job"`
	Owner     string       `json:"owner"`
	GraphRoot string       `json:"graphRoot"`
	Runbook   string       `json:"runbook,omitempty"` // of a runbook's run: its name
	Parent    string       `json:"parent,omitempty"`  // RUN/TASK of the runbook that began it
	Phase     engine.Phase `json:"phase"`
	Active    bool         `json:"active"` // a process is at it now
	Error     string       `json:"error,omitempty"`
	Started   time.Time    `json:"started"`
	Last      time.Time    `json:"last"`
	Steps     []statusStep `json:"steps"`
	Held      []string     `json:"held,omitempty"` // Nomad nodes that the run keeps out of service

	Window *migrate.WindowPlan `json:"window,omitempty"` // that the run waits for, to stop podman
	Next   []string            `json:"next"`             // the commands that make sense now
}

func (a *app) status(run string, st engine.State) (statusMessage, error) {
	if st.Header.Job == runbooks.Job {
		return a.runbookStatus(run, st)
	}
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
	if m.Active, _, err = a.dir().AtWork(st.Header.Store, run); err != nil {
		return m, err
	}
	for _, p := range plan {
		m.Steps = append(m.Steps, statusStep{Name: p.Name, Title: p.Title, Mark: st.Steps[p.Name].Mark})
	}
	m.Held, m.Parent = migrate.HeldNodes(st, in), in.Request.Parent
	m.Window = waitingFor(st, in)
	return m, a.whatNext(&m, st, migrate.Next)
}

// whatNext fills in what can be done with a run now.
func (a *app) whatNext(m *statusMessage, st engine.State, next func(string, engine.State) ([]string, error)) (err error) {
	if m.Active {
		return nil
	}
	m.Next, err = next(m.Run, st)
	for i, n := range m.Next {
		m.Next[i] = paste(n, a.givenDir)
	}
	return err
}

func (a *app) tellStatus(run string, st engine.State) error {
	m, err := a.status(run, st)
	if err != nil {
		return err
	}
	var b strings.Builder
	if m.Runbook != "" {
		fmt.Fprintf(&b, "run      %s (runbook %s)\n", m.Run, oneLine(m.Runbook))
	} else {
		fmt.Fprintf(&b, "run      %s (%s of %s's store %s)\n", m.Run, m.Job, m.Owner, oneLine(m.GraphRoot))
	}
	if m.Parent != "" {
		fmt.Fprintf(&b, "of       %s (run and task of a runbook)\n", oneLine(m.Parent))
	}
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
	width := 0
	for _, s := range m.Steps {
		width = max(width, len(s.Name))
	}
	for i, s := range m.Steps {
		if m.Runbook == "" {
			fmt.Fprintf(&b, "  %2d %-7s %s\n", i+1, cmp.Or(string(s.Mark), "-"), oneLine(s.Title))
			continue
		}
		word := cmp.Or(outcomeWord(s.Outcome), string(s.Mark), "-")
		if s.Name == st.Failed {
			word = "failed"
		}
		fmt.Fprintf(&b, "  %2d %-13s %-*s  %s\n", i+1, word, width, s.Name, oneLine(s.Title))
		if s.Run != "" {
			fmt.Fprintf(&b, "     %-13s %*s  run %s\n", "", width, "", s.Run)
		}
		if s.Text != "" && s.Outcome != runbooks.Done {
			fmt.Fprintf(&b, "     %-13s %*s  %s\n", "", width, "", oneLine(s.Text))
		}
	}
	for _, n := range m.Held {
		fmt.Fprintf(&b, "held     Nomad node %s is ineligible until this run has ended\n", n)
	}
	b.WriteString(windowLines(m.Window))
	for _, n := range m.Next {
		fmt.Fprintf(&b, "next     %s\n", n)
	}
	a.out.result("status", m, b.String())
	return nil
}

// outcomeWord is what became of a task, in words.
func outcomeWord(outcome string) string { return strings.ReplaceAll(outcome, "-", " ") }

func newHistory(a *app) *cobra.Command {
	var fixes, verify bool
	cmd := &cobra.Command{
		Use:   "history",
		Short: "List the runs of this host",
		Long: `history lists the runs of this state directory, the oldest first: the run, when it
began, where it stands, whose store, and where that is. Runs that a user began are
not in root's state directory, and the other way round. The runs of doctor --fix are
not among them: --doctor lists those.

--verify proves instead that the audit (docs/runs.md) is as it was written, and that
the journals of the runs agree with it; if not, it says where (exit 12).

` + exitHelp,
		Example: "  storagectl history\n  storagectl history --json\n  storagectl history --doctor\n  storagectl history --verify",
		RunE: func(*cobra.Command, []string) error {
			switch {
			case fixes && verify:
				return usagef("cannot use --doctor and --verify together")
			case fixes:
				return a.fixHistory()
			case verify:
				return a.verifyAudit()
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
				what := m.Owner + " " + oneLine(m.GraphRoot)
				if m.Runbook != "" {
					what = "runbook " + oneLine(m.Runbook)
				}
				a.out.result("run", m, fmt.Sprintf("%-24s %s  %-12s %s\n", run, m.Started.Format(time.RFC3339), m.Phase, what))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&fixes, "doctor", false, "list the runs of doctor --fix instead")
	cmd.Flags().BoolVar(&verify, "verify", false, "prove the audit instead")
	return cmd
}
