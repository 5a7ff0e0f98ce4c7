package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flagGroup is a part of what a command's help says of its flags.
type flagGroup struct {
	title string
	flags []string // in the order in which they are told
}

// flagGroups put the flags of all commands in order: with nearly fifty of them
// relocate's alphabet has Nomad's flags between those of the target. A flag has one
// meaning in all commands that have it, so one list serves them all.
func flagGroups() []flagGroup {
	return []flagGroup{
		{"Which store", []string{"user"}},
		{"Where to", []string{"path", "device", "rbd", "cephfs", "size", "fs", "format", "mount"}},
		{"Ceph", []string{"ceph-conf", "ceph-user", "ceph-keyring", "mapper", "mounter", "data-pool", "take-over"}},
		{"What is done", []string{"to", "driver", "images", "containers", "migrate-db", "keep-damaged", "rate", "smoke-image", "commit", "old-lost",
			"check", "all", "fix", "undo", "doctor",
			"read-data", "sample", "against", "with", "manifest", "docker-api", "pull"}},
		{"Nomad", []string{"cluster", "nomad", "nomad-token-file", "nomad-node", "reason", "drain-deadline", "drain-grace", "drain-ignore-system",
			"slots", "slot-path", "slot-wait", "canary", "canary-shell"}},
		{"Containers at work", []string{"busy-label", "busy-deadline", "busy-then", "busy-grace"}},
		{"Hooks", []string{"hook-before", "hook-after", "hook-timeout"}},
		{"How it is run and told", []string{"dry-run", "yes", "json", "quiet", "state-dir", "help", "version"}},
	}
}

// groupUsages writes what a command's help says of its flags, group by group, in
// the order of [flagGroups]. What stands in no group comes last.
func groupUsages(c *cobra.Command) string {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	for _, f := range []*pflag.FlagSet{c.LocalFlags(), c.InheritedFlags()} {
		f.VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && all.Lookup(f.Name) == nil {
				all.AddFlag(f)
			}
		})
	}
	var b strings.Builder
	write := func(title string, names []string) {
		set := pflag.NewFlagSet("", pflag.ContinueOnError)
		set.SortFlags = false
		for _, name := range names {
			if f := all.Lookup(name); f != nil {
				set.AddFlag(f)
			}
		}
		if set.HasFlags() {
			fmt.Fprintf(&b, "\n%s:\n%s", title, set.FlagUsages())
		}
	}
	var told []string
	for _, g := range flagGroups() {
		write(g.title, g.flags)
		told = append(told, g.flags...)
	}
	var rest []string
	all.VisitAll(func(f *pflag.Flag) {
		if !slices.Contains(told, f.Name) {
			rest = append(rest, f.Name)
		}
	})
	write("Other", rest)
	return b.String()
}

// usage writes the second half of a command's help: how it is called, examples,
// and its flags in groups.
func usage(c *cobra.Command) error {
	var b strings.Builder
	b.WriteString("Usage:\n")
	if c.Runnable() {
		fmt.Fprintf(&b, "  %s\n", c.UseLine())
	}
	if c.HasExample() {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", strings.TrimRight(c.Example, "\n"))
	}
	if c.HasAvailableSubCommands() {
		b.WriteString("\nCommands:\n")
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(&b, "  %-*s %s\n", sub.NamePadding(), sub.Name(), sub.Short)
			}
		}
	}
	b.WriteString(groupUsages(c))
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "\n\"%s COMMAND --help\" tells more of a command.\n", c.CommandPath())
	}
	_, err := fmt.Fprint(c.OutOrStderr(), b.String())
	return err
}
