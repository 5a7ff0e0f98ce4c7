package prune

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/verify"
)

// This file reads what podman says, in the shapes of 3.0 to 5.8.

// where asks podman which store it uses.
func where(ctx context.Context, cli podman.CLI) (verify.StoreRef, error) {
	info, err := cli.Info(ctx)
	if err != nil {
		return verify.StoreRef{}, err
	}
	ref := verify.StoreRef{GraphRoot: filepath.Clean(info.Store.GraphRoot), RunRoot: filepath.Clean(info.Store.RunRoot), Driver: info.Store.GraphDriverName}
	for k, v := range info.Store.GraphOptions {
		if text, is := v.(string); is && strings.HasSuffix(k, ".imagestore") {
			ref.ImageStores = append(ref.ImageStores, strings.Split(text, ",")...)
		}
	}
	return ref, nil
}

// inspected is what "podman container inspect" tells, as Docker's does.
type inspected struct {
	ID      string `json:"Id"`
	Name    string
	Image   string // its id
	Created time.Time
	Pod     string
	State   struct {
		Status     string
		FinishedAt time.Time
		StartedAt  time.Time
	}
	Mounts []struct{ Type, Name string }
	Config struct{ Labels map[string]string }

	HostConfig struct{ RestartPolicy struct{ Name string } }
}

// used is when a container was seen to be needed last.
func (i inspected) used() time.Time {
	last := i.Created
	for _, t := range []time.Time{i.State.StartedAt, i.State.FinishedAt} {
		if t.After(last) {
			last = t
		}
	}
	return last.UTC()
}

func (i inspected) ctr() Ctr {
	_, nomads := drain.IsNomads([]string{i.Name}, i.Config.Labels)
	c := Ctr{ID: i.ID, Name: podman.Container{ID: i.ID, Names: []string{i.Name}}.Name(), Image: strings.TrimPrefix(i.Image, "sha256:"), Status: i.State.Status,
		Pod: i.Pod, Labels: i.Config.Labels, Nomads: nomads, Restarts: i.HostConfig.RestartPolicy.Name, Used: i.used()}
	for _, m := range i.Mounts {
		if m.Type == "volume" {
			c.VolumesOf = append(c.VolumesOf, m.Name)
		}
	}
	return c
}

// inspectTries bounds how often containers are listed anew because one went meanwhile.
const inspectTries = 10

// containers lists podman's own containers, with what only an inspection tells.
func containers(ctx context.Context, cli podman.CLI) ([]Ctr, error) {
	const together = 50
	var last error
	for range inspectTries {
		list, err := cli.Containers(ctx)
		if err != nil {
			return nil, err
		}
		all := []Ctr{}
		last = nil
		for part := range slices.Chunk(list, together) {
			args := []string{"container", "inspect"}
			for _, c := range part {
				args = append(args, c.ID)
			}
			out, err := cli.Run(ctx, nil, args...)
			if err != nil {
				last = err
				break
			}
			var is []inspected
			if err := json.Unmarshal(out, &is); err != nil {
				return nil, fmt.Errorf("cannot read podman container inspect: %w", err)
			}
			for _, i := range is {
				all = append(all, i.ctr())
			}
		}
		if last == nil {
			return all, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

// list runs podman and reads a list; no output is an empty list.
func list[T any](ctx context.Context, cli podman.CLI, args ...string) ([]T, error) {
	out, err := cli.Run(ctx, nil, args...)
	if err != nil || len(bytes.TrimSpace(out)) == 0 {
		return nil, err
	}
	var all []T
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("cannot read podman %s: %w", strings.Join(args, " "), err)
	}
	return all, nil
}

// imageLabels are the labels of all images, by id.
func imageLabels(ctx context.Context, cli podman.CLI) (map[string]map[string]string, error) {
	rows, err := list[struct {
		ID     string `json:"Id"`
		Labels map[string]string
	}](ctx, cli, "images", "--all", "--no-trunc", "--format", "json")
	if err != nil {
		return nil, err
	}
	all := map[string]map[string]string{}
	for _, r := range rows { // older releases have one for each name
		all[strings.TrimPrefix(r.ID, "sha256:")] = r.Labels
	}
	return all, nil
}

// volumeRow is a volume as "podman volume ls" has it.
type volumeRow struct {
	Name, Driver, Mountpoint string
	CreatedAt                time.Time
	Labels, Options          map[string]string
	Anonymous                bool
}

func volumes(ctx context.Context, cli podman.CLI) ([]volumeRow, error) {
	return list[volumeRow](ctx, cli, "volume", "ls", "--format", "json")
}

func (r volumeRow) vol(w weight) Vol {
	v := Vol{Name: r.Name, Driver: r.Driver, Options: len(r.Options) > 0, Labels: r.Labels, Bytes: w.Bytes, Used: r.CreatedAt.UTC(),
		// Releases that do not tell are told by the name that podman makes up.
		Anonymous: r.Anonymous || isHex(r.Name)}
	if w.Changed.After(v.Used) {
		v.Used = w.Changed
	}
	return v
}

func isHex(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}

// takesParents tells whether this podman cannot be kept from removing with an image what
// it was built on.
func takesParents(ctx context.Context, cli podman.CLI) (bool, error) {
	out, err := cli.Run(ctx, nil, "rmi", "--help")
	return !strings.Contains(string(out), "--no-prune"), err
}

// state puts together what was seen.
func state(s seen, ref verify.StoreRef, ctrs []Ctr, labels map[string]map[string]string) State {
	st := State{Now: time.Now(), Driver: ref.Driver, Free: s.Free, Building: s.Building, Wanted: s.Wanted, Caches: s.Caches, Layers: layers(s.Store)}
	of := map[string]verify.Container{}
	for _, c := range s.Store.Containers {
		of[c.ID] = c
	}
	for _, c := range ctrs {
		c.Layer = of[c.ID].Layer
		if c.Image == "" {
			c.Image = of[c.ID].Image
		}
		st.Containers = append(st.Containers, c)
	}
	known := func(id string) bool { return slices.ContainsFunc(ctrs, func(c Ctr) bool { return c.ID == id }) }
	for _, c := range s.Store.Containers {
		if !known(c.ID) {
			st.Externals = append(st.Externals, Ctr{ID: c.ID, Name: podman.Container{ID: c.ID, Names: c.Names}.Name(), Image: c.Image, Layer: c.Layer, Used: c.Created, Engine: c.Metadata != ""})
		}
	}
	made := map[string]time.Time{}
	for _, l := range s.Store.Layers {
		made[l.ID] = l.Created
	}
	for _, i := range s.Store.Images {
		img := Img{ID: i.ID, Names: i.Names, Digests: i.Digests, Chain: i.Chain, Tops: i.MappedTops, Labels: labels[i.ID], Made: i.Created, ReadOnly: i.ReadOnlyStore != "", Used: s.Arrived[i.ID]}
		for _, d := range i.Digests {
			img.Listed = cmp.Or(img.Listed, s.Lists[d])
		}
		if len(i.Chain) > 0 && made[i.Chain[0]].After(img.Used) {
			img.Used = made[i.Chain[0]]
		}
		for _, c := range slices.Concat(st.Containers, st.Externals) {
			if c.Image == i.ID && c.Used.After(img.Used) {
				img.Used = c.Used
			}
		}
		st.Images = append(st.Images, img)
	}
	return st
}

// layers says what goes with each layer: what podman noted of it when it unpacked it. On
// vfs that is all that is below it, too: each layer is a copy of the whole tree.
func layers(part verify.StorePart) map[string]Layer {
	all := map[string]Layer{}
	for _, l := range part.Layers {
		all[l.ID] = Layer{Parent: l.Parent, Bytes: uint64(max(0, l.DiffSize)), ReadOnly: l.ReadOnlyStore != ""}
	}
	if part.Driver != "vfs" {
		return all
	}
	whole := map[string]Layer{}
	for id, l := range all {
		seen := map[string]bool{id: true}
		for p := l.Parent; p != "" && !seen[p]; p = all[p].Parent {
			seen[p] = true
			l.Bytes += all[p].Bytes
		}
		whole[id] = l
	}
	return whole
}
