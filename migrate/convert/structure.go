package convert

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
)

// convertible refuses layers whose files are kept in a way that only their own
// driver knows.
func (s *snapshot) convertible() error {
	for _, l := range s.layers {
		if l.driver == overlay && exists(filepath.Join(l.base, overlay, l.ID, "composefs-data")) {
			return fmt.Errorf("%w: layer %s is kept by composefs (use_composefs)", ErrUnconvertible, short(l.ID))
		}
	}
	return nil
}

// checkStructure finds the damage that shows without reading any tree.
func (s *snapshot) checkStructure(src Store, containers bool) []Damage {
	out := append([]Damage(nil), s.damage...)
	for _, l := range s.wanted(containers) {
		if fi, err := os.Lstat(l.dir()); err != nil || !fi.IsDir() {
			out = append(out, Damage{Kind: MissingLayerFolder, Layer: l.ID, Path: l.dir()})
		}
		for _, key := range l.BigDataNames {
			if _, err := os.Lstat(filepath.Join(l.bigData(), bigDataFile(key))); err != nil {
				out = append(out, Damage{Kind: MissingBigData, Layer: l.ID, Path: key})
			}
		}
	}
	for _, i := range s.images {
		out = append(out, checkImageData(filepath.Join(src.folder(src.GraphRoot, "images"), i.ID), i)...)
	}
	return out
}

func checkImageData(dir string, i *image) []Damage {
	var out []Damage
	keys := append([]string(nil), i.BigDataNames...)
	sort.Strings(keys)
	for _, key := range keys {
		d := Damage{Kind: MissingBigData, Image: i.ID, Path: key}
		data, err := os.ReadFile(filepath.Join(dir, bigDataFile(key)))
		if err != nil {
			d.Detail = "no such file"
			out = append(out, d)
			continue
		}
		if want, ok := i.BigDataSizes[key]; ok && want != int64(len(data)) {
			d.Detail = fmt.Sprintf("%d bytes where %d are recorded", len(data), want)
			out = append(out, d)
			continue
		}
		// The digest recorded for a manifest may be computed in a way of its
		// own (signed manifests of schema 1), that of any other item is plain.
		want := i.BigDataDigests[key]
		if want != "" && want.Validate() == nil && !isManifestKey(key) && want.Algorithm().FromBytes(data) != want {
			d.Detail = "content does not match its digest"
			out = append(out, d)
		}
	}
	return out
}
