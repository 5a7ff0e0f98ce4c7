package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/verify/doctor"
)

var update = flag.Bool("update", false, "write the documents that are made of the code")

const doctorPage = `# Doctor

` + "```" + `
storagectl doctor                  # the rootful store, as root; else the caller's own
storagectl doctor --user hashi     # the store of a user
storagectl doctor --user hashi --check linger --check subids
storagectl doctor --user hashi --fix
storagectl doctor --undo latest
` + "```" + `

` + "`doctor`" + ` looks at podman, its store, and what they need of the host. For each check it tells what it
saw; for what is not well also why it matters, and the command that mends it. Commands are to be run as root.

It only looks. Of podman it runs ` + "`podman --version`" + `, and ` + "`podman info`" + ` and ` + "`podman ps`" + ` where podman has been
used before; it asks podman's socket for its version. What lies in a user's store or home is looked at with that
user's rights. While a run of storagectl has podman stopped, nothing is asked of podman: that is ` + "`unknown`" + ` then.
Nothing is asked of the network, but Nomad at NOMAD_ADDR (by default the agent of this host), and those clusters of
Ceph that the host uses: an image of it is mapped or to be mapped, or a key lies in ` + "`/etc/ceph`" + ` beside a ceph.conf. Each
check has a deadline, of 10 s as a rule; what cannot be found out until then is ` + "`unknown`" + `.

| outcome | | exit code |
| --- | --- | --- |
| ` + "`ok`" + ` | it is well | 0 |
| ` + "`absent`" + ` | what the check is about is not there; told with ` + "`--all`" + ` | 0 |
| ` + "`unknown`" + ` | it could not be found out | 1 |
| ` + "`warning`" + ` | it works, and will hurt some day | 1 |
| ` + "`problem`" + ` | something does not work, or is in danger | 4 |

What stands behind ` + "`mend`" + ` can be pasted into a shell of root's, unless it is plainly a sentence; what follows ` + "`#`" + ` is for you.

The exit code is that of the worst. 2, 3, 10, 11, 12 and 130 are as with [all commands](runs.md#exit-codes). Refused (3) is
what [migrate](migrate.md#refusals) refuses as ` + "`no-user`" + `, ` + "`not-root`" + `, ` + "`not-confirmed`" + ` or (` + "`--fix`" + `, while a run has
podman stopped) ` + "`unfinished`" + `; and ` + "`no-doctor`" + `: what ` + "`--undo`" + ` names
is no run of ` + "`--fix`" + `.

` + "`--fix`" + ` shows the changes that are safe, asks (not with ` + "`--yes`" + `), makes them, and looks again. They are one run,
whose id it tells, with a journal in ` + "`doctor/runs/`" + ` of the [state directory](runs.md#what-lies-where), so that
` + "`storagectl doctor --undo RUN`" + ` takes them back, also where making them was cut off; ` + "`latest`" + ` is the last of these runs. At a
terminal it tells what that would take back, and asks (not with ` + "`--yes`" + `).
` + "`storagectl history --doctor`" + ` lists them. Without root, those changes are left out that only root can make: subordinate
ids, ` + "`/dev/fuse`" + `, ` + "`/`" + ` as a shared mount, and the link of ` + "`docker.sock`" + `. All else is left to you.

In a container without a systemd of its own, a workspace of Kubernetes for example, ` + "`place`" + ` says so, and what it is
known by. What boots, mounts and limits such a container is the one around it: checks about that are ` + "`absent`" + ` there,
and what can be mended from outside alone (a device, a volume, a right) says how the container is to be started.

Colours are for a terminal alone, and none are used where ` + "`NO_COLOR`" + ` is set. How long it takes is in
[benchmarks-doctor.md](benchmarks-doctor.md).

This page is made of the code: ` + "`go test ./cmd/storagectl -run TestDoctorPage -update`" + `.
`

// page is docs/doctor.md.
func page(checks []doctor.Check) string {
	var b strings.Builder
	b.WriteString(doctorPage)
	group := ""
	for _, c := range checks {
		if c.Group != group {
			group = c.Group
			fmt.Fprintf(&b, "\n## %s%s\n", strings.ToUpper(group[:1]), group[1:])
		}
		fmt.Fprintf(&b, "\n### %s\n\n%s. %s\n\n*Mend:* %s\n", c.ID, c.Title, c.Why, c.Mends)
		if c.Fixes != "" {
			fmt.Fprintf(&b, "\n*`--fix`* %s\n", c.Fixes)
		}
	}
	return b.String()
}

// TestDoctorPage: docs/doctor.md is what the code says, each check is whole and
// has a name of its own.
func TestDoctorPage(t *testing.T) {
	const path = "../../docs/doctor.md"
	checks := (&app{}).doctorChecks()
	var ids []string
	for _, c := range checks {
		if c.ID == "" || c.Group == "" || c.Title == "" || c.Why == "" || c.Mends == "" || c.Look == nil || slices.Contains(ids, c.ID) {
			t.Errorf("the check %q is not whole, or not the only one of its name", c.ID)
		}
		ids = append(ids, c.ID)
	}
	want := page(checks)
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/doctor.md is not what the code says: go test ./cmd/storagectl -run TestDoctorPage -update")
	}
}
