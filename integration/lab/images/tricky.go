package images

import (
	"archive/tar"
	"fmt"
	"strings"
)

// netBind is the security.capability value of cap_net_bind_service+ep
// (VFS_CAP_REVISION_2, linux/capability.h).
const netBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// Of [Tricky], the layers from links into lower layers to what lies behind a symlink of
// a lower one: containers/storage unpacks them on vfs alone.
const treeOnly, treeOnlyEnd = 5, 8

// Tricky has, over a base with a given busybox, one layer for each thing that
// converters got wrong: whiteouts, opaque folders, changed types, modes that
// must survive chown, hard links across layers, parents behind a symlink.
func Tricky(busybox []byte) Image {
	return Image{
		Names: []string{"localhost/lab/tricky:1"},
		Cmd:   []string{"/bin/busybox", "sh"},
		Layers: []Layer{
			baseLayer(busybox),
			Entries(
				Entry{Path: "data/"},
				Entry{Path: "data/keep", Data: []byte("keep")},
				Entry{Path: "data/gone", Data: []byte("gone")},
				Entry{Path: "data/dir-to-file/"},
				Entry{Path: "data/dir-to-file/inner", Data: []byte("inner")},
				Entry{Path: "data/file-to-dir", Data: []byte("file")},
				Entry{Path: "data/dir-to-link/"},
				Entry{Path: "data/dir-to-link/inner", Data: []byte("inner")},
				Entry{Path: "data/link-to-dir", Type: tar.TypeSymlink, Link: "keep"},
				Entry{Path: "opaque/"},
				Entry{Path: "opaque/old", Data: []byte("old")},
				Entry{Path: "opaque/sub/"},
				Entry{Path: "opaque/sub/old", Data: []byte("old")},
				Entry{Path: "wiped/"},
				Entry{Path: "wiped/a", Data: []byte("a")},
				Entry{Path: "wiped/b", Data: []byte("b")},
				Entry{Path: "hard/"},
				Entry{Path: "hard/one", Data: []byte("one inode, many names")},
				Entry{Path: "hard/two", Type: tar.TypeLink, Link: "hard/one"},
				Entry{Path: "hard/broken", Data: []byte("the link is cut later")},
				Entry{Path: "hard/broken2", Type: tar.TypeLink, Link: "hard/broken"},
			),
			Entries( // whiteouts
				Entry{Path: "data/"},
				Entry{Path: "data/.wh.gone"},
				Entry{Path: "data/.wh.never-was"},
				Entry{Path: "opaque/"},
				Entry{Path: "opaque/.wh..wh..opq"},
				Entry{Path: "opaque/new", Data: []byte("new")},
				Entry{Path: ".wh.wiped"},
			),
			Entries( // a wiped folder comes back with other content; changed types
				Entry{Path: "wiped/", Mode: 0o700},
				Entry{Path: "wiped/c", Data: []byte("c")},
				Entry{Path: "data/dir-to-file", Data: []byte("now a file")},
				Entry{Path: "data/file-to-dir/"},
				Entry{Path: "data/file-to-dir/inner", Data: []byte("inner")},
				Entry{Path: "data/dir-to-link", Type: tar.TypeSymlink, Link: "keep"},
				Entry{Path: "data/link-to-dir/"},
				Entry{Path: "data/link-to-dir/inner", Data: []byte("inner")},
			),
			Entries( // modes, owners, capabilities, odd names
				Entry{Path: "data/keep", Data: []byte("keep"), Mode: 0o400},
				Entry{Path: "modes/", Mode: 0o1777},
				Entry{Path: "modes/suid", Data: []byte("suid"), Mode: 0o4755, UID: 1000, GID: 1000},
				Entry{Path: "modes/sgid", Data: []byte("sgid"), Mode: 0o2755, GID: 42},
				Entry{Path: "modes/none", Data: []byte("none"), Mode: 0o100},
				Entry{Path: "modes/high", Data: []byte("high"), UID: 65534, GID: 65534},
				Entry{Path: "modes/capable", Data: []byte("capable"), Mode: 0o755, Xattrs: map[string]string{"security.capability": netBind}},
				Entry{Path: "modes/noted", Data: []byte("noted"), Xattrs: map[string]string{"user.note": "kept"}},
				Entry{Path: "modes/closed/", Mode: 0o555},
				Entry{Path: "modes/closed/in", Data: []byte("in")},
				Entry{Path: "modes/pipe", Type: tar.TypeFifo, Mode: 0o600},
				Entry{Path: "names/"},
				Entry{Path: "names/with space", Data: []byte("1")},
				Entry{Path: "names/größe-日本", Data: []byte("2")},
				Entry{Path: "names/line\nbreak", Data: []byte("3")},
				Entry{Path: "names/" + strings.Repeat("l", 200), Data: []byte("4")},
				Entry{Path: "names/.whiteout", Data: []byte("5")},
				Entry{Path: "names/dangling", Type: tar.TypeSymlink, Link: "/nowhere/at all"},
				Entry{Path: "names/empty"},
			),
			Entries( // hard links into lower layers, and a group cut in two
				Entry{Path: "hard/three", Type: tar.TypeLink, Link: "hard/one"},
				Entry{Path: "hard/broken2", Data: []byte("a file of its own now")},
				Entry{Path: "hard/caps", Type: tar.TypeLink, Link: "modes/capable"},
			),
			Entries( // the group grows again, two layers up
				Entry{Path: "hard/four", Type: tar.TypeLink, Link: "hard/three"},
				Entry{Path: "hard/.wh.two"},
			),
			Entries( // parents behind a symlink: lib is usr/lib in the base
				Entry{Path: "lib/added", Data: []byte("through the link")},
				Entry{Path: "lib/.wh.removed"},
				Entry{Path: "usr/lib/sub/deep", Data: []byte("no header for sub")},
			),
			Entries(), // an empty layer
			Entries( // modes changed alone
				Entry{Path: "modes/", Mode: 0o750},
				Entry{Path: "modes/sgid", Data: []byte("sgid"), Mode: 0o0755, GID: 42},
			),
		},
	}
}

// baseLayer is a small system with a merged /usr.
func baseLayer(busybox []byte) Layer {
	entries := []Entry{
		{Path: "bin/"}, {Path: "etc/"}, {Path: "proc/"}, {Path: "sys/"}, {Path: "dev/"},
		{Path: "tmp/", Mode: 0o1777}, {Path: "root/", Mode: 0o700},
		{Path: "usr/"}, {Path: "usr/lib/"},
		{Path: "lib", Type: tar.TypeSymlink, Link: "usr/lib"},
		{Path: "usr/lib/removed", Data: []byte("removed through the link")},
		{Path: "bin/busybox", Data: busybox, Mode: 0o755},
		{Path: "bin/sh", Type: tar.TypeSymlink, Link: "busybox"},
		{Path: "etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\n")},
		{Path: "etc/os-release", Data: []byte("NAME=lab\n")},
	}
	return Entries(entries...)
}

// Base is the bottom of the images that podman builds in a node.
func Base(busybox []byte) Image {
	return Image{Names: []string{"localhost/lab/base:1"}, Cmd: []string{"/bin/sh"}, Layers: []Layer{baseLayer(busybox)}}
}

// Deep has n layers; each adds a file, changes one and removes one.
func Deep(n int) Image {
	img := Image{Names: []string{fmt.Sprintf("localhost/lab/deep:%d", n)}, Cmd: []string{"/none"}}
	for i := range n {
		entries := []Entry{
			{Path: "d/"},
			{Path: fmt.Sprintf("d/%d", i), Data: fmt.Appendf(nil, "layer %d", i)},
			{Path: "top", Data: fmt.Appendf(nil, "%d", i)},
		}
		if i >= 3 {
			entries = append(entries, Entry{Path: fmt.Sprintf("d/.wh.%d", i-3)})
		}
		img.Layers = append(img.Layers, Entries(entries...))
	}
	return img
}

// Many is one image of many names in several repositories.
func Many(names int) Image {
	img := Image{Cmd: []string{"/none"}, Layers: []Layer{Entries(Entry{Path: "many", Data: []byte("many names")})}}
	for i := range names {
		img.Names = append(img.Names, fmt.Sprintf("registry.example/team%d/app:v%d", i%3, i))
	}
	return img
}

// Dangling has no name and shares its bottom layer with Tricky.
func Dangling(busybox []byte) Image {
	return Image{Cmd: []string{"/bin/sh"}, Layers: []Layer{
		baseLayer(busybox), Entries(Entry{Path: "dangling", Data: []byte("no name")}),
	}}
}

// Devices has device nodes, which a rootless podman leaves out of its store
// though the layer's tar lists them.
func Devices() Image {
	return Image{Names: []string{"localhost/lab/devices:1"}, Cmd: []string{"/none"}, Layers: []Layer{Entries(
		Entry{Path: "dev/"},
		Entry{Path: "dev/null", Type: tar.TypeChar, Mode: 0o666, Major: 1, Minor: 3},
		Entry{Path: "dev/disk", Type: tar.TypeBlock, Mode: 0o660, GID: 6, Major: 7, Minor: 0},
		Entry{Path: "dev/file", Data: []byte("beside them")},
	)}}
}

// Gzipped is for WriteOCI: an image that came as from a registry.
func Gzipped() Image {
	return Image{Names: []string{"localhost/lab/oci:1"}, Cmd: []string{"/none"}, Labels: map[string]string{"org.example": "yes"}, Layers: []Layer{
		Entries(Entry{Path: "text", Data: []byte(strings.Repeat("compressible ", 5000))}),
		Entries(Entry{Path: "text2", Data: []byte(strings.Repeat("twice ", 5000))}, Entry{Path: ".wh.text"}),
	}}
}
