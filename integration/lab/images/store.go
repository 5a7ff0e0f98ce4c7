package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
)

// fill makes the store's objects in a node, as the store's owner, from the
// archives in /opt/archives.
const fill = `
cd /opt/archives
for f in *.tar; do podman load -q -i "$f" >/dev/null; done
podman tag localhost/lab/tricky:1 localhost/lab/tricky:latest

mkdir ~/ctx
echo 'copied' >~/ctx/file
cat >~/ctx/Dockerfile <<-EOF
	FROM localhost/lab/base:1
	ENV A=b
	RUN mkdir /app && echo one >/app/one && ln /app/one /app/two
	COPY file /app/copied
	RUN rm /app/one && chmod 4711 /bin/busybox && rm -rf /tmp && mkdir -m 1777 /tmp
	CMD ["cat", "/app/two"]
EOF
# The network namespaces of RUN need what a lab machine may not have.
podman build -q --network=none --layers -t localhost/lab/built:1 ~/ctx >/dev/null
podman build -q --network=none --squash -t localhost/lab/squashed:1 ~/ctx >/dev/null
# A second tag takes the name of the first build, which leaves it dangling.
echo 'changed' >~/ctx/file
podman build -q --network=none --layers -t localhost/lab/built:1 ~/ctx >/dev/null
rm -r ~/ctx

podman manifest create localhost/lab/list:1 >/dev/null
podman manifest add localhost/lab/list:1 containers-storage:localhost/lab/oci:1 >/dev/null
podman manifest add localhost/lab/list:1 containers-storage:localhost/lab/built:1 >/dev/null

podman volume create --label for=lab vol1 >/dev/null
podman volume create vol2 >/dev/null
podman run --rm --network=none -v vol1:/v localhost/lab/base:1 /bin/busybox sh -c \
	'echo kept >/v/file; mkdir -m 750 /v/dir; chown 1000:1000 /v/dir' </dev/null
` + fillSecret + `podman network create --subnet 10.89.77.0/24 --label for=lab net1 >/dev/null
podman images -a | wc -l
`

// fillSecret is left out for podman before 3.1, which has no secrets.
const fillSecret = "echo secret | podman secret create sec1 - >/dev/null\n"

// fillSmall is for tests that start over many times.
const fillSmall = `
cd /opt/archives
for f in *.tar; do podman load -q -i "$f" >/dev/null; done
podman tag localhost/lab/tricky:1 localhost/lab/tricky:latest
podman volume create vol1 >/dev/null
podman run --rm --network=none -v vol1:/v localhost/lab/base:1 /bin/busybox sh -c 'echo kept >/v/file' </dev/null
` + fillSecret + `podman network create --subnet 10.89.77.0/24 net1 >/dev/null
`

// withContainers adds what holds a store's layers in use: a stopped container
// with changes, and a working container of buildah that podman lists as external.
const withContainers = `
podman create --name stopped --network=none -v vol1:/v localhost/lab/base:1 /bin/busybox sh -c 'echo changed >/changed; rm /etc/os-release' >/dev/null
podman start -a stopped </dev/null
b=$(buildah from localhost/lab/tricky:1)
buildah config --label working=yes "$b"
echo added >~/added
buildah copy -q "$b" ~/added /data/added >/dev/null
rm ~/added
`

// A Kind is the content of a cached store.
type Kind string

// The kinds of stores.
const (
	Plain      Kind = "plain"      // images, volumes, a secret, a network; no containers
	Containers Kind = "containers" // the same, with a stopped container and one of buildah
	Demo       Kind = "demo"       // plain, and some bulk
	Small      Kind = "small"      // a few images and a volume, quick to restore and to compare
	Native     Kind = "native"     // small, made on overlay as the kernel mounts it
	Fuse       Kind = "fuse"       // small, made on overlay as fuse-overlayfs mounts it
)

// Configure is a script that has the user's podman make a store of a kind. Root's
// configuration is not in the seed, and has to be made in each node.
func Configure(user string, kind Kind) string {
	conf := "~/.config/containers/storage.conf"
	if user == "root" {
		conf = "/etc/containers/storage.conf"
	}
	script := ""
	if kind == Native || kind == Fuse {
		script = "sed -i 's/driver = \"vfs\"/driver = \"overlay\"/' " + conf + "\n"
	}
	if kind == Fuse {
		script += "printf '\\n[storage.options.overlay]\\nmount_program = \"/usr/bin/fuse-overlayfs\" # the kernel was old\\n' >>" + conf + "\n"
	}
	return script
}

// Store returns a seed for lab.Options: the data folder of a node of a release
// on which the user ("root" or lab.Owner) has a store of the given kind. It
// is made once and cached; the cache is keyed by this program's own content, as
// the images are made by it.
func Store(ctx context.Context, release, user string, kind Kind) (string, error) {
	root, err := lab.Base(ctx, release)
	if err != nil {
		return "", err
	}
	busybox, err := os.ReadFile(filepath.Join(root, "bin", "busybox"))
	if err != nil {
		return "", fmt.Errorf("cannot read the node's busybox: %w", err)
	}
	script, archives := fill, standard(busybox)
	switch kind {
	case Containers:
		script += withContainers
	case Demo:
		archives = append(archives, bulk(busybox)...)
	case Small, Native, Fuse:
		script, archives = Configure(user, kind)+fillSmall, small(busybox, kind)
		if user == "root" && kind != Small { // podman has begun one for itself when the node booted
			script = "podman system reset -f >/dev/null 2>&1\n" + script
		}
	}
	if release == "bullseye" {
		script = strings.ReplaceAll(script, fillSecret, "")
	}
	key := sha256.New()
	_, _ = io.WriteString(key, root+script) // a hash never fails
	for _, a := range archives {
		if err := a.write(key); err != nil {
			return "", fmt.Errorf("cannot make the archive %s: %w", a.name, err)
		}
	}
	name := fmt.Sprintf("%s-%s-%s-%s", release, user, kind, hex.EncodeToString(key.Sum(nil)[:6]))
	return lab.Seed(ctx, name, lab.Options{Release: release}, func(ctx context.Context, n *lab.Node) error {
		return fillNode(ctx, n, user, script, archives)
	})
}

// Bulk returns the seed of a node with a vfs store of about the given size and number
// of entries (0: 50 thousand a gigabyte), in eight images of four layers.
func Bulk(ctx context.Context, release, user string, gigabytes float64, entries int) (string, error) {
	const (
		imgs = 8
		// vfs keeps the first layer's files in the folders of all four, the
		// second's in three, and so on.
		perImage = 1.0 / 2.5 / imgs
	)
	kind := fmt.Sprintf("bulk%g", gigabytes)
	if entries > 0 {
		kind += fmt.Sprintf("of%d", entries)
	} else {
		entries = int(gigabytes * 50_000)
	}
	var archives []archive
	for i := range imgs {
		img := Filler{
			Name: fmt.Sprintf("localhost/lab/bulk%d:1", i), Seed: uint64(i + 1), Over: 4,
			Files: int(float64(entries) * perImage), Bytes: int64(gigabytes * 1e9 * perImage),
		}.Image()
		archives = append(archives, archive{fmt.Sprintf("bulk%d.tar", i), func(w io.Writer) error { return WriteDocker(w, img) }})
	}
	const load = "cd /opt/archives\nfor f in *.tar; do podman load -q -i $f >/dev/null; done\n"
	root, err := lab.Base(ctx, release)
	if err != nil {
		return "", err
	}
	key := sha256.Sum256([]byte(root + load + "2")) // raise the number when the images change
	name := fmt.Sprintf("%s-%s-%s-%s", release, user, kind, hex.EncodeToString(key[:6]))
	return lab.Seed(ctx, name, lab.Options{Release: release}, func(ctx context.Context, n *lab.Node) error {
		return fillNode(ctx, n, user, load, archives)
	})
}

// Crowd returns the seed of a node with a vfs store of so many small images, each of
// three layers of its own.
func Crowd(ctx context.Context, release, user string, count int) (string, error) {
	const together = 25 // in one archive
	var archives []archive
	for begin := 0; begin < count; begin += together {
		var imgs []Image
		for i := begin; i < min(count, begin+together); i++ {
			imgs = append(imgs, Filler{Name: fmt.Sprintf("localhost/lab/crowd%d:1", i), Seed: uint64(i + 1), Over: 3, Files: 150, Bytes: 1 << 20}.Image())
		}
		archives = append(archives, archive{fmt.Sprintf("crowd%03d.tar", begin), func(w io.Writer) error { return WriteDocker(w, imgs...) }})
	}
	const load = "cd /opt/archives\nfor f in *.tar; do podman load -q -i $f >/dev/null; done\n"
	root, err := lab.Base(ctx, release)
	if err != nil {
		return "", err
	}
	key := sha256.Sum256([]byte(root + load + "1")) // raise the number when the images change
	name := fmt.Sprintf("%s-%s-crowd%d-%s", release, user, count, hex.EncodeToString(key[:6]))
	return lab.Seed(ctx, name, lab.Options{Release: release}, func(ctx context.Context, n *lab.Node) error {
		return fillNode(ctx, n, user, load, archives)
	})
}

type archive struct {
	name  string
	write func(io.Writer) error
}

// small lists the archives of the small stores.
func small(busybox []byte, kind Kind) []archive {
	tricky := Tricky(busybox)
	if kind != Small {
		tricky.Layers = slices.Delete(tricky.Layers, treeOnly, treeOnlyEnd)
	}
	return []archive{
		{"all.tar", func(w io.Writer) error {
			return WriteDocker(w, Base(busybox), tricky, Dangling(busybox), Many(3))
		}},
		{"oci.tar", func(w io.Writer) error { return WriteOCI(w, Gzipped()) }},
	}
}

// bulk lists two images of some size that share a base.
func bulk(busybox []byte) []archive {
	var all []archive
	for i, name := range []string{"localhost/lab/service:3", "localhost/lab/database:15"} {
		img := Filler{Name: name, Seed: uint64(i), Files: 2000, Bytes: 60 << 20, Under: []Layer{baseLayer(busybox)}, Over: 3}.Image()
		all = append(all, archive{fmt.Sprintf("bulk%d.tar", i), func(w io.Writer) error { return WriteDocker(w, img) }})
	}
	return all
}

// standard lists the archives of the test stores.
func standard(busybox []byte) []archive {
	docker := func(name string, imgs ...Image) archive {
		return archive{name, func(w io.Writer) error { return WriteDocker(w, imgs...) }}
	}
	return []archive{
		docker("base.tar", Base(busybox)),
		docker("tricky.tar", Tricky(busybox)),
		docker("dangling.tar", Dangling(busybox)),
		docker("deep.tar", Deep(120)),
		docker("many.tar", Many(12)),
		docker("devices.tar", Devices()),
		{"oci.tar", func(w io.Writer) error { return WriteOCI(w, Gzipped()) }},
	}
}

func fillNode(ctx context.Context, n *lab.Node, user, script string, archives []archive) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	dir := n.HostPath("/opt/archives")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, a := range archives {
		f, err := os.Create(filepath.Join(dir, a.name))
		if err != nil {
			return err
		}
		if err := errors.Join(a.write(f), f.Close()); err != nil {
			return err
		}
	}
	if _, err := n.Script(ctx, user, script); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
