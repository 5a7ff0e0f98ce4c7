package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/migrate"
)

// auditable are the records of a journal that belong in the audit: who had the run
// begun, taken up and left, each phase, and each stop. So what the audit lacks after a
// crash is seen by looking. A journal of before there was an audit has none.
func auditable(st engine.State) []engine.Record {
	from := -1
	var list []engine.Record
	for i, r := range st.Records {
		known := r.Actor != nil || r.Header != nil && r.Header.Actor != nil
		if known && from < 0 {
			from = i
		}
		if from < 0 {
			continue
		}
		if known || r.Exit != nil || r.Kind == engine.KindPhase || r.Kind == engine.KindStop {
			list = append(list, r)
		}
	}
	return list
}

// auditEntries is what the audit has to tell of a run.
func auditEntries(dir string, st engine.State) ([]tell.Entry, error) {
	base := tell.Entry{Run: st.Header.Run, Job: st.Header.Job, Version: st.Header.Version}
	plan := sha256.New()
	plan.Write(st.Header.Inputs)
	for _, s := range st.Header.Steps {
		fmt.Fprintf(plan, "\n%s", s)
	}
	base.Plan = hex.EncodeToString(plan.Sum(nil))
	var facts migrate.Facts
	if in, err := migrate.DecodeInputs(st); err == nil {
		base.Owner, base.Store = in.Owner.Name, in.Store.GraphRoot
		if err := st.LoadFacts(&facts); err != nil {
			return nil, err
		}
	}
	for _, d := range facts.Drains {
		base.Nomad = append(base.Nomad, tell.Drain{Node: d.Node, Accessor: d.Accessor})
	}
	var entries []tell.Entry
	var by *tell.Actor
	for _, r := range auditable(st) {
		e := base
		e.At, e.Time, e.Error = r.Seq, r.Time, r.Error
		switch {
		case r.Header != nil:
			e.Event, by = "begin", (*tell.Actor)(r.Header.Actor)
		case r.Actor != nil:
			e.Event, by = "taken-up", (*tell.Actor)(r.Actor)
		case r.Exit != nil:
			e.Event, e.Exit = "end", r.Exit
		case r.Kind == engine.KindPhase:
			e.Event = string(r.Phase)
			if base.Store != "" && (r.Phase == engine.PhaseFinished || r.Phase == engine.PhaseCommitted) {
				e.Verified = verified(st, facts)
			}
		default:
			e.Event = "stop"
		}
		e.By = by
		var err error
		if e.Journal, err = engine.Digest(dir, r.Seq); err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// verified is what proved the store in a run; nil: no step did.
func verified(st engine.State, f migrate.Facts) *tell.Verified {
	v := &tell.Verified{}
	for _, name := range []string{"verify", "smoke-test"} {
		if t := st.Steps[name].Done; t.After(v.At) {
			v.At = t
		}
	}
	if v.At.IsZero() {
		return nil
	}
	if f.Before != nil {
		v.Manifest = f.Before.SHA256
	}
	if n := len(f.BeforeAnew); n > 0 {
		v.Manifest = f.BeforeAnew[n-1].SHA256
	}
	if f.Sample != nil {
		v.Sample = f.Sample.SHA256
	}
	if f.Smoke != nil {
		v.Driver, v.Podman = f.Smoke.Driver, f.Smoke.PodmanVersion
	}
	return v
}

// auditLimit is how long another process may hold the audit.
const auditLimit = 5 * time.Second

// tellAudit tells the audit what it lacks of a run, and returns its last hash. The
// caller has the run's lock. Where the configuration cannot be used nothing is told: the
// next command that can use it tells the rest.
func (a *app) tellAudit(dir string, j *engine.Journal) (string, error) {
	if a.untold {
		return "", nil
	}
	entries, err := auditEntries(dir, j.State())
	if err != nil {
		return "", fmt.Errorf("cannot tell the audit: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), auditLimit)
	defer cancel()
	hash, err := a.audit().Append(ctx, entries...)
	if err != nil {
		return "", err
	}
	return hash, j.Audited(hash, a.conf.Audit.File)
}

// auditMessage is what history --verify found.
type auditMessage struct {
	File    string   `json:"file"`
	Records int      `json:"records"`
	Head    string   `json:"head"`              // the hash of the last record
	Runs    int      `json:"runs"`              // whose journals were compared
	Pending []string `json:"pending,omitempty"` // runs that the audit lacks the end of, after a crash or while they are under way
	Others  []string `json:"others,omitempty"`  // files of other audits that runs were told to as well, or instead
}

// verifyAudit proves the audit's chain, and compares it with the journals of the runs
// that are there.
func (a *app) verifyAudit() error {
	if err := a.configure(); err != nil {
		return err
	}
	m, err := a.judgeAudit()
	if err != nil {
		return err
	}
	text := fmt.Sprintf("The audit %s is whole: %s, and the journals of %s agree.\n", oneLine(m.File),
		migrate.Count(m.Records, "record", "records"), migrate.Count(m.Runs, "run", "runs"))
	for _, run := range m.Pending {
		text += fmt.Sprintf("Run %s is under way, or was cut off: the next command on it tells the rest.\n", run)
	}
	for _, file := range m.Others {
		text += fmt.Sprintf("Runs were also told to %s: a --config that names it, or none, proves that.\n", oneLine(file))
	}
	a.out.result("audit", m, text)
	return nil
}

func (a *app) judgeAudit() (auditMessage, error) {
	audit := a.audit()
	m := auditMessage{File: audit.Path}
	chain, err := audit.Read()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return m, err
	}
	m.Records = len(chain.Entries)
	if n := len(chain.Hashes); n > 0 {
		m.Head = chain.Hashes[n-1]
	}
	runs, err := a.dir().List()
	if err != nil {
		return m, err
	}
	for _, run := range runs {
		st, err := engine.Read(a.dir().RunPath(run))
		if err != nil {
			return m, err
		}
		for _, r := range st.Records {
			if file := a.auditOf(r.File).Path; r.Audit != "" && file != m.File && !slices.Contains(m.Others, file) {
				m.Others = append(m.Others, file)
			}
		}
		whole, err := a.compareAudit(chain, run, st)
		if err != nil {
			return m, err
		}
		m.Runs++
		if !whole {
			m.Pending = append(m.Pending, run)
		}
	}
	return m, nil
}

// compareAudit reports whether the audit has all of a run that it should have: what was
// told to another one, when the configuration said so, is for that.
func (a *app) compareAudit(chain tell.Chain, run string, st engine.State) (bool, error) {
	path := a.audit().Path
	want, err := auditEntries(a.dir().RunPath(run), st)
	if err != nil {
		return false, err
	}
	told, anywhere := 0, 0 // the last record before which all was told to this audit, and to any
	for _, r := range st.Records {
		if r.Audit == "" {
			continue
		}
		anywhere = r.Seq
		if a.auditOf(r.File).Path != path {
			continue
		}
		if !slices.Contains(chain.Hashes, r.Audit) {
			return false, &tell.BrokenError{Path: path, Why: fmt.Sprintf("it was cut, or begun anew: run %s was told to it until %s, with the hash %s, which is not in it",
				run, r.Time.Format(time.RFC3339), r.Audit)}
		}
		told = r.Seq
	}
	for _, w := range want {
		k := slices.IndexFunc(chain.Entries, func(e tell.Entry) bool { return e.Run == run && e.At == w.At })
		switch {
		case k < 0 && w.At < told:
			return false, &tell.BrokenError{Path: path, Why: fmt.Sprintf("it lacks record %d of run %s", w.At, run)}
		case k < 0 && w.At < anywhere:
		case k < 0:
			return false, nil
		case chain.Entries[k].Journal != w.Journal:
			return false, &tell.BrokenError{Path: path, Line: k + 1, Why: fmt.Sprintf("the journal of run %s is not the one that it tells of", run)}
		}
	}
	return true, nil
}
