package rbd

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/cephlink/cephtest"
)

// TestColdBoot: a real node with systemd. The image is mapped by its unit and
// mounted by an automount in fstab; after a power cut it comes back by itself,
// with what was on it, also while the cluster still counts the node's old client
// as alive. It runs beside no other test: a node's namespace holds what is
// mounted here when it boots.
func TestColdBoot(t *testing.T) {
	c := hubCluster(t)
	c.Tool(t, "rbd", "create", "--size", "400M", "rbd/node-1")
	netns, _ := joined(t, c)
	dir, err := os.MkdirTemp("", "coldboot-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	spec := Spec{Pool: "rbd", Image: "node-1"}
	as := cephlink.Cluster{Conf: "/mnt/ceph.conf", Keyring: "/mnt/keyring"}
	order, err := json.Marshal(childOrder{Helper: "/mnt/storagectl-ceph", Cluster: as, Spec: spec, Unit: true})
	if err != nil {
		t.Fatal(err)
	}
	sh(t, `cp "$1" "$6/storagectl-ceph"; cp "$2" "$6/ceph.conf"; cp "$3" "$6/keyring"; cp "$4" "$6/child"; printf '%s' "$5" >"$6/order"`,
		c.Helper, c.Conf, c.Keyring, os.Args[0], string(order), dir)

	name := "rbd" + fmt.Sprint(os.Getpid())
	lab := func(script string, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // for clean-up, too
		defer cancel()
		cmd := exec.CommandContext(ctx, c.LabPath(), args...)
		if script != "" {
			cmd = exec.CommandContext(ctx, c.LabPath(), "run", name, "root", "bash", "-euo", "pipefail", "-c", script)
		}
		cmd.WaitDelay = time.Second
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v: %s", script, args, err, out)
		}
		return string(out)
	}
	lab("", "up", "-udev", "-netns", filepath.Join("/run/netns", netns), "-bind", dir+":/mnt", "bookworm", name)
	t.Cleanup(func() { lab("", "down", name) })
	out := lab(childEnv + `="$(cat /mnt/order)" /mnt/child <<<go`)
	if !strings.Contains(out, `"Error":""`) {
		t.Fatalf("the node says %s", out)
	}
	lab(`systemctl is-active --quiet '` + UnitName(spec) + `'
		test "$(readlink -f ` + spec.Link() + `)" = "$(losetup --noheadings --output NAME,BACK-FILE | awk '/node-1/ {print $1}')"
		mkfs.xfs -q ` + spec.Link() + `
		mkdir /srv/store
		echo '` + spec.Link() + ` /srv/store xfs noauto,nofail,noatime,_netdev,x-systemd.automount,x-systemd.device-timeout=900,x-systemd.requires=` + UnitName(spec) + ` 0 0' >>/etc/fstab
		systemctl daemon-reload
		systemctl start srv-store.automount
		echo kept >/srv/store/file
		findmnt -t xfs /srv/store
		sync -f /srv/store`)
	for range 2 {
		lab("", "kill", name)
		lab("", "start", name)
		start := time.Now()
		if out := lab(`timeout 180 cat /srv/store/file; systemctl is-active '` + UnitName(spec) + `'`); out != "kept\nactive\n" {
			t.Errorf("after a power cut: %s", out)
		}
		t.Logf("there again %s after the boot", time.Since(start).Round(time.Second/10))
	}
	late(t, c, lab, UnitName(spec))
	// In order: the filesystem is unmounted before its device goes.
	lab("", "poweroff", name)
	img := c.Tool(t, "rbd", "status", "rbd/node-1")
	if !strings.Contains(img, "Watchers: none") {
		t.Errorf("after an ordered shutdown: %s", img)
	}
	lab("", "start", name)
	if out := lab(`cat /srv/store/file`); out != "kept\n" {
		t.Errorf("after an ordered shutdown: %s", out)
	}
}

// late has the image asked for while the cluster does not answer, for more than two
// minutes if STORAGECTL_SWEEP is full: the mount waits, and is made. Nobody's login does.
func late(t *testing.T, c *cephtest.Cluster, lab func(string, ...string) string, unit string) {
	t.Helper()
	if out := lab(`systemctl show --value -p After remote-fs.target multi-user.target | tr ' ' '\n' | grep -e storagectl -e srv || true`); out != "" {
		t.Errorf("the boot waits for %s", out)
	}
	lab(`systemctl stop srv-store.automount srv-store.mount '` + unit + `'`)
	c.Daemon(t, "stop", "mon")
	lab(`systemctl start --no-block srv-store.mount
		until journalctl --boot --unit='` + unit + `' --output=cat | grep -q 'looking again'; do sleep 1; done`)
	if os.Getenv("STORAGECTL_SWEEP") == "full" {
		time.Sleep(130 * time.Second)
	}
	c.Daemon(t, "start", "mon")
	c.Healthy(t)
	if out := lab(`timeout 120 sh -c 'until findmnt -t xfs /srv/store >/dev/null; do sleep 0.2; done'
		cat /srv/store/file; systemctl is-active '` + unit + `'`); out != "kept\nactive\n" {
		t.Errorf("with a cluster that was late: %s", out)
	}
}
