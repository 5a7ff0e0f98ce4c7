package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/verify/doctor"
)

// terminal gives the two ends of a new pseudoterminal.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// told is what a person sees of results on a terminal.
func toldOn(t *testing.T, results []doctor.Result) string {
	t.Helper()
	person, program := terminal(t)
	a := &app{stdout: program, stderr: io.Discard}
	a.out = newOutput(a)
	a.tellResults(&doctor.Host{Owner: podman.Owner{Name: "hashi"}}, results, true, "doctor")
	fmt.Fprint(program, "END")
	var all []byte
	for buf := make([]byte, 4096); !bytes.HasSuffix(all, []byte("END")); {
		n, err := person.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, buf[:n]...)
	}
	return string(all)
}

// TestColours: outcomes have colours on a terminal, and nowhere else; who says
// NO_COLOR, or has a terminal that knows none, gets none. What was seen of a host
// brings none along.
func TestColours(t *testing.T) {
	results := []doctor.Result{
		{Check: "linger", Group: "user", Finding: doctor.Finding{Outcome: doctor.Problem, Saw: "off \x1b[32m"}},
		{Check: "podman", Group: "podman", Finding: doctor.Finding{Outcome: doctor.OK, Saw: "podman 4.3.1"}},
	}
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	if out := toldOn(t, results); !strings.Contains(out, "\x1b[31;1mproblem\x1b[0m") || !strings.Contains(out, "\x1b[32mok\x1b[0m") || strings.Count(out, "\x1b") != 4 {
		t.Errorf("on a terminal: %q", out)
	}
	t.Setenv("NO_COLOR", "1")
	if out := toldOn(t, results); strings.Contains(out, "\x1b") || !strings.Contains(out, "problem") {
		t.Errorf("with NO_COLOR: %q", out)
	}
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "dumb")
	if out := toldOn(t, results); strings.Contains(out, "\x1b") {
		t.Errorf("on a terminal that knows none: %q", out)
	}
	t.Setenv("TERM", "xterm")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	a := &app{stdout: w, stderr: io.Discard}
	a.out = newOutput(a)
	a.tellResults(&doctor.Host{Owner: podman.Owner{Name: "hashi"}}, results, true, "doctor")
	w.Close()
	if out, err := io.ReadAll(r); err != nil || strings.Contains(string(out), "\x1b") {
		t.Errorf("through a pipe: %q, %v", out, err)
	}
}

// TestDoctorExit: the exit code is that of the worst.
func TestDoctorExit(t *testing.T) {
	for want, outcomes := range map[int][]doctor.Outcome{
		exitOK:         {doctor.Absent, doctor.OK},
		exitFailed:     {doctor.OK, doctor.Unknown, doctor.Warning, doctor.Absent},
		exitUnverified: {doctor.Warning, doctor.Problem, doctor.Unknown},
	} {
		var results []doctor.Result
		for _, o := range outcomes {
			results = append(results, doctor.Result{Finding: doctor.Finding{Outcome: o}})
		}
		if got := exitCode(outcome(results)); got != want {
			t.Errorf("%v: exit %d, want %d", outcomes, got, want)
		}
	}
	if got := exitCode(outcome([]doctor.Result{{Finding: doctor.Finding{Outcome: doctor.Unknown}}})); got != exitFailed {
		t.Errorf("what could not be found out is exit %d", got)
	}
}
