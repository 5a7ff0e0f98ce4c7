package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/verify/doctor"
)

// TestUndoAsks: at a terminal --undo tells what it would take back, and does it on a
// person's word alone; --yes is that word. --quiet keeps no run's id back.
func TestUndoAsks(t *testing.T) {
	person, program := terminal(t)
	go func() { _, _ = io.Copy(io.Discard, person) }() // else a full terminal holds the program up
	link := filepath.Join(t.TempDir(), "docker.sock")
	a := &app{stateDir: t.TempDir(), stdin: program, stdout: program, stderr: io.Discard, yes: true, quiet: true}
	fix := func() {
		t.Helper()
		if err := errors.Join(os.RemoveAll(link), os.Symlink("/nowhere", link)); err != nil {
			t.Fatal(err)
		}
		h, err := a.doctorHost(t.Context(), "root")
		if err != nil {
			t.Fatal(err)
		}
		c := doctor.Change{Kind: "link", Path: link, Before: "/nowhere", After: "/run/podman.sock", Text: "point it at podman"}
		if changed, err := a.fix(t.Context(), h, []doctor.Result{{Finding: doctor.Finding{Outcome: doctor.Problem, Change: &c}}}); !changed || err != nil {
			t.Fatalf("%v, %v", changed, err)
		}
	}
	leads := func(want string) {
		t.Helper()
		if to, err := os.Readlink(link); to != want || err != nil {
			t.Errorf("the link leads to %s, not %s: %v", to, want, err)
		}
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	a.stdout = w
	a.out = newOutput(a)
	fix()
	w.Close()
	if told, err := io.ReadAll(out); err != nil || !strings.Contains(string(told), "storagectl doctor --undo 0001-doctor-") {
		t.Errorf("--quiet does not name the run: %q, %v", told, err)
	}
	a.stdout, a.quiet = program, false
	a.out = newOutput(a)

	for answer, want := range map[string]string{"n\n": "/run/podman.sock", "y\n": "/nowhere"} {
		a.yes = true
		fix()
		a.yes = false
		if _, err := person.WriteString(answer); err != nil {
			t.Fatal(err)
		}
		var r *migrate.Refusal
		if err := a.undoFixes(t.Context(), "latest"); (err == nil) != (want == "/nowhere") || err != nil && !errors.As(err, &r) {
			t.Errorf("%q: %v", answer, err)
		}
		leads(want)
	}
	a.yes = true
	fix()
	if err := a.undoFixes(t.Context(), "latest"); err != nil {
		t.Error(err)
	}
	leads("/nowhere")
	runs, err := a.doctorDir().List()
	if err != nil || len(runs) != 4 {
		t.Fatalf("%v, %v", runs, err)
	}
	if st, err := engine.Read(a.doctorDir().RunPath(runs[3])); err != nil || st.Phase != engine.PhaseRolledBack {
		t.Errorf("%v, %v", st.Phase, err)
	}
}
