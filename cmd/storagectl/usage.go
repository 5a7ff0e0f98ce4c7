package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/storagectl/storagectl/internal/brief"
)

// flagGroup is a part of what a command's help says of its flags.
type flagGroup struct {
	title string
	flags []string // in the order in which they are told
}

// flagGroups put the flags of all commands in order: with some sixty of them
// relocate's alphabet has Nomad's flags between those of the target. A flag has one
// place in all commands that have it, so one list serves them all.
func flagGroups() []flagGroup {
	return []flagGroup{
		{"Which store", []string{"user"}},
		{"Which runbook", []string{"param", "runbook-dir"}},
		{"Where to", []string{"path", "device", "rbd", "cephfs", "make-namespace", "make-subvolume", "make-group", "size", "fs", "format", "mount", "output"}},
		{"Ceph", []string{"ceph-conf", "ceph-mon", "ceph-user", "ceph-keyring", "ceph-keyfile", "mapper", "mounter", "data-pool", "features", "take-over"}},
		{"What is done", []string{"to", "driver", "images", "containers", "migrate-db", "keep-damaged", "rate", "smoke-image", "commit", "old-lost",
			"check", "all", "fix", "undo", "doctor", "verify", "write",
			"read-data", "sample", "against", "with", "manifest", "docker-api", "pull", "volumes", "build-cache", "external", "apply"}},
		{"What is kept", []string{"older", "label", "label-not", "keep-last", "keep", "floor"}},
		{"Nomad", []string{"cluster", "nomad", "nomad-token-file", "nomad-node", "reason", "drain-deadline", "drain-grace", "drain-ignore-system",
			"slots", "slot-path", "slot-wait", "canary", "canary-shell"}},
		{"Maintenance window", []string{"window", "window-wait", "now"}},
		{"Containers at work", []string{"busy-label", "busy-deadline", "busy-then", "busy-grace"}},
		{"Hooks", []string{"hook-before", "hook-after-stop", "hook-before-start", "hook-after", "hook-timeout"}},
		{"In systemd, by itself", []string{"as", "delay", "stage-before", "policy", "resume-only", "unattended", "boot"}},
		{"How it is run and told", []string{"dry-run", "as-begun", "exec", "wait", "yes", "json", "quiet", "config", "state-dir", "help", "version"}},
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
				set.AddFlag(shortDefault(f))
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

// shortDefault is a flag whose default, if it is a time, is written as one would type it.
func shortDefault(f *pflag.Flag) *pflag.Flag {
	d, err := time.ParseDuration(f.DefValue)
	if f.Value.Type() != "duration" || err != nil {
		return f
	}
	as := *f
	as.DefValue = brief.Time(d)
	return &as
}

// usage writes the second half of a command's help: how it is called, examples,
// and its flags in groups.
func usage(c *cobra.Command) error {
	var b strings.Builder
	b.WriteString("Usage:\n")
	switch {
	case c.HasAvailableSubCommands():
		fmt.Fprintf(&b, "  %s COMMAND [flags]\n", c.CommandPath())
	case c.Runnable():
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
