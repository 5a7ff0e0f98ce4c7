//go:build uml

package integration

import (
	"slices"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
)

// TestUMLMemoryLimits: on a machine whose control groups are of version 2 and delegated
// to users, as systemd does it, a container of a rootless podman has the limits that it
// was made with. The containers of the lab share a kernel that has the memory controller
// elsewhere. The replay does not come so far here: this kernel has no tables for the
// networks that it makes (netavark: table nat, Operation not supported).
func TestUMLMemoryLimits(t *testing.T) {
	w := newMachine(t, newCeph(t), lab.Owner, "store")
	if has := w.script(lab.Owner, "cat /sys/fs/cgroup/user.slice/user-2000.slice/user@2000.service/cgroup.controllers"); !slices.Contains(strings.Fields(has), "memory") {
		t.Fatalf("the user has the controllers %q alone", has)
	}
	w.script("root", "echo nameserver 127.0.0.1 >/etc/resolv.conf")
	if out := w.exec(lab.Owner, "sh", "-c", `cd; podman run --rm --network=none --memory 64m --memory-swap 64m localhost/lab/base:1 /bin/busybox sh -c 'a=x; while :; do a=$a$a; done'; echo ended with $?`); !strings.Contains(out.stdout, "ended with 137") {
		t.Errorf("a container goes beyond its limit: %s", out)
	}
}
