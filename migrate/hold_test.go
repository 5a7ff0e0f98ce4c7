package migrate

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman"
)

// TestRunsOf: what the runs of a user's stores tell of Nomad, whatever came of them.
func TestRunsOf(t *testing.T) {
	t.Parallel()
	dir := engine.Dir{Path: t.TempDir()}
	for run, in := range map[string]Inputs{
		"0001-migrate-a": {Owner: podman.Owner{UID: 7}, Nomad: &NomadUse{}},
		"0002-migrate-b": {Owner: podman.Owner{UID: 7}},
		"0003-migrate-c": {Owner: podman.Owner{UID: 8}, Nomad: &NomadUse{}},
	} {
		text, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir.RunPath(run), 0o700); err != nil {
			t.Fatal(err)
		}
		j, err := engine.Create(dir.RunPath(run), engine.Header{Run: run, Job: JobMigrate, Inputs: text}, engine.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for uid, want := range map[uint32]string{7: "0001-migrate-a", 8: "0003-migrate-c", 9: ""} {
		if _, nomad, err := runsOf(dir, uid); err != nil || nomad != want {
			t.Errorf("user %d: run %q, %v", uid, nomad, err)
		}
	}
}
