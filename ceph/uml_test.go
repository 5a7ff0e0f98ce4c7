//go:build uml

package ceph

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/cephlink/cephtest"
)

// TestUMLKernel: the kernel's client, in a User-Mode Linux whose kernel has it. A
// place is mounted by the verb, and by the line that goes into fstab, with the
// secret in its file and no ceph.conf.
func TestUMLKernel(t *testing.T) {
	c, err := cephtest.Start("..", true, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	copyIn := func(from, to string) {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	copyIn(os.Args[0], "child")
	keyring, err := os.ReadFile(c.Keyring)
	if err != nil {
		t.Fatal(err)
	}
	key, err := KeyOf(keyring, "admin")
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteSecret(filepath.Join(dir, "secret"), key); err != nil {
		t.Fatal(err)
	}
	_, mon, _ := strings.Cut(strings.TrimSuffix(c.Mon, "]"), "v1:")
	src := Source{Place: Place{FS: "cephfs", Path: "/"}, Cluster: cephlink.Cluster{Mons: []string{mon}}, FSID: c.FSID, Secret: "/mnt/secret"}
	order, err := json.Marshal(src)
	if err != nil {
		t.Fatal(err)
	}
	from, fstype, options, err := src.Line(OldSyntax)
	if err != nil {
		t.Fatal(err)
	}
	script := `
modprobe ceph
mkdir -p /srv/a
` + childEnv + `='` + string(order) + `' /mnt/child mount
test "$(findmnt -no FSTYPE /srv/a)" = ceph
mkdir -p /srv/a/dir; echo kept >/srv/a/dir/file; chown 2000:2000 /srv/a/dir
! grep -q '` + key + `' /proc/mounts
` + childEnv + `='` + string(order) + `' /mnt/child unmount
! findmnt /srv/a
echo '` + strings.Replace(from, ":/", ":/dir", 1) + ` /srv/a ` + fstype + ` ` + strings.Join(options, ",") + `,noatime,_netdev 0 0' >>/etc/fstab
findmnt --verify >/mnt/verify 2>&1 || { cat /mnt/verify; exit 1; }
mount /srv/a
grep -q kept /srv/a/file
umount /srv/a
`
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.LabPath(), "ceph", "uml", c.Name, dir, "script")
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
