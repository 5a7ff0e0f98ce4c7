package migrate

import (
	"context"
	"encoding/json"

	"github.com/storagectl/storagectl/verify"
)

// storeSizes are what the layers of a store have on the disk, for the report: in the
// file sizes.json of the run's folder.
type storeSizes struct {
	Images []sizedImage     `json:"images,omitempty"`
	Before map[string]int64 `json:"before"`          // bytes by layer
	After  map[string]int64 `json:"after,omitempty"` // of the new store; none: it is a copy
}

type sizedImage struct {
	ID     string   `json:"id"`
	Names  []string `json:"names,omitempty"`
	Layers []string `json:"layers"`
}

type sizesArgs struct {
	Store  verify.StoreRef `json:"store"`
	Layers []string        `json:"layers"`
}

// measure looks how much of the disk each layer takes, before and, where the store is
// converted, after, and keeps it for the report. It is done while podman works. A
// report is worth no failed run: what cannot be measured is noted.
func (s *Session) measure(ctx context.Context) (*FileRef, error) {
	z, err := s.sizes(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var b []byte
	if err == nil {
		b, err = json.Marshal(z)
	}
	if err != nil {
		return nil, s.note("what the store takes on the disk could not be measured: %v", err)
	}
	ref, err := s.keepFile("sizes.json", b)
	return &ref, err
}

func (s *Session) sizes(ctx context.Context) (storeSizes, error) {
	var z storeSizes
	ref := s.storeRef(s.Inputs.Store.Driver)
	part, err := ask[verify.StorePart](ctx, s, opManifest, ref)
	if err != nil {
		return z, err
	}
	var layers []string
	for _, l := range part.Layers {
		if l.ReadOnlyStore == "" {
			layers = append(layers, l.ID)
		}
	}
	for _, i := range part.Images {
		if i.ReadOnlyStore == "" {
			z.Images = append(z.Images, sizedImage{ID: i.ID, Names: i.Names, Layers: i.Chain})
		}
	}
	if z.Before, err = ask[map[string]int64](ctx, s, opSizes, sizesArgs{ref, layers}); err != nil {
		return z, err
	}
	if s.relocating() && !s.Inputs.Converting() {
		return z, nil
	}
	ref.Driver, ref.GraphRoot = s.Inputs.Request.To, s.swap().new("")
	z.After, err = ask[map[string]int64](ctx, s, opSizes, sizesArgs{ref, layers})
	return z, err
}
