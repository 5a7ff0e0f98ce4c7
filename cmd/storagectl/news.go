package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/migrate"
)

// hearLimit is how long a command waits at its end for those who are to be told of it;
// hearLimitCut, when it was interrupted.
const (
	hearLimit    = 30 * time.Second
	hearLimitCut = 5 * time.Second
)

// news tells the world how a command goes on with a run: the audit, systemd's journal,
// notifications, metrics. All but the audit is told beside the run, and nothing of it
// fails the run. A nil news tells nothing.
type news struct {
	a       *app
	journal *engine.Journal
	dir     string     // of the run
	about   tell.Event // what all events of the command have in common
	began   time.Time  // the step under way
	sender  *tell.Sender
	log     *tell.Journald
	meter   *meter
}

// hear begins to tell of a run, whose lock the caller has: of its job, and of whose
// store, where it is about one. Others than the configuration's targets may be told, too.
func (a *app) hear(j *engine.Journal, about tell.Event, more ...tell.Target) *news {
	st := j.State()
	about.Command, about.Run, about.Job = a.command, st.Header.Run, st.Header.Job
	about.Host, _ = os.Hostname() // a host without a name has none to tell
	n := &news{a: a, journal: j, dir: a.dir().RunPath(st.Header.Run), about: about, began: time.Now(),
		sender: tell.NewSender(append(more, a.conf.Notify...)), log: tell.NewJournald(), meter: a.newMeter(a.dir().RunPath(st.Header.Run))}
	a.out.logged = n.log != nil && tell.ErrIsJournal()
	n.about.Audit = n.tellAudit()
	n.send(tell.Begin, func(e *tell.Event) { e.Text = fmt.Sprintf("storagectl %s begins", a.command) })
	return n
}

// tellAudit returns the audit's last hash, "" where it could not be told. What it
// lacks then is told by the next command on the run.
func (n *news) tellAudit() string {
	hash, err := n.a.tellAudit(n.dir, n.journal)
	if err != nil {
		n.a.out.note(fmt.Sprintf("%v; the next command on run %s tells the rest", err, n.about.Run))
	}
	return hash
}

// send tells of a point.
func (n *news) send(p tell.Point, set func(*tell.Event)) {
	e := n.about
	e.Point, e.Time, e.Phase = p, time.Now().UTC(), string(n.journal.State().Phase)
	set(&e)
	e.Text = clean(fmt.Sprintf("run %s: %s", e.Run, e.Text))
	n.sender.Send(e)
	fields := n.fields()
	fields["MESSAGE_ID"], fields["STORAGECTL_POINT"] = tell.MessageID(p), string(p)
	fields["STORAGECTL_PHASE"], fields["STORAGECTL_STEP"], fields["STORAGECTL_ERROR"] = e.Phase, e.Step, e.Error
	fields["STORAGECTL_AUDIT"] = e.Audit
	priority := tell.PriNotice
	if p == tell.Failed {
		priority = tell.PriError
	}
	if p != tell.Begin && e.Step == "" { // the command is at its end
		fields["STORAGECTL_EXIT"] = fmt.Sprint(e.Exit)
	}
	n.log.Log(e.Text, priority, fields)
	n.meter.poke()
}

func (n *news) fields() map[string]string {
	return map[string]string{"STORAGECTL_RUN": n.about.Run, "STORAGECTL_JOB": n.about.Job, "STORAGECTL_COMMAND": n.about.Command,
		"STORAGECTL_OWNER": n.about.Owner, "STORAGECTL_STORE": n.about.Store}
}

// step tells of a step.
func (n *news) step(e engine.Event) {
	if n == nil {
		return
	}
	took := time.Since(n.began)
	if e.Kind == engine.EventBegin {
		n.began, took = time.Now(), 0
	}
	fields := n.fields()
	fields["MESSAGE_ID"], fields["STORAGECTL_STEP"], fields["STORAGECTL_EVENT"] = tell.MessageID(""), e.Step.Name, string(e.Kind)
	priority := tell.PriInfo
	if e.Undo {
		fields["STORAGECTL_UNDO"] = "1"
	}
	if e.Kind == engine.EventDone || e.Kind == engine.EventFailed {
		fields["STORAGECTL_SECONDS"] = fmt.Sprintf("%.3f", took.Seconds())
	}
	if e.Err != nil {
		priority, fields["STORAGECTL_ERROR"] = tell.PriError, e.Err.Error()
	}
	n.log.Log(clean(stepLine(e, took, 0)), priority, fields)
	// In a job that is about no store, steps have names of their own.
	if p, text := pointOf(e); p != "" && n.about.Store != "" {
		n.send(p, func(v *tell.Event) { v.Step, v.Text = e.Step.Name, text })
	}
	n.meter.poke()
}

// pointOf is the point that a step is, and what it means; "": none.
func pointOf(e engine.Event) (tell.Point, string) {
	switch {
	case e.Kind != engine.EventDone:
	case e.Step.Name == migrate.StepDrain && !e.Undo:
		return tell.Drained, "the Nomad node is drained"
	case e.Step.Name == migrate.StepStop && !e.Undo:
		return tell.Stopped, "podman is stopped"
	case e.Step.Name == migrate.StepStart && !e.Undo, e.Step.Name == migrate.StepStop && e.Undo:
		return tell.Started, "podman works again"
	}
	return "", ""
}

// end tells how the command ended, and waits a while for those who are to hear of it.
func (n *news) end(ctx context.Context, code int, why error) {
	if err := n.journal.Ended(code); err != nil {
		n.a.out.note(err.Error())
	}
	n.about.Audit = cmp.Or(n.tellAudit(), n.about.Audit)
	st := n.journal.State()
	var down time.Duration
	if n.about.Store != "" {
		down, _ = migrate.Down(st)
	}
	tellEnd := func(p tell.Point, text string) {
		n.send(p, func(e *tell.Event) {
			e.Text, e.Exit = text, code
			if why != nil {
				e.Error = why.Error()
			}
			if p == tell.Done {
				e.Down = down.Seconds()
			}
		})
	}
	switch {
	case code == exitWindow:
		tellEnd(tell.Waiting, fmt.Sprintf("storagectl %s %v", n.a.command, why))
	case why != nil:
		tellEnd(tell.Failed, fmt.Sprintf("storagectl %s ended with %d: %v", n.a.command, code, why))
	case st.Phase != engine.PhaseRolledBack && n.a.command != "commit":
		tellEnd(tell.Done, fmt.Sprintf("storagectl %s is done", n.a.command))
	}
	switch st.Phase {
	case engine.PhaseRolledBack:
		tellEnd(tell.RolledBack, "all is put back as it was")
	case engine.PhaseCommitted:
		tellEnd(tell.Committed, "the run is committed")
	}
	limit := hearLimit
	if ctx.Err() != nil {
		limit = hearLimitCut
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	n.log.Close(ctx)
	for _, err := range n.sender.Close(ctx) {
		if err := n.journal.Note("", err.Error()); err != nil {
			n.a.out.after(err.Error())
		}
		n.a.out.after(err.Error())
	}
}

// last writes the metrics of a run that is let go of.
func (n *news) last(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hearLimitCut)
	defer cancel()
	if err := n.meter.close(ctx); err != nil {
		n.a.out.after(err.Error())
	}
}
