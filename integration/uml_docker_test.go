//go:build uml

package integration

import (
	"slices"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
)

// TestUMLDockerMemory: where the kernel has the memory controller and it is delegated
// to the user, a container of a rootless podman has the limits that a worker asks
// for; where it is not delegated, the call says so, and all others work.
func TestUMLDockerMemory(t *testing.T) {
	w := newMachine(t, newCeph(t), lab.Owner, "store")
	w.script("root", `echo nameserver 127.0.0.1 >/etc/resolv.conf
for m in bridge veth nf_tables nft_masq nft_compat nft_chain_nat xt_mark xt_nat xt_addrtype xt_comment xt_conntrack ip_tables iptable_nat iptable_filter; do modprobe $m || true; done`)
	judged := func(word string) {
		t.Helper()
		r, all := w.replay()
		i := slices.IndexFunc(all, func(v verdict) bool { return v.call == "memory" })
		if i < 0 || all[i].word != word {
			t.Errorf("want a memory limit to be %s: %s", word, r)
		} else {
			t.Log(all[i])
		}
	}
	judged("ok")
	w.script("root", `mkdir -p /etc/systemd/system/user@.service.d
printf '[Service]\nDelegate=pids\n' >/etc/systemd/system/user@.service.d/50-lab.conf
systemctl daemon-reload; systemctl restart user@2000.service
cat /sys/fs/cgroup/user.slice/user-2000.slice/user@2000.service/cgroup.controllers`)
	judged("odd")
}
