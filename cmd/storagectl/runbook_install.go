package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/window"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

// installedDir has the runbooks as they were installed: what is changed in a file that
// one came from is not run before it is installed again.
const installedDir = "/etc/storagectl/installed"

// longestAhead is how long before its window a run can begin. clockChange is how far clocks
// are put back between the two, where zones have a summer time.
const (
	longestAhead = 24 * time.Hour
	clockChange  = time.Hour
)

// installation is what the operator said.
type installation struct {
	name, policy string
	delay        time.Duration // below zero: a part of the window
	ahead        time.Duration // of the window
	resumeOnly   bool
}

func newRunbookInstall(a *app, o *runbookOptions) *cobra.Command {
	var in installation
	cmd := &cobra.Command{
		Use:   "install NAME",
		Short: "Have systemd run a runbook in its window",
		Long: `install has systemd run a runbook by itself whenever its maintenance window opens: it
keeps a copy of the runbook, and writes a timer and a service for it. With --stage-before
they begin earlier, with what is done beside the live store, and wait for the window
before anything is taken out of service. With the first
one comes storagectl-resume.service, which goes on at boot with what was cut off.
Installing again replaces what was installed under that name.

` + exitHelp,
		Example: `  storagectl runbook install vfs-to-overlay --param user=hashi --window "sat,sun 02:00 3h Europe/Berlin"
  storagectl runbook install vfs-to-overlay --param user=hashi --window "sat 02:00 1h" --stage-before 3h
  storagectl runbook install nightly-prune --as prune-hashi --param user=hashi --window "daily 03:00 1h"
  storagectl runbook install --resume-only`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkPolicy(in.policy); err != nil {
				return err
			}
			if len(args) > 1 || in.resumeOnly != (len(args) == 0) {
				return usagef("cannot install: name one runbook, or say --resume-only")
			}
			if in.resumeOnly && (o.window != nil || in.name != "" || len(o.params) > 0 || in.ahead != 0) {
				return usagef("cannot use --window, --as, --param or --stage-before with --resume-only: there is no runbook")
			}
			if in.ahead < 0 || in.ahead > longestAhead || in.ahead%time.Minute != 0 {
				return usagef("cannot use --stage-before %s: it is whole minutes, 24h at most", brief.Time(in.ahead))
			}
			switch {
			case !cmd.Flags().Changed("delay"):
				in.delay = -1
			case in.delay < 0:
				return usagef("cannot use --delay %s: it is below zero", in.delay)
			}
			return a.install(cmd.Context(), runArg(args), o, in)
		},
	}
	f := cmd.Flags()
	o.flags(f)
	f.StringVar(&in.name, "as", "", "another name for it, so that it can be installed more than once")
	f.StringVar(&in.policy, "policy", policyResume, "what is done at boot with a run of it that was cut off: resume, rollback or wait (for a person)")
	f.DurationVar(&in.delay, "delay", 0, "begin at random up to so long after the window opens (default: a 20th of the window, 5m at most)")
	f.DurationVar(&in.ahead, "stage-before", 0, "begin so long before the window opens, with what needs no outage, and wait for it then (24h at most)")
	f.BoolVar(&in.resumeOnly, "resume-only", false, "only the service that goes on at boot with what was cut off")
	return cmd
}

// unitsBus is what installing and removing needs: root, and systemd.
func unitsBus(ctx context.Context, verb string) (*host.Bus, error) {
	if os.Getuid() != 0 {
		return nil, &migrate.Refusal{ID: "root", Text: "cannot " + verb + ": only root may change the system's units", Hint: "sudo storagectl runbook " + verb + " …"}
	}
	if !host.HasSystemd() {
		hint := "have something else run \"storagectl runbook run\" and, at boot, \"storagectl resume --boot\""
		if verb == "remove" {
			hint = "so nothing is installed that it would run"
		}
		return nil, &migrate.Refusal{ID: "no-systemd", Text: "cannot " + verb + ": there is no systemd here", Hint: hint}
	}
	return host.SystemBus(ctx)
}

// installedMessage tells what was installed.
type installedMessage struct {
	Name    string        `json:"name,omitempty"`
	Runbook string        `json:"runbook,omitempty"`
	File    string        `json:"file,omitempty"` // the copy that is run
	Window  string        `json:"window,omitempty"`
	Next    []window.Span `json:"next,omitempty"` // when it opens next
	Delay   float64       `json:"delay_seconds,omitempty"`
	Ahead   float64       `json:"stage_before_seconds,omitempty"`
	Policy  string        `json:"policy"`
	Units   []string      `json:"units"`
}

func (a *app) install(ctx context.Context, name string, o *runbookOptions, in installation) error {
	bus, err := unitsBus(ctx, "install")
	if err != nil {
		return err
	}
	defer bus.Close()
	program, err := trustedProgram()
	if err != nil {
		return err
	}
	if err := a.oneState(""); err != nil {
		return err
	}
	if in.resumeOnly {
		m := installedMessage{Policy: in.policy, Units: []string{runbooks.ResumeUnit}}
		if err := a.installResume(ctx, bus, program, in.policy); err != nil {
			return err
		}
		a.out.result("installed", m, fmt.Sprintf("%s is installed: at boot, runs that were cut off are treated by the policy %q.\n", runbooks.ResumeUnit, in.policy))
		return nil
	}
	book, _, err := o.load(name)
	if err != nil {
		return err
	}
	if book.Window == nil {
		return &migrate.Refusal{ID: "no-window", Text: fmt.Sprintf("cannot install runbook %s: it has no window, so nothing says when it is to run", book.Name),
			Hint: `--window "sat,sun 02:00 3h"`}
	}
	w := *book.Window
	as := in.name
	if as == "" {
		as = book.Name
	}
	if in.delay < 0 {
		in.delay = min(5*time.Minute, w.Length()/20).Truncate(time.Second)
	}
	m := installedMessage{Name: as, Runbook: book.Name, File: filepath.Join(installedDir, as+".toml"), Window: w.String(), Next: w.Next(time.Now().Add(in.ahead), 3),
		Delay: in.delay.Seconds(), Ahead: in.ahead.Seconds(), Policy: in.policy}
	if in.delay >= w.Length() {
		return usagef("cannot use --delay %s: the window is open for %s", in.delay, w.Length())
	}
	if len(m.Next) == 0 {
		return usagef("cannot use the window %q: it never opens", m.Window)
	}
	command := []string{program, "runbook", "run", m.File, "--unattended", "--yes", "--window", m.Window, "--policy", in.policy}
	if in.ahead > 0 {
		command = append(command, "--window-wait", brief.Time(in.ahead+clockChange))
	}
	for _, name := range slices.Sorted(maps.Keys(o.params)) {
		command = append(command, "--param", name+"="+o.params[name])
	}
	more, err := a.common()
	if err != nil {
		return err
	}
	units, err := runbooks.Service{Name: as, Command: append(command, more...), Calendar: w.OnCalendar(time.Now(), in.ahead), Delay: in.delay,
		Restart: in.policy == policyResume}.Units()
	if err != nil {
		return usagef("cannot install runbook %s: %w", name, err)
	}
	if err := a.idle(ctx, bus, as, "install"); err != nil {
		return err
	}
	if err := writeInstalled(m.File, []byte(book.Text)); err != nil {
		return err
	}
	for _, u := range units {
		if err := writeUnit(u); err != nil {
			return err
		}
		m.Units = append(m.Units, u.Name)
	}
	if err := a.startTimer(ctx, bus, as, w, in); err != nil {
		return err
	}
	if _, err := host.OwnUnit("", runbooks.ResumeUnit); errors.Is(err, fs.ErrNotExist) {
		if err := a.installResume(ctx, bus, program, policyResume); err != nil {
			return err
		}
	}
	m.Units = append(m.Units, runbooks.ResumeUnit)
	a.out.result("installed", m, installedText(m))
	return nil
}

// common are the flags of all commands that the service is to have, too.
func (a *app) common() ([]string, error) {
	var more []string
	if std, err := defaultStateDir(); err != nil || a.stateDir != std {
		more = append(more, "--state-dir", a.stateDir)
	}
	if a.configFile != "" {
		path, err := filepath.Abs(a.configFile)
		if err != nil {
			return nil, fmt.Errorf("cannot use --config: %w", err)
		}
		more = append(more, "--config", path)
	}
	return more, nil
}

// oneState refuses another state directory than the one whose runs a boot goes on with
// already: there is one service for that, and whichever it left out would be forgotten.
// The root is the folder of units, as for [host.OwnUnit].
func (a *app) oneState(root string) error {
	text, err := host.OwnUnit(root, runbooks.ResumeUnit)
	var foreign *host.ForeignUnitError
	if errors.Is(err, fs.ErrNotExist) || errors.As(err, &foreign) { // who writes it tells of that
		return nil
	}
	if err != nil {
		return err
	}
	had := runbooks.ResumeRuns(text)
	if had == "" || had == filepath.Join(a.stateDir, "runs") {
		return nil
	}
	return &migrate.Refusal{ID: "other-state-dir", Text: fmt.Sprintf("cannot install: %s goes on with the runs in %s after a boot, and would not with those in %s", runbooks.ResumeUnit, filepath.Dir(had), a.stateDir),
		Hint: fmt.Sprintf("--state-dir %s; or, if nothing is to go on there, storagectl runbook remove --resume-only first", filepath.Dir(had))}
}

// trustedProgram is the path of this program, which root runs from then on.
func trustedProgram() (string, error) {
	path, err := os.Executable()
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err == nil {
		err = host.Trusted(path)
	}
	var why *host.UntrustedError
	if errors.As(err, &why) {
		return "", &migrate.Refusal{ID: "program", Text: "cannot install: root is to run this program by itself, and not only root could change it: " + why.Why,
			Hint: "put it where only root writes, such as /usr/local/bin, and call it there"}
	}
	return path, err
}

// idle refuses while the service of an installation is at work.
func (a *app) idle(ctx context.Context, bus *host.Bus, name, verb string) error {
	s, err := bus.UnitState(ctx, runbooks.ServiceUnit(name))
	if err != nil || s.Active == "inactive" || s.Active == "failed" {
		return err
	}
	return &migrate.Refusal{ID: "at-work", Text: fmt.Sprintf("cannot %s runbook %s: it is at work now", verb, name),
		Hint: fmt.Sprintf("wait for it (storagectl status), or stop it where it is safe: systemctl stop %s", runbooks.ServiceUnit(name))}
}

// writeInstalled keeps the runbook's text. Its parents are root's, or it is not run.
func writeInstalled(path string, text []byte) error {
	dir := filepath.Dir(path)
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = host.Trusted(dir)
	}
	if err == nil { // addresses to tell may have a password in them
		err = renameio.WriteFile(path, text, 0o600, renameio.WithTempDir(dir))
	}
	if err != nil {
		return fmt.Errorf("cannot keep the runbook: %w", err)
	}
	return nil
}

// writeUnit writes a unit, unless somebody else's is there.
func writeUnit(u host.Unit) error {
	err := host.WriteUnit("", u)
	var foreign *host.ForeignUnitError
	if errors.As(err, &foreign) {
		return &migrate.Refusal{ID: "foreign-unit", Text: "cannot install: " + err.Error(), Hint: "remove it, or install under another name (--as)"}
	}
	return err
}

// startTimer has systemd watch the clock, and looks whether it does.
func (a *app) startTimer(ctx context.Context, bus *host.Bus, name string, w window.Window, in installation) error {
	timer := runbooks.TimerUnit(name)
	if err := bus.Reload(ctx); err != nil {
		return err
	}
	if err := bus.Enable(ctx, timer); err != nil {
		return err
	}
	// One that runs already goes by its old calendar.
	if err := bus.Stop(ctx, timer); err != nil {
		return err
	}
	if err := bus.Start(ctx, timer); err != nil {
		return err
	}
	at, err := bus.NextElapse(ctx, timer)
	if err != nil {
		return err
	}
	if next := w.Next(time.Now().Add(in.ahead), 1); len(next) > 0 && !due(at, next[0].Opens.Add(-in.ahead), in.delay) {
		return fmt.Errorf("cannot install: systemd would run it at %s, and its window opens at %s", at.Format(time.RFC3339), next[0].Opens.Format(time.RFC3339))
	}
	return nil
}

// due says whether a timer elapses for a window. systemd has no word for blackout
// dates, and runs it on these, too: it is told to wait then.
func due(at, next time.Time, delay time.Duration) bool {
	return !at.IsZero() && !at.After(next.Add(delay+time.Minute))
}

// installResume installs the service that goes on at boot.
func (a *app) installResume(ctx context.Context, bus *host.Bus, program, policy string) error {
	more, err := a.common()
	if err != nil {
		return err
	}
	command := append([]string{program, "resume", "--boot", "--policy", policy}, more...)
	u, err := runbooks.ResumeService(command, filepath.Join(a.stateDir, "runs"))
	if err != nil {
		return usagef("cannot install: %w", err)
	}
	if err := writeUnit(u); err != nil {
		return err
	}
	if err := bus.Reload(ctx); err != nil {
		return err
	}
	return bus.Enable(ctx, u.Name)
}

func installedText(m installedMessage) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The runbook %s is installed", m.Runbook)
	if m.Name != m.Runbook {
		fmt.Fprintf(&b, " as %s", m.Name)
	}
	fmt.Fprintf(&b, ".\nwindow   %s\n", m.Window)
	for _, s := range m.Next {
		fmt.Fprintf(&b, "next     %s to %s\n", s.Opens.Format("Mon 2006-01-02 15:04 MST"), s.Closes.Format("Mon 15:04 MST"))
	}
	if m.Ahead > 0 {
		fmt.Fprintf(&b, "begins   %s before, beside the live store\n", brief.Time(time.Duration(m.Ahead*float64(time.Second))))
	}
	fmt.Fprintf(&b, "copy     %s\nunits    %s\nat boot  %s\n", m.File, strings.Join(m.Units, ", "), m.Policy)
	fmt.Fprintf(&b, "\"storagectl runbook remove %s\" takes it away again.\n", m.Name)
	return b.String()
}
