package main

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/migrate"
)

// TestCommitText: who is asked knows whose store goes, where it is, and what it frees.
func TestCommitText(t *testing.T) {
	in := migrate.Inputs{Owner: podman.Owner{Name: "hashi"}, Store: migrate.Store{GraphRoot: "/srv/storage", Driver: "vfs"}}
	const want = `This deletes for good the old vfs store of hashi, which run 0006-migrate-4f77 keeps in
  /srv/storage/.storagectl-0006-migrate-4f77/old
and frees 30.7 MB. There is no rollback after it.
`
	if got := commitText(in, "0006-migrate-4f77", 30_700_000); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestNextStep: status offers no rollback once a step was begun that none takes
// back, wherever in the plan it stands.
func TestNextStep(t *testing.T) {
	for _, c := range []struct {
		images, failsAt string
		want            []string
	}{
		{migrate.Keep, "swap", []string{"resume", "rollback"}},
		{migrate.Keep, migrate.StepCommit, []string{"resume"}},
		{migrate.Discard, "stop", []string{"resume", "rollback"}},
		{migrate.Discard, "reset", []string{"resume"}},
		{migrate.Discard, "storage-conf", []string{"resume"}},
		{migrate.Discard, "start", []string{"resume"}},
	} {
		t.Run(c.images+" "+c.failsAt, func(t *testing.T) {
			a := &app{stateDir: t.TempDir()}
			inputs, err := json.Marshal(migrate.Inputs{Request: migrate.Request{To: "overlay", Images: c.images}})
			if err != nil {
				t.Fatal(err)
			}
			h := engine.Header{Job: migrate.JobMigrate, Store: "0-x", Inputs: inputs}
			plan, err := migrate.Outline(engine.State{Header: h})
			if err != nil {
				t.Fatal(err)
			}
			var steps []engine.Step
			for _, p := range plan {
				steps = append(steps, engine.Step{Name: p.Name, Final: p.Final, Do: func(context.Context) error {
					if p.Name == c.failsAt {
						return errors.New("it fails")
					}
					return nil
				}})
			}
			h.Steps = engine.Names(steps)
			run, err := a.dir().New(h.Job)
			if err != nil {
				t.Fatal(err)
			}
			h.Run = run
			j, err := engine.Create(a.dir().RunPath(run), h, engine.Options{})
			if err != nil {
				t.Fatal(err)
			}
			r, err := engine.NewRun(j, steps, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Forward(t.Context(), true); err == nil {
				t.Fatal("it did not fail")
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			st, err := engine.Read(a.dir().RunPath(run))
			if err != nil {
				t.Fatal(err)
			}
			m, err := a.status(run, st)
			if err != nil {
				t.Fatal(err)
			}
			var words []string
			for _, n := range m.Next {
				words = append(words, strings.Fields(n)[1])
			}
			if !slices.Equal(words, c.want) {
				t.Errorf("next is %v, want %v", words, c.want)
			}
		})
	}
}

// TestDownText: after a resume, podman was down for longer than the command ran.
func TestDownText(t *testing.T) {
	for _, c := range []struct {
		run, command time.Duration
		want         string
	}{
		{7 * time.Second, 7600 * time.Millisecond, "Podman was down for 6.5 s (until verified; 6.6 s until its units ran again), 7.6 s in all.\n"},
		{45 * time.Second, 3 * time.Second, "Podman was down for 6.5 s (until verified; 6.6 s until its units ran again), of 45.0 s since the run was begun; this command took 3.0 s of them.\n"},
	} {
		if got := downText(6500*time.Millisecond, 6600*time.Millisecond, c.run, c.command); got != c.want {
			t.Errorf("got\n%swant\n%s", got, c.want)
		}
	}
}
