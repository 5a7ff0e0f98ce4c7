package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/verify/doctor"
)

// app is what all commands share: the streams and the common flags.
type app struct {
	stdin          *os.File
	stdout, stderr io.Writer
	point          func(string)

	json, quiet, yes bool
	stateDir         string
	oldLost          bool // of commit: go on without an old store that cannot be reached

	out *output
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
		Example: `  storagectl migrate --to overlay --user hashi --dry-run   show the plan, change nothing
  storagectl migrate --to overlay --user hashi --yes       do it; the old store is kept
  storagectl status                                        where it stands, and what can be done now
  storagectl rollback                                      back to the old store, or
  storagectl commit                                        remove it: no way back
  storagectl relocate --rbd pool/img --size 100G --user hashi --dry-run   the plan of a move onto an image of Ceph
  storagectl doctor --user hashi                           what is wrong with the host and the store
  storagectl verify --user hashi                           is the store whole?`,
		SilenceUsage: true, SilenceErrors: true,
		Version:           version,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Name() == podman.WorkerCommand {
				return nil
			}
			if a.stateDir == "" {
				var err error
				if a.stateDir, err = defaultStateDir(); err != nil {
					return err
				}
			}
			dir, err := filepath.Abs(a.stateDir)
			if err != nil {
				return usagef("cannot use --state-dir %s: %w", a.stateDir, err)
			}
			a.stateDir = dir
			a.out = newOutput(a)
			return nil
		},
	}
	f := root.PersistentFlags()
	f.BoolVar(&a.json, "json", false, "write JSON lines, one message each (docs/json.md)")
	f.BoolVar(&a.quiet, "quiet", false, "write no progress; results and errors only")
	f.BoolVar(&a.yes, "yes", false, "do not ask; migrate, relocate and doctor --fix need it where there is no terminal")
	f.StringVar(&a.stateDir, "state-dir", "", "where runs are kept (default /var/lib/storagectl; for users ~/.local/state/storagectl)")
	root.SetUsageFunc(usage)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.AddCommand(newMigrate(a), newRelocate(a), newResume(a), newRollback(a), newCommit(a), newStatus(a), newHistory(a), newDrain(a), newUndrain(a), newDoctor(a), newVerify(a), newWorker(a))
	for _, c := range root.Commands() {
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
			return usagef("there is no command %q", args[0])
		}
		return nil
	}
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return root
}

// noArgs takes no argument; the likeliest one is whose store it is.
func noArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
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
		Dir: a.dir(), Version: version, Runner: &host.Runner{Point: a.point}, Point: a.point, OldLost: a.oldLost,
		Progress: a.out.progress, Event: a.out.event, Note: a.out.note,
	}
}

// close ends what is still being drawn.
func (a *app) close() {
	if a.out != nil {
		a.out.close()
	}
}

// tellError writes an error and its hint, as text or as a message.
func (a *app) tellError(err error, code int) {
	text, h := err.Error(), hint(err, code)
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
