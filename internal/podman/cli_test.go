package podman

import "testing"

// TestDecodeInfo reads what podman 4.3.1 and 5.4.2 say, cut down.
func TestDecodeInfo(t *testing.T) {
	for _, c := range []struct{ name, text, backend, program string }{
		{"4.3.1", `{"host":{"os":"linux"},"store":{"graphDriverName":"vfs","graphOptions":{},"graphRoot":"/g","graphStatus":{},"runRoot":"/r","volumePath":"/g/volumes"},"version":{"Version":"4.3.1"}}`, "", ""},
		{"5.4.2", `{"host":{"databaseBackend":"sqlite"},"store":{"graphDriverName":"vfs","graphOptions":{"overlay.mount_program":"/usr/bin/fuse-overlayfs"},"graphRoot":"/g","graphStatus":{"Backing Filesystem":"extfs"},"runRoot":"/r"},"version":{"Version":"5.4.2"}}`, "sqlite", "/usr/bin/fuse-overlayfs"},
	} {
		i, err := DecodeInfo([]byte(c.text))
		if err != nil || i.Version.Version != c.name || i.Store.GraphDriverName != "vfs" || i.Store.GraphRoot != "/g" || i.Store.RunRoot != "/r" || i.Host.DatabaseBackend != c.backend {
			t.Errorf("%s: %+v %v", c.name, i, err)
		}
		if got, _ := i.Store.GraphOptions["overlay.mount_program"].(string); got != c.program {
			t.Errorf("%s: mount program %q", c.name, got)
		}
	}
	if _, err := DecodeInfo([]byte("Error: no")); err == nil {
		t.Error("what is no JSON was read")
	}
}

func TestParseVersion(t *testing.T) {
	for _, out := range []string{"podman version 4.3.1\n", "Failed to read /h/storage.conf toml: line 2: no\npodman version 4.3.1+ds1\n"} {
		major, minor, text, err := parseVersion([]byte(out))
		if err != nil || major != 4 || minor != 3 || text[:5] != "4.3.1" {
			t.Errorf("%q: %d %d %q %v", out, major, minor, text, err)
		}
	}
	for _, out := range []string{"", "\n", "podman version", "podman version x.y", "podman version 4"} {
		if _, _, text, err := parseVersion([]byte(out)); err == nil {
			t.Errorf("%q was read as %q", out, text)
		}
	}
}

// TestContainerName: what the owner wrote as a name is not typed after podman.
func TestContainerName(t *testing.T) {
	const id = "0123456789abcdef"
	for name, want := range map[string]string{
		"web": "web", "web_1.x-y": "web_1.x-y", "": "0123456789ab", "x\nhint: y": "0123456789ab", "x; rm -rf /": "0123456789ab",
		"x\u202egnp": "0123456789ab", "--all": "0123456789ab", "$(id)": "0123456789ab",
	} {
		if got := (Container{ID: id, Names: []string{name}}).Name(); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	if got := (Container{ID: "; rm -rf /"}).Name(); got != "?" {
		t.Errorf("%q", got)
	}
}
