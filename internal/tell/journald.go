package tell

import (
	"context"

	"github.com/coreos/go-systemd/v22/journal"
)

// MessageID is what entries of one kind have in common in systemd's journal
// (journalctl MESSAGE_ID=…). They never change. A step has one of its own, "".
func MessageID(p Point) string {
	return map[Point]string{
		"":         "73977414a76044e88261659ee4550af8",
		Begin:      "e457cfef22e5426e85ded12c1acb5bcf",
		Waiting:    "292c7e6b2c3e49dabc9c19c086c31017",
		Drained:    "5dbeeed1ef4842d783ccaff7b3d61509",
		Stopped:    "133b5216a82a42a2959a643a987741fb",
		Started:    "16b98a6c2d664d788cb4a124ea3b7273",
		Done:       "cd900b66c2534918803d61afd5382281",
		Failed:     "db48a361359b42a0b97f01e92498ee29",
		RolledBack: "50a039df0e3f44d98ebb9ae4f2e7b635",
		Committed:  "a547d192e25e4619851e4bab04b71f97",
	}[p]
}

// The priorities of entries, as syslog counts them.
const (
	PriError   = int(journal.PriErr)
	PriWarning = int(journal.PriWarning)
	PriNotice  = int(journal.PriNotice)
	PriInfo    = int(journal.PriInfo)
)

// Journald writes entries with fields to systemd's journal. A journal that does not
// take them holds up nobody: what it has not taken in the end is lost there, and is
// in the run's own journal anyhow.
type Journald struct {
	queue chan entry
	done  chan struct{}
}

type entry struct {
	text     string
	priority int
	fields   map[string]string
}

// NewJournald returns nil where no systemd journal listens. All methods of nil do
// nothing.
func NewJournald() *Journald {
	if !journal.Enabled() {
		return nil
	}
	j := &Journald{queue: make(chan entry, 256), done: make(chan struct{})}
	go func() {
		defer close(j.done)
		for e := range j.queue {
			// It waits where the journal's socket is full: so it has a goroutine.
			_ = journal.Send(e.text, journal.Priority(e.priority), e.fields)
		}
	}()
	return j
}

// Log writes an entry. Fields that are empty are left out.
func (j *Journald) Log(text string, priority int, fields map[string]string) {
	if j == nil {
		return
	}
	e := entry{text: text, priority: priority, fields: map[string]string{"SYSLOG_IDENTIFIER": "storagectl"}}
	for k, v := range fields {
		if v != "" {
			e.fields[k] = v
		}
	}
	select {
	case j.queue <- e:
	default: // the journal has not taken 256 entries: it hangs
	}
}

// Close waits until the journal has taken all, or ctx ends. Nothing may be logged
// afterwards.
func (j *Journald) Close(ctx context.Context) {
	if j == nil {
		return
	}
	close(j.queue)
	select {
	case <-j.done:
	case <-ctx.Done():
	}
}

// ErrIsJournal reports whether stderr goes to systemd's journal.
func ErrIsJournal() bool {
	is, err := journal.StderrIsJournalStream()
	return err == nil && is
}
