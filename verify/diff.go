package verify

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Difference is one way in which two manifests or samples disagree.
type Difference struct {
	Kind  string `json:"kind"`            // layer, image, container, volume, secret, network, pod, podman image, podman container, file
	ID    string `json:"id"`              // as the manifest has it
	Name  string `json:"name,omitempty"`  // a name for people, where there is one
	Field string `json:"field,omitempty"` // empty: the whole object
	// Before and After are JSON; empty means absent.
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

// Added is true when a whole object is there that was not before: nothing was
// lost by it.
func (d Difference) Added() bool { return d.Field == "" && d.Before == "" }

// String says the difference in one line.
func (d Difference) String() string {
	who := d.Kind + " " + short(d.ID)
	if d.Name != "" && d.Name != d.ID {
		who += " (" + d.Name + ")"
	}
	switch {
	case d.Field == "" && d.After == "":
		return who + " is missing"
	case d.Field == "":
		return who + " was not there before"
	case d.After == "":
		return fmt.Sprintf("%s: %s is missing, was %s", who, d.Field, d.Before)
	case d.Before == "":
		return fmt.Sprintf("%s: %s is %s, was absent", who, d.Field, d.After)
	}
	return fmt.Sprintf("%s: %s is %s, was %s", who, d.Field, d.After, d.Before)
}

// short cuts a 64-digit id to the 12 digits that people know it by.
func short(id string) string {
	if len(id) == 64 && strings.Trim(id, "0123456789abcdef") == "" {
		return id[:12]
	}
	return id
}

// mayBeGained are the fields that a store may learn when it is built anew: a
// layer that came without tar-split or digest gets them when it is packed up.
// What was known before must stay. No field of an image may differ, and none
// that is known of a layer: the driver, the graphroot and podman's version are
// the only things that are not compared at all.
func mayBeGained(kind, field string) bool {
	if kind != "layer" {
		return false
	}
	switch field {
	case "diff_digest", "diff_size", "compressed_digest", "compressed_size", "tar_split", "created", "tree":
		return true
	}
	return false
}

// Diff compares two manifests. No differences means: every image with its
// names, digests, data and layers, every container, pod, volume, secret and
// network of before is there after, unchanged, and nothing else is.
func Diff(before, after Manifest) []Difference {
	var d []Difference
	d = append(d, diffLists("layer", before.Store.Layers, after.Store.Layers,
		func(l Layer) (string, string) { return l.ID, strings.Join(l.Names, ", ") })...)
	d = append(d, diffLists("image", before.Store.Images, after.Store.Images,
		func(i Image) (string, string) { return i.ID, strings.Join(i.Names, ", ") })...)
	d = append(d, diffLists("container", lessUserData(before.Store.Containers), lessUserData(after.Store.Containers),
		func(c Container) (string, string) { return c.ID, strings.Join(c.Names, ", ") })...)
	d = append(d, diffUserData(before.Store.Containers, after.Store.Containers)...)
	for _, kind := range []string{"image", "container", "pod", "volume", "secret", "network"} {
		title := kind
		if kind == "image" || kind == "container" {
			title = "podman " + kind
		}
		d = append(d, diffLists(title, ofKind(before.Podman.Objects, kind), ofKind(after.Podman.Objects, kind),
			func(o Object) (string, string) { return o.ID, o.label() })...)
	}
	return d
}

func (o Object) label() string {
	if o.Name != "" {
		return o.Name
	}
	names, _ := o.Fields["Names"].([]any)
	var s []string
	for _, n := range names {
		if n, ok := n.(string); ok {
			s = append(s, n)
		}
	}
	return strings.Join(s, ", ")
}

func ofKind(objects []Object, kind string) []Object {
	var out []Object
	for _, o := range objects {
		if o.Kind == kind {
			out = append(out, o)
		}
	}
	return out
}

func lessUserData(containers []Container) []Container {
	out := slices.Clone(containers)
	for i := range out {
		out[i].UserData = nil
	}
	return out
}

// diffUserData reports files that are gone from a container's userdata; podman
// adds files there as it pleases.
func diffUserData(before, after []Container) []Difference {
	now := map[string][]string{}
	for _, c := range after {
		now[c.ID] = append([]string{}, c.UserData...)
	}
	var d []Difference
	for _, c := range before {
		have, known := now[c.ID]
		for _, name := range c.UserData {
			if known && !slices.Contains(have, name) {
				d = append(d, Difference{Kind: "container", ID: c.ID, Name: strings.Join(c.Names, ", "), Field: "user_data/" + name, Before: "present"})
			}
		}
	}
	return d
}

// diffLists compares two lists of objects with ids, field by field as their
// JSON has them.
func diffLists[T any](kind string, before, after []T, who func(T) (id, name string)) []Difference {
	var d []Difference
	then := map[string]T{}
	for _, b := range before {
		id, _ := who(b)
		then[id] = b
	}
	seen := map[string]bool{}
	for _, a := range after {
		id, name := who(a)
		seen[id] = true
		b, ok := then[id]
		if !ok {
			d = append(d, Difference{Kind: kind, ID: id, Name: name, After: "present"})
			continue
		}
		d = append(d, diffFields(kind, id, name, b, a)...)
	}
	for _, b := range before {
		if id, name := who(b); !seen[id] {
			d = append(d, Difference{Kind: kind, ID: id, Name: name, Before: "present"})
		}
	}
	sortBy(d, func(d Difference) string { return d.ID + "\x00" + d.Field })
	return d
}

func diffFields(kind, id, name string, before, after any) []Difference {
	if reflect.DeepEqual(before, after) {
		return nil
	}
	b, a := flatten(before), flatten(after)
	var keys []string
	for k := range b {
		keys = append(keys, k)
	}
	for k := range a {
		if _, ok := b[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var d []Difference
	for _, k := range keys {
		if b[k] == a[k] || (mayBeGained(kind, k) && unknown(b[k])) {
			continue
		}
		d = append(d, Difference{Kind: kind, ID: id, Name: name, Field: k, Before: b[k], After: a[k]})
	}
	return d
}

// unknown is true of a JSON value that says "not known": absent, false, or the
// -1 that some releases of containers/storage keep for a size.
func unknown(v string) bool { return v == "" || v == "false" || v == "-1" }

// flatten gives the JSON of each field of v; fields that are empty are absent.
func flatten(v any) map[string]string {
	if o, ok := v.(Object); ok {
		v = o.Fields
	}
	out := map[string]string{}
	data, err := json.Marshal(v)
	if err != nil {
		// Only plain data comes here; a value that has no JSON is compared as
		// Go prints it rather than taken for equal.
		out["value"] = fmt.Sprintf("%#v", v)
		return out
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(data, &m); err != nil {
		out["value"] = string(data)
		return out
	}
	for k, raw := range m {
		if string(raw) != "null" {
			out[k] = string(raw)
		}
	}
	return out
}
