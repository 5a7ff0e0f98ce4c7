package runbooks

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/storagectl/storagectl/internal/host"
)

// ResumeUnit is the service that goes on at boot with what was cut off.
const ResumeUnit = "storagectl-resume.service"

// A Service is what systemd is to do with a runbook. Its units follow from these
// fields alone.
type Service struct {
	Name     string   // of the installation: small letters, digits and dashes
	Command  []string // the program by its whole path, and its words
	Calendar []string // when: lines of systemd.time(7)
	Delay    time.Duration
	// Restart has systemd go on with a run at once that was killed or that hung.
	Restart bool
}

// TimerUnit and ServiceUnit are the names of the units of an installation.
func TimerUnit(name string) string   { return "storagectl-runbook-" + name + ".timer" }
func ServiceUnit(name string) string { return "storagectl-runbook-" + name + ".service" }

// Units are the timer and the service of a runbook. The error says what cannot stand
// in a unit.
func (s Service) Units() ([]host.Unit, error) {
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,99}$`).MatchString(s.Name) {
		return nil, fmt.Errorf("%q is no name for units: it is made of small letters, digits and dashes", s.Name)
	}
	start, err := execStart(s.Command)
	if err != nil {
		return nil, err
	}
	var timer strings.Builder
	fmt.Fprintf(&timer, "[Unit]\nDescription=Window of the storagectl runbook %s\n\n[Timer]\n", s.Name)
	for _, line := range s.Calendar {
		fmt.Fprintf(&timer, "OnCalendar=%s\n", line)
	}
	fmt.Fprintf(&timer, "RandomizedDelaySec=%ds\nAccuracySec=1s\n", int(s.Delay.Seconds()))
	timer.WriteString(`# Missed while the machine was off: it runs after the boot. Outside of its window that
# run takes nothing out of service, and waits for the next one.
Persistent=true

[Install]
WantedBy=timers.target
`)
	// The order only says who comes first where both come at once, at boot.
	service := fmt.Sprintf("[Unit]\nDescription=The storagectl runbook %s\n%s %s\n\n[Service]\nExecStart=%s\n%s", s.Name, boot, ResumeUnit, start, service)
	if s.Restart {
		service += restart
	}
	return []host.Unit{
		{Name: TimerUnit(s.Name), Text: []byte(timer.String())},
		{Name: ServiceUnit(s.Name), Text: []byte(service)},
	}, nil
}

// ResumeService is the unit of that name. runs is the folder in which there must be
// something to go on with.
func ResumeService(command []string, runs string) (host.Unit, error) {
	start, err := execStart(command)
	if err != nil {
		return host.Unit{}, err
	}
	folder, err := word(runs)
	if err != nil {
		return host.Unit{}, err
	}
	text := fmt.Sprintf(`[Unit]
Description=Go on with the runs of storagectl that were cut off
%s
`+conditionRuns+`%s

[Service]
ExecStart=%s
%s
[Install]
WantedBy=multi-user.target
`, boot, strings.Trim(folder, `"`), start, service+restart)
	return host.Unit{Name: ResumeUnit, Text: []byte(text)}, nil
}

const conditionRuns = "ConditionDirectoryNotEmpty="

// ResumeRuns is the folder of runs that a [ResumeService] is for, by the unit's text; ""
// if it names none.
func ResumeRuns(unit []byte) string {
	for line := range strings.Lines(string(unit)) {
		if folder, is := strings.CutPrefix(strings.TrimSpace(line), conditionRuns); is {
			return strings.NewReplacer("%%", "%", `\\`, `\`, `\"`, `"`).Replace(folder) // see word
		}
	}
	return ""
}

// boot is what all [Unit] parts have, mostly the order at boot: stores may lie on the
// network, Nomad has to answer, and the owners' managers are started by logind.
const boot = `# What is killed at each start is not started for ever.
StartLimitIntervalSec=1h
StartLimitBurst=10
Wants=network-online.target
After=network-online.target local-fs.target remote-fs.target nss-user-lookup.target systemd-user-sessions.service nomad.service`

// service is what all services of ours have. docs/unattended.md tells why there is no
// sandbox around them: containers that a run starts again are the service's children.
const service = `Type=notify
NotifyAccess=main
# NOMAD_ADDR and what else a shell would have.
EnvironmentFile=-/etc/storagectl/environment
# Window (5): the run stopped where nothing is out of service, and goes on in the next one.
SuccessExitStatus=5
# A start and a stop get more time with each sign of life; no sign of life for so long,
# when its own deadlines are over too, is a program that hangs.
TimeoutStartSec=3min
TimeoutStopSec=3min
WatchdogSec=3min
# Containers that the run starts again may be left in this control group: they stay.
KillMode=process
OOMPolicy=continue
Delegate=yes
TasksMax=infinity
SyslogIdentifier=storagectl
`

// restart goes on with what was killed or hung, which may have left podman down: it is the
// loop breaker of runs that says when that is enough.
const restart = `# Killed, or hung and killed for it: the run is gone on with, once at the same step.
Restart=on-abnormal
RestartSec=5s
`

// execStart is a command as a unit has it.
func execStart(argv []string) (string, error) {
	if !regexp.MustCompile(`^/[A-Za-z0-9/._+-]+$`).MatchString(argv[0]) {
		return "", fmt.Errorf("%q is no path of a program that systemd would take", argv[0])
	}
	words := []string{argv[0]}
	for _, w := range argv[1:] {
		q, err := word(w)
		if err != nil {
			return "", err
		}
		words = append(words, strings.ReplaceAll(q, "$", "$$"))
	}
	return strings.Join(words, " "), nil
}

// word quotes what systemd would take for more than itself.
func word(w string) (string, error) {
	if strings.ContainsFunc(w, unicode.IsControl) || strings.ToValidUTF8(w, "") != w {
		return "", fmt.Errorf("%q cannot stand in a unit: it is not plain text", w)
	}
	w = strings.ReplaceAll(w, "%", "%%")
	if regexp.MustCompile(`^[A-Za-z0-9/._+:=,@%-]+$`).MatchString(w) {
		return w, nil
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(w) + `"`, nil
}
