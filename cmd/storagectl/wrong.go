package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/storagectl/storagectl/internal/tell"
)

// flagError says what is wrong with a flag, and what it can be.
func flagError(cmd *cobra.Command, err error) error {
	wrong := func(hint, format string, args ...any) error {
		return &usageError{&hintedError{fmt.Errorf(format, args...), hint}}
	}
	help := cmd.CommandPath() + " --help lists the flags"
	var unknown *pflag.NotExistError
	var bare *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		return wrong(help, "cannot use -%s: there is no such flag", unknown.GetSpecifiedShortnames())
	case errors.As(err, &unknown):
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		if near := tell.Nearest(unknown.GetSpecifiedName(), names); near != "" {
			help = fmt.Sprintf("did you mean --%s?", near)
		}
		return wrong(help, "cannot use --%s: %s has no such flag", unknown.GetSpecifiedName(), cmd.CommandPath())
	case errors.As(err, &bare):
		return wrong(help, "cannot use --%s without a value", bare.GetSpecifiedName())
	case errors.As(err, &invalid):
		why := invalid.Unwrap().Error()
		switch invalid.GetFlag().Value.Type() {
		case "duration":
			why = "it is a length of time, a number with its unit: 90s, 15m, 12h"
		case "int":
			why = "it is a whole number"
		case "bool":
			why = "it is true or false, or stands alone"
		}
		return wrong(help, "cannot use --%s %q: %s", invalid.GetFlag().Name, invalid.GetValue(), why)
	}
	return wrong(help, "cannot read the flags: %w", err)
}

// noCommand is the error of a command line that names a command which is not there.
func noCommand(cmd *cobra.Command, name string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	whole := name
	if cmd.HasParent() {
		whole = cmd.Name() + " " + name
	}
	hint := cmd.CommandPath() + " --help lists the commands"
	if near := tell.Nearest(name, names); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	return &usageError{&hintedError{fmt.Errorf("there is no command %q", whole), hint}}
}

// helpOf gives the help of a command. Cobra does so for any command line with --help: one
// that names a command which is not there is wrong usage all the same.
func (a *app) helpOf(cmd *cobra.Command, help func(*cobra.Command, []string), args []string) {
	if rest := cmd.Flags().Args(); cmd.HasAvailableSubCommands() && len(rest) > 0 {
		a.wrong = noCommand(cmd, rest[0])
		return
	}
	help(cmd, args)
}

// newHelp is "storagectl help COMMAND", as --help.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Tell more of a command", Hidden: true, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			at, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 && at.HasAvailableSubCommands() {
				return noCommand(at, append(rest, args...)[0])
			}
			at.InitDefaultHelpFlag()
			return at.Help()
		},
	}
}

// oneRun takes a RUN or none.
func oneRun(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return &hintedError{fmt.Errorf("%s takes one RUN, but there are %d arguments", cmd.Name(), len(args)), "storagectl history lists the runs"}
	}
	return nil
}
