package runbooks

import (
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/host"
)

func TestUnits(t *testing.T) {
	units, err := Service{
		Name:     "vfs-to-overlay",
		Command:  []string{"/usr/local/bin/storagectl", "runbook", "run", "/etc/storagectl/installed/vfs-to-overlay.toml", "--param", `reason=50% of $HOME is "old" \ new`, "--window", "sat,sun 02:00 3h Europe/Berlin", "--param", "empty="},
		Calendar: []string{"Sat,Sun 02:00:00 Europe/Berlin", "Mon 03:00:00"},
		Delay:    90 * time.Second,
		Restart:  true,
	}.Units()
	if err != nil {
		t.Fatal(err)
	}
	timer, service := has(t, units, TimerUnit("vfs-to-overlay")), has(t, units, ServiceUnit("vfs-to-overlay"))
	for _, want := range []string{"OnCalendar=Sat,Sun 02:00:00 Europe/Berlin\nOnCalendar=Mon 03:00:00\nRandomizedDelaySec=90s\n", "\nPersistent=true\n", "WantedBy=timers.target"} {
		if !strings.Contains(timer, want) {
			t.Errorf("the timer has no %q:\n%s", want, timer)
		}
	}
	const start = `ExecStart=/usr/local/bin/storagectl runbook run /etc/storagectl/installed/vfs-to-overlay.toml --param ` +
		`"reason=50%% of $$HOME is \"old\" \\ new" --window "sat,sun 02:00 3h Europe/Berlin" --param empty=` + "\n"
	for _, want := range []string{start, "\nType=notify\n", "\nSuccessExitStatus=5\n", "\nKillMode=process\n", "\nWatchdogSec=", "\nRestart=on-abnormal\n", "\nStartLimitBurst=10\n", ResumeUnit + "\n"} {
		if !strings.Contains(service, want) {
			t.Errorf("the service has no %q:\n%s", want, service)
		}
	}
	// What makes a mount namespace of the service's own hides its mounts from the host;
	// what is inherited stays on the containers that a run starts again.
	for _, not := range []string{"PrivateTmp", "ProtectSystem", "PrivateMounts", "ProtectHome", "ReadOnlyPaths", "NoNewPrivileges", "SystemCallFilter",
		"RestrictNamespaces", "CapabilityBoundingSet", "OOMScoreAdjust", "Nice", "UMask", "[Install]"} {
		if strings.Contains(service, not) {
			t.Errorf("the service has %s", not)
		}
	}
}

func has(t *testing.T, units []host.Unit, name string) string {
	t.Helper()
	for _, u := range units {
		if u.Name == name {
			return string(u.Text)
		}
	}
	t.Fatalf("there is no %s", name)
	return ""
}

func TestResumeService(t *testing.T) {
	u, err := ResumeService([]string{"/usr/bin/storagectl", "resume", "--boot"}, "/var/lib/storagectl/runs")
	if err != nil || u.Name != ResumeUnit {
		t.Fatal(u, err)
	}
	for _, want := range []string{"\nExecStart=/usr/bin/storagectl resume --boot\n", "\nConditionDirectoryNotEmpty=/var/lib/storagectl/runs\n", "\nWantedBy=multi-user.target\n", "\nAfter=network-online.target "} {
		if !strings.Contains(string(u.Text), want) {
			t.Errorf("no %q:\n%s", want, u.Text)
		}
	}
}

func TestResumeRuns(t *testing.T) {
	for _, runs := range []string{"/var/lib/storagectl/runs", `/srv/50% of "my" state \ x/runs`} {
		u, err := ResumeService([]string{"/usr/bin/storagectl", "resume", "--boot"}, runs)
		if err != nil {
			t.Fatal(err)
		}
		if got := ResumeRuns(u.Text); got != runs {
			t.Errorf("%q, want %q", got, runs)
		}
	}
	if got := ResumeRuns([]byte("[Unit]\n")); got != "" {
		t.Errorf("%q", got)
	}
}

// TestUnitsRefused: nothing gets into a unit that would be more than a word there.
func TestUnitsRefused(t *testing.T) {
	good := []string{"/usr/bin/storagectl", "runbook"}
	for _, s := range []Service{
		{Name: "", Command: good},
		{Name: "a/b", Command: good},
		{Name: "a@b", Command: good},
		{Name: "-a", Command: good},
		{Name: "a", Command: []string{"storagectl"}},
		{Name: "a", Command: []string{"/usr/bin/a b"}},
		{Name: "a", Command: []string{"/usr/bin/$X"}},
		{Name: "a", Command: append(good, "x\nExecStartPre=/bin/rm")},
		{Name: "a", Command: append(good, "\xff")},
	} {
		if units, err := s.Units(); err == nil {
			t.Errorf("%+v is taken: %s", s, units)
		}
	}
}
