package engine

import (
	"fmt"
	"os"
	"slices"
	"testing"
)

// TestSweep kills a run at each point of its journal, on the way forward and on
// the way back, with and without a reboot after it, and shows that resume and
// rollback end as if nothing had happened.
func TestSweep(t *testing.T) {
	for _, tc := range []struct {
		name      string
		first     func(*Run) error
		then      func(*Run) error
		prepare   func(*Run) error
		want      []string
		wantPhase Phase
	}{
		{"forward resumed", forward, forward, nil, finished, PhaseFinished},
		{"forward rolled back", forward, rollback, nil, nil, PhaseRolledBack},
		{"rollback resumed", rollback, rollback, forward, nil, PhaseRolledBack},
		{"commit resumed", commit, commit, forward, committed, PhaseCommitted},
	} {
		for _, reboot := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s reboot=%v", tc.name, reboot), func(t *testing.T) {
				for n := 1; ; n++ {
					dir, h := t.TempDir(), &toy{dir: t.TempDir()}
					if tc.prepare != nil {
						if _, _, err := run(t, dir, h, 0, tc.prepare); err != nil {
							t.Fatal(err)
						}
					}
					_, crashed, err := run(t, dir, h, n, tc.first)
					if err != nil {
						t.Fatalf("point %d: %v", n, err)
					}
					if crashed && reboot {
						_ = os.Remove(h.path("stop"))
					}
					if crashed {
						if _, _, err := run(t, dir, h, 0, tc.then); err != nil {
							t.Fatalf("point %d: second try: %v", n, err)
						}
					}
					st, err := Read(dir)
					if err != nil {
						t.Fatal(err)
					}
					if crashed || tc.name != "forward rolled back" {
						got := h.files(t)
						if reboot { // what only a reboot took away is not put back for its own sake
							got = slices.DeleteFunc(got, func(s string) bool { return s == "stop" })
						}
						want := slices.Clone(tc.want)
						if reboot {
							want = slices.DeleteFunc(want, func(s string) bool { return s == "stop" })
						}
						if !slices.Equal(got, want) {
							t.Fatalf("point %d: host has %v, want %v", n, got, want)
						}
						if st.Phase != tc.wantPhase {
							t.Fatalf("point %d: phase %s, want %s", n, st.Phase, tc.wantPhase)
						}
					}
					if !crashed {
						if n < 4 {
							t.Fatalf("only %d points", n)
						}
						return
					}
				}
			})
		}
	}
}
