package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

func newRunbookRemove(a *app) *cobra.Command {
	var resumeOnly bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take an installed runbook from systemd again",
		Long: `remove takes the timer, the service and the copy of an installed runbook away, and with
the last one storagectl-resume.service. Runs stay as they are. While the service is at
work it is refused.

` + exitHelp,
		Example: "  storagectl runbook remove vfs-to-overlay\n  storagectl runbook remove --resume-only",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 || resumeOnly != (len(args) == 0) {
				return usagef("cannot remove: name one installed runbook, or say --resume-only")
			}
			return a.remove(cmd.Context(), runArg(args))
		},
	}
	cmd.Flags().BoolVar(&resumeOnly, "resume-only", false, "only the service that goes on at boot with what was cut off")
	return cmd
}

// remove takes an installation away; "" is the service of the boot alone.
func (a *app) remove(ctx context.Context, name string) error {
	bus, err := unitsBus(ctx, "remove")
	if err != nil {
		return err
	}
	defer bus.Close()
	m := installedMessage{Name: name}
	if name != "" {
		if m.Units, err = a.removeRunbook(ctx, bus, name); err != nil {
			return err
		}
	}
	others, err := host.OwnUnits("", "storagectl-runbook-")
	if err != nil {
		return err
	}
	text := ""
	if name != "" {
		text = fmt.Sprintf("The runbook %s is removed: %s.\n", name, strings.Join(m.Units, ", "))
	}
	if len(others) == 0 || name == "" {
		there, err := a.removeUnit(ctx, bus, runbooks.ResumeUnit)
		if err != nil {
			return err
		}
		if there {
			m.Units = append(m.Units, runbooks.ResumeUnit)
			text += runbooks.ResumeUnit + " is removed: after a boot nothing goes on by itself.\n"
		} else if name == "" {
			text = runbooks.ResumeUnit + " is not installed; there is nothing to do.\n"
		}
	}
	if err := bus.Reload(ctx); err != nil {
		return err
	}
	open, err := a.unfinished()
	if err != nil {
		return err
	}
	for _, run := range open {
		a.out.note(fmt.Sprintf("run %s is not over: storagectl resume %s, or storagectl rollback %s", run, run, run))
	}
	a.out.result("removed", m, text)
	return nil
}

func (a *app) removeRunbook(ctx context.Context, bus *host.Bus, name string) ([]string, error) {
	list := []string{runbooks.TimerUnit(name), runbooks.ServiceUnit(name)}
	file := filepath.Join(installedDir, name+".toml")
	names, err := host.OwnUnits("", "storagectl-runbook-"+name+".")
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) && len(names) == 0 || name != filepath.Base(name) {
		return nil, &migrate.Refusal{ID: "not-installed", Text: fmt.Sprintf("cannot remove runbook %s: it is not installed", name), Hint: "systemctl list-timers 'storagectl-runbook-*' tells which are"}
	}
	if err := a.idle(ctx, bus, name, "remove"); err != nil {
		return nil, err
	}
	var gone []string
	for _, u := range list {
		there, err := a.removeUnit(ctx, bus, u)
		if err != nil {
			return nil, err
		}
		if there {
			gone = append(gone, u)
		}
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot remove the copy of the runbook: %w", err)
	}
	return gone, nil
}

// removeUnit stops a unit that waits for the clock, and takes it away. A service that
// is at work is left to come to its end.
func (a *app) removeUnit(ctx context.Context, bus *host.Bus, unit string) (there bool, err error) {
	if _, err := host.OwnUnit("", unit); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if strings.HasSuffix(unit, ".timer") {
		if err := bus.Stop(ctx, unit); err != nil {
			return true, err
		}
	}
	if on, err := bus.Enabled(ctx, unit); err != nil {
		return true, err
	} else if on {
		if err := bus.Disable(ctx, unit); err != nil {
			return true, err
		}
	}
	return true, host.RemoveUnit("", unit)
}
