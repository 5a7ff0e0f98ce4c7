package storageconf

import (
	"errors"
	"testing"
)

func TestEditProgram(t *testing.T) {
	const p = "/usr/bin/fuse-overlayfs"
	for name, c := range map[string]struct{ src, want string }{
		"empty":      {"", "[storage.options.overlay]\nmount_program = \"/usr/bin/fuse-overlayfs\"\n"},
		"a driver":   {"[storage]\ndriver = \"overlay\"", "[storage]\ndriver = \"overlay\"\n\n[storage.options.overlay]\nmount_program = \"/usr/bin/fuse-overlayfs\"\n"},
		"a table":    {"[storage]\n[storage.options.overlay] # it\nmountopt = \"nodev\"\n[x]\n", "[storage]\n[storage.options.overlay] # it\nmount_program = \"/usr/bin/fuse-overlayfs\"\nmountopt = \"nodev\"\n[x]\n"},
		"commented":  {"[storage.options.overlay]\n# mount_program = \"x\"\n", "[storage.options.overlay]\nmount_program = \"/usr/bin/fuse-overlayfs\"\n# mount_program = \"x\"\n"},
		"another":    {"[storage.options.overlay]\nmount_program = '/opt/x' # mine\n", "[storage.options.overlay]\nmount_program = \"/usr/bin/fuse-overlayfs\" # mine\n"},
		"the same":   {"[storage.options.overlay]\nmount_program = '/usr/bin/fuse-overlayfs'\n", "[storage.options.overlay]\nmount_program = '/usr/bin/fuse-overlayfs'\n"},
		"none":       {"[storage.options.overlay]\nmount_program = \"\"\n", "[storage.options.overlay]\nmount_program = \"/usr/bin/fuse-overlayfs\"\n"},
		"CRLF":       {"[storage]\r\ndriver = \"overlay\"\r\n", "[storage]\r\ndriver = \"overlay\"\r\n\r\n[storage.options.overlay]\r\nmount_program = \"/usr/bin/fuse-overlayfs\"\r\n"},
		"a spelling": {"[Storage.Options]\nsize = \"1\"\n[Storage.Options.Overlay]\nmountopt = \"nodev\"\n", "[Storage.Options]\nsize = \"1\"\n[Storage.Options.Overlay]\nmount_program = \"/usr/bin/fuse-overlayfs\"\nmountopt = \"nodev\"\n"},
	} {
		out, changes, err := EditProgram([]byte(c.src), p)
		if err != nil || string(out) != c.want || (len(changes) == 0) != (c.src == c.want) {
			t.Errorf("%s: %q %+v %v", name, out, changes, err)
		}
		again, changes, err := EditProgram(out, p)
		if err != nil || string(again) != string(out) || len(changes) != 0 {
			t.Errorf("%s, again: %q %+v %v", name, again, changes, err)
		}
		native, _, err := Edit(out, "overlay")
		if err != nil {
			t.Errorf("%s, back: %v", name, err)
		} else if _, changes, err := EditProgram(native, p); err != nil || len(changes) != 1 {
			t.Errorf("%s, back: %q %+v %v", name, native, changes, err)
		}
	}
	for _, src := range []string{"[storage]\noptions = { overlay = { mountopt = \"nodev\" } }\n", "storage.options.overlay = {}\n", "[storage.options.overlay]\nmount_program = 1\n"} {
		if out, _, err := EditProgram([]byte(src), p); !errors.Is(err, ErrManual) && !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %q %v", src, out, err)
		}
	}
	for _, p := range []string{"", "fuse-overlayfs", "/a\nb"} {
		if out, _, err := EditProgram(nil, p); err == nil {
			t.Errorf("%q: %q", p, out)
		}
	}
}
