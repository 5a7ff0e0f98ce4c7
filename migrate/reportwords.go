package migrate

import (
	"fmt"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
	"github.com/storagectl/storagectl/internal/report"
)

// headline is a run in one line: what is now, or where it stands.
func (g *gathering) headline(o report.Outcome) string {
	if !g.known {
		return fmt.Sprintf("A run of %s: %s", g.st.Header.Job, strings.ReplaceAll(string(g.st.Phase), "-", " "))
	}
	store := "the store of " + g.in.Owner.Name
	switch o {
	case report.RolledBack:
		return "Rolled back: " + g.asItWas()
	case report.Finished, report.Committed:
		switch {
		case g.in.DatabaseOnly():
			return "Podman's database of " + g.in.Owner.Name + " is SQLite"
		case g.in.Growing() && g.facts.Grown != nil:
			return fmt.Sprintf("The image %s has %s", g.in.Target.Where, Bytes(g.facts.Grown.Image))
		case g.in.Growing():
			return "The image " + g.in.Target.Where + " is larger"
		case g.in.Request.Images == Discard:
			return "T" + store[1:] + " is empty, and on " + g.in.To()
		case g.in.Converting():
			return "T" + store[1:] + " is on " + g.in.To() + ", in " + g.in.Target.Where
		case g.in.Request.Relocate != nil:
			return "T" + store[1:] + " is on " + g.in.Target.Where
		}
		return "T" + store[1:] + " is on " + g.in.To()
	}
	how := map[report.Outcome]string{report.Running: "Under way", report.Failed: "Failed", report.Stopped: "Stopped", report.CutOff: "Cut off", report.RollingBack: "Stopped on the way back"}[o]
	if at := g.at(); at != "" {
		return fmt.Sprintf("%s at “%s”: %s", how, at, g.aim())
	}
	return fmt.Sprintf("%s: %s", how, g.aim())
}

// asItWas is what a rollback came to.
func (g *gathering) asItWas() string {
	store := "the store of " + g.in.Owner.Name
	switch {
	case g.in.DatabaseOnly():
		return "podman's database of " + g.in.Owner.Name + " is BoltDB, as it was"
	case g.in.Growing():
		return store + " is in its place"
	case g.in.Request.Relocate != nil:
		return store + " is in its old place, as it was"
	}
	return store + " is on " + g.in.From() + ", as it was"
}

// aim is what the run is for.
func (g *gathering) aim() string {
	store := "the store of " + g.in.Owner.Name
	switch {
	case g.in.DatabaseOnly():
		return "podman's database of " + g.in.Owner.Name + " to SQLite"
	case g.in.Growing():
		return store + " on a larger image"
	case g.in.Converting():
		return store + " to " + g.in.To() + " in " + g.in.Target.Where
	case g.in.Request.Relocate != nil && g.in.Target != nil:
		return store + " to " + g.in.Target.Where
	}
	return store + " from " + g.in.From() + " to " + g.in.To()
}

// at is the title of the step that was last under way, if it was not done.
func (g *gathering) at() string {
	for i := len(g.st.Records) - 1; i >= 0; i-- {
		r := g.st.Records[i]
		switch r.Kind {
		case engine.KindBegin, engine.KindUndo:
			return g.title(r.Step)
		case engine.KindDone, engine.KindUndone:
			return ""
		}
	}
	return ""
}

// words tell what was done, for somebody who was not there.
func (g *gathering) words(d report.Data) []string {
	var ws []string
	add := func(format string, args ...any) { ws = append(ws, fmt.Sprintf(format, args...)) }
	f := g.facts
	if s := f.Stage; s != nil {
		files := Count(s.Linked, "name was hard-linked", "names were hard-linked")
		if s.Reflinked > 0 {
			files += fmt.Sprintf(", %s cloned", Count(s.Reflinked, "file", "files"))
		}
		if s.Copied > 0 || s.Linked == 0 {
			files += fmt.Sprintf(", %s (%s) copied", Count(s.Copied, "file", "files"), Bytes(s.Bytes))
		}
		add("%s in %s were built anew beside the live store, while containers ran: %s.", Count(s.Images, "image", "images"), Count(s.Layers, "layer", "layers"), files)
	}
	if c := f.Copied; c != nil {
		text := fmt.Sprintf("%s (%s) were copied beside the live store in %s, while containers ran", Count(c.Files, "file", "files"), Bytes(c.Bytes), took(c.Seconds))
		if r := f.Rest; r != nil {
			text += fmt.Sprintf("; %s (%s) that had changed since, after podman was stopped", Count(r.Files, "file", "files"), Bytes(r.Bytes))
		}
		add("%s.", text)
	}
	if gr := f.Grown; gr != nil {
		add("The image has %s now, and the filesystem on it %s (%s before).", Bytes(gr.Image), Bytes(gr.After), Bytes(gr.Before))
	}
	switch n := len(d.Down); {
	case n > 0 && d.Down[n-1].Open:
		add("Podman is stopped since %s: containers of this store do not run until the run goes on, or is rolled back.", when(d.Down[n-1].From))
	case n == 1:
		add("Podman was stopped for %s, from %s to %s.", took(d.DownSeconds), when(d.Down[0].From), d.Down[0].To.UTC().Format("15:04:05"))
	case n > 1:
		add("Podman was stopped %d times, for %s together.", n, took(d.DownSeconds))
	case g.known && g.st.Phase.Over():
		add("Podman was not stopped.")
	}
	if g.known {
		if held := HeldNodes(g.st, g.in); len(held) > 0 {
			add("Nomad places nothing on %s until the run goes on, or is rolled back.", strings.Join(held, ", "))
		}
	}
	whole := g.in.Request.Images == Discard || g.in.Growing() // there is no old store
	switch g.st.Phase {
	case engine.PhaseFinished:
		add("The old store is kept until it is committed, and a rollback returns to it.")
	case engine.PhaseCommitted:
		if g.known && !whole {
			add("The old store is removed: there is no way back.")
		}
	case engine.PhaseRolledBack:
		add("Everything is put back as it was before the run.")
	}
	return ws
}

func when(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") + " UTC" }

func took(seconds float64) string {
	return report.Length(time.Duration(seconds * float64(time.Second)))
}

// groups are the facts that the run was built from.
func (g *gathering) groups() []report.Group {
	in, st := g.in, g.in.Store
	var all []report.Group
	var list []report.Fact
	add := func(name, value string) {
		if value != "" {
			list = append(list, report.Fact{Name: name, Value: value})
		}
	}
	end := func(title string) {
		if len(list) > 0 {
			all = append(all, report.Group{Title: title, Facts: list})
		}
		list = nil
	}
	add("owner", fmt.Sprintf("%s (uid %d)", in.Owner.Name, in.Owner.UID))
	add("graph root", st.GraphRoot)
	add("run root", st.RunRoot)
	add("on the mount", st.MountedOn)
	add("volumes in", st.VolumePath)
	add("driver before", in.From())
	add("driver asked for", in.To())
	add("podman", in.Podman)
	if s := g.facts.Smoke; s != nil && s.PodmanVersion != in.Podman {
		add("podman afterwards", s.PodmanVersion)
	}
	if st.DBKind != libpoddb.None {
		add("podman's database", strings.TrimSpace(string(st.DBKind)+" "+st.Database))
	}
	add("podman's database now", g.facts.NewDB)
	if c := g.facts.Conf; c != nil {
		add("storage.conf written", c.Path)
	}
	end("The store")

	r := in.Request
	if t := in.Target; t != nil {
		add("kind", t.Kind)
		add("where", t.Where)
		add("filesystem", t.FSType)
		if t.Make {
			add("made by the run", "a filesystem")
		}
		if t.Image != nil {
			add("image", t.Image.Spec.String())
			add("mapped by", string(t.Image.Mapper))
			if t.Image.Size > 0 {
				add("size", Bytes(t.Image.Size))
			}
		}
		if t.Place != nil {
			add("folder of CephFS", t.Where)
			add("mounted by", string(t.Place.Mounter))
		}
		end("The target")
	}
	add("images", r.Images)
	add("containers", r.Containers)
	if r.MigrateDB {
		add("podman's database", "to SQLite")
	}
	if r.KeepDamaged {
		add("damaged images", "carried over as they are")
	}
	add("image of the test container", r.SmokeImage)
	if r.Commit {
		add("commit", "at once")
	}
	if r.Window != nil {
		add("window", r.Window.String())
	}
	if r.Now {
		add("window does not matter", "--now")
	}
	end("What was asked")
	g.nomadFacts(add)
	end("Nomad and others")
	return append(all, ReportRun(g.st))
}

// ReportRun are the facts of any run: who has begun it, and gone on with it.
func ReportRun(st engine.State) report.Group {
	g := report.Group{Title: "The run"}
	add := func(name, value string) {
		if value != "" {
			g.Facts = append(g.Facts, report.Fact{Name: name, Value: value})
		}
	}
	add("run", st.Header.Run)
	add("begun by the task", parentOf(st))
	for _, r := range st.Records {
		a, what := r.Actor, "gone on with by"
		if r.Header != nil {
			a, what = r.Header.Actor, "begun by"
		}
		if a != nil {
			add(what, who(*a))
		}
	}
	add("storagectl", st.Header.Version)
	add("steps", fmt.Sprint(len(st.Header.Steps)))
	add("records in the journal", fmt.Sprint(len(st.Records)))
	return g
}

// who is a person at a command line, as far as the system knows them.
func who(a engine.Actor) string {
	text := fmt.Sprintf("storagectl %s, uid %d", a.Command, a.UID)
	if a.SudoUser != "" {
		text += ", by sudo of " + a.SudoUser
	}
	if a.LoginUID >= 0 && a.LoginUID != a.UID {
		text += fmt.Sprintf(", logged in as uid %d", a.LoginUID)
	}
	return text
}

func (g *gathering) nomadFacts(add func(name, value string)) {
	out := g.in.Request.Outage
	if u := g.in.Nomad; u != nil {
		for _, n := range u.Nodes {
			was := "took work before"
			if !n.Eligible {
				was = "took no work before"
			}
			add("node", fmt.Sprintf("%s (%s, pool %s), %s", n.Name, n.Datacenter, n.Pool, was))
		}
		add("asked by", u.Operator)
		if out.Deadline > 0 {
			add("deadline of the drain", report.Length(out.Deadline))
		}
		add("reason", out.Reason)
		if out.Slots > 0 {
			add("maintenance slots", fmt.Sprint(out.Slots))
		}
		add("canary", out.Canary)
	}
	add("waited for containers with", strings.Join(out.Busy.Labels, ", "))
	// A hook's arguments are nobody's business here.
	if n := len(out.HookBefore); n > 0 {
		add("before", Count(n, "hook", "hooks"))
	}
	if n := len(out.HookAfter); n > 0 {
		add("after", Count(n, "hook", "hooks"))
	}
}
