package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// collect prints all that podman and the files say of a store, in the user
// namespace of its owner: JSON of podman, where each image is mounted, a hash of
// all images as `podman save` streams them, and the trees of images and volumes.
const collect = `
part() { echo "=== $1"; }
ids=$(podman images -a -q --no-trunc | sed s/sha256:// | sort -u)
part images; podman images -a --no-trunc --format json
part inspect; podman image inspect $ids
part volumes; v=$(podman volume ls -q); test -z "$v" || podman volume inspect $v
part secrets; s=$(podman secret ls -q 2>/dev/null || true); test -z "$s" || podman secret inspect $s
part networks; podman network inspect $(podman network ls -q | sort)
part containers; podman ps -a --external --no-trunc --format json
# All at once: a podman command each would take most of a test's time. A manifest
# list has no files; podman mounts the image for this machine in its place.
mounts=$(podman image mount --format json $ids)
case $mounts in '['*) ;; *) mounts=$(podman image mount --format json) ;; esac # podman 3.0 gives paths of what it mounts
part mounts; echo "$mounts"
part trees; jq -r '.[].mountpoint' <<<"$mounts" | sort -u | xargs /usr/local/lib/storagectl/labtree
have=$(jq -r '.[].id' <<<"$mounts" | sort -u)
if sum=$(podman save -q -m $have 2>/dev/null | sha256sum); then
	part "save all"; echo "$sum"
else
	for id in $have; do
		part "save $id"; { podman save -q $id 2>/dev/null || echo FAILED; } | sha256sum
	done
fi
# An image that is mounted by a list, too, is mounted twice.
podman image unmount --force $have >/dev/null
root=$(podman info --format '{{.Store.GraphRoot}}')
for d in volumes secrets networks; do
	if test -d "$root/$d"; then part "tree $d"; /usr/local/lib/storagectl/labtree "$root/$d"; fi
done
part end
`

// manifest is what must be the same before and after a job. It is independent
// of the program's own verification.
func (w *world) manifest() inventory {
	w.t.Helper()
	script := "podman unshare bash -euo pipefail -c \"$(cat <<'COLLECT'\n" + collect + "COLLECT\n)\"\n"
	if w.user == "root" {
		script = collect
	}
	out := w.script(w.user, script)
	inv := inventory{}
	images := map[string][]string{} // by the folder they are mounted at
	part, body := "", &strings.Builder{}
	sc := bufio.NewScanner(strings.NewReader(out))
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		if name, ok := strings.CutPrefix(sc.Text(), "=== "); ok {
			if err := inv.add(part, body.String(), images); err != nil {
				w.t.Fatalf("cannot read part %q of the manifest: %v: %s", part, err, body)
			}
			part = name
			body.Reset()
			continue
		}
		body.WriteString(sc.Text() + "\n")
	}
	if sc.Err() != nil || part != "end" {
		w.t.Fatalf("the manifest ends in part %q: %v", part, sc.Err())
	}
	return inv
}

// add puts one part of what collect printed into the inventory.
func (inv inventory) add(part, body string, images map[string][]string) error {
	if strings.TrimSpace(body) == "" {
		return nil
	}
	kind, _, _ := strings.Cut(part, " ")
	switch kind {
	case "mounts":
		var mounts []struct{ ID, Mountpoint string }
		if err := json.Unmarshal([]byte(body), &mounts); err != nil {
			return err
		}
		for _, m := range mounts {
			if !slices.Contains(images[m.Mountpoint], m.ID) {
				images[m.Mountpoint] = append(images[m.Mountpoint], m.ID)
			}
		}
		return nil
	case "tree", "trees":
		for line := range strings.Lines(body) {
			var f [3]string
			if err := json.Unmarshal([]byte(line), &f); err != nil {
				return err
			}
			names := []string{part}
			if kind == "trees" {
				names = images[f[0]]
			}
			for _, name := range names {
				inv[name+" "+f[1]] = f[2]
			}
		}
		return nil
	case "save":
		inv[part] = strings.TrimSpace(body)
		return nil
	}
	var objects []map[string]any
	if err := json.Unmarshal([]byte(body), &objects); err != nil {
		return err
	}
	for _, o := range objects {
		// The driver's own folders are what a migration is meant to change.
		delete(o, "GraphDriver")
		// Podman 5.8 ends this at the second start of a container that has written to its volume.
		delete(o, "NeedsChown")
		delete(o, "containers")   // of a network: who is in it now, with a leased address
		if part == "containers" { // how long ago, in words; the times themselves are beside them
			delete(o, "CreatedAt")
			delete(o, "Status")
		}
		if part == "networks" && o["name"] == "podman" {
			delete(o, "created") // the default network is created anew by each look at it
		}
		name := o["Id"]
		for _, key := range []string{"id", "ID", "Name"} {
			if name == nil {
				name = o[key]
			}
		}
		if part == "images" { // one line for each name of the image
			name = fmt.Sprint(name, o["Names"])
		}
		b, err := json.Marshal(o) // sorts the keys
		if err != nil {
			return err
		}
		inv[fmt.Sprint(part, " ", name)] += string(b)
	}
	return nil
}
