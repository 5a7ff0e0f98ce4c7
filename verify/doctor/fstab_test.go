package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFstabDevices: a line whose device is not there is told of before the boot that
// it stops; one that says nofail, or is not mounted at boot, or cannot be judged, is not.
func TestFstabDevices(t *testing.T) {
	t.Parallel()
	dev := t.TempDir()
	for _, f := range []string{"sda1", "disk/by-uuid/0a-1b", `disk/by-label/my\x20disk`, "mapper/vg-data"} {
		path := filepath.Join(dev, f)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for line, want := range map[string]Outcome{
		"/dev/sda1 /srv ext4 defaults 0 2":                             OK,
		"UUID=0a-1b /srv xfs defaults 0 2":                             OK,
		`UUID="0a-1b" /srv xfs defaults 0 2`:                           OK,
		`LABEL=my\040disk /srv xfs defaults 0 2`:                       OK,
		"/dev/mapper/vg-data /var/lib/containers xfs noatime 0 0":      OK,
		"tmpfs /tmp tmpfs mode=1777 0 0":                               OK,
		"PARTUUID=9 /srv xfs defaults 0 2":                             OK, // udev has no such folder here
		"UUID=gone / ext4 defaults 0 1":                                OK, // it is mounted, by whatever name
		"UUID=gone /srv xfs defaults,nofail 0 2":                       OK,
		"UUID=gone /srv xfs noauto 0 2":                                OK,
		"UUID=gone /srv xfs x-systemd.automount 0 2":                   OK,
		"UUID=gone none swap sw 0 0":                                   Warning,
		"UUID=gone /srv xfs defaults 0 2":                              Problem,
		"/dev/sdb1 /srv xfs defaults 0 2":                              Problem,
		"LABEL=other /srv xfs defaults 0 2":                            Problem,
		"a:6789:/ /mnt ceph name=x,secretfile=/etc/ceph/x,_netdev 0 0": Warning,
	} {
		path := filepath.Join(t.TempDir(), "fstab")
		if err := os.WriteFile(path, []byte(line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		f := lookFstab(path, dev)
		if f.Outcome != want || want == Problem && !strings.Contains(f.Saw, "is not there") {
			t.Errorf("%s: %+v, want %s", line, f, want)
		}
	}
}
