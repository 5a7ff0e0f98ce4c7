package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/ceph"
)

// TestStandstill: where nothing goes on, the cluster is asked, what it says is told once,
// and only a cluster that is full ends the work.
func TestStandstill(t *testing.T) {
	down := ceph.Report{Problems: []ceph.Problem{{ID: "pool-read-only", Text: "no OSD is up", Fatal: true}, {ID: "x", Text: "a note"}}}
	full := ceph.Report{Problems: []ceph.Problem{{ID: "pool-full-quota", Text: "pool p is full by its quota", Fatal: true}}}
	var notes []string
	var now ceph.Report
	var unreachable error
	asked := 0
	ctx, giveUp := context.WithCancelCause(t.Context())
	w := &standstill{after: time.Minute, giveUp: giveUp,
		ask: func(context.Context) (ceph.Report, error) { asked++; return now, unreachable },
		note: func(format string, args ...any) error {
			notes = append(notes, fmt.Sprintf(format, args...))
			return nil
		}}
	tell := func(text string, stands bool) {
		t.Helper()
		if stands {
			w.since = w.since.Add(-2 * time.Minute)
		}
		w.look(t.Context(), json.RawMessage(text))
	}
	told := func(want ...string) {
		t.Helper()
		if len(notes) != len(want) || slices.ContainsFunc(notes, func(n string) bool { return !strings.Contains(n, want[slices.Index(notes, n)]) }) {
			t.Errorf("noted %q, want %q", notes, want)
		}
		notes = nil
	}
	tell("1", false)
	tell("1", false)
	if tell("2", true); asked != 0 {
		t.Error("asked while it goes on")
	}
	if tell("2", true); asked != 1 {
		t.Error("not asked")
	}
	told() // the cluster is well
	now = down
	tell("2", true)
	tell("2", false)
	tell("2", true)
	told("no OSD is up; it is waited for")
	tell("3", false)
	told("it goes on")
	now, unreachable = ceph.Report{}, errors.New("no monitor answered")
	tell("3", true)
	told("no monitor answered")
	if ctx.Err() != nil {
		t.Error("given up for a cluster that is only ill")
	}
	now, unreachable = full, nil
	tell("3", true)
	told("full by its quota; it is given up")
	if err := context.Cause(ctx); err == nil || !strings.Contains(err.Error(), "full by its quota") {
		t.Errorf("not given up: %v", err)
	}
}
