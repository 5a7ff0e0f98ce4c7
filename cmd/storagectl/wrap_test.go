package main

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		name, in string
		width    int
		want     string
	}{
		{"a pipe", "note: " + strings.Repeat("word ", 100), 0, "note: " + strings.Repeat("word ", 100)},
		{"too narrow to wrap", "note: " + strings.Repeat("word ", 20), 12, "note: " + strings.Repeat("word ", 20)},
		{"fits", "  a  b\n\n  c\n", 30, "  a  b\n\n  c\n"},
		{
			"label", "  holds      17 images, 141 layers, 592 entries\n", 34,
			"  holds      17 images, 141\n             layers, 592 entries\n",
		},
		{
			"step", "↓  3 move the new store in and the old one aside\n       renames vfs* into the folder of the run", 32,
			"↓  3 move the new store in and\n     the old one aside\n       renames vfs* into the\n       folder of the run",
		},
		{
			"a number that is not a step's", "       17 images, 141 layers, 592 entries", 34,
			"       17 images, 141 layers, 592\n       entries",
		},
		{
			"hint", "hint: loginctl enable-linger hashi, then again", 30,
			"hint: loginctl enable-linger\n      hashi, then again",
		},
		{
			"a path stays whole", "note: /opt/homelab/data/home/.local/share/containers/storage is kept", 30,
			"note: /opt/homelab/data/home/.local/share/containers/storage\n      is kept",
		},
		{
			"a check", "  ok       podman-info  driver vfs, graphroot /srv, runroot /run", 48,
			"  ok       podman-info  driver vfs, graphroot\n                        /srv, runroot /run",
		},
		{
			"a command stays whole", "           mend  loginctl enable-linger hashi", 30,
			"           mend  loginctl enable-linger hashi",
		},
		{
			"a long label", "/opt/homelab/data/home/.local  free space of the store is low", 34,
			"/opt/homelab/data/home/.local  free\n    space of the store is low",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := wrap(c.in, c.width)
			if got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			// Nothing is lost but the kind of white space.
			if strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(c.in), " ") {
				t.Error("words were changed")
			}
			for l := range strings.Lines(got) {
				if l = strings.TrimSpace(l); c.width >= narrowest && !strings.HasPrefix(l, "mend ") && strings.Count(l, " ") > 2 && utf8.RuneCountInString(l) > c.width {
					t.Errorf("wider than %d: %q", c.width, l)
				}
			}
		})
	}
}
