package main

import (
	"testing"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/tell"
)

// TestCommandFailed: a command that failed is told as failed until its run is brought to
// a good end, by a rollback, too; what failed at another run stays so.
func TestCommandFailed(t *testing.T) {
	t.Parallel()
	dir := engine.Dir{Path: t.TempDir()}
	all := map[string]tell.CommandMetrics{}
	type ended struct {
		command string
		code    int
	}
	run := func(commands ...ended) {
		t.Helper()
		id, err := dir.New("migrate")
		if err != nil {
			t.Fatal(err)
		}
		j, err := engine.Create(dir.RunPath(id), engine.Header{Run: id, Job: "migrate", Store: "s", Steps: []string{"stop"}, Actor: &engine.Actor{Command: commands[0].command}}, engine.Options{})
		for i, c := range commands {
			if err == nil && i > 0 {
				err = j.TakenUp(engine.Actor{Command: c.command})
			}
			if err == nil {
				err = j.Ended(c.code)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		commandMetrics(all, j.State())
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	want := func(command string, code int, failed bool) {
		t.Helper()
		if c := all[command]; c.Exit != code || c.Failed != failed {
			t.Errorf("%s ended with %d, failed: %v; want %d, %v", command, c.Exit, c.Failed, code, failed)
		}
	}
	run(ended{"migrate", exitFailed})
	want("migrate", exitFailed, true)
	run(ended{"relocate", exitFailed}, ended{"resume", exitUnverified}, ended{"rollback", exitOK})
	want("relocate", exitFailed, false)
	want("resume", exitUnverified, false)
	want("migrate", exitFailed, true)
	run(ended{"migrate", exitWindow})
	want("migrate", exitWindow, false)
	run(ended{"migrate", exitOK}, ended{"commit", exitFailed})
	want("migrate", exitOK, false)
	want("commit", exitFailed, true)
}
