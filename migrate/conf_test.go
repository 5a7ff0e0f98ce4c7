package migrate

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/internal/podman/storageconf"
)

// TestDanglingConf: a storage.conf that is a symbolic link to nothing, or lies
// below one, is seen when the plan is made, and the link is never replaced.
func TestDanglingConf(t *testing.T) {
	for _, c := range []struct{ name, link, to, want string }{
		{"the file", ".config/containers/storage.conf", "/nowhere/storage.conf", ".config/containers/storage.conf"},
		{"its folder", ".config/containers", "../dotfiles/containers", ".config/containers"},
		{"nothing there", "", "", ""},
		{"a folder of dotfiles that is there", ".config", ".", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := t.TempDir()
			link := filepath.Join(home, c.link)
			if c.link != "" {
				if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o700), os.Symlink(c.to, link)); err != nil {
					t.Fatal(err)
				}
			}
			want := ""
			if c.want != "" {
				want = filepath.Join(home, c.want)
			}
			a := confArgs{To: "overlay", Owner: storageconf.Owner{Podman: "4.3.1", Rootless: true, UID: 2000, Home: home}}
			p, err := planConf(t.Context(), a, nil)
			if err != nil || p.Dangling != want {
				t.Fatalf("dangling is %q, %v; want %q", p.Dangling, err, want)
			}
			_, err = writeConf(t.Context(), confWrite{Path: p.Path, Content: p.Content, Mode: 0o644, DirMode: 0o700}, nil)
			if (err != nil) != (want != "") {
				t.Errorf("writing: %v", err)
			}
			if c.link == "" {
				return
			}
			if to, err := os.Readlink(link); err != nil || to != c.to {
				t.Errorf("the link leads to %q, %v; it led to %q", to, err, c.to)
			}
		})
	}
}

// TestImageStore: images in a store of their own are told, where podman uses it.
func TestImageStore(t *testing.T) {
	for _, c := range []struct {
		name, line, images string
		want               bool
	}{
		{"none", "", "", false},
		{"in use", `imagestore = "HOME/images"`, "images/vfs-images/images.json", true},
		{"a podman that does not know it", `imagestore = "HOME/images"`, "", false},
		{"empty folder", `imagestore = "HOME/images"`, "images/other", false},
		{"the graphroot itself", `imagestore = "HOME/root/"`, "root/vfs-images/images.json", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := t.TempDir()
			write(t, filepath.Join(home, ".config/containers/storage.conf"),
				"[storage]\ndriver = \"vfs\"\ngraphroot = \""+home+"/root\"\n"+strings.ReplaceAll(c.line, "HOME", home)+"\n")
			if c.images != "" {
				write(t, filepath.Join(home, c.images), "[]")
			}
			p, err := planConf(t.Context(), confArgs{To: "overlay", Owner: storageconf.Owner{Podman: "5.4.2", Rootless: true, UID: 2000, Home: home}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := ""
			if c.want {
				want = filepath.Join(home, "images")
			}
			if p.ImageStore != want {
				t.Errorf("image store is %q, want %q", p.ImageStore, want)
			}
		})
	}
}
