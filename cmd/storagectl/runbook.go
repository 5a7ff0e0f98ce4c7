package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/window"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

// runbookOptions are what the commands on runbooks share.
type runbookOptions struct {
	dirs   []string
	params map[string]string
	window *window.Window
	wait   time.Duration // for the window
}

func newRunbook(a *app) *cobra.Command {
	o := &runbookOptions{}
	cmd := &cobra.Command{
		Use:   "runbook",
		Short: "Do what is written down: jobs and tasks in order",
		Long: `runbook works with runbooks: TOML files that say which jobs and tasks are done, in which
order, on which conditions, and when (docs/runbooks.md). A NAME is that of a file in
/etc/storagectl/runbooks.d without its .toml, or of a runbook that comes with
storagectl; what has a slash in it is the path of a file.

` + exitHelp,
		Example: "  storagectl runbook list\n  storagectl runbook show vfs-to-overlay --param user=hashi\n  storagectl runbook run vfs-to-overlay --param user=hashi --yes",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringArrayVar(&o.dirs, "runbook-dir", []string{runbooks.Dir}, "a folder with runbooks; again for further ones, the first that has a name counts")
	cmd.AddCommand(newRunbookList(a, o), newRunbookShow(a, o), newRunbookValidate(a, o), newRunbookRun(a, o), newRunbookInstall(a, o), newRunbookRemove(a))
	return cmd
}

// oneRunbook takes one argument: which runbook.
func oneRunbook(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return &hintedError{fmt.Errorf("%s takes one runbook, by its name or its path", cmd.Name()), "storagectl runbook list tells which there are"}
	}
	return nil
}

// flags adds what a runbook is expanded with.
func (o *runbookOptions) flags(f *pflag.FlagSet) {
	f.Var(windowFlag{&o.window}, "window", "another window than the runbook's: days, start, length and perhaps a zone and dates without one, in quotes (\"sat,sun 02:00 3h Europe/Berlin\")")
	f.Var(params{&o.params}, "param", "NAME=VALUE of a parameter; again for further ones. It stands in the journal: no secrets")
}

// params is a flag that adds one parameter each time.
type params struct{ list *map[string]string }

func (p params) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name == "" {
		return errors.New("it is NAME=VALUE")
	}
	if *p.list == nil {
		*p.list = map[string]string{}
	}
	(*p.list)[name] = value
	return nil
}

func (p params) Type() string   { return "NAME=VALUE" }
func (p params) String() string { return "" }

// known are the commands that tasks can run, as this command line has them.
func known() runbooks.Known {
	fresh := func() *cobra.Command { return newRoot(&app{stdout: io.Discard, stderr: io.Discard}) }
	k := runbooks.Known{Flags: map[string][]string{}}
	for _, c := range fresh().Commands() {
		if c.Hidden {
			continue
		}
		k.Flags[c.Name()] = []string{}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				k.Flags[c.Name()] = append(k.Flags[c.Name()], f.Name)
			}
		})
	}
	k.Parse = func(argv []string) error {
		c, rest, err := fresh().Find(argv)
		if err != nil {
			return err
		}
		if err := c.ParseFlags(rest); err != nil {
			return c.FlagErrorFunc()(c, err)
		}
		if err = c.ValidateArgs(c.Flags().Args()); err == nil && c.PreRunE != nil {
			err = c.PreRunE(c, c.Flags().Args()) // what it judges before it looks at the host
		}
		return err
	}
	return k
}

// load reads a runbook and puts its parameters in.
func (o *runbookOptions) load(name string) (*runbooks.Runbook, runbooks.Plan, error) {
	b, err := runbooks.Load(name, o.dirs...)
	if err != nil {
		return nil, runbooks.Plan{}, runbookError(err)
	}
	if o.window != nil {
		b.Window = o.window
	}
	if b.WindowWait = o.wait; o.wait != 0 && b.Window == nil {
		return nil, runbooks.Plan{}, usagef("cannot use --window-wait: runbook %s has no window, and none was said", b.Name)
	}
	plan, err := b.Expand(o.params, known())
	if err != nil {
		return b, plan, runbookError(err)
	}
	return b, plan, nil
}

// runbookError gives an error about a runbook its exit code and its hint.
func runbookError(err error) error {
	var file *runbooks.FileError
	var param *runbooks.ParamError
	var missing *runbooks.NotFoundError
	var untrusted *host.UntrustedError
	var hint string
	switch {
	case errors.As(err, &untrusted):
		return &migrate.Refusal{ID: "runbook-others", Text: err.Error(), Hint: "what stands in it would be done as root: chown root and chmod go-w the file and the folders that it lies in"}
	case errors.As(err, &file):
		hint = file.Hint
	case errors.As(err, &param):
		hint = param.Hint
	case errors.As(err, &missing):
		hint = "storagectl runbook list tells which there are"
		switch {
		case missing.Near != "":
			hint = fmt.Sprintf("did you mean %q?", missing.Near)
		case missing.Path != "":
			hint = "there is no file " + missing.Path
		}
	default:
		return err
	}
	if hint == "" {
		hint = "docs/runbooks.md tells what a runbook is made of"
	}
	return &usageError{&hintedError{err, hint}}
}

type runbookMessage struct {
	Name        string                    `json:"name"`
	Origin      string                    `json:"origin"` // its file, or embedded
	Description string                    `json:"description,omitempty"`
	Error       string                    `json:"error,omitempty"` // it cannot be read
	Params      map[string]runbooks.Param `json:"params,omitempty"`
}

func newRunbookList(a *app, o *runbookOptions) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the runbooks, and where each comes from",
		Long: `list names the runbooks of /etc/storagectl/runbooks.d and those that come with
storagectl ("embedded"). A file there hides an embedded one of its name. One that
cannot be read is named with the reason.

` + exitHelp,
		Example: "  storagectl runbook list\n  storagectl runbook list --json",
		RunE: func(*cobra.Command, []string) error {
			all, err := runbooks.List(o.dirs...)
			if err != nil {
				return &hintedError{err, "--runbook-dir is a folder that you may read"}
			}
			for _, f := range all {
				m := runbookMessage{Name: f.Name, Origin: f.Origin}
				var text string
				if f.Err != nil {
					m.Error = f.Err.Error()
					text = "cannot be used: " + m.Error
				} else {
					m.Description, m.Params = f.Runbook.Description, f.Runbook.Params
					text = m.Description
				}
				line := fmt.Sprintf("%-24s %s\n", oneLine(f.Name), oneLine(f.Origin))
				if text != "" {
					line += fmt.Sprintf("%24s %s\n", "", oneLine(text))
				}
				a.out.result("runbook", m, line)
			}
			return nil
		},
	}
}

func newRunbookValidate(a *app, o *runbookOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate NAME",
		Short: "See whether a runbook is whole",
		Long: `validate reads a runbook and holds it against the commands of this release: keys, names,
types, parameters, conditions, and each flag that a task says. It looks at nothing of
the host. What is wrong is told with its line and column (exit 2). A parameter that is
required needs a value by --param.

` + exitHelp,
		Example: "  storagectl runbook validate ./mine.toml\n  storagectl runbook validate relocate-to-rbd --param image=pool/img",
		Args:    oneRunbook,
		RunE: func(_ *cobra.Command, args []string) error {
			b, plan, err := o.load(args[0])
			if err != nil {
				return err
			}
			a.out.result("valid", runbookMessage{Name: b.Name, Origin: b.Origin, Description: b.Description, Params: b.Params},
				fmt.Sprintf("Runbook %s (%s) is whole: %s.\n", b.Name, oneLine(b.Origin), migrate.Count(len(plan.Tasks), "task", "tasks")))
			return nil
		},
	}
	o.flags(cmd.Flags())
	return cmd
}

type showTask struct {
	runbooks.PlannedTask
	Line string          `json:"line"` // as one would type it
	Seen []runbooks.Seen `json:"seen,omitempty"`
	// Unseen says why it cannot be seen now whether its conditions hold.
	Unseen string `json:"unseen,omitempty"`
}

type showMessage struct {
	runbookMessage
	Values  map[string]string `json:"values,omitempty"` // of the parameters
	Tasks   []showTask        `json:"tasks"`
	Window  string            `json:"window,omitempty"`
	Opens   []time.Time       `json:"opens,omitempty"` // the next three times
	Longest float64           `json:"longest_seconds,omitempty"`
	Hooks   runbookHooks      `json:"hooks,omitzero"`
}

type runbookHooks struct {
	BeforeDrain [][]string `json:"beforeDrain,omitempty"`
	AfterStop   [][]string `json:"afterStop,omitempty"`
	BeforeStart [][]string `json:"beforeStart,omitempty"`
	AfterReturn [][]string `json:"afterReturn,omitempty"`
	OnFailure   [][]string `json:"onFailure,omitempty"`
}

func newRunbookShow(a *app, o *runbookOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show what a runbook would do",
		Long: `show tells what a run of a runbook would do here and now: each task as one would type
it, what its conditions come to, the window and when it opens next, limits and hooks.
It changes nothing. What a migrate or relocate would do in its turn, its own --dry-run
tells.

` + exitHelp,
		Example: "  storagectl runbook show vfs-to-overlay --param user=hashi\n  storagectl runbook show ./mine.toml --json",
		Args:    oneRunbook,
		RunE: func(cmd *cobra.Command, args []string) error {
			b, plan, err := o.load(args[0])
			if err != nil {
				return err
			}
			m := a.show(cmd.Context(), b, plan)
			a.out.result("show", m, showText(m))
			return nil
		},
	}
	o.flags(cmd.Flags())
	return cmd
}
