package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks/prune"
	"github.com/storagectl/storagectl/verify/doctor"
)

// app is what all commands share: the streams and the common flags.
type app struct {
	stdin          *os.File
	stdout, stderr io.Writer
	point          func(string)

	json, quiet, yes bool
	stateDir         string
	givenDir         string // stateDir, where it was given: the commands that are told name it
	parent           string // RUN/TASK of the runbook that runs this command; "": none
	configFile       string
	command          string // what is run: migrate, or runbook run
	oldLost          bool   // of commit: go on without an old store that cannot be reached
	anytime          bool   // of resume: a maintenance window does not matter

	path  string // of the command that was run, with storagectl
	wrong error  // of a command line that asked for help

	out    *output
	life   *life
	conf   tell.Config // of the commands that tell the world
	untold bool        // it cannot be used: which audit is to be told is not known
	news   *news       // of the run that is gone on with
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "storagectl",
		Short: "Move Podman container stores without losing them",
		Long: `storagectl moves a Podman container store to another storage driver (migrate) or to
another filesystem (relocate), as one run with a journal. The old store is kept until
"storagectl commit"; a run that was cut off at any moment is finished by "storagectl
resume" or undone by "storagectl rollback". doctor tells what is wrong with a host,
verify proves a store.

A RUN is named by its id (0006-migrate-4f77), the beginning of that, or its number
(6); left out, it is the latest run. Results go to stdout, progress and errors to
stderr.

` + exitHelp,
		Example: `  storagectl migrate --to overlay --user hashi --dry-run   # show the plan, change nothing
  storagectl migrate --to overlay --user hashi --yes   # do it; the old store is kept
  storagectl status   # where it stands, and what can be done now
  storagectl rollback   # back to the old store, or
  storagectl commit   # remove it: no way back
  storagectl relocate --rbd pool/img --size 100G --user hashi --dry-run   # the plan of a move onto an image of Ceph
  storagectl doctor --user hashi   # what is wrong with the host and the store
  storagectl verify --user hashi   # is the store whole?`,
		SilenceUsage: true, SilenceErrors: true,
		Version:           version,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Name() == podman.WorkerCommand {
				return nil
			}
			given := a.stateDir != ""
			if !given {
				var err error
				if a.stateDir, err = defaultStateDir(); err != nil {
					return err
				}
			}
			dir, err := filepath.Abs(a.stateDir)
			if err != nil {
				return usagef("cannot use --state-dir %s: %w", a.stateDir, err)
			}
			if given {
				a.givenDir = dir
			}
			_, a.command, _ = strings.Cut(cmd.CommandPath(), " ")
			a.out = newOutput(a)
			a.stateDir, err = rootsOwn(dir)
			return err
		},
	}
	f := root.PersistentFlags()
	f.BoolVar(&a.json, "json", false, "write JSON lines, one message each (docs/json.md)")
	f.BoolVar(&a.quiet, "quiet", false, "write no progress; results and errors only")
	f.BoolVar(&a.yes, "yes", false, "do not ask; migrate, relocate, runbook run, prune --apply and doctor --fix need it where there is no terminal")
	f.StringVar(&a.configFile, "config", "", "the configuration (default /etc/storagectl/storagectl.toml; for users ~/.config/storagectl/storagectl.toml)")
	f.StringVar(&a.stateDir, "state-dir", "", "where runs are kept (default /var/lib/storagectl; for users ~/.local/state/storagectl)")
	f.StringVar(&a.parent, "parent", "", "the task of a runbook that runs this command")
	f.Lookup("parent").Hidden = true
	root.SetUsageFunc(usage)
	root.SetFlagErrorFunc(flagError)
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) { a.helpOf(cmd, help, args) })
	root.SetHelpCommand(newHelp())
	root.AddCommand(newMigrate(a), newRelocate(a), newResume(a), newRollback(a), newCommit(a), newStatus(a), newHistory(a), newReport(a), newMetrics(a), newDrain(a), newUndrain(a), newDoctor(a), newVerify(a), newPrune(a), newRunbook(a), newWorker(a))
	for _, c := range below(root) {
		if c.Args == nil {
			c.Args = noArgs
		}
		args := c.Args
		c.Args = func(cmd *cobra.Command, list []string) error {
			if err := args(cmd, list); err != nil {
				return &usageError{err}
			}
			return nil
		}
	}
	root.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return noCommand(root, args[0])
		}
		return nil
	}
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return root
}

// below are all commands below another.
func below(c *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, sub := range c.Commands() {
		all = append(append(all, sub), below(sub)...)
	}
	return all
}

// noArgs takes no argument; the likeliest one is whose store it is.
func noArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.HasAvailableSubCommands():
		return noCommand(cmd, args[0])
	case cmd.Flags().Lookup("user") != nil:
		return fmt.Errorf("%s takes no argument, but %q is one; a user is named by --user", cmd.Name(), args[0])
	}
	return fmt.Errorf("%s takes no argument, but %q is one", cmd.Name(), args[0])
}

func defaultStateDir() (string, error) {
	if os.Getuid() == 0 {
		return "/var/lib/storagectl", nil
	}
	base := os.Getenv("XDG_STATE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", usagef("cannot find a place for runs: %w; give --state-dir", err)
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "storagectl"), nil
}

func (a *app) dir() engine.Dir { return engine.Dir{Path: a.stateDir} }

// env is what jobs take from this program.
func (a *app) env() migrate.Env {
	return migrate.Env{
		Dir: a.dir(), Version: version, Runner: &host.Runner{Point: a.point}, Point: a.point, OldLost: a.oldLost, Anytime: a.anytime,
		Actor: a.actor(), Progress: a.life.progress(a.progress), Event: a.life.event(a.event), Note: a.out.note,
	}
}

// progress tells how far a step is, here and to the world.
func (a *app) progress(p migrate.Progress) {
	a.out.progress(p)
	if a.news != nil {
		a.news.meter.progress(p)
	}
}

// event tells of a step, here and to the world. Where stderr is systemd's journal the
// world's line is there, and has the fields.
func (a *app) event(e engine.Event) {
	a.out.event(e)
	a.news.step(e)
}

// close ends what is still being drawn.
func (a *app) close() {
	if a.out != nil {
		a.out.close()
	}
	a.life.close()
}

// tellError writes an error and its hint, as text or as a message.
func (a *app) tellError(err error, code int) {
	text, h := err.Error(), hint(err, code)
	if h == usageHint && a.path != "" {
		h = a.path + " --help tells what it takes"
	}
	if a.out == nil { // wrong usage, before the flags were read
		fmt.Fprintf(a.stderr, "error: %s\nhint: %s\n", text, h)
		return
	}
	id, policy := "", ""
	var r *migrate.Refusal
	if errors.As(err, &r) {
		id, policy = r.ID, r.Policy
	}
	a.out.fail(text, h, code, id, policy)
}

func newWorker(a *app) *cobra.Command {
	return &cobra.Command{
		Use: podman.WorkerCommand, Hidden: true, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			uid, err := podman.WorkerMain(args)
			if err != nil {
				return err
			}
			handlers := migrate.Handlers(uid)
			maps.Copy(handlers, doctor.Handlers(uid))
			maps.Copy(handlers, prune.Handlers(uid))
			// The terminal's Ctrl-C is for storagectl; it tells the worker.
			return podman.Serve(context.WithoutCancel(cmd.Context()), a.stdin, a.stdout, handlers)
		},
	}
}

// runArg is the optional argument RUN of a command.
func runArg(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	return ""
}
