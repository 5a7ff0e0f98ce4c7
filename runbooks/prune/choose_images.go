package prune

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// images chooses images. One goes when nothing that stays uses it: no container, and no
// image that is built on it. What goes with a removal may make another one free, so that
// it is looked at again until nothing changes.
func (c *choice) images() {
	if c.r.Images == "" {
		return
	}
	own := slices.DeleteFunc(slices.Clone(c.s.Images), func(i Img) bool { return i.ReadOnly })
	for _, parent := range own {
		for _, child := range own {
			if builtOn(child, parent) {
				c.kids[parent.ID] = append(c.kids[parent.ID], child.ID)
			}
		}
	}
	last, stays := c.lastOf(own), map[string]string{}
	for _, i := range own {
		stays[i.ID] = c.kept(i, last[i.ID])
	}
	// Of two of one age the younger image goes first: it may be built on the other.
	left := byAge(own, func(i Img) (time.Time, string) { return i.Used, fmt.Sprintf("%d %s", 1<<62-i.Made.Unix(), i.ID) })
	holds := func(i Img) string { return cmp.Or(c.inUse(i), stays[i.ID]) }
	for {
		var along []Img
		free := slices.IndexFunc(left, func(i Img) (ok bool) {
			if holds(i) == "" {
				along, ok = c.along(i, left, holds)
			}
			return ok
		})
		if free < 0 {
			break
		}
		for _, i := range along {
			c.put(thingOf(i), "")
		}
		left = slices.DeleteFunc(left, func(i Img) bool { return c.gone[i.ID] })
	}
	for _, i := range left {
		c.put(thingOf(i), cmp.Or(holds(i), "podman would remove with it an image that is kept"))
	}
}

// builtOn says whether one image stands on another: it has all of its layers. A step of a
// build that makes no layer leaves an image of the same layers, with no name and made
// earlier: to remove it would free nothing, and cost the next build its cache.
func builtOn(child, parent Img) bool {
	if child.ID == parent.ID || len(parent.Chain) == 0 || !slices.Contains(child.Chain, parent.Chain[0]) {
		return false
	}
	if parent.Chain[0] != child.Chain[0] {
		return true
	}
	return len(parent.Names) == 0 && cmp.Or(parent.Made.Compare(child.Made), cmp.Compare(parent.ID, child.ID)) < 0
}

// lastOf are the images that --keep-last keeps.
func (c *choice) lastOf(all []Img) map[string]bool {
	keep := map[string]bool{}
	if c.r.KeepLast <= 0 {
		return keep
	}
	repos := map[string][]Img{}
	for _, i := range all {
		for _, r := range repositories(i) {
			repos[r] = append(repos[r], i)
		}
	}
	for _, list := range repos {
		slices.SortFunc(list, func(a, b Img) int {
			return cmp.Or(b.Made.Compare(a.Made), b.Used.Compare(a.Used), cmp.Compare(a.ID, b.ID))
		})
		for _, i := range list[:min(c.r.KeepLast, len(list))] {
			keep[i.ID] = true
		}
	}
	return keep
}

// inUse says who needs an image, of those that are not to be removed; "" is nobody.
func (c *choice) inUse(i Img) string {
	for _, x := range slices.Concat(c.s.Containers, c.s.Externals) {
		if x.Image == i.ID && !c.gone[x.ID] {
			return "container " + x.Name + " uses it"
		}
	}
	if slices.ContainsFunc(c.kids[i.ID], func(kid string) bool { return !c.gone[kid] }) {
		return "others are built on it"
	}
	return ""
}

// kept says what keeps an image that nobody uses; last is that --keep-last does.
func (c *choice) kept(i Img, last bool) string {
	switch {
	case len(i.Names) > 0 && c.r.Images != Unused:
		return "it has a name"
	case len(i.Chain) == 0:
		return "it has no layers: it may be a list of images"
	case i.Listed != "":
		return "the list " + i.Listed + " has it"
	case last:
		return fmt.Sprintf("it is of the last %d of its repository", c.r.KeepLast)
	}
	for _, w := range c.s.Wanted {
		if asked(w.Name, i) {
			return w.By + " names it"
		}
	}
	if len(i.Names) == 0 && c.building() != "" {
		return c.building()
	}
	return c.filtered(i.Used, i.Labels, true, i.Names...)
}

// along is an image, and those that podman removes with it: what it is built on, near or
// far, that has no name. It is false if one of them is kept for a reason of its own.
func (c *choice) along(i Img, left []Img, holds func(Img) string) ([]Img, bool) {
	all := []Img{i}
	if !c.s.TakesParents {
		return all, true
	}
	c.gone[i.ID] = true
	defer func() {
		for _, i := range all {
			delete(c.gone, i.ID)
		}
	}()
	for n := 0; n < len(all); n++ {
		for _, p := range left {
			if c.gone[p.ID] || len(p.Names) > 0 || !slices.Contains(c.kids[p.ID], all[n].ID) || c.inUse(p) != "" {
				continue
			}
			if holds(p) != "" {
				return nil, false
			}
			c.gone[p.ID], all = true, append(all, p)
		}
	}
	return all, true
}

func thingOf(i Img) Thing {
	name := "<none>"
	if len(i.Names) > 0 {
		name = strings.Join(i.Names, ", ")
	}
	return Thing{Kind: Image, ID: i.ID, Name: name, Names: i.Names, Used: i.Used}
}
