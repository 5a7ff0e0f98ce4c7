package rbd

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// featureBit is the bit that librbd and the kernel give a feature of an image, by its
// name in rbd(8); 0 for what is no name of one.
func featureBit(name string) uint64 {
	names := []string{"layering", "striping", "exclusive-lock", "object-map", "fast-diff", "deep-flatten", "journaling", "data-pool", "operations", "migrating"}
	if i := slices.Index(names, name); i >= 0 {
		return 1 << i
	}
	return 0
}

// CheckFeatures refuses what an image cannot be made with.
func CheckFeatures(names []string) error {
	known := []string{"layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten", "journaling"}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return fmt.Errorf("cannot make an image with the feature %q: there are %s", n, strings.Join(known, ", "))
		}
	}
	if slices.Contains(names, "fast-diff") && !slices.Contains(names, "object-map") {
		return fmt.Errorf("cannot make an image with the feature fast-diff without object-map")
	}
	return nil
}

// KernelLacks are those of an image's features that this kernel's own client does not
// know, so that krbd cannot map it. None, where the kernel does not tell.
func (h *Host) KernelLacks(features []string) []string {
	b, err := os.ReadFile(h.sys("bus/rbd/supported_features"))
	has, perr := strconv.ParseUint(strings.TrimSpace(string(b)), 0, 64)
	if err != nil || perr != nil {
		return nil
	}
	var lacks []string
	for _, f := range features {
		if featureBit(f)&^has != 0 {
			lacks = append(lacks, f)
		}
	}
	return lacks
}
