package migrate

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/report"
	"github.com/storagectl/storagectl/verify"
)

// store tells the store's size by image, as the run measured it; of a run that did
// not, as far as the manifest knows it.
func (g *gathering) store() *report.Store {
	if g.in.Growing() || g.in.DatabaseOnly() {
		return nil
	}
	if g.facts.Sizes != nil {
		b, err := g.s.keptFile(g.facts.Sizes)
		var z storeSizes
		if err == nil {
			err = json.Unmarshal(b, &z)
		}
		if err == nil {
			return g.measured(z)
		}
		g.miss("the sizes of the store", err)
	}
	if g.manifest == nil {
		return nil
	}
	return g.listed()
}

// measured is what the run saw on the disk.
func (g *gathering) measured(z storeSizes) *report.Store {
	st := &report.Store{How: "Bytes on the disk, as the run measured them while podman worked. Images share layers: each image is counted with all of its own, the sum counts each layer once."}
	after := z.After
	st.Was = g.in.From()
	if st.Is = g.in.To(); after == nil {
		after, st.Was, st.Is = z.Before, "", "" // a copy is as large
		st.How += " A copy is as large."
	}
	if g.st.Steps[stepSwap].Mark != engine.MarkDone {
		st.How += " What is said of the new store is what was prepared."
	}
	rest := report.Image{Names: []string{"containers' own files, and layers without an image"}}
	of, left := map[string]bool{}, int64(0)
	for _, i := range z.Images {
		img := report.Image{ID: i.ID, Names: i.Names, Layers: len(i.Layers)}
		for _, l := range i.Layers {
			img.Before += z.Before[l]
			img.After += after[l]
			of[l] = true
		}
		st.Images = append(st.Images, img)
	}
	for l, n := range z.Before {
		if _, there := after[l]; !there { // a container's own, which is converted after the stop
			left += n
			continue
		}
		if st.Before += n; !of[l] {
			rest.Before += n
		}
	}
	for l, n := range after {
		if st.After += n; !of[l] {
			rest.After += n
		}
	}
	if rest.Before+rest.After > 0 {
		st.Rest = &rest
	}
	if left > 0 {
		st.How += " Not in it are the containers' own files, " + Bytes(left) + ": they are converted once podman is stopped."
	}
	sortImages(st.Images)
	return st
}

// listed is what the manifest says: the uncompressed size of each layer that the
// store knows it of.
func (g *gathering) listed() *report.Store {
	st := &report.Store{How: "Bytes of the layers as they were packed: this run did not measure what they take on the disk. Images share layers: each image is counted with all of its own, the sum counts each layer once."}
	size := map[string]int64{}
	for _, l := range g.manifest.Store.Layers {
		if l.ReadOnlyStore == "" {
			size[l.ID] = l.DiffSize
			st.Before += l.DiffSize
		}
	}
	for _, i := range g.manifest.Store.Images {
		if i.ReadOnlyStore != "" {
			continue
		}
		img := report.Image{ID: i.ID, Names: i.Names, Layers: len(i.Chain)}
		for _, l := range i.Chain {
			img.Before += size[l]
		}
		st.Images = append(st.Images, img)
	}
	sortImages(st.Images)
	return st
}

// sortImages puts the largest first.
func sortImages(images []report.Image) {
	slices.SortStableFunc(images, func(a, b report.Image) int {
		if a.Before != b.Before {
			if a.Before > b.Before {
				return -1
			}
			return 1
		}
		return strings.Compare(a.ID, b.ID)
	})
}

// containers tells of each what became of it.
func (g *gathering) containers() []report.Container {
	ran := map[string]Ran{}
	var list []report.Container
	for _, r := range g.facts.Ran {
		ran[r.ID] = r
	}
	if g.manifest == nil {
		for _, r := range g.facts.Ran {
			list = append(list, report.Container{ID: r.ID, Name: r.Name, Became: g.became(ran, r.ID, "")})
		}
		return list
	}
	images := map[string]string{}
	for _, i := range g.manifest.Store.Images {
		if images[i.ID] = i.ID[:min(12, len(i.ID))]; len(i.Names) > 0 {
			images[i.ID] = i.Names[0]
		}
	}
	for _, o := range g.manifest.Podman.Objects {
		if o.Kind != "container" {
			continue
		}
		labels, _ := o.Fields["Labels"].(map[string]any)
		unit, _ := labels["PODMAN_SYSTEMD_UNIT"].(string)
		image, _ := o.Fields["ImageID"].(string)
		list = append(list, report.Container{ID: o.ID, Name: nameOf(o), Image: images[image], Became: g.became(ran, o.ID, unit)})
	}
	slices.SortStableFunc(list, func(a, b report.Container) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// nameOf is what people call an object of podman's.
func nameOf(o verify.Object) string {
	if names, _ := o.Fields["Names"].([]any); o.Name == "" && len(names) > 0 {
		return fmt.Sprint(names[0])
	}
	if o.Name == "" {
		return o.ID[:min(12, len(o.ID))]
	}
	return o.Name
}

func (g *gathering) became(ran map[string]Ran, id, unit string) string {
	r, is := ran[id]
	up := g.st.Steps[stepStart].Mark == engine.MarkDone
	switch {
	case g.st.Phase == engine.PhaseRolledBack && (is || unit != ""):
		return "as before, and started again"
	case g.st.Phase == engine.PhaseRolledBack:
		return "as before"
	case g.in.Request.Containers == Discard && g.st.Steps[stepDrop].Mark == engine.MarkDone:
		return "removed, as was asked"
	case unit != "" && up:
		return "kept, its unit " + unit + " runs it"
	case is && !up:
		return "kept, not started again yet"
	case is && slices.Contains(g.facts.Thawed, id), is && r.Frozen:
		return "kept, runs again from its checkpoint"
	case is && r.Init:
		return "kept, ran again before the others of its pod"
	case is:
		return "kept, runs again"
	}
	return "kept, it did not run"
}
