package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks/prune"
)

// pruneOptions are the flags of prune.
type pruneOptions struct {
	user, older, floor string
	rules              prune.Rules
	out                migrate.Outage
	wait               time.Duration
	apply              bool
}

func newPrune(a *app) *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Show what of a store nobody needs, or remove it",
		Long: `prune shows what could be removed from a store, what each would free, and why the rest
is kept; with --apply it removes it, after asking (--yes: it does not ask). Without any
of --containers, --images, --volumes, --build-cache and --external it shows all of them
but volumes; --apply removes only what is named. Podman works on meanwhile, and a Nomad
node needs no drain.

Kept are, whatever is asked for: containers that run, that are Nomad's, in a pod, made by
a unit or to be started again; images that a container uses, that others are built on,
that a unit or Quadlet names, or a job that Nomad could place here; volumes that a
container has. Nothing is forced: what came into use meanwhile is left. docs/prune.md
tells more.

` + pruneExitHelp,
		Example: `  storagectl prune --user hashi   # show what could go
  storagectl prune --images dangling --apply   # images without a name; asks first
  storagectl prune --containers --images unused --older 7d --keep-last 2 --apply --yes
  storagectl prune --images unused --floor 50GB --apply --yes   # only until so much is free
  storagectl prune --volumes anonymous --label-not keep   # volumes that podman named itself`,
		PreRunE: func(*cobra.Command, []string) error { return o.check() },
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.prune(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.user, "user", "", "the user whose store it is (default: the caller)")
	f.BoolVar(&o.rules.Containers, "containers", false, "containers that have ended, or were never started")
	f.StringVar(&o.rules.Images, "images", "", "dangling (without a name, and no other is built on them) or unused (also those with a name, if no container uses them)")
	f.StringVar(&o.rules.Volumes, "volumes", "", "anonymous (that podman named itself) or all; their data is lost")
	f.BoolVar(&o.rules.Cache, "build-cache", false, "what builds keep for RUN --mount=type=cache")
	f.BoolVar(&o.rules.External, "external", false, "containers in the store that podman did not make, such as those of a buildah that was cut off")
	f.StringVar(&o.older, "older", "24h", "keep what was used since then (36h, 7d)")
	f.StringSliceVar(&o.rules.Label, "label", nil, "only what has this LABEL or LABEL=VALUE, * for any text; again for further ones")
	f.StringSliceVar(&o.rules.LabelNot, "label-not", nil, "nothing that has it; again for further ones")
	f.IntVar(&o.rules.KeepLast, "keep-last", 0, "keep so many images of each repository, the newest")
	f.StringSliceVar(&o.rules.Keep, "keep", nil, "keep what has this name, * for any text; again for further ones")
	f.StringVar(&o.floor, "floor", "0", "stop when so much is free (50GB), what was not used for longest first; 0: remove all")
	f.StringVar(&o.out.Nomad, "nomad", migrate.NomadAuto, "auto, off (without regard to its jobs), or the address of an agent")
	f.StringVar(&o.out.TokenFile, "nomad-token-file", "", "a file with the token, closed to others (default: NOMAD_TOKEN)")
	f.StringSliceVar(&o.out.Nodes, "nomad-node", nil, "name or id of this host's node, or its agent's address, if it cannot be found out; again for further ones")
	f.DurationVar(&o.wait, "wait", 0, "how long to wait for a run that holds the store")
	f.BoolVar(&o.apply, "apply", false, "remove it, after asking")
	return cmd
}

func (o *pruneOptions) check() (err error) {
	r := &o.rules
	if r.Older, err = ageOf(o.older); err != nil {
		return usagef("cannot use --older %q: it is a length of time, as 36h or 7d", o.older)
	}
	floor, err := bytesOf(strings.TrimSuffix(strings.TrimSuffix(o.floor, "B"), "b"))
	if err != nil || floor < 0 {
		return usagef("cannot use --floor %q: it is a number of bytes, with k, M, G or T (of 1000) if you like", o.floor)
	}
	r.Floor = uint64(floor)
	switch {
	case r.Images != "" && r.Images != prune.Dangling && r.Images != prune.Unused:
		return usagef("cannot use --images %q: it is dangling or unused", r.Images)
	case r.Volumes != "" && r.Volumes != prune.Anonymous && r.Volumes != prune.All:
		return usagef("cannot use --volumes %q: it is anonymous or all", r.Volumes)
	case r.KeepLast < 0 || o.wait < 0:
		return usagef("cannot use a number or a time below zero")
	case o.apply && !r.Any():
		return usagef("cannot apply: say what is to be removed (--containers, --images, --volumes, --build-cache, --external)")
	}
	if o.out.Nomad != migrate.NomadAuto && o.out.Nomad != migrate.NomadOff && !strings.Contains(o.out.Nomad, "://") {
		return usagef("cannot use --nomad: it is auto, off, or an address like http://127.0.0.1:4646") // it may have a password in it
	}
	if err := drain.CheckPatterns(slices.Concat(r.Label, r.LabelNot)); err != nil {
		return usagef("%w: it is LABEL or LABEL=VALUE, with * for any text", err)
	}
	if !r.Any() {
		r.Containers, r.Images, r.Cache, r.External = true, prune.Dangling, true, true
	}
	return nil
}

// ageOf reads a length of time, also of days.
func ageOf(text string) (time.Duration, error) {
	days, is := strings.CutSuffix(text, "d")
	if !is {
		d, err := time.ParseDuration(text)
		if err == nil && d < 0 {
			err = errors.New("it is below zero")
		}
		return d, err
	}
	n, err := strconv.ParseUint(days, 10, 16)
	return time.Duration(n) * 24 * time.Hour, err
}

// pruneMessage is what prune ends with.
type pruneMessage struct {
	Owner     string             `json:"owner"`
	GraphRoot string             `json:"graphRoot"`
	Driver    string             `json:"driver"`
	Applied   bool               `json:"applied"`
	Rules     prune.Rules        `json:"rules"`
	Estimated uint64             `json:"estimated_bytes"` // what would be, or was to be, removed frees
	Before    uint64             `json:"free_before"`
	After     uint64             `json:"free_after,omitempty"`
	Freed     uint64             `json:"freed_bytes"` // by the store's records
	Removed   map[prune.Kind]int `json:"removed,omitempty"`
	Seconds   float64            `json:"seconds"`
	Things    []prune.Thing      `json:"things"`
}

// prune looks, shows, and removes.
func (a *app) prune(ctx context.Context, o pruneOptions) error {
	began := time.Now()
	if o.apply && !a.yes && (a.json || !term.IsTerminal(int(a.stdin.Fd()))) {
		return usagef("cannot go on without a word: say --yes, or leave --apply out to see what would go")
	}
	if o.apply {
		if err := a.configure(); err != nil {
			return err
		}
	}
	h, s, err := a.takeStore(ctx, o, began)
	if err != nil {
		return refusedToPrune(err)
	}
	err = a.pruneStore(ctx, o, h, s, began)
	return errors.Join(err, h.Close())
}

// refusedToPrune says what could not be done, where only the reason is told.
func refusedToPrune(err error) error {
	var r *migrate.Refusal
	switch {
	case errors.As(err, &r):
		r.Hint = strings.ReplaceAll(r.Hint, "goes on without draining anything", "goes on without regard to its jobs")
		return fmt.Errorf("cannot prune: %w", r)
	case errors.Is(err, engine.ErrLocked):
		return fmt.Errorf("cannot prune: %w", err)
	}
	return err
}

// takeStore looks whose store it is; to change it it is locked, too. A run that holds it
// is waited for.
func (a *app) takeStore(ctx context.Context, o pruneOptions, began time.Time) (*migrate.Held, *prune.Store, error) {
	for told := false; ; told = true {
		h, s, err := a.tryStore(ctx, o)
		if err == nil || !errors.Is(err, engine.ErrLocked) || time.Since(began) >= o.wait {
			return h, s, err
		}
		if !told {
			a.out.note(fmt.Sprintf("waiting, %s at most: %v", brief.Time(o.wait), err))
		}
		select {
		case <-ctx.Done():
			return nil, nil, engine.ErrInterrupted
		case <-time.After(time.Second): // a lock that is let go sends no word
		}
	}
}

func (a *app) tryStore(ctx context.Context, o pruneOptions) (*migrate.Held, *prune.Store, error) {
	h, err := migrate.Take(ctx, a.env(), o.user)
	if err != nil {
		return nil, nil, err
	}
	s, err := prune.Open(ctx, h.CLI, h.Worker)
	if err == nil && o.apply {
		err = h.Lock(ctx, s.Ref.GraphRoot, fmt.Sprintf("prune, process %d, since %s", os.Getpid(), time.Now().UTC().Format(time.RFC3339)))
	}
	if err != nil {
		return nil, nil, errors.Join(err, h.Close())
	}
	return h, s, nil
}

func (a *app) pruneStore(ctx context.Context, o pruneOptions, h *migrate.Held, s *prune.Store, began time.Time) error {
	key := h.Key(s.Ref.GraphRoot)
	last, err := prune.ReadLast(a.stateDir, key)
	if err != nil {
		return err
	}
	s.Seen = last.Seen
	st, nomad, err := a.look(ctx, o, h, s, last)
	if err != nil {
		return err
	}
	m := pruneMessage{Owner: h.Owner.Name, GraphRoot: s.Ref.GraphRoot, Driver: s.Ref.Driver, Applied: o.apply, Rules: o.rules, Before: st.Free, Things: prune.Choose(st, o.rules)}
	total := 0
	for _, t := range m.Things {
		if t.Verdict == prune.Remove {
			m.Estimated += t.Bytes
			total++
		}
	}
	if len(h.Uncommitted) > 0 {
		a.out.note(fmt.Sprintf("run %s keeps an old store until its commit; it may share files with this one, and what is shared is freed only then", strings.Join(h.Uncommitted, ", ")))
	}
	if !o.apply {
		m.Seconds = time.Since(began).Seconds()
		a.out.result("prune", m, pruneText(m))
		return nil
	}
	if !a.yes {
		a.out.say(pruneText(m))
		if total == 0 {
			return nil
		}
		if err := a.askWord(ctx); err != nil {
			return err
		}
		// The answer may have taken a while: what is needed by now is kept, and nothing goes
		// that was not shown.
		if st, nomad, err = a.look(ctx, o, h, s, last); err != nil {
			return err
		}
		m.Before, m.Things = st.Free, prune.Shown(prune.Choose(st, o.rules), m.Things)
	}
	outlast()
	a.tellPruneBegins(ctx, m)
	err = s.Apply(ctx, st, o.rules, m.Things, func(n int, t prune.Thing) {
		a.out.progress(migrate.Progress{Step: "prune", Phase: "remove", Done: int64(n), Total: int64(len(m.Things)), Unit: "things", Note: string(t.Kind) + " " + t.ID[:min(12, len(t.ID))]})
	})
	if ctx.Err() != nil {
		err = engine.ErrInterrupted
	}
	// What was removed until an end that came too early is told, too.
	after, freeErr := s.Free(context.WithoutCancel(ctx), true)
	if freeErr != nil {
		after = m.Before
	}
	m.After, m.Removed = after, map[prune.Kind]int{}
	left, failed := 0, 0
	for _, t := range m.Things {
		switch t.Verdict {
		case prune.Removed:
			m.Removed[t.Kind]++
			m.Freed += t.Freed
		case prune.Left:
			left++
		case prune.Failed:
			failed++
		}
	}
	m.Seconds = time.Since(began).Seconds()
	a.out.result("prune", m, prunedText(m))
	err = errors.Join(err, prune.Failures(m.Things), freeErr)
	last.See(st)
	last = prune.Last{Time: time.Now().UTC(), Owner: m.Owner, GraphRoot: m.GraphRoot, Parent: a.parent, Seconds: m.Seconds, ExitCode: exitCode(err),
		Before: m.Before, After: m.After, Freed: m.Freed, Removed: m.Removed, Left: left, Failed: failed, Nomad: nomad || last.Nomad, Seen: last.Seen}
	err = errors.Join(err, last.Write(a.stateDir, key))
	a.tellPrune(ctx, m, last, err)
	return err
}

// look looks at the store, and who needs what; nomad is that there is one.
func (a *app) look(ctx context.Context, o pruneOptions, h *migrate.Held, s *prune.Store, last prune.Last) (st prune.State, nomad bool, err error) {
	wanted, nomad, err := a.wanted(ctx, o, h, last)
	if err != nil {
		return st, false, refusedToPrune(err)
	}
	st, err = s.Look(ctx, o.rules, wanted)
	if ctx.Err() != nil {
		return st, false, fmt.Errorf("%w; nothing was removed", engine.ErrInterrupted)
	}
	if err != nil {
		return st, false, fmt.Errorf("cannot look at the store: %w", err)
	}
	st.Uncommitted = strings.Join(h.Uncommitted, ", ")
	return st, nomad, nil
}

// wanted are the names that Nomad's jobs have, where images or volumes are asked for; nomad
// is that there is one.
func (a *app) wanted(ctx context.Context, o pruneOptions, h *migrate.Held, last prune.Last) (all []prune.Wanted, nomad bool, err error) {
	if o.rules.Images != prune.Unused && o.rules.Volumes == "" {
		return nil, false, nil // a job names nothing that has no name
	}
	drained, err := a.readHeld()
	if err != nil {
		return nil, false, err
	}
	before := ""
	switch {
	case drained != nil && (drained.User == "" || drained.User == h.Owner.Name):
		before = "\"storagectl drain\" has taken its nodes out of service"
	case last.Nomad:
		before = "an earlier prune has read its jobs"
	case h.Nomad != "":
		before = "run " + h.Nomad + " has read its nodes"
	}
	names, refusal, err := migrate.NomadNames(ctx, h.CLI, o.out, before)
	if err != nil {
		return nil, false, err
	}
	if refusal != nil {
		return nil, false, refusal
	}
	for _, n := range names {
		all = append(all, prune.Wanted{Name: n.Name, By: "Nomad's job " + n.Job})
	}
	return all, names != nil, nil
}
