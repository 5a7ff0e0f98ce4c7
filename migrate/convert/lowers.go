package convert

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// This file finds the folders that an overlay store makes a layer's tree of. It goes
// by the driver's own file, as the driver does, and not by the parent that is
// recorded: a layer that was made of another, with other owners, lies on that one.

// lowersOf lists the diffs below a layer's. Nil: there are none, or the layer is being
// made or removed at this moment.
func lowersOf(src Store, base, id string) []string {
	data, err := os.ReadFile(filepath.Join(base, overlay, id, "lower"))
	if err != nil {
		return nil
	}
	var lowers []string
	for _, link := range strings.Split(strings.TrimSpace(string(data)), ":") {
		diff := ""
		for _, store := range append([]string{base, src.GraphRoot}, src.ImageStores...) {
			home := filepath.Join(store, overlay)
			target, err := os.Readlink(filepath.Join(home, link))
			if err != nil {
				target = lostLink(home, filepath.Base(link))
			}
			if at := filepath.Join(home, "l", target); target != "" && exists(at) {
				diff = at
				break
			}
		}
		if diff == "" {
			return nil
		}
		lowers = append(lowers, diff)
	}
	return lowers
}

// lostLink finds the layer whose short name this is, where its link is gone: the driver
// makes it anew then, after a power cut.
func lostLink(home, name string) string {
	names, err := os.ReadDir(home)
	if err != nil {
		return ""
	}
	for _, n := range names {
		if link, err := os.ReadFile(filepath.Join(home, n.Name(), "link")); err == nil && string(link) == name {
			return filepath.Join("..", n.Name(), "diff")
		}
	}
	return ""
}

// under is the id of the layer that this one lies on, "" for none.
func (l *layer) under() string {
	if len(l.lowers) == 0 {
		return l.Parent
	}
	return filepath.Base(filepath.Dir(l.lowers[0]))
}

// below is the layer that l lies on, nil when there is none or its record is missing.
func (s *snapshot) below(l *layer) *layer { return s.byID[l.under()] }

// dirs are the folders of the layer itself, the uppermost first. Overlay has more than
// one where the owners of its files were changed after it was made: diff, diff1 and so
// on (containers/storage, drivers/overlay, UpdateLayerIDMap).
func (l *layer) dirs() []string {
	if l.driver != overlay {
		return []string{l.dir()}
	}
	return diffs(l.dir())
}

func diffs(diff string) []string {
	dirs := []string{diff}
	for {
		next := fmt.Sprintf("%s%d", diff, len(dirs))
		if !exists(next) {
			return dirs
		}
		dirs = append(dirs, next)
	}
}

// stack are all folders that a layer's tree is made of, the uppermost first.
func (l *layer) stack() []string {
	dirs := l.dirs()
	for _, diff := range l.lowers {
		dirs = append(dirs, diffs(diff)...)
	}
	return dirs
}
