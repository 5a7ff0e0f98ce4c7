package storageconf

import (
	"errors"
	"strings"
	"testing"

	burnt "github.com/BurntSushi/toml"
)

func TestEdit(t *testing.T) {
	for _, c := range []struct{ name, in, out string }{
		{"plain", "[storage]\ndriver = \"vfs\"\n", "[storage]\ndriver = \"overlay\"\n"},
		{"comments, order, unknown keys", "# top\n[storage] # s\n\n  driver='vfs'   # d\nfuture = 1\n# end", "# top\n[storage] # s\n\n  driver='overlay'   # d\nfuture = 1\n# end"},
		{"CRLF", "[storage]\r\ndriver = \"vfs\"\r\nrunroot = \"/r\"\r\n", "[storage]\r\ndriver = \"overlay\"\r\nrunroot = \"/r\"\r\n"},
		{"CRLF, added", "[storage]\r\nrunroot = \"/r\"\r\n", "[storage]\r\ndriver = \"overlay\"\r\nrunroot = \"/r\"\r\n"},
		{"BOM", utf8BOM + "[storage]\ndriver = \"vfs\"", utf8BOM + "[storage]\ndriver = \"overlay\""},
		{"no final newline", "[storage]\ndriver = \"vfs\"", "[storage]\ndriver = \"overlay\""},
		{"header at the end", "[storage] # x", "[storage] # x\ndriver = \"overlay\""},
		{"empty file", "", "[storage]\ndriver = \"overlay\"\n"},
		{"only comments", "# nothing", "# nothing\n\n[storage]\ndriver = \"overlay\"\n"},
		{"no storage table", "[other]\na = 1\n", "[other]\na = 1\n\n[storage]\ndriver = \"overlay\"\n"},
		{"only a subtable", "[storage.options]\nsize = \"1\"\n", "[storage.options]\nsize = \"1\"\n\n[storage]\ndriver = \"overlay\"\n"},
		{"subtable of another spelling", "[Storage.options]\nsize = \"1\"\n", "[Storage.options]\nsize = \"1\"\n\n[Storage]\ndriver = \"overlay\"\n"},
		{"commented driver", "[storage]\n# driver = \"vfs\"\n", "[storage]\ndriver = \"overlay\"\n# driver = \"vfs\"\n"},
		{"dotted", "storage.driver = \"vfs\"\n", "storage.driver = \"overlay\"\n"},
		{"dotted, absent", "# x\nstorage.runroot = \"/r\"\n[storage.options]\n", "# x\nstorage.driver = \"overlay\"\nstorage.runroot = \"/r\"\n[storage.options]\n"},
		{"dotted and quoted", "\"storage\" . 'driver' = \"vfs\"\n", "\"storage\" . 'driver' = \"overlay\"\n"},
		{"inline", "storage = { driver = \"vfs\", runroot = \"/r\" }\n", "storage = { driver = \"overlay\", runroot = \"/r\" }\n"},
		{"inline, absent", "storage = { runroot = \"/r\" }\n", "storage = { driver = \"overlay\", runroot = \"/r\" }\n"},
		{"inline, empty", "storage = {}\n", "storage = { driver = \"overlay\" }\n"},
		{"quoted table and key", "['storage']\n\"driver\" = \"vfs\"\n", "['storage']\n\"driver\" = \"overlay\"\n"},
		{"other case", "[STORAGE]\nDriver = \"vfs\"\n", "[STORAGE]\nDriver = \"overlay\"\n"},
		{"multi-line value", "[storage]\ndriver = \"\"\"\nvfs\"\"\"\n", "[storage]\ndriver = \"overlay\"\n"},
		{"no driver named", "[storage]\ndriver = \"\"\n", "[storage]\ndriver = \"overlay\"\n"},
		{"set already", "[storage]\ndriver = \"overlay\"\n", "[storage]\ndriver = \"overlay\"\n"},
		{"old name of overlay", "[storage]\ndriver = \"overlay2\"\n", "[storage]\ndriver = \"overlay2\"\n"},
		{"priority stays", "[storage]\ndriver_priority = [\"vfs\"]\n", "[storage]\ndriver = \"overlay\"\ndriver_priority = [\"vfs\"]\n"},
		{"vfs options stay", "[storage]\ndriver = \"vfs\"\n[storage.options.vfs]\nignore_chown_errors = \"true\"\n",
			"[storage]\ndriver = \"overlay\"\n[storage.options.vfs]\nignore_chown_errors = \"true\"\n"},
		{"mount program goes", "[storage]\ndriver = \"vfs\"\n[storage.options.overlay]\n  mount_program = \"/usr/bin/fuse-overlayfs\" # why\nforce_mask = \"700\"\nmountopt = \"nodev\"\n",
			"[storage]\ndriver = \"overlay\"\n[storage.options.overlay]\n#   mount_program = \"/usr/bin/fuse-overlayfs\" # why\n# force_mask = \"700\"\nmountopt = \"nodev\"\n"},
		{"mount program over lines", "[storage]\ndriver = \"vfs\"\n[storage.options]\nmount_program = '''\n/x'''\n", "[storage]\ndriver = \"overlay\"\n[storage.options]\n# mount_program = '''\n# /x'''\n"},
		{"dotted mount program", "[storage]\ndriver = \"overlay\"\noptions.overlay.mount_program = \"/x\"\n", "[storage]\ndriver = \"overlay\"\n# options.overlay.mount_program = \"/x\"\n"},
		{"empty mount program stays", "[storage]\ndriver = \"vfs\"\noptions.mount_program = \"\"\n", "[storage]\ndriver = \"overlay\"\noptions.mount_program = \"\"\n"},
		{"a driver elsewhere", "[storage.options]\ndriver = \"vfs\"\n[x.storage]\ndriver = \"vfs\"\n[storage]\ndriver = \"vfs\"\n",
			"[storage.options]\ndriver = \"vfs\"\n[x.storage]\ndriver = \"vfs\"\n[storage]\ndriver = \"overlay\"\n"},
		{"an array of tables elsewhere", "[[x.storage]]\ndriver = \"vfs\"\n[storage]\ndriver = \"vfs\"\n", "[[x.storage]]\ndriver = \"vfs\"\n[storage]\ndriver = \"overlay\"\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, changes, err := Edit([]byte(c.in), "overlay")
			if err != nil {
				t.Fatal(err)
			}
			if string(out) != c.out {
				t.Errorf("got\n%q\nwant\n%q", out, c.out)
			}
			if (len(changes) == 0) != (c.in == c.out) {
				t.Errorf("changes: %+v", changes)
			}
			again, changes, err := Edit(out, "overlay")
			if err != nil || string(again) != string(out) || len(changes) != 0 {
				t.Errorf("a second edit: %q %+v %v", again, changes, err)
			}
			if driver, mountProgram := podmanReads(t, out); strings.TrimRight(driver, "2") != "overlay" || mountProgram != "" {
				t.Errorf("podman would read driver %q, mount program %q", driver, mountProgram)
			}
		})
	}
}

// podmanReads decodes with the TOML library that podman uses, into the fields
// of containers/storage's TomlConfig that matter here.
func podmanReads(t *testing.T, doc []byte) (driver, mountProgram string) {
	t.Helper()
	var c struct {
		Storage struct {
			Driver  string `toml:"driver"`
			Options struct {
				MountProgram string `toml:"mount_program"`
				Overlay      struct {
					MountProgram string `toml:"mount_program"`
				} `toml:"overlay"`
			} `toml:"options"`
		} `toml:"storage"`
	}
	if _, err := burnt.Decode(string(doc), &c); err != nil {
		t.Fatalf("podman's reader: %v", err)
	}
	return c.Storage.Driver, c.Storage.Options.Overlay.MountProgram + c.Storage.Options.MountProgram
}

func TestEditRefuses(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     error
	}{
		{"no TOML", "[storage\n", ErrInvalid},
		{"UTF-16", "\xff\xfe[\x00s\x00", ErrInvalid},
		{"driver twice", "[storage]\ndriver = \"a\"\ndriver = \"b\"\n", ErrInvalid},
		{"table twice", "[storage]\n[storage]\n", ErrInvalid},
		{"driver in two spellings", "[storage]\ndriver = \"a\"\nDriver = \"b\"\n", ErrAmbiguous},
		{"table in two spellings", "[storage]\ndriver = \"a\"\n[Storage]\n", ErrAmbiguous},
		{"driver a number", "[storage]\ndriver = 5\n", ErrInvalid},
		{"storage a string", "storage = \"x\"\n", ErrInvalid},
		{"storage a list", "[[storage]]\ndriver = \"vfs\"\n", ErrInvalid},
		{"mount program inline", "[storage]\ndriver = \"vfs\"\noptions = { mount_program = \"/x\" }\n", ErrManual},
	} {
		t.Run(c.name, func(t *testing.T) {
			if out, _, err := Edit([]byte(c.in), "overlay"); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v (%q)", err, c.want, out)
			}
		})
	}
	if _, _, err := Edit(nil, `x"y`); err == nil {
		t.Error("a driver name with a quote was accepted")
	}
}

func TestEditToVFS(t *testing.T) {
	out, changes, err := Edit([]byte("[storage]\ndriver = \"overlay\"\n[storage.options.overlay]\nmount_program = \"/x\"\n"), "vfs")
	if err != nil || len(changes) != 1 || !strings.Contains(string(out), "\nmount_program") || !strings.Contains(string(out), `"vfs"`) {
		t.Errorf("%q %+v %v", out, changes, err)
	}
}

// FuzzEdit: an edit never panics; what it returns parses, has the driver, is
// stable under a second edit, and differs in nothing but the changes it tells.
func FuzzEdit(f *testing.F) {
	for _, seed := range []string{"", "[storage]\ndriver = \"vfs\"\n", "storage = { driver = 'vfs' }", "storage.driver='vfs'\r\n", "['storage']\noptions.overlay.mount_program = '''\n/x'''",
		utf8BOM + "# c\n[storage.options]\nsize = \"1\"\n[[x]]\nstorage.driver = 1\n", "[storage]#\n\ndriver = \"\"\"\\\n  vfs\"\"\" # x", "Storage.Driver = \"a\"\nx = [ {a = 1}, # c\n {b = 2} ]\n",
		"a = nan\nb = 1979-05-27T07:32:00Z\nstorage.options = {mount_program = \"x\"}", "storage = { # c\n }", "[storage.driver]\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		out, changes, err := Edit(src, "overlay")
		if err != nil {
			for _, known := range []error{ErrInvalid, ErrAmbiguous, ErrManual} {
				if errors.Is(err, known) {
					return
				}
			}
			t.Fatalf("untyped refusal: %v", err)
		}
		if len(changes) == 0 && string(out) != string(src) {
			t.Fatalf("changed without saying so: %q → %q", src, out)
		}
		doc, err := decode([]byte(strings.TrimPrefix(string(out), utf8BOM)))
		if err != nil {
			t.Fatalf("result does not parse: %v\n%q", err, out)
		}
		s, err := scan([]byte(strings.TrimPrefix(string(out), utf8BOM)))
		if err != nil {
			t.Fatal(err)
		}
		d := s.find("storage.driver")
		if d == nil {
			t.Fatalf("no driver in %q", out)
		}
		if v, _ := stringAt(doc, d.path); v != "overlay" && v != "overlay2" {
			t.Fatalf("driver %q in %q", v, out)
		}
		if again, changes, err := Edit(out, "overlay"); err != nil || len(changes) != 0 || string(again) != string(out) {
			t.Fatalf("not stable: %q → %q, %v %v", out, again, changes, err)
		}
	})
}
