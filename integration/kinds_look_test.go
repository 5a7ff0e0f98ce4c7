package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// A change is a field of `podman inspect` that another driver and another start
// must change. All others must stay.
type change struct{ field, why string }

func changes() []change {
	return []change{
		{"GraphDriver", "the driver, and the container's folders in it"},
		{"Driver", "the driver"},
		{"State.Pid", "another process"},
		{"State.ConmonPid", "another process"},
		{"State.StartedAt", "started again"},
		{"State.FinishedAt", "stopped by the run"},
		{"State.Health", "times of the checks; that a check passes is looked at"},
		{"State.Healthcheck", "the same before podman 4"},
		{"State.CgroupPath", "is made of the new process"},
		{"ExitCommand --storage-driver", "the driver; podman 3.0 has it in there"},
		{"ExecIDs", "what `podman exec` or a health check does at this moment"},
		{"NetworkSettings.SandboxKey", "the network namespace is a new one"},
		{"NetworkSettings.*IPAddress", "leased at each start"},
		{"NetworkSettings.*MacAddress", "leased at each start"},
		{"NetworkSettings.*GlobalIPv6Address", "leased at each start"},
	}
}

// changing matches the path of a field of the list, and of all below it.
func changing() *regexp.Regexp {
	var all []string
	for _, c := range changes() {
		all = append(all, strings.ReplaceAll(regexp.QuoteMeta(c.field), `\*`, `.*`))
	}
	return regexp.MustCompile(`^(` + strings.Join(all, "|") + `)([.\[].*)?$`)
}

// driverFolder is what differs in the values of all others: podman's folders of a
// container are named after the driver.
func driverFolder() *strings.Replacer {
	return strings.NewReplacer("/vfs-containers/", "/DRIVER-containers/", "/overlay-containers/", "/DRIVER-containers/")
}

// containers lists what podman says of each container and pod, and its files,
// without what must change. A key begins with the container's or the pod's name.
// Logs, export and commit are tried on two of them, or on the whole.
func (w *world) containers(kinds []kind, whole bool) inventory {
	w.t.Helper()
	inv := inventory{}
	anew := w.asked(inv, kinds)
	pods := w.pods(inv)

	var list []map[string]any
	if err := json.Unmarshal([]byte(w.script(w.user, `cd; podman container inspect $(podman ps -aq)`)), &list); err != nil {
		w.t.Fatal(err)
	}
	not, ids := changing(), map[string]string{}
	for _, c := range list {
		id, name := fmt.Sprint(c["Id"]), fmt.Sprint(c["Name"])
		if slices.Contains(anew, name) {
			state, _ := c["State"].(map[string]any)
			inv[name+" inspect State.Status"] = fmt.Sprint(state["Status"])
			continue
		}
		if pod := pods[fmt.Sprint(c["Pod"])]; pod != "" && strings.HasSuffix(name, "-infra") {
			name = pod + "-infra"
		} else {
			ids[name] = id
		}
		if host, ok := c["HostConfig"].(map[string]any); ok { // podman 3.0 has these in any order
			sortWords(host["CapAdd"])
			sortWords(host["CapDrop"])
		}
		if words, ok := c["ExitCommand"].([]any); ok {
			if i := slices.Index(words, any("--storage-driver")); i >= 0 && i+1 < len(words) {
				words[i+1] = "DRIVER"
			}
		}
		fields := inventory{}
		fields.flatten("", c)
		for field, text := range fields {
			if !not.MatchString(field) {
				inv[name+" inspect "+field] = text
			}
		}
	}
	w.filesOf(inv, ids, whole)
	return inv
}

// sortWords sorts a list of JSON, if it is one.
func sortWords(list any) {
	if all, ok := list.([]any); ok {
		slices.SortFunc(all, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	}
}

// asked adds the answers of the kinds, and names the containers that are made anew.
func (w *world) asked(inv inventory, kinds []kind) (anew []string) {
	w.t.Helper()
	script := prelude
	for _, k := range kinds {
		if k.anew {
			anew = append(anew, k.has...)
		}
		if k.unit != "" {
			script += fmt.Sprintf("echo '=== %s unit'\nctl is-active %s || true\n", k.has[0], k.unit)
		}
		if k.ask != "" {
			script += fmt.Sprintf("echo '=== %s answers'\n{ %s; } 2>&1 || echo failed\n", k.has[0], k.ask)
		}
	}
	maps.Copy(inv, parts(w.script(w.user, script)))
	return anew
}

// pods adds what podman says of its pods, and returns their names by their ids.
func (w *world) pods(inv inventory) map[string]string {
	w.t.Helper()
	names := map[string]string{}
	// Podman before 5 says it of one at a time, and not as a list.
	out := w.script(w.user, `cd; for p in $(podman pod ps -q); do podman pod inspect $p; done | jq -c 'if type == "array" then .[] else . end'`)
	for line := range strings.Lines(out) {
		var p map[string]any
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			w.t.Fatal(err)
		}
		sortWords(p["SharedNamespaces"]) // in any order
		name := fmt.Sprint(p["Name"])
		names[fmt.Sprint(p["Id"])] = name
		inv.flatten(name+" pod ", p)
	}
	return names
}

// filesOf adds the files of containers, and what podman makes of them.
func (w *world) filesOf(inv inventory, ids map[string]string, whole bool) {
	w.t.Helper()
	var list strings.Builder
	for _, name := range slices.Sorted(maps.Keys(ids)) {
		deep := "deep"
		if !whole && name != "running" && name != "ended" {
			deep = "-"
		}
		fmt.Fprintln(&list, name, ids[name], deep)
	}
	out := w.script(w.user, `
dir=$(mktemp -d)
cat >$dir/containers <<'END'
`+list.String()+`END
cat >$dir/look <<'END'
all=$(cut -d' ' -f2 "$1")
podman mount $all >/dev/null
mounts=$(podman mount --format json | jq -r '.[] | (.id // .Id) + " " + .mountpoint')
while read -r name id deep; do
	echo "=== $name files"; /usr/local/lib/storagectl/labtree $(awk -v id=$id '$1 == id { print $2 }' <<<"$mounts")
	echo "=== $name diff"; podman diff $id | sort
	test $deep = deep || continue
	echo "=== $name logs"; podman logs $id 2>&1 || true
	echo "=== $name export"; podman export $id | tar -tv --numeric-owner --full-time | sort -k6
done <"$1"
podman umount $all >/dev/null
END
cat >$dir/image <<'END'
/usr/local/lib/storagectl/labtree $(podman image mount $1)
podman image unmount $1 >/dev/null
END
cd; in=; test $(id -u) = 0 || in='podman unshare'
$in bash -euo pipefail $dir/look $dir/containers </dev/null
while read -r name id deep; do
	test $deep = deep || continue
	echo "=== $name commit"
	image=$(podman commit -q --pause=false $id localhost/lab/of-$name:1 </dev/null | tail -1) # not in unshare: podman 4.3 knows no runroot there
	podman image inspect $image | jq -c '.[0].Config'
	$in bash -euo pipefail $dir/image $image </dev/null
	podman rmi $image >/dev/null
done <$dir/containers`)
	for part, body := range parts(out) {
		inv[part] = ""
		for line := range strings.Lines(body) {
			var entry [3]string // of labtree
			if json.Unmarshal([]byte(line), &entry) == nil {
				inv[part+" "+entry[1]] = entry[2]
			} else {
				inv[part] += line
			}
		}
	}
}

// flatten adds each value of a JSON document by its path.
func (inv inventory) flatten(path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if path != "" && !strings.HasSuffix(path, " ") {
				k = "." + k
			}
			inv.flatten(path+k, e)
		}
	case []any:
		for i, e := range v {
			inv.flatten(fmt.Sprintf("%s[%d]", path, i), e)
		}
	default:
		inv[path] = driverFolder().Replace(fmt.Sprint(v))
	}
}
