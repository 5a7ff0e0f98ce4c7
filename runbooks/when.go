package runbooks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/migrate"
)

// condition is a key of [When] that is a text.
type condition struct {
	key  string
	text *string
}

func (w *When) texts() []condition {
	return []condition{{"user", &w.User}, {"driver", &w.Driver}, {"free_below", &w.FreeBelow}, {"free_above", &w.FreeAbove},
		{"last_success_older", &w.LastSuccessOlder}, {"node_class", &w.NodeClass}, {"podman_at_least", &w.PodmanAtLeast}}
}

// text is what a condition is said to be.
func (w *When) text(key string) string {
	for _, k := range w.texts() {
		if k.key == key {
			return *k.text
		}
	}
	return ""
}

// any reports whether there is a condition at all.
func (w When) any() bool { w.User = ""; return w != When{} }

// check judges conditions whose parameters are put in. It names the key that is wrong; the
// error says what it can be.
func (w When) check() (string, error) {
	for _, k := range []condition{{"free_below", &w.FreeBelow}, {"free_above", &w.FreeAbove}} {
		if _, err := parseSize(*k.text); err != nil && *k.text != "" {
			return k.key, err
		}
	}
	if _, err := parseDuration(w.LastSuccessOlder); err != nil && w.LastSuccessOlder != "" {
		return "last_success_older", errors.New(durationHint)
	}
	if _, _, err := release(w.PodmanAtLeast); err != nil && w.PodmanAtLeast != "" {
		return "podman_at_least", err
	}
	if w.Driver != "" && !slices.Contains([]string{"vfs", "overlay", "btrfs", "zfs"}, w.Driver) {
		return "driver", errors.New("it is vfs, overlay, btrfs or zfs")
	}
	return "", nil
}

// release reads the first two numbers of a release.
func release(text string) (major, minor int, err error) {
	first, rest, _ := strings.Cut(text, ".")
	second, _, _ := strings.Cut(rest, ".")
	major, err = strconv.Atoi(first)
	if err == nil && second != "" {
		minor, err = strconv.Atoi(second)
	}
	if err != nil {
		return 0, 0, errors.New("it is a release: numbers such as 4.3")
	}
	return major, minor, nil
}

// Seen is what a condition came to.
type Seen struct {
	Key   string `json:"key"`
	Wants string `json:"wants"`
	Saw   string `json:"saw"`
	Holds bool   `json:"holds"`
}

func (s Seen) String() string { return fmt.Sprintf("%s = %s: it is %s", s.Key, s.Wants, s.Saw) }

// state is what was seen of what conditions ask for.
type state struct {
	driver       string
	rootless     bool
	nomad        bool
	classes      []string // of the nodes
	free         uint64
	success      time.Time // zero: there is none
	now          time.Time
	major, minor int
}

// judge compares conditions with what was seen.
func (w When) judge(s state) []Seen {
	var all []Seen
	add := func(key, wants, saw string, holds bool) { all = append(all, Seen{key, wants, saw, holds}) }
	if w.Driver != "" {
		add("driver", w.Driver, s.driver, s.driver == w.Driver)
	}
	if w.Rootless != nil {
		add("rootless", fmt.Sprint(*w.Rootless), fmt.Sprint(s.rootless), s.rootless == *w.Rootless)
	}
	if w.Nomad != nil {
		add("nomad", fmt.Sprint(*w.Nomad), fmt.Sprint(s.nomad), s.nomad == *w.Nomad)
	}
	if w.NodeClass != "" {
		here := false
		for _, c := range s.classes {
			here = here || c == w.NodeClass
		}
		saw := strings.Join(s.classes, ", ")
		if saw == "" {
			saw = "none"
		}
		add("node_class", w.NodeClass, saw, here)
	}
	for _, f := range []struct {
		key, wants string
		below      bool
	}{{"free_below", w.FreeBelow, true}, {"free_above", w.FreeAbove, false}} {
		if n, err := parseSize(f.wants); err == nil && f.wants != "" {
			add(f.key, f.wants, migrate.Bytes(s.free), f.below && s.free < n || !f.below && s.free > n)
		}
	}
	if d, err := parseDuration(w.LastSuccessOlder); err == nil && w.LastSuccessOlder != "" {
		saw := "never"
		if !s.success.IsZero() {
			saw = s.success.UTC().Format(time.RFC3339)
		}
		add("last_success_older", w.LastSuccessOlder, saw, s.success.IsZero() || s.now.Sub(s.success) > d)
	}
	if major, minor, err := release(w.PodmanAtLeast); err == nil && w.PodmanAtLeast != "" {
		add("podman_at_least", w.PodmanAtLeast, fmt.Sprintf("%d.%d", s.major, s.minor), s.major > major || s.major == major && s.minor >= minor)
	}
	return all
}

// Look observes what the conditions of a task come to now. Nothing is assumed: what
// cannot be seen is an error.
func (w When) Look(ctx context.Context, r *host.Runner, dir engine.Dir, name, task string, now time.Time) ([]Seen, error) {
	if !w.any() {
		return nil, nil
	}
	s := state{now: now}
	fail := func(err error) ([]Seen, error) {
		return nil, fmt.Errorf("cannot see whether its conditions hold: %w", err)
	}
	if w.LastSuccessOlder != "" {
		var err error
		if s.success, err = lastDone(dir, name, task); err != nil {
			return fail(err)
		}
	}
	if w.Driver == "" && w.FreeBelow == "" && w.FreeAbove == "" && w.NodeClass == "" && w.Nomad == nil && w.PodmanAtLeast == "" && w.Rootless == nil {
		return w.judge(s), nil
	}
	owner, err := ownerOf(ctx, r, w.User)
	if err != nil {
		return fail(err)
	}
	s.rootless = !owner.Rootful()
	cli := podman.CLI{Owner: owner, Runner: r}
	if w.PodmanAtLeast != "" {
		if s.major, s.minor, _, err = cli.Version(ctx); err != nil {
			return fail(err)
		}
	}
	if w.Driver != "" || w.FreeBelow != "" || w.FreeAbove != "" {
		info, err := cli.Info(ctx)
		if err != nil {
			return fail(err)
		}
		s.driver = info.Store.GraphDriverName
		if w.FreeBelow != "" || w.FreeAbove != "" {
			if s.free, err = cli.Free(ctx, info.Store.GraphRoot); err != nil {
				return fail(err)
			}
		}
	}
	if w.Nomad != nil || w.NodeClass != "" {
		use, refusal, err := migrate.FindNomad(ctx, cli, migrate.Outage{Nomad: migrate.NomadAuto})
		if err == nil && refusal != nil {
			err = refusal
		}
		if err != nil {
			return fail(err)
		}
		if s.nomad = use != nil; s.nomad {
			for _, n := range use.Nodes {
				s.classes = append(s.classes, n.Class)
			}
		}
	}
	return w.judge(s), nil
}

// lastDone is when a task of a runbook was done last and not taken back; the zero time
// if never. A journal that cannot be read is an error: it may be the one.
func lastDone(dir engine.Dir, name, task string) (time.Time, error) {
	var last time.Time
	runs, err := dir.List()
	if err != nil {
		return last, err
	}
	for _, run := range runs {
		// What is damaged in another's journal does not matter here.
		h, err := engine.ReadHeader(dir.RunPath(run))
		if err != nil || h.Job != Job {
			continue
		}
		in, err := DecodeInputs(engine.State{Header: h})
		if err != nil {
			return last, err
		}
		if in.Name != name {
			continue
		}
		st, err := engine.Read(dir.RunPath(run))
		if err != nil {
			return last, err
		}
		var f Facts
		if err := st.LoadFacts(&f); err != nil {
			return last, err
		}
		mark, r := st.Steps[task], f.result(task)
		if mark.Mark == engine.MarkDone && r != nil && r.Outcome == Done && mark.Done.After(last) {
			last = mark.Done
		}
	}
	return last, nil
}

// ownerOf finds a user, "" for the caller.
func ownerOf(ctx context.Context, r *host.Runner, name string) (podman.Owner, error) {
	if name == "" {
		name = strconv.Itoa(os.Getuid())
	}
	o, err := podman.LookupOwner(ctx, r, name)
	if errors.Is(err, podman.ErrNoUser) {
		return o, &migrate.Refusal{ID: "no-user", Text: fmt.Sprintf("there is no user %q", name), Hint: "give the name of the user whose store it is"}
	}
	return o, err
}
