package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/verify"
	"github.com/storagectl/storagectl/verify/dockerapi"
)

func newMigrate(a *app) *cobra.Command {
	var req migrate.Request
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "migrate --to overlay|vfs",
		Short: "Convert a container store to another driver, keeping what is in it",
		Long: `migrate converts a container store from the vfs driver to overlay. The new store is
built beside the live one, by hard links, while podman works on; then podman is
stopped for some seconds, the stores change places, and the result is compared
with what was there before and tried with a container. Until you commit, the old
store is whole: "storagectl rollback" returns to it.

--to overlay also takes a store that fuse-overlayfs mounts to the kernel's own
overlay: its marks of deleted files are translated, its files linked.

--to vfs goes back, for a filesystem that cannot hold overlay. It is a copy: vfs
keeps the whole tree of each layer and container, so that it takes many times the
room. The plan says how much, and how long it may take. Containers are copied
while podman is down.

Without --user it works on the caller's own store: run as root that is the
rootful store. It shows the plan and asks, unless you say --yes.

Containers are kept: what runs is stopped, by its unit or by podman, and started
again. --containers refuse leaves a store with containers alone, --containers
discard removes them. With --containers checkpoint what runs in the rootful store
goes on with its memory, where CRIU can work.

--window says when the host may be out of service: staging begins at once, podman is
stopped only while the window is open and long enough. Else the run stops before
that with exit 5, and resume goes on in the next window.

--migrate-db also moves podman's database from BoltDB, which podman 6 cannot
read, to SQLite: a step of its own, with the old database kept. Where the store
is on the driver already, that is all that is done. It takes podman 5.8.

Ctrl-C stops at the next safe point; where podman is stopped then, it
stays so until the run is resumed or rolled back.

` + exitHelp,
		Example: `  storagectl migrate --to overlay --user hashi --dry-run   # show the plan, change nothing
  storagectl migrate --to overlay --user hashi --yes   # do it; the old store stays for a rollback
  storagectl migrate --to overlay --yes --commit   # the rootful store; remove the old one at the end
  storagectl migrate --to overlay --migrate-db --yes   # and podman's database to SQLite, for podman 6
  storagectl migrate --to overlay --images discard --yes   # the classic way: podman system reset, an empty store
  storagectl migrate --to vfs --user hashi --dry-run   # how much room vfs would take, and how long it takes
  storagectl migrate --to overlay --user hashi --yes --slots 1 --drain-deadline 10m --canary localhost/base:1
                                                           on a Nomad client: one node at a time, tried by a job`,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if req.Images == migrate.Discard && !cmd.Flags().Changed("containers") {
				req.Containers = migrate.Refuse // to lose them takes a word of its own
			}
			return errors.Join(checkRequest(req), checkOutage(&req.Outage), checkWindow(req))
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return a.job(cmd.Context(), req, dryRun) },
	}
	f := cmd.Flags()
	f.StringVar(&req.To, "to", "", "the driver to convert to: overlay (mounted by the kernel) or vfs")
	f.StringVar(&req.User, "user", "", "the user whose store it is (default: the caller)")
	f.StringVar(&req.Images, "images", migrate.Keep, "keep, or discard (podman system reset: images, containers, volumes, secrets and networks are deleted)")
	f.StringVar(&req.Containers, "containers", migrate.Keep, "keep them (what ran is stopped, and started again), checkpoint (as keep, but what runs goes on with its memory: rootful, with CRIU), refuse to go on while there are any, or discard them; with --images discard the default is refuse")
	f.BoolVar(&req.KeepDamaged, "keep-damaged", false, "carry damaged images over as they are")
	f.StringVar(&req.SmokeImage, "smoke-image", "", "an image of the store to run as a test (default: a tiny one that comes with storagectl)")
	f.BoolVar(&req.MigrateDB, "migrate-db", false, "move podman's database from BoltDB to SQLite, too (podman 5.8 and later)")
	f.BoolVar(&req.Commit, "commit", false, "remove the old store at the end; there is no rollback then")
	outageFlags(f, &req.Outage)
	windowFlags(f, &req)
	f.BoolVar(&dryRun, "dry-run", false, "show the plan and write nothing at all")
	return cmd
}

func checkRequest(r migrate.Request) error {
	switch {
	case r.To == "":
		return usagef("cannot migrate without a driver: say --to overlay or --to vfs")
	case r.To != "overlay" && r.To != migrate.DriverVFS:
		return usagef("cannot migrate to %q: the drivers to convert to are overlay and vfs", r.To)
	case r.Images != migrate.Keep && r.Images != migrate.Discard:
		return usagef("cannot use --images %q: it is keep or discard", r.Images)
	case r.Containers != migrate.Keep && r.Containers != migrate.Checkpoint && r.Containers != migrate.Refuse && r.Containers != migrate.Discard:
		return usagef("cannot use --containers %q: it is keep, checkpoint, refuse or discard", r.Containers)
	case r.Images == migrate.Discard && (r.Containers == migrate.Keep || r.Containers == migrate.Checkpoint):
		return usagef("cannot keep containers with --images discard")
	case r.Images == migrate.Discard && r.MigrateDB:
		return usagef("cannot use --migrate-db with --images discard: podman makes itself a new database then")
	case r.Images == migrate.Discard && r.To != "overlay":
		return usagef("cannot use --images discard with --to %s", r.To)
	case r.Images == migrate.Discard && r.KeepDamaged:
		return usagef("cannot use --keep-damaged with --images discard")
	}
	return nil
}

// job judges a request, and does it on the operator's word.
func (a *app) job(ctx context.Context, req migrate.Request, dryRun bool) error {
	if err := a.configure(); err != nil {
		return err
	}
	began := time.Now()
	req.Parent = a.parent
	verb := migrate.Inputs{Request: req}.Job()
	plan, err := migrate.Assess(ctx, a.env(), req)
	if err != nil {
		if errors.Is(err, engine.ErrLocked) {
			return err
		}
		return fmt.Errorf("cannot %s: %w", verb, &migrate.Refusal{ID: "look", Text: "the store cannot be looked at: " + err.Error(),
			Hint: "nothing was changed; see first that podman info works for that user"})
	}
	h, err := a.readHeld()
	if err != nil {
		return err
	}
	if r := (*migrate.Refusal)(nil); plan.Inputs.Nomad != nil && errors.As(h.refuse("", ""), &r) {
		plan.Refusals = append(plan.Refusals, *r)
	}
	if len(plan.Refusals) > 0 {
		for _, r := range plan.Refusals {
			a.out.fail("cannot "+verb+": "+r.Text, r.Hint, exitRefused, r.ID, r.Policy)
		}
		return told(&plan.Refusals[0])
	}
	if plan.Already {
		a.out.result("already", plan, fmt.Sprintf("The store of %s is on %s already; nothing to do.\n", plan.Inputs.Owner.Name, req.To))
		return nil
	}
	if dryRun {
		a.out.result("plan", plan, planText(plan))
		return nil
	}
	if !a.yes {
		if err := a.confirm(ctx, plan); err != nil {
			return err
		}
	}
	outlast()
	s, err := migrate.Begin(ctx, a.env(), plan.Inputs)
	if err != nil {
		return fmt.Errorf("cannot begin: %w", err)
	}
	a.out.note(fmt.Sprintf("run %s", s.ID))
	return a.goOn(ctx, s, began, func() error { return s.Forward(ctx, req.Commit) })
}

// goOn runs a session and tells how it ended: who called it first, then the world.
func (a *app) goOn(ctx context.Context, s *migrate.Session, began time.Time, run func() error) error {
	outlast()
	a.life.begin(ctx, s.Inputs.Patience)
	a.news = a.hear(s.Journal(), tell.Event{Owner: s.Inputs.Owner.Name, Store: s.Inputs.Store.GraphRoot})
	err := run()
	final, _ := migrate.NoWayBack(s.State()) // its plan was read when it was taken up
	if err != nil && s.State().Phase == engine.PhaseRolledBack {
		r := &migrate.Refusal{ID: "failed", Text: err.Error(), Hint: "mend the cause, then begin anew"}
		errors.As(err, &r)
		err = fmt.Errorf("cannot %s: %w; all is as it was before", s.Inputs.Job(), r)
	}
	if err == nil {
		err = a.tellEnd(ctx, s, began)
	} else if s.Stopped() && final {
		a.out.note(fmt.Sprintf("podman of %s stays stopped until the run is resumed", s.Inputs.Owner.Name))
	} else if s.Stopped() {
		a.out.note(fmt.Sprintf("podman of %s stays stopped until the run is resumed or rolled back", s.Inputs.Owner.Name))
	}
	code := exitOK
	var why error
	if err != nil {
		why = &runError{err, final}
		code = exitCode(why)
		a.tellError(why, code)
		why = told(why)
	}
	a.news.end(ctx, code, err)
	if err := s.Close(); err != nil && why == nil {
		why = &runError{err, final}
	}
	a.news.last(ctx)
	return why
}

// confirm shows the plan and asks for a word.
func (a *app) confirm(ctx context.Context, plan *migrate.Assessment) error {
	if a.json || !term.IsTerminal(int(a.stdin.Fd())) {
		return usagef("cannot go on without a word: say --yes, or --dry-run to see the plan")
	}
	a.out.say(planText(plan) + "\n")
	return a.askWord(ctx)
}

// askWord asks a person at the terminal whether to go on.
func (a *app) askWord(ctx context.Context) error {
	fmt.Fprint(a.stdout, "Go on? [y/N] ")
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(a.stdin).ReadString('\n') // no answer is no
		answer <- line
	}()
	var line string
	select {
	case line = <-answer:
	case <-ctx.Done():
		fmt.Fprintln(a.stdout)
	}
	if w := strings.ToLower(strings.TrimSpace(line)); ctx.Err() != nil || w != "y" && w != "yes" {
		return &migrate.Refusal{ID: "not-confirmed", Text: "not confirmed; nothing was changed", Hint: "answer y to go on"}
	}
	return nil
}

// resultMessage is how a run ended.
type resultMessage struct {
	Run              string              `json:"run"`
	Phase            engine.Phase        `json:"phase"`
	Owner            string              `json:"owner"`
	GraphRoot        string              `json:"graphRoot"`
	Driver           string              `json:"driver"`                       // the store's driver now
	SecondsDown      float64             `json:"seconds_down,omitempty"`       // podman stopped to podman verified
	SecondsToStarted float64             `json:"seconds_to_started,omitempty"` // podman stopped to its units started again
	Seconds          float64             `json:"seconds"`                      // of this command
	Reclaimable      uint64              `json:"reclaimable_bytes"`            // what a commit frees
	Target           string              `json:"target,omitempty"`             // the folder that a relocation mounted in the store's place
	Copied           *migrate.CopyFact   `json:"copied,omitempty"`             // beside the live store
	Rest             *migrate.CopyFact   `json:"rest,omitempty"`               // after podman was stopped
	Grown            *migrate.GrowFact   `json:"grown,omitempty"`              // of a grow job
	Stage            *migrate.StageFact  `json:"stage,omitempty"`
	Smoke            *verify.SmokeReport `json:"smoke,omitempty"`
	DockerAPI        []dockerapi.Call    `json:"docker_api,omitempty"` // of --docker-api
	Kept             []string            `json:"kept,omitempty"`       // made after the cutover, kept aside by a rollback
}

func (a *app) tellEnd(ctx context.Context, s *migrate.Session, began time.Time) error {
	st, in := s.State(), s.Inputs
	verified, started := migrate.Down(st)
	m := resultMessage{Run: s.ID, Phase: st.Phase, Owner: in.Owner.Name, GraphRoot: in.Store.GraphRoot, Driver: in.Request.To,
		SecondsDown: verified.Seconds(), SecondsToStarted: started.Seconds(), Seconds: time.Since(began).Seconds(),
		Target: s.TargetFolder(), Copied: s.Facts().Copied, Rest: s.Facts().Rest, Grown: s.Facts().Grown, Stage: s.Facts().Stage, Smoke: s.Facts().Smoke, DockerAPI: s.Facts().DockerAPI, Kept: s.Facts().KeptNew}
	var b strings.Builder
	switch {
	case in.Growing():
		growText(&b, m, started)
	case st.Phase == engine.PhaseRolledBack:
		m.Driver, m.SecondsDown, m.SecondsToStarted = in.Store.Driver, 0, 0
		if in.DatabaseOnly() {
			fmt.Fprintf(&b, "Run %s is rolled back: podman's database of %s is BoltDB again, as it was.\n", s.ID, in.Owner.Name)
		} else if m.Target != "" {
			fmt.Fprintf(&b, "Run %s is rolled back: the store of %s is in its old place again, as it was.\n", s.ID, in.Owner.Name)
		} else {
			fmt.Fprintf(&b, "Run %s is rolled back: the store of %s is on %s again, as it was.\n", s.ID, in.Owner.Name, in.From())
		}
		if len(m.Kept) > 0 {
			fmt.Fprintf(&b, "Made after the cutover and kept in %s:\n", oneLine(filepath.Dir(in.OldStore(s.ID))))
		}
		for _, k := range m.Kept {
			fmt.Fprintf(&b, "  %s\n", oneLine(k))
		}
	case st.Phase == engine.PhaseFinished:
		var err error
		if m.Reclaimable, err = s.Reclaimable(ctx); err != nil {
			return err
		}
		a.rememberReclaim(s.ID, m.Reclaimable)
		if in.DatabaseOnly() {
			fmt.Fprintf(&b, "Podman's database of %s is SQLite now: every container, pod and volume compared and found.\n", in.Owner.Name)
			b.WriteString(downText(verified, started, time.Since(st.Started()), time.Since(began)))
			fmt.Fprintf(&b, "The old one is kept. \"storagectl commit %s\" removes it; \"storagectl rollback %s\" returns to it.\n", s.ID, s.ID)
			break
		}
		fmt.Fprintf(&b, "The store of %s is on %s: every image, container, volume, secret and network compared and found.\n", in.Owner.Name, place(m, in))
		b.WriteString(downText(verified, started, time.Since(st.Started()), time.Since(began)))
		fmt.Fprintf(&b, "The old store is kept. \"storagectl commit %s\" removes it and frees %s; \"storagectl rollback %s\" returns to it.\n", s.ID, migrate.Bytes(m.Reclaimable), s.ID)
	case st.Phase == engine.PhaseCommitted:
		if in.DatabaseOnly() {
			fmt.Fprintf(&b, "Podman's database of %s is SQLite, and the old one is removed.\n", in.Owner.Name)
		} else {
			fmt.Fprintf(&b, "The store of %s is on %s, and the old one is removed.\n", in.Owner.Name, place(m, in))
		}
		if verified > 0 && !began.After(st.Started()) {
			fmt.Fprintf(&b, "Podman was down for %s (until verified; %s until its units ran again).\n", seconds(verified), seconds(started))
		}
	}
	a.out.result("result", m, b.String())
	return nil
}

// growText tells what a growth came to.
func growText(b *strings.Builder, m resultMessage, down time.Duration) {
	if m.Grown == nil {
		fmt.Fprintf(b, "Run %s is rolled back: the store of %s is in its place, on %s. If that was made larger, it stays so.\n", m.Run, m.Owner, oneLine(m.Target))
		return
	}
	fmt.Fprintf(b, "The image %s has %s now, and the filesystem of %s's store on it %s (%s before).\n", oneLine(m.Target),
		migrate.Bytes(m.Grown.Image), m.Owner, migrate.Bytes(m.Grown.After), migrate.Bytes(m.Grown.Before))
	if down > 0 {
		fmt.Fprintf(b, "Podman was down for %s.\n", seconds(down))
	} else {
		b.WriteString("Podman was not stopped.\n")
	}
}

// place is where a run brought the store: on a driver, or in a folder, or both.
func place(m resultMessage, in migrate.Inputs) string {
	if in.Converting() {
		return m.Driver + ", on " + oneLine(m.Target)
	}
	if m.Target != "" {
		return oneLine(m.Target)
	}
	return in.To()
}

// downText tells how long podman was down, of how long the run took since it was
// begun, and this command: less than that, if it went on with the run.
func downText(verified, started, run, command time.Duration) string {
	text := fmt.Sprintf("Podman was down for %s (until verified; %s until its units ran again), ", seconds(verified), seconds(started))
	if run > command {
		return text + fmt.Sprintf("of %s since the run was begun; this command took %s of them.\n", seconds(run), seconds(command))
	}
	return text + fmt.Sprintf("%s in all.\n", seconds(command))
}

func planText(p *migrate.Assessment) string {
	var b strings.Builder
	in, e := p.Inputs, p.Estimate
	if in.Growing() {
		fmt.Fprintf(&b, "Make the image %s larger, which the store of %s (podman %s, on %s) is on\n\n", oneLine(in.Target.Where), in.Owner.Name, in.Podman, in.Store.Driver)
	} else if in.DatabaseOnly() {
		fmt.Fprintf(&b, "Move podman's database of %s (podman %s, on %s) from BoltDB to SQLite\n\n", in.Owner.Name, in.Podman, in.Store.Driver)
	} else if in.Converting() {
		fmt.Fprintf(&b, "Move the store of %s (podman %s) to %s, from %s to %s\n\n", in.Owner.Name, in.Podman, oneLine(in.Target.Where), in.Store.Driver, in.Request.To)
	} else if in.Target != nil {
		fmt.Fprintf(&b, "Move the store of %s (podman %s, on %s) to %s\n\n", in.Owner.Name, in.Podman, in.Store.Driver, oneLine(in.Target.Where))
	} else {
		fmt.Fprintf(&b, "Migrate the store of %s (podman %s) from %s to %s\n\n", in.Owner.Name, in.Podman, in.From(), in.To())
	}
	fmt.Fprintf(&b, "  graphroot  %s (%s, %s free)\n", oneLine(in.Store.GraphRoot), p.Look.FSType, migrate.Bytes(p.Look.FreeBytes))
	if p.Window != nil {
		b.WriteString(p.Window.Text())
	}
	if e.Images > 0 || e.Layers > 0 {
		fmt.Fprintf(&b, "  holds      %s (%d without a name), %s, %s, %s\n", migrate.Count(e.Images, "image", "images"), e.Dangling,
			migrate.Count(e.Layers, "layer", "layers"), migrate.Count(e.Entries, "entry", "entries"), migrate.Bytes(e.Bytes))
	}
	if in.Store.Database != "" { // it is not looked at where podman works on
		fmt.Fprintf(&b, "  database   %s %s: %s\n", in.Store.DBKind, oneLine(in.Store.Database), p.Objects())
	}
	if len(p.Conf.Settings) > 0 {
		fmt.Fprintf(&b, "\nWhat podman goes by\n")
	}
	for _, s := range p.Conf.Settings {
		value := s.Value
		if value == "" {
			value = "(podman decides)"
		}
		fmt.Fprintf(&b, "  %-12s %s — %s: %s\n", s.Name, oneLine(value), oneLine(s.Source), oneLine(s.Why))
	}
	fmt.Fprintf(&b, "\nSteps (↓ while podman is down)\n")
	for i, st := range p.Plan {
		mark := " "
		if st.Down {
			mark = "↓"
		}
		fmt.Fprintf(&b, "%s %2d %s\n       %s\n", mark, i+1, st.Title, oneLine(st.What))
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "\nnote: %s\n", oneLine(n))
	}
	return b.String()
}
