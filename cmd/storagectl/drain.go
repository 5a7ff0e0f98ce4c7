package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

// nomadFlags are how Nomad is found and its node emptied.
func nomadFlags(f *pflag.FlagSet, o *migrate.Outage) {
	f.StringVar(&o.Nomad, "nomad", migrate.NomadAuto, "auto, off, or the address of an agent (else NOMAD_ADDR; NOMAD_TOKEN, NOMAD_CACERT and so on as for nomad)")
	f.StringVar(&o.TokenFile, "nomad-token-file", "", "a file with the token, closed to others (default: NOMAD_TOKEN)")
	f.StringSliceVar(&o.Nodes, "nomad-node", nil, "name or id of this host's node, or its agent's address, if it cannot be found out; again for further ones")
	f.DurationVar(&o.Deadline, "drain-deadline", 15*time.Minute, "what jobs get to move away; 0: as long as they need")
	f.DurationVar(&o.Grace, "drain-grace", 2*time.Minute, "what is left then gets so long to be stopped by Nomad (longer than any job's kill_timeout)")
	f.BoolVar(&o.IgnoreSystem, "drain-ignore-system", false, "leave system jobs (CSI plugins) where they are, if they have no container in this store")
	f.StringVar(&o.Reason, "reason", "", "a word for those who look at the drain")
}

// outageFlags are all about taking the host out of service.
func outageFlags(f *pflag.FlagSet, o *migrate.Outage) {
	nomadFlags(f, o)
	f.IntVar(&o.Slots, "slots", 0, "at most so many nodes of the cluster in maintenance at a time; 0: no limit")
	f.StringVar(&o.SlotPath, "slot-path", drain.DefaultSlotPath, "path of the slots among Nomad's variables: one for a node pool or a datacenter, say")
	f.DurationVar(&o.SlotWait, "slot-wait", time.Hour, "how long to wait for a slot")
	f.StringVar(&o.Canary, "canary", "", "image of the store with which Nomad runs a test job on the node at the end")
	f.StringSliceVar(&o.CanaryShell, "canary-shell", nil, "the words that run a script in that image (default /bin/sh,-c)")
	f.BoolVar(&o.DockerAPI, "docker-api", false, "before the host is given back make on podman's socket the calls of a worker of Prefect's, as verify --docker-api does; one that fails keeps the host out of service")
	f.StringSliceVar(&o.Busy.Labels, "busy-label", nil, "wait for running containers with this LABEL or LABEL=VALUE, * for any text (io.prefect.*)")
	f.DurationVar(&o.Busy.Deadline, "busy-deadline", 30*time.Minute, "how long to wait for them")
	f.StringVar(&o.Busy.Then, "busy-then", drain.BusyRefuse, "wait on, stop them, or refuse to go on")
	f.DurationVar(&o.Busy.Grace, "busy-grace", time.Minute, "what a stopped container gets to end by itself")
	f.Var(hooks{&o.HookBefore}, "hook-before", "a command to run before the drain, in quotes ('prefect work-pool pause mypool') or as a JSON list of words; no shell runs. Again for further ones")
	f.Var(hooks{&o.HookAfterStop}, "hook-after-stop", "the same once podman is stopped")
	f.Var(hooks{&o.HookBeforeStart}, "hook-before-start", "the same before podman is started again")
	f.Var(hooks{&o.HookAfter}, "hook-after", "the same after the return")
	f.DurationVar(&o.HookTimeout, "hook-timeout", 2*time.Minute, "what each hook gets")
	f.Var(hooksFrom{f}, runbooks.HooksFlag, "where a runbook's task reads its hooks: -")
	f.Lookup(runbooks.HooksFlag).Hidden = true
}

// hooksFrom is a flag that reads hooks from stdin.
type hooksFrom struct{ flags *pflag.FlagSet }

func (h hooksFrom) Set(text string) error {
	if text != "-" {
		return errors.New("it is -")
	}
	var words []string
	if err := json.NewDecoder(os.Stdin).Decode(&words); err != nil {
		return fmt.Errorf("cannot read the hooks: %w", err)
	}
	for pair := range slices.Chunk(words, 2) {
		name, is := strings.CutPrefix(pair[0], "--hook-")
		if !is || len(pair) != 2 {
			return errors.New("cannot read the hooks: they are a list of flags and values")
		}
		if err := h.flags.Set("hook-"+name, pair[1]); err != nil {
			return err
		}
	}
	return nil
}

func (h hooksFrom) Type() string   { return "-" }
func (h hooksFrom) String() string { return "" }

// hooks is a flag that adds one command each time.
type hooks struct{ list *[][]string }

func (h hooks) Set(text string) error {
	argv, err := drain.ParseHook(text)
	if err == nil {
		*h.list = append(*h.list, argv)
	}
	return err
}

func (h hooks) Type() string   { return "command" }
func (h hooks) String() string { return "" }

func hookCount(o *migrate.Outage) int {
	return len(o.HookBefore) + len(o.HookAfterStop) + len(o.HookBeforeStart) + len(o.HookAfter)
}

func checkOutage(o *migrate.Outage) error {
	switch {
	case o.Nomad != migrate.NomadAuto && o.Nomad != migrate.NomadOff && !strings.Contains(o.Nomad, "://"):
		return usagef("cannot use --nomad: it is auto, off, or an address like http://127.0.0.1:4646") // it may have a password in it
	case o.HookTimeout < 0 || hookCount(o) > 0 && o.HookTimeout == 0:
		return usagef("cannot use --hook-timeout %s: hooks need some time", brief.Time(o.HookTimeout))
	case o.Deadline < 0 || o.Grace < 0 || o.Slots < 0:
		return usagef("cannot use a deadline or a number of slots below zero: nothing is forced")
	case o.Busy.Then != drain.BusyWait && o.Busy.Then != drain.BusyStop && o.Busy.Then != drain.BusyRefuse:
		return usagef("cannot use --busy-then %q: it is wait, stop or refuse", o.Busy.Then)
	}
	if err := drain.CheckPatterns(o.Busy.Labels); err != nil {
		return usagef("%w: it is LABEL or LABEL=VALUE, with * for any text", err)
	}
	if len(o.Busy.Labels) == 0 { // what is not used is not kept
		o.Busy = drain.BusyOptions{}
	}
	if o.Slots == 0 {
		o.SlotPath, o.SlotWait = "", 0
	}
	if hookCount(o) == 0 {
		o.HookTimeout = 0
	}
	if o.Nomad == migrate.NomadOff {
		o.Deadline, o.Grace = 0, 0
	}
	return nil
}

func newDrain(a *app) *cobra.Command {
	var out migrate.Outage
	var name string
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Take this host's Nomad nodes out of service",
		Long: `drain takes the Nomad nodes that place containers in a store out of service, and
returns when they are seen to be empty: the drain complete, every allocation ended,
no container of Nomad left. "storagectl undrain" gives them back as they were.

` + exitHelp,
		Example: "  storagectl drain --user hashi --drain-deadline 10m --reason \"new disk\"\n  storagectl undrain",
		PreRunE: func(*cobra.Command, []string) error {
			if err := checkOutage(&migrate.Outage{Nomad: out.Nomad, Deadline: out.Deadline, Grace: out.Grace, Busy: drain.BusyOptions{Then: drain.BusyWait}}); err != nil {
				return err
			}
			if out.Nomad == migrate.NomadOff {
				return usagef("cannot drain with --nomad off")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return a.drain(cmd.Context(), name, out) },
	}
	nomadFlags(cmd.Flags(), &out)
	cmd.Flags().StringVar(&name, "user", "", "the user whose store it is (default: the caller)")
	return cmd
}

func (a *app) drain(ctx context.Context, name string, out migrate.Outage) error {
	outlast()
	began := time.Now()
	if name == "" {
		name = fmt.Sprint(os.Getuid())
	}
	owner, err := podman.LookupOwner(ctx, a.env().Runner, name)
	if errors.Is(err, podman.ErrNoUser) {
		return &migrate.Refusal{ID: "no-user", Text: fmt.Sprintf("cannot drain: there is no user %q", name), Hint: "give the name of the user whose store it is"}
	}
	if err != nil {
		return err
	}
	cli := podman.CLI{Owner: owner, Runner: a.env().Runner}
	h, err := a.readHeld()
	if err != nil {
		return err
	}
	if err := h.refuse(owner.Name, a.parent); err != nil {
		return err
	}
	fresh := h == nil
	if fresh {
		use, refusal, err := migrate.FindNomad(ctx, cli, out)
		if err != nil {
			return &hintedError{fmt.Errorf("cannot drain: %w", err), "nothing was changed; see first that podman info works for that user, and that Nomad answers"}
		}
		if refusal != nil {
			refusal.Hint, _, _ = strings.Cut(refusal.Hint, "; --nomad off") // that is for jobs
			return refusal
		}
		if use == nil {
			return &migrate.Refusal{ID: "no-nomad", Text: "cannot drain: no Nomad agent places containers in this store", Hint: "set NOMAD_ADDR or --nomad URL if there is one"}
		}
		h = &held{Use: *use, User: owner.Name, Parent: a.parent, Run: "drain-" + began.UTC().Format("20060102T150405Z"), Since: began.UTC()}
	}
	h.Returning = false
	// Before it is acted on: it alone knows what the nodes were.
	if err := a.writeHeld(h); err != nil {
		return err
	}
	c, err := h.client()
	if err != nil {
		return err
	}
	o := h.options(out)
	if err := a.setDrains(ctx, c, h, o, fresh); err != nil {
		return err
	}
	names := make([]string, 0, len(h.Use.Nodes))
	for _, n := range h.Use.Nodes {
		w := drain.WaitOptions{Limit: out.DrainLimit(), Nodes: h.Use.Nodes, Progress: a.drainProgress(),
			Containers: func(ctx context.Context) ([]string, error) { return migrate.NomadContainers(ctx, cli, o.OwnAlloc) }}
		if err := c.Wait(ctx, n, o, w); err != nil {
			return a.heldOn(err)
		}
		names = append(names, n.Name)
	}
	a.out.result("drained", h, fmt.Sprintf("Empty and out of service after %s: %s. \"storagectl undrain\" gives it back.\n", seconds(time.Since(began)), strings.Join(names, ", ")))
	return nil
}

// setDrains sets the drain of each node. Where the first of a fresh drain is not
// ours to drain, nothing is held.
func (a *app) setDrains(ctx context.Context, c *drain.Client, h *held, o drain.Options, fresh bool) error {
	for i, n := range h.Use.Nodes {
		if err := c.Drain(ctx, n, o); err != nil {
			var r *migrate.Refusal
			if fresh && i == 0 && errors.As(migrate.RefusedBy(err), &r) {
				return errors.Join(r, a.forgetHeld())
			}
			return a.heldOn(err)
		}
		h.Marks = c.Marks
		if err := a.writeHeld(h); err != nil {
			return err
		}
	}
	return nil
}

// heldOn is an error of a drain that was set, with what to do about it.
func (a *app) heldOn(err error) error {
	again := "storagectl drain again"
	if of := runOf(a.parent); of != "" {
		again = "storagectl resume " + of
	}
	r := &migrate.Refusal{ID: "drain", Text: err.Error(),
		Hint: "mend the cause, then " + again + "; or storagectl undrain gives the node back"}
	if errors.Is(err, context.Canceled) {
		r.Text = "the drain goes on in Nomad"
		return fmt.Errorf("%w: %w", engine.ErrInterrupted, r)
	}
	return &engine.StepError{Step: "drain", Err: r}
}

// giveBack returns the nodes that are held. A second try goes on where the first
// one stopped: what it gave back is eligible. It leaves alone what another hand
// made of a node, of which the first one told, and names those that differ.
func (a *app) giveBack(ctx context.Context, c *drain.Client, h *held, limit time.Duration) (left []string, err error) {
	began, again := time.Now(), h.Returning
	h.Returning = true
	if err := a.writeHeld(h); err != nil {
		return nil, err
	}
	for _, n := range h.Use.Nodes {
		if again {
			s, err := c.Look(ctx, n, "podman")
			if err != nil {
				return nil, err
			}
			if s.Eligible && !s.Draining || !c.Ours(s, h.Run) {
				if s.Eligible != n.Eligible || s.Draining {
					left = append(left, n.Name)
				}
				continue
			}
		}
		if err := c.Return(ctx, n, drain.ReturnOptions{Options: h.options(migrate.Outage{}), Limit: limit, Since: began}); err != nil {
			return nil, err
		}
	}
	return left, a.forgetHeld()
}

func (a *app) drainProgress() func(drain.Progress) {
	most := 0
	return func(p drain.Progress) {
		most = max(most, p.Left)
		note := ""
		if p.Unheard != nil {
			note = "Nomad does not answer"
		}
		a.out.progress(migrate.Progress{Step: "drain", Phase: "drain " + p.Node, Done: int64(most - p.Left), Total: int64(most), Unit: "allocations", Note: note})
	}
}

func newUndrain(a *app) *cobra.Command {
	var tokenFile string
	cmd := &cobra.Command{
		Use:   "undrain",
		Short: "Give back the Nomad nodes that drain took",
		Long: `undrain waits until the podman driver is healthy and makes the nodes of the last
"storagectl drain" eligible again, if they were before. A node that another hand made
eligible or drained meanwhile is an error, once: look why, then undrain again, which
leaves it so.

` + exitHelp,
		Example: "  storagectl undrain",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			h, err := a.toReturn()
			if err != nil {
				return err
			}
			if tokenFile != "" {
				if _, err := os.Stat(tokenFile); err != nil { // an old one that is gone is none; this one was asked for
					return usagef("cannot use --nomad-token-file: %w", err)
				}
				h.Use.Config.TokenFile = tokenFile
				if h.Use.Config, err = h.Use.Config.Absolute(); err != nil {
					return err
				}
			}
			c, err := h.client()
			if err != nil {
				return err
			}
			outlast()
			left, err := a.giveBack(ctx, c, h, 3*time.Minute)
			if err != nil {
				return err
			}
			var names []string
			for _, n := range h.Use.Nodes {
				if slices.Contains(left, n.Name) {
					names = append(names, n.Name+" (left as another hand made it)")
				} else {
					names = append(names, n.Name)
				}
			}
			a.out.result("returned", h, fmt.Sprintf("As before the drain again: %s.\n", strings.Join(names, ", ")))
			return nil
		},
	}
	cmd.Flags().StringVar(&tokenFile, "nomad-token-file", "", "a file with the token, closed to others (default: as for the drain, or NOMAD_TOKEN)")
	return cmd
}

// cluster tells which maintenance slots are held.
func (a *app) cluster(ctx context.Context, path, tokenFile string) error {
	conf := drain.FromEnv(os.Getenv)
	conf.TokenFile = tokenFile
	c, err := drain.New(conf)
	if err != nil {
		return err
	}
	slots, err := c.Slots(ctx, path)
	if err != nil {
		return fmt.Errorf("cannot look at the slots: %w", &migrate.Refusal{ID: "nomad", Text: err.Error(), Hint: "check NOMAD_ADDR, NOMAD_TOKEN and the other NOMAD_ variables"})
	}
	var b strings.Builder
	for _, s := range slots {
		if s.Held {
			fmt.Fprintf(&b, "%s  held by %s, run %s, since %s (renewed within %s)\n", s.Path, s.Owner, s.Run, s.Since.Format(time.RFC3339), s.TTL)
		} else {
			fmt.Fprintf(&b, "%s  free\n", s.Path)
		}
	}
	if len(slots) == 0 {
		fmt.Fprintf(&b, "No slot of %s was ever taken.\n", path)
	}
	a.out.result("cluster", struct {
		Slots []drain.Slot `json:"slots"`
	}{slots}, b.String())
	return nil
}
