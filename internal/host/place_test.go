package host

import (
	"os"
	"path/filepath"
	"testing"
)

// A filesystem is the same under another device number, as it may have after a boot,
// and its copy under the same mount point is another.
func TestFilesystemID(t *testing.T) {
	var r Runner
	for _, kind := range []string{"xfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dev, img := loopDevice(t, large)
			_, err := r.Mkfs(t.Context(), dev, MkfsOptions{Type: kind})
			must(t, err)
			command(t, "sync", "-f", img)
			other, _ := loopDevice(t, large)
			_, err = r.Mkfs(t.Context(), other, MkfsOptions{Type: kind})
			must(t, err)
			again := filepath.Join(t.TempDir(), "again")
			command(t, "cp", "--sparse=always", img, again)
			at := mkdir(t, t.TempDir(), "at")
			id := func(dev string) string {
				command(t, "mount", dev, at)
				defer command(t, "umount", at)
				dir, err := OpenDir(at)
				must(t, err)
				defer dir.Close()
				id, err := FilesystemID(dir)
				must(t, err)
				return id
			}
			first := id(dev)
			if id(attachLoop(t, again)) != first {
				t.Error("it is another on another device")
			}
			if id(other) == first {
				t.Error("another is the same")
			}
		})
	}
}

func TestInside(t *testing.T) {
	top := t.TempDir()
	store, disk := mkdir(t, top, "store"), mkdir(t, top, "disk")
	mkdir(t, store, "below")
	bound, part, own := mkdir(t, top, "bound"), mkdir(t, top, "part"), mkdir(t, store, "own")
	command(t, "mount", "--bind", store, bound)
	command(t, "mount", "--bind", filepath.Join(store, "below"), part)
	command(t, "mount", "-t", "tmpfs", "tmpfs", own)
	t.Cleanup(func() { command(t, "umount", bound, part, own) })
	must(t, os.Mkdir(filepath.Join(own, "deep"), 0o700))
	for dir, want := range map[string]bool{store: true, bound: true, filepath.Join(bound, "below"): true, part: true,
		own: true, filepath.Join(own, "deep"): true, disk: false, top: false, "/": false, store + "/below": true} {
		if is, err := Inside(openDir(t, dir), openDir(t, store)); err != nil || is != want {
			t.Errorf("%s: %v %v", dir, is, err)
		}
	}
}
