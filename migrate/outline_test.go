package migrate

import (
	"strings"
	"testing"
)

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "0 entries", 1: "1 entry", 2: "2 entries"} {
		if got := Count(n, "entry", "entries"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestPlanNamesWork: the plan tells which containers a label means.
func TestPlanNamesWork(t *testing.T) {
	o := newOutaged(t)
	o.containers(t, `[{"Id":"c1","Names":["flow"],"State":"running","Labels":{"io.prefect.flow":"etl"}},
		{"Id":"c2","Names":["old-flow"],"State":"exited","Labels":{"io.prefect.flow":"etl"}},{"Id":"c3","Names":["other"],"State":"running"}]`)
	var a Assessment
	a.Inputs.Request.Outage.Busy.Labels = []string{"io.prefect.*"}
	if err := a.atWork(t.Context(), o.cli); err != nil {
		t.Fatal(err)
	}
	if got := a.what()[stepBusy]; !strings.HasSuffix(got, "; at work now: flow") {
		t.Error(got)
	}
	o.containers(t, "[]")
	a.Busy = nil
	if err := a.atWork(t.Context(), o.cli); err != nil {
		t.Fatal(err)
	}
	if got := a.what()[stepBusy]; !strings.HasSuffix(got, "; none is at work now") {
		t.Error(got)
	}
}
