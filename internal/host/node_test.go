package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These run inside a node of the lab, where a test of integration/ starts them:
// they change the machine's fstab and units.

const (
	nodeRun   = "20261122-node"
	nodeStore = "/opt/homelab/data/home/.local/share/containers/storage"
	nodeDisk  = "/var/lib/storagectl/disk"
	nodeLoop  = "/dev/loop20"
)

func nodeBus(t *testing.T) *Bus {
	t.Helper()
	b, err := SystemBus(t.Context())
	must(t, err)
	t.Cleanup(b.Close)
	return b
}

// nodeFstab gives the node's fstab with these lines of ours.
func nodeFstab(t *testing.T, want ...FstabEntry) {
	t.Helper()
	before, err := os.ReadFile("/etc/fstab")
	must(t, err)
	after, err := EditFstab(before, nodeRun, want)
	must(t, err)
	var r Runner
	if warnings, err := r.WriteFstab(t.Context(), "/etc/fstab", before, after); err != nil || len(warnings) > 0 {
		t.Errorf("%q %v", warnings, err)
	}
}

func TestNodeMountUnits(t *testing.T) {
	if os.Getenv(inNode) != "verbs" {
		return
	}
	var r Runner
	b := nodeBus(t)
	dev, _ := loopDevice(t, large)
	fs, err := r.Mkfs(t.Context(), dev, MkfsOptions{Type: "xfs", Label: "store"})
	must(t, err)
	at := "/srv/the store-100%"
	mkdir(t, at)
	if m, err := b.LookMountUnit(t.Context(), AutomountUnitName(at)); err != nil || m.Load != "not-found" || m.Configured() {
		t.Errorf("%+v %v", m, err)
	}
	if err := b.StartMount(t.Context(), at); err == nil {
		t.Error("started what is not configured")
	}
	was, err := os.ReadFile("/etc/fstab")
	must(t, err)
	nodeFstab(t, FstabEntry{Source: "UUID=" + fs.UUID, Path: at, Type: "xfs", Options: FstabOptions(FstabHow{})})
	must(t, b.Reload(t.Context()))
	m, err := b.LookMountUnit(t.Context(), AutomountUnitName(at))
	if err != nil || !m.Configured() || m.Where != at || m.Source != "/etc/fstab" || m.Active != "inactive" || m.NeedReload {
		t.Errorf("%+v %v", m, err)
	}
	must(t, b.StartMount(t.Context(), at))
	if got := mountedAt(t, at); !slices.Equal(got, []string{"systemd-1"}) {
		t.Errorf("%q", got)
	}
	table, err := Mounts()
	must(t, err)
	if m, ok := table.At(at); ok {
		t.Errorf("%+v", m)
	}
	// Looking at what is there triggers nothing; a look inside does.
	f, err := peek(at)
	must(t, err)
	f.Close()
	if got := mountedAt(t, at); !slices.Equal(got, []string{"systemd-1"}) {
		t.Errorf("%q", got)
	}
	must(t, os.WriteFile(filepath.Join(at, "file"), nil, 0o600))
	if got := mountedAt(t, at); !slices.Equal(got, []string{dev, "systemd-1"}) {
		t.Errorf("%q", got)
	}
	m, err = b.LookMountUnit(t.Context(), MountUnitName(at))
	if err != nil || m.Active != "active" || m.Sub != "mounted" || m.What != dev || m.Type != "xfs" || !strings.Contains(m.Options, "noatime") {
		t.Errorf("%+v %v", m, err)
	}
	cmd := exec.Command("sleep", "600")
	cmd.Dir = at
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var busy *BusyError
	err = b.StopMount(t.Context(), at)
	if !errors.As(err, &busy) || !slices.ContainsFunc(busy.Holders, func(h Holder) bool { return h.PID == cmd.Process.Pid && h.How == "folder" }) {
		t.Errorf("%v", err)
	}
	if got := mountedAt(t, at); !slices.Equal(got, []string{dev, "systemd-1"}) {
		t.Errorf("taken away from under the one who uses it: %q", got)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	must(t, b.StopMount(t.Context(), at), b.StopMount(t.Context(), at))
	if got := mountedAt(t, at); got != nil {
		t.Errorf("%q", got)
	}
	// Started again without an automount.
	nodeFstab(t, FstabEntry{Source: "UUID=" + fs.UUID, Path: at, Type: "xfs", Options: FstabOptions(FstabHow{Boot: true})})
	must(t, b.Reload(t.Context()), b.StartMount(t.Context(), at))
	if got := mountedAt(t, at); !slices.Equal(got, []string{dev}) {
		t.Errorf("%q", got)
	}
	must(t, b.StopMount(t.Context(), at))
	nodeFstab(t)
	must(t, b.Reload(t.Context()))
	if now, err := os.ReadFile("/etc/fstab"); err != nil || string(now) != string(was) {
		t.Errorf("%q %v", now, err)
	}
	if m, err := b.LookMountUnit(t.Context(), AutomountUnitName(at)); err != nil || m.Configured() {
		t.Errorf("%+v %v", m, err)
	}
}

// The owner of the folder above puts a link where the store's mount point was, and
// the machine reads its units again. This is why there are [MountUnitFiles]: a line
// in fstab would be followed.
func TestNodeMountUnitFiles(t *testing.T) {
	if os.Getenv(inNode) != "verbs" {
		return
	}
	b := nodeBus(t)
	home, victim := "/home/other/my x", mkdir(t, "/srv/victim")
	at := mkdir(t, home, "store-100%")
	mkdir(t, victim, "store-100%")
	if who, err := Changeable(at); err != nil || who != "/home/other/my x" {
		t.Errorf("%q %v", who, err)
	}
	// As rbdmap.service does when any image of the host cannot be mapped.
	must(t, os.WriteFile("/etc/systemd/system/lab-fails.service", []byte("[Service]\nType=oneshot\nExecStart=/bin/false\n"), 0o644))
	_ = exec.Command("systemctl", "start", "lab-fails.service").Run()
	e := FstabEntry{Source: "our tmpfs", Path: at, Type: "tmpfs"}
	for _, boot := range []bool{false, true} {
		units, err := MountUnitFiles(e, FstabHow{Boot: boot, Network: true, More: []string{"size=1m"}, Requires: []string{"dbus.service"}, After: []string{"lab-fails.service"}}, nodeRun)
		must(t, err)
		for _, u := range units {
			must(t, WriteUnitFile("", u))
		}
		must(t, b.Reload(t.Context()), b.StartMount(t.Context(), at))
		if _, err := os.ReadDir(at); err != nil {
			t.Error(err)
		}
		table, err := Mounts()
		must(t, err)
		if m, ok := table.At(at); !ok || m.Source != e.Source || !m.Has("noatime") || !m.Has("size=1024k") || boot == (len(table.Stack(at)) == 2) {
			t.Errorf("%+v", table.Stack(at))
		}
		must(t, b.StopMount(t.Context(), at))
		must(t, os.Rename(home, home+"2"), os.Symlink(victim, home), b.Reload(t.Context()))
		if err := b.StartMount(t.Context(), at); err == nil {
			t.Error("mounted through a link")
		}
		if table, err = Mounts(); err != nil || len(table.Stack(victim+"/store-100%")) != 0 {
			t.Errorf("%+v %v", table.Stack(victim+"/store-100%"), err)
		}
		must(t, os.Remove(home), os.Rename(home+"2", home))
		// Wanted at boot.
		last := units[len(units)-1]
		if out := command(t, "systemctl", "show", "--value", "-p", "WantedBy", last.Name); out != last.WantedBy {
			t.Errorf("%s is wanted by %q, not %q", last.Name, out, last.WantedBy)
		}
		for _, u := range units {
			must(t, RemoveUnitFile("", u))
		}
		must(t, b.Reload(t.Context()))
	}
	must(t, os.RemoveAll(home))
}

func TestNodeDropIns(t *testing.T) {
	if os.Getenv(inNode) != "verbs" {
		return
	}
	b := nodeBus(t)
	// RequiresMountsFor= goes by the mounts that are configured.
	for _, at := range []string{"/srv/one", `/srv/a "b" 100%\x20`} {
		mkdir(t, at)
		nodeFstab(t, FstabEntry{Source: "tmpfs", Path: at, Type: "tmpfs", Options: FstabOptions(FstabHow{Network: true})})
		for _, unit := range []string{"podman.service", "user@2000.service", "user@.service"} {
			d, ok := StoreDropIn(unit, nodeRun, at)
			if !ok {
				t.Fatal(unit)
			}
			waits := func(want bool) {
				t.Helper()
				must(t, b.Reload(t.Context()))
				if unit == "user@.service" {
					return // a template, of which systemd knows nothing
				}
				if got, err := b.WaitsFor(t.Context(), unit, at); err != nil || got != want {
					t.Errorf("%s waits for %s: %v, want %v (%v)", unit, at, got, want, err)
				}
			}
			waits(false)
			must(t, WriteDropIn("", d))
			waits(true)
			if has, err := HasDropIn("", d); err != nil || !has {
				t.Errorf("%v %v", has, err)
			}
			must(t, RemoveDropIn("", d))
			waits(false)
		}
	}
	nodeFstab(t)
	must(t, b.Reload(t.Context()))
	if out := command(t, "journalctl", "-b", "--no-pager", "-o", "cat", "_PID=1"); strings.Contains(out, nodeRun) {
		t.Errorf("systemd does not like what was added:\n%s", out)
	}
}

// The owner's store is put on a disk of its own that something has to attach at
// boot first, slowly, as rbdmap does.
func TestNodePrepareColdBoot(t *testing.T) {
	if os.Getenv(inNode) != "prepare" {
		return
	}
	var r Runner
	b := nodeBus(t)
	must(t, os.WriteFile(nodeDisk, nil, 0o600), os.Truncate(nodeDisk, large))
	unit := "[Unit]\nDefaultDependencies=no\nBefore=remote-fs-pre.target\nWants=remote-fs-pre.target\nAfter=local-fs.target\n" +
		"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'sleep 2; exec losetup " + nodeLoop + " " + nodeDisk + "'\n"
	must(t, os.WriteFile("/etc/systemd/system/lab-map.service", []byte(unit), 0o644), b.Reload(t.Context()), b.Start(t.Context(), "lab-map.service"))
	fs, err := r.Mkfs(t.Context(), nodeLoop, MkfsOptions{Type: "xfs"})
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(nodeStore), 0o755))
	command(t, "chown", "-R", "hashi:", "/opt/homelab/data/home/.local")
	_ = os.Rename(nodeStore, nodeStore+".before")
	must(t, os.Mkdir(nodeStore, 0o700), os.Chown(nodeStore, 2000, 2000))
	folder := openDir(t, nodeStore)
	must(t, SetImmutable(folder, true))
	m, err := MountFS(FSMount{Source: nodeLoop, Type: "xfs"}, folder)
	if err != nil || m.Path != nodeStore {
		t.Fatalf("%+v %v", m, err)
	}
	must(t, os.WriteFile(filepath.Join(nodeStore, "on the disk"), nil, 0o600), os.Chown(nodeStore, 2000, 2000), os.Chmod(nodeStore, 0o700))
	must(t, Unmount(t.Context(), nodeStore))
	nodeFstab(t, FstabEntry{Source: "UUID=" + fs.UUID, Path: nodeStore, Type: "xfs",
		Options: FstabOptions(FstabHow{Network: true, Requires: []string{"lab-map.service"}})})
	command(t, "systemctl", "enable", "podman.socket") // root's, as if the store were root's
	for _, unit := range []string{"user@2000.service", "podman.service"} {
		d, _ := StoreDropIn(unit, nodeRun, nodeStore)
		must(t, WriteDropIn("", d), b.Reload(t.Context()))
		if waits, err := b.WaitsFor(t.Context(), unit, nodeStore); err != nil || !waits {
			t.Errorf("%v %v", waits, err)
		}
	}
	must(t, b.StartMount(t.Context(), nodeStore))
	if _, err := os.Lstat(filepath.Join(nodeStore, "on the disk")); err != nil {
		t.Error(err)
	}
	unix.Sync()
}

func podmanAsOwner(t *testing.T) (string, error) {
	t.Helper()
	cmd := exec.Command("sudo", "-u", "hashi", "-H", "XDG_RUNTIME_DIR=/run/user/2000", "podman", "info", "--format", "{{.Store.GraphRoot}}")
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func began(t *testing.T, unit, property string) int {
	t.Helper()
	var at int
	if _, err := fmt.Sscan(command(t, "systemctl", "show", "--value", "-p", property, unit), &at); err != nil || at == 0 {
		t.Errorf("%s: %d %v", unit, at, err)
	}
	return at
}

func TestNodeAfterColdBoot(t *testing.T) {
	if os.Getenv(inNode) != "booted" {
		return
	}
	if got := mountedAt(t, nodeStore); !slices.Equal(got, []string{nodeLoop, "systemd-1"}) {
		t.Errorf("%q", got)
	}
	mounted := began(t, MountUnitName(nodeStore), "ActiveEnterTimestampMonotonic")
	mapped := began(t, "lab-map.service", "ActiveEnterTimestampMonotonic")
	manager := began(t, "user@2000.service", "InactiveExitTimestampMonotonic")
	if mapped > mounted || mounted > manager {
		t.Errorf("mapped at %d, mounted at %d, the user's manager began at %d", mapped, mounted, manager)
	}
	if out, err := podmanAsOwner(t); err != nil || out != nodeStore {
		t.Errorf("%s %v", out, err)
	}
	b := nodeBus(t)
	for _, unit := range []string{"podman.socket", "remote-fs.target", "local-fs.target", "basic.target"} {
		if up, err := b.Active(t.Context(), unit); err != nil || !up {
			t.Errorf("%s is down (%v)", unit, err)
		}
	}
	if out := command(t, "journalctl", "-b", "--no-pager", "-o", "cat", "_PID=1"); strings.Contains(out, "ordering cycle") {
		t.Errorf("systemd leaves something out:\n%s", out)
	}
	for _, f := range []string{"on the disk", "libpod"} {
		if _, err := os.Lstat(filepath.Join(nodeStore, f)); err != nil {
			t.Error(err)
		}
	}
	// For the next boot the disk is lost.
	must(t, os.WriteFile("/etc/systemd/system/lab-map.service", []byte("[Service]\nType=oneshot\nExecStart=/bin/false\n"), 0o644))
	unix.Sync()
}

func TestNodeAfterDiskIsLost(t *testing.T) {
	if os.Getenv(inNode) != "lost" {
		return
	}
	if got := mountedAt(t, nodeStore); !slices.Equal(got, []string{"systemd-1"}) {
		t.Errorf("%q", got)
	}
	b := nodeBus(t)
	if up, err := b.Active(t.Context(), "user@2000.service"); err != nil || !up {
		t.Errorf("the owner is locked out: %v %v", up, err)
	}
	start := time.Now()
	if out, err := podmanAsOwner(t); err == nil {
		t.Errorf("podman works on what is not there: %s", out)
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("podman took %s to say so", d)
	}
	must(t, b.StopMount(t.Context(), nodeStore))
	if out, err := podmanAsOwner(t); err == nil {
		t.Errorf("podman works beneath the mount: %s", out)
	}
	if es, err := os.ReadDir(nodeStore); err != nil || len(es) != 0 {
		t.Errorf("written beneath: %v %v", es, err)
	}
}
