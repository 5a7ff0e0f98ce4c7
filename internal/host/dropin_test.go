package host

import (
	"os"
	"path/filepath"
	"testing"
)

func TestStoreDropIn(t *testing.T) {
	const path = `/srv/my "store" 100%/a\b`
	for unit, want := range map[string]string{
		"podman.service":       "# storagectl r1\n[Unit]\nRequiresMountsFor=\"/srv/my \\\"store\\\" 100%%/a\\\\b\"\n",
		"user@2000.service":    "# storagectl r1\n[Unit]\nWants=srv-my\\x20\\x22store\\x22\\x20100\\x25-a\\x5cb.mount\nAfter=srv-my\\x20\\x22store\\x22\\x20100\\x25-a\\x5cb.mount\n",
		"podman.socket":        "",
		"podman-restart.timer": "",
	} {
		d, ok := StoreDropIn(unit, "r1", path)
		if string(d.Text) != want || ok != (want != "") {
			t.Errorf("%s: %v %q", unit, ok, d.Text)
		}
	}
	if d, ok := StoreDropIn("podman.service", "r1", "/srv/a\nb"); ok {
		t.Errorf("%q", d.Text)
	}
}

// What the drop-in says is what systemd runs, after its own.
func TestTrimDropIn(t *testing.T) {
	if d, ok := TrimDropIn("r1", "/srv/a\nb"); ok {
		t.Errorf("%q", d.Text)
	}
	d, ok := TrimDropIn("r1", `/srv/my "store" 100% $HOME/a\b`)
	if want := "# storagectl r1\n[Service]\nExecStart=-/bin/sh -c 'test \"$$(readlink -f -- \"$$1\")\" = \"$$1\" && exec timeout 6h /sbin/fstrim --verbose --quiet-unsupported \"$$1\"' sh \"/srv/my \\\"store\\\" 100%% $$HOME/a\\\\b\"\n"; !ok || d.Unit != "fstrim.service" || string(d.Text) != want {
		t.Errorf("%v %q, want %q", ok, d.Text, want)
	}
}

func TestMountUnitNames(t *testing.T) {
	for _, path := range []string{"/", "/srv", "/srv/with blank/ü-x", "/opt/homelab/data/home/.local/share/containers/storage", "/.hidden/100%"} {
		for _, kind := range []string{"mount", "automount"} {
			got := map[string]string{"mount": MountUnitName(path), "automount": AutomountUnitName(path)}[kind]
			if want := command(t, "systemd-escape", "--path", "--suffix="+kind, path); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
	}
}

func TestDropIn(t *testing.T) {
	root := mkdir(t, t.TempDir(), "system")
	d, _ := StoreDropIn("podman.service", "r1", "/srv/store")
	has := func(want bool) {
		t.Helper()
		if got, err := HasDropIn(root, d); err != nil || got != want {
			t.Errorf("%v, want %v (%v)", got, want, err)
		}
	}
	has(false)
	must(t, RemoveDropIn(root, d), WriteDropIn(root, d), WriteDropIn(root, d))
	has(true)
	file := filepath.Join(root, "podman.service.d", "50-storagectl-r1.conf")
	if fi, err := os.Lstat(file); err != nil || fi.Mode() != 0o644 {
		t.Errorf("%v %v", fi, err)
	}
	must(t, os.WriteFile(file, []byte("# edited"), 0o644))
	has(false)
	must(t, WriteDropIn(root, d))
	// Another's file beside it stays, and so does the folder.
	other := filepath.Join(root, "podman.service.d", "10-mine.conf")
	must(t, os.WriteFile(other, nil, 0o644), RemoveDropIn(root, d))
	has(false)
	if _, err := os.Lstat(other); err != nil {
		t.Error(err)
	}
	must(t, os.Remove(other), RemoveDropIn(root, d), RemoveDropIn(root, d))
	if es, err := os.ReadDir(root); err != nil || len(es) != 0 {
		t.Errorf("%v %v", es, err)
	}
	for _, bad := range []DropIn{{Unit: "../x.service", Name: "a.conf"}, {Unit: "x.service", Name: "../a.conf"}, {Unit: "", Name: "a.conf"}, {Unit: "x.service"}} {
		if err := WriteDropIn(root, bad); err == nil {
			t.Errorf("%+v", bad)
		}
	}
}
