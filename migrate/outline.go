package migrate

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/engine"
)

// plan lists the steps and what each comes to on this host.
func (a *Assessment) plan(s *Session) {
	if a.Inputs.Request.Window != nil {
		a.Inputs.Left = a.Estimate.ContainerBytes
	}
	s.Inputs = a.Inputs
	a.Plan = outline(s.steps())
	what := a.what()
	for i := range a.Plan {
		a.Plan[i].What = what[a.Plan[i].Name]
	}
	a.window(s.now())
}

func outline(steps []engine.Step) []PlannedStep {
	var plan []PlannedStep
	down := false
	for _, st := range steps {
		down = (down || st.Name == stepStop) && st.Name != stepCommit && st.Name != StepGrowFS
		plan = append(plan, PlannedStep{Name: st.Name, Title: st.Title, Down: down, Final: st.Final})
	}
	return plan
}

func (a *Assessment) what() map[string]string {
	st, e := a.Inputs.Store, a.Estimate
	units := "no units to stop"
	if !a.Units.none() {
		units = a.Units.names()
	} else if !a.Inputs.Systemd {
		units = "no systemd to ask: waits until no podman process is left"
	}
	db := fmt.Sprintf("%s: graph driver %s becomes %s", st.Database, st.Driver, a.Inputs.Request.To)
	if a.Inputs.Unfusing() {
		db = st.Database + ": the containers' clean-up commands lose the mount program"
	}
	what := map[string]string{
		stepStage: fmt.Sprintf("%s, %s, %s, %s in %s; files by %s (%s); needs %s of %s free; each file is looked at only then",
			Count(e.Images, "image", "images"), Count(e.Layers, "layer", "layers"), Count(e.Entries, "entry", "entries"), Bytes(e.Bytes), runFolder(st.GraphRoot, "RUN"), e.Method, e.MethodReason, Bytes(e.BytesNeeded), Bytes(e.BytesFree)),
		stepProve:     fmt.Sprintf("every entry of every image, as %s shows it and as %s does", a.Inputs.To(), a.Inputs.From()),
		stepStop:      units + a.runningNames(),
		stepStageRest: "images that came or went meanwhile, and " + Bytes(e.ContainerBytes) + " that containers have written",
		stepSwap:      fmt.Sprintf("renames %s* into the run's folder, %s* out of it", st.Driver, a.Inputs.Request.To),
		stepRepoint:   db,
		stepConf:      a.Conf.What,
		stepUnitFiles: fmt.Sprintf("PIDFile= of %s: %s-containers becomes %s-containers", strings.Join(a.Inputs.UnitFiles, ", "), st.Driver, a.Inputs.Request.To),
		stepClear:     fmt.Sprintf("%s-* in %s", st.Driver, st.RunRoot),
		stepVerify:    "images, layers, containers, pods, volumes, secrets, networks; podman info; a container runs and is removed",
		stepSmoke:     "podman info; a container runs and is removed",
		stepDrop:      Count(len(a.Database.Containers), "container; a rollback brings it back", "containers; a rollback brings them back"),
		stepStart:     "what was stopped, units in reverse order, then containers; podman's socket must answer",
		stepCommit:    "only with --commit, or later by storagectl commit; no way back after it",
		stepReset:     a.deletes(),
	}
	what[stepMigrateDB] = fmt.Sprintf("%s: podman system migrate --migrate-db; a copy is kept first, and the result is compared", st.Database)
	what[stepManifest] = "images, layers, containers, pods, volumes, secrets, networks"
	if a.Inputs.DatabaseOnly() {
		what[stepCommit] = "the copy of the old database; " + what[stepCommit]
	}
	if a.Inputs.Growing() {
		a.growWhat(what)
	} else if a.Inputs.Target != nil {
		a.relocateWhat(what)
	}
	if to := a.Inputs.Request.To; to == DriverVFS && a.Inputs.Target == nil {
		what[stepStage] = fmt.Sprintf("%s, %s, %s, %s in %s become about %s: a copy, because %s; of %s free; %s, with the reading back; while podman works",
			Count(e.Images, "image", "images"), Count(e.Layers, "layer", "layers"), Count(e.Entries, "entry", "entries"), Bytes(e.Bytes), st.GraphRoot, Bytes(e.BytesNeeded), e.MethodReason, Bytes(e.BytesFree), copyTime(e.BytesNeeded-e.ContainerBytes))
		what[stepProve] = "every file of every layer, from the disk, against what overlay shows"
		if e.ContainerBytes > 0 {
			what[stepStageRest] = fmt.Sprintf("images that came or went meanwhile, and containers, whole: %s, %s", Bytes(e.ContainerBytes), copyTime(e.ContainerBytes))
		}
	}
	if w := a.Inputs.Request.Window; w != nil {
		what[stepWindow] = fmt.Sprintf("%s; if it is closed, or what is left of it is too short, the run stops here and can be resumed", w)
	}
	out := a.Inputs.Request.Outage
	what[StepDockerAPI] = "images, networks, containers, logs, exit codes, as a worker of Prefect's does; all is removed again"
	what[stepHookBefore], what[stepHookAfter] = hookNames(out.HookBefore), hookNames(out.HookAfter)
	what[stepHookAfterStop], what[stepHookBeforeStart] = hookNames(out.HookAfterStop), hookNames(out.HookBeforeStart)
	what[stepBusy] = fmt.Sprintf("running containers with the labels %s; after %s: %s", strings.Join(out.Busy.Labels, ", "), brief.Time(out.Busy.Deadline), out.Busy.Then)
	if len(a.Busy) > 0 {
		what[stepBusy] += "; at work now: " + strings.Join(a.Busy, ", ")
	} else {
		what[stepBusy] += "; none is at work now"
	}
	if u := a.Inputs.Nomad; u != nil {
		deadline := "without a deadline"
		if out.Deadline > 0 && u.OwnAlloc == "" {
			deadline = "deadline " + brief.Time(out.Deadline)
		}
		what[stepSlot] = fmt.Sprintf("one of %d; waits up to %s", out.Slots, brief.Time(out.SlotWait))
		what[stepDrain] = u.nodeNames() + ", " + deadline
		what[stepUndrain] = "as it was before, once the podman driver is healthy"
		what[stepCanary] = "a batch job with " + out.Canary
		what[stepSlotBack] = "for the next node"
	}
	return what
}

// deletes names all that a reset takes away, and what it does not.
func (a *Assessment) deletes() string {
	st := a.Inputs.Store
	folders := []string{st.GraphRoot, st.RunRoot}
	if a.Database.TmpDir != "" {
		folders = append(folders, a.Database.TmpDir)
	}
	text := fmt.Sprintf("deletes all images, %s and all networks, secrets and artifacts of this store, with the folders %s", a.Objects(), strings.Join(folders, ", "))
	if a.Reset != nil && len(a.Reset.Buildah) > 0 {
		text += fmt.Sprintf(", and the containers of buildah and others: %s", few(a.Reset.Buildah))
	}
	if a.Reset != nil && a.Reset.Logins != "" {
		text += fmt.Sprintf("; the registry logins in %s are kept", a.Reset.Logins)
	}
	return text + "; no way back"
}

// runningNames are the containers that are stopped besides the units.
func (a *Assessment) runningNames() string {
	if len(a.Running) == 0 {
		return ""
	}
	names := make([]string, len(a.Running))
	for i, c := range a.Running {
		names[i] = c.Name
	}
	return fmt.Sprintf("; %s: %s", Count(len(names), "container", "containers"), strings.Join(names, ", "))
}

// Objects counts what podman's database holds.
func (a *Assessment) Objects() string {
	db := a.Database
	return Count(len(db.Containers), "container", "containers") + ", " + Count(len(db.Pods), "pod", "pods") + ", " + Count(len(db.Volumes), "volume", "volumes")
}

// Count writes a number with its noun: "1 entry", "2 entries".
func Count[N int | int64 | uint64](n N, one, many string) string {
	if n == 1 {
		many = one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// OldStore is where a finished run keeps the store that was, until its commit.
func (in Inputs) OldStore(run string) string {
	if in.Request.Relocate != nil && in.Store.Mount != nil {
		return oldPlace(run)
	}
	if in.Request.Relocate != nil {
		return asideOf(in.Store.GraphRoot, run)
	}
	return filepath.Join(runFolder(in.Store.GraphRoot, run), "old")
}

// Outline tells the steps of a run from its journal, without touching the host.
func Outline(st engine.State) ([]PlannedStep, error) {
	in, err := DecodeInputs(st)
	if err != nil {
		return nil, err
	}
	return outline((&Session{Inputs: in}).steps()), nil
}

// NoWayBack reports whether a step that nothing can take back was begun in a
// run: it can only go on forward.
func NoWayBack(st engine.State) (bool, error) {
	plan, err := Outline(st)
	return slices.ContainsFunc(plan, func(p PlannedStep) bool { return p.Final && st.Steps[p.Name].Mark != engine.MarkNone }), err
}

// Down is how long podman was stopped in a run, from the beginning of the stop
// to the verified store, and to the units started again. Zero: not (yet) known.
func Down(st engine.State) (verified, started time.Duration) {
	var stop, check, start time.Time
	for _, r := range st.Records {
		switch {
		case r.Kind == engine.KindBegin && r.Step == stepStop && stop.IsZero():
			stop = r.Time
		case r.Kind == engine.KindDone && (r.Step == stepVerify || r.Step == stepSmoke):
			check = r.Time
		case r.Kind == engine.KindDone && r.Step == stepStart:
			start = r.Time
		}
	}
	if !check.IsZero() {
		verified = check.Sub(stop)
	}
	if !start.IsZero() {
		started = start.Sub(stop)
	}
	return verified, started
}
