package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/verify/doctor"
)

func newDoctor(a *app) *cobra.Command {
	var user string
	var only []string
	var fix, all bool
	var undo string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at a host and its podman, and tell what is wrong before it hurts",
		Long: `doctor looks at podman, its store and what they need of the host, and tells for each
check what it saw; for what is not well also why it matters and the command that mends
it. It changes nothing, asks nothing of the network (but Nomad at NOMAD_ADDR, by default
the agent of this host, and the Ceph clusters that the host uses), and gives up on a
check that does not answer. docs/doctor.md tells of each check.

Without --user it is about the caller's own store: run as root, the rootful store.

--fix makes those changes that are safe, after it has shown them and asked (--yes: it
does not ask). They are a run, whose id it tells: storagectl doctor --undo RUN takes them
back; at a terminal it asks first. storagectl history --doctor lists these runs; --undo
latest means the last of them.

` + doctorExitHelp,
		Example: `  storagectl doctor   # the rootful store, as root; else the caller's own
  storagectl doctor --user hashi   # the store of a user
  storagectl doctor --user hashi --check linger --check subids
  storagectl doctor --user hashi --fix --yes   # make the safe changes
  storagectl doctor --undo latest   # take them back`,
		PreRunE: func(*cobra.Command, []string) error {
			if undo != "" && (fix || len(only) > 0 || user != "") {
				return usagef("cannot use --undo with --fix, --check or --user")
			}
			_, err := pick(a.doctorChecks(), only)
			return err
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if undo != "" {
				return a.undoFixes(cmd.Context(), undo)
			}
			return a.doctor(cmd.Context(), user, only, fix, all)
		},
	}
	f := cmd.Flags()
	f.StringVar(&user, "user", "", "the user whose store it is (default: the caller)")
	f.StringArrayVar(&only, "check", nil, "do this check only; may be given again")
	f.BoolVar(&fix, "fix", false, "make those changes that are safe, after asking")
	f.BoolVar(&all, "all", false, "tell also of checks that there is nothing to judge for")
	f.StringVar(&undo, "undo", "", "take back the changes of this run of --fix: its id, or latest")
	return cmd
}

// doctorChecks are all checks, also those that need more of the program than the
// package doctor has.
func (a *app) doctorChecks() []doctor.Check {
	return slices.Concat(doctor.Checks(), cephChecks(), nomadChecks(a))
}

// outcomeError is doctor's verdict as an exit code. It was told already.
type outcomeError struct{ outcome doctor.Outcome }

func (e *outcomeError) Error() string { return "found: " + string(e.outcome) }

func (e *outcomeError) code() int {
	switch {
	case e.outcome == doctor.Problem:
		return exitUnverified
	case e.outcome.Worse(doctor.OK):
		return exitFailed
	}
	return exitOK
}

// doctorMessage is the last message of doctor, and of verify.
type doctorMessage struct {
	User     string         `json:"user"`
	Outcome  doctor.Outcome `json:"outcome"`
	Checks   int            `json:"checks"`
	Problems int            `json:"problems"`
	Warnings int            `json:"warnings"`
	Unknown  int            `json:"unknown"`
	Absent   int            `json:"absent"`
}

func (a *app) doctor(ctx context.Context, user string, only []string, fix, all bool) error {
	checks, err := pick(a.doctorChecks(), only)
	if err != nil {
		return err
	}
	a.configureAnyhow()
	h, err := a.doctorHost(ctx, user)
	if err != nil {
		return err
	}
	results := doctor.Run(ctx, h, checks)
	if ctx.Err() != nil {
		return fmt.Errorf("%w; nothing was changed", engine.ErrInterrupted)
	}
	if fix {
		changed, err := a.fix(ctx, h, results)
		if err != nil {
			return err
		}
		if changed {
			if h, err = a.doctorHost(ctx, user); err != nil { // linger may have made a runtime folder
				return err
			}
			results = doctor.Run(ctx, h, checks)
		}
	}
	a.tellResults(h, results, all || len(only) > 0, "doctor")
	if len(only) == 0 {
		a.rememberChecks(ctx, h, results)
	}
	return outcome(results)
}

func pick(checks []doctor.Check, only []string) ([]doctor.Check, error) {
	var ids []string
	for _, c := range checks {
		ids = append(ids, c.ID)
	}
	for _, o := range only {
		if !slices.Contains(ids, o) {
			hint := "the checks are " + strings.Join(ids, ", ")
			if near := tell.Nearest(o, ids); near != "" {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			return nil, &usageError{&hintedError{fmt.Errorf("there is no check %q", o), hint}}
		}
	}
	if len(only) > 0 {
		checks = slices.DeleteFunc(checks, func(c doctor.Check) bool { return !slices.Contains(only, c.ID) })
	}
	return checks, nil
}

// ownerLimit is how long the name service may take to tell whose store it is.
const ownerLimit = 8 * time.Second

// doctorHost finds out whose store it is.
func (a *app) doctorHost(ctx context.Context, user string) (*doctor.Host, error) {
	if user == "" {
		user = fmt.Sprint(os.Getuid())
	}
	r := &host.Runner{}
	// A name service that hangs must not hold up the checks: /etc/passwd serves then.
	look, cancel := context.WithTimeout(ctx, ownerLimit)
	defer cancel()
	o, err := podman.LookupOwner(look, r, user)
	if errors.Is(err, podman.ErrNoUser) {
		return nil, &migrate.Refusal{ID: "no-user", Text: fmt.Sprintf("cannot look: there is no user %q", user), Hint: "give the name of the user whose store it is"}
	}
	if err != nil {
		return nil, err
	}
	if self := os.Getuid(); self != 0 && uint32(self) != o.UID {
		return nil, &migrate.Refusal{ID: "not-root", Text: fmt.Sprintf("cannot look: the store of %s can be looked at by %s alone", o.Name, migrate.Allowed(o)), Hint: "run it as root, or as that user"}
	}
	h := &doctor.Host{Owner: o, Runner: r, ConfEnv: migrate.ConfEnv(o), Getenv: os.Getenv, Images: imageDevices(r)}
	if h.Runs, err = a.dir().List(); err != nil {
		a.out.note(fmt.Sprintf("the runs cannot be listed: %v", err))
	}
	h.Cutover = a.cutover(h.Runs, o.UID)
	h.Next = a.next(h.Runs)
	return h, nil
}

// next tells by run what can be done about it, as [doctor.Host] wants it.
func (a *app) next(runs []string) map[string][]string {
	all := map[string][]string{}
	for _, run := range runs {
		all[run] = []string{paste("storagectl status "+run, a.givenDir)}
		st, err := engine.Read(a.dir().RunPath(run))
		if err != nil {
			continue
		}
		switch m, err := a.status(run, st); {
		case err != nil:
		case m.Phase == engine.PhaseRolledBack:
			all[run] = nil
		case len(m.Next) > 0:
			all[run] = m.Next
		}
	}
	return all
}

// cutover names the run that has podman stopped on a store of the user's, "" if none
// has.
func (a *app) cutover(runs []string, uid uint32) string {
	for _, run := range runs {
		st, err := engine.Read(a.dir().RunPath(run))
		if err != nil || st.Phase.Over() || !migrate.PodmanDown(st) {
			continue
		}
		if in, err := migrate.DecodeInputs(st); err == nil && in.Owner.UID == uid {
			return run
		}
	}
	return ""
}

// tellResults writes the table, or its messages; kind is that of the last one.
func (a *app) tellResults(h *doctor.Host, results []doctor.Result, all bool, kind string) {
	for _, r := range results {
		for i, m := range r.Mend {
			r.Mend[i] = paste(m, a.givenDir)
		}
	}
	m := doctorMessage{User: h.Owner.Name, Outcome: doctor.Worst(results), Checks: len(results)}
	for _, r := range results {
		switch r.Outcome {
		case doctor.Problem:
			m.Problems++
		case doctor.Warning:
			m.Warnings++
		case doctor.Unknown:
			m.Unknown++
		case doctor.Absent:
			m.Absent++
		}
	}
	if a.json {
		for _, r := range results {
			a.out.result("check", r, "")
		}
		a.out.result(kind, m, "")
		return
	}
	width := 0
	for _, r := range results {
		width = max(width, len(r.Check))
	}
	var b strings.Builder
	group := ""
	for _, r := range results {
		quiet := r.Outcome == doctor.OK && a.quiet || r.Outcome == doctor.Absent && !all
		if quiet {
			continue
		}
		if r.Group != group {
			group = r.Group
			fmt.Fprintf(&b, "%s\n", group)
		}
		saw := oneLine(r.Saw)
		if kind == "verify" {
			saw = strings.TrimSpace(fmt.Sprintf("%.2f s  %s", r.Seconds, saw))
		}
		fmt.Fprintf(&b, "  %-7s  %-*s  %s\n", r.Outcome, width, r.Check, saw)
		if !r.Outcome.Worse(doctor.OK) {
			continue
		}
		fmt.Fprintf(&b, "           why   %s\n", r.Why)
		for _, m := range r.Mend {
			fmt.Fprintf(&b, "           mend  %s\n", oneLine(m))
		}
		if r.Change != nil {
			fmt.Fprintf(&b, "           --fix can %s\n", oneLine(r.Change.Text))
		}
	}
	fmt.Fprintf(&b, "%s of %s: %s\n", migrate.Count(len(results), "check", "checks"), h.Owner.Name, verdict(m))
	a.out.table(b.String(), paint(a))
}

func verdict(m doctorMessage) string {
	var words []string
	if m.Problems > 0 {
		words = append(words, migrate.Count(m.Problems, "problem", "problems"))
	}
	if m.Warnings > 0 {
		words = append(words, migrate.Count(m.Warnings, "warning", "warnings"))
	}
	if m.Unknown > 0 {
		words = append(words, fmt.Sprintf("%d could not be found out", m.Unknown))
	}
	if len(words) == 0 {
		words = append(words, "all is well")
	}
	if m.Absent > 0 {
		words = append(words, migrate.Count(m.Absent, "does not apply here", "do not apply here"))
	}
	return strings.Join(words, ", ")
}

// paint reports whether results may have colours.
func paint(a *app) bool {
	f, is := a.stdout.(*os.File)
	return is && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// table writes lines; with colour each outcome at the beginning of a line has its own.
func (o *output) table(text string, colour bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.endStep()
	o.clearLine()
	p, is := o.out.(printable)
	if !colour || !is {
		fmt.Fprint(o.out, wrap(text, o.outWidth()))
		return
	}
	for line := range strings.Lines(wrap(clean(text), o.outWidth())) {
		for outcome, code := range map[doctor.Outcome]string{doctor.OK: "32", doctor.Warning: "33", doctor.Problem: "31;1", doctor.Unknown: "35", doctor.Absent: "2"} {
			if rest, is := strings.CutPrefix(line, "  "+string(outcome)+" "); is {
				line = "  \x1b[" + code + "m" + string(outcome) + "\x1b[0m " + rest
				break
			}
		}
		fmt.Fprint(p.w, line)
	}
}
