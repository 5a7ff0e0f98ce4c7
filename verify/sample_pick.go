package verify

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/asm"
	tarsplit "github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

// Bounds of the search for candidates in one image. The lists of the upper
// layers come first, since those hold what replaced something.
const (
	maxListedLayers  = 8
	maxListedHeaders = 50_000
	perCategory      = 16 // candidates kept of each kind
	descents         = 16 // random ways down the tree
	maxDepth         = 32
	maxNames         = 4096 // read of one folder
)

// chooseImages picks images by chance. Read-only stores' images are not ours
// to move and are left out.
func (rec records) chooseImages(opts SampleOptions) []imageRecord {
	var images []imageRecord
	for _, img := range rec.images {
		if img.readOnly || img.TopLayer == "" || (len(opts.Images) > 0 && !slices.Contains(opts.Images, img.ID)) {
			continue
		}
		images = append(images, img)
	}
	slices.SortStableFunc(images, func(a, b imageRecord) int {
		ra, rb := rank(opts.Seed, a.ID), rank(opts.Seed, b.ID)
		return bytes.Compare(ra[:], rb[:])
	})
	return images[:min(len(images), opts.MaxImages)]
}

// choosePaths picks up to n paths that are in the image's tree. Half of the
// search trusts the layers' header lists, which know where the rare kinds are;
// the other half walks the tree at random and trusts no list.
func (rec records) choosePaths(ctx context.Context, img imageRecord, t tree, seed string, n int) []string {
	c := candidates{seed: seed, image: img.ID, best: map[string][]candidate{}}
	for i, id := range rec.chain(img.TopLayer) {
		if i == maxListedLayers || ctx.Err() != nil {
			break
		}
		l := rec.layers[id]
		// A list that is missing or damaged costs candidates, nothing else.
		_ = c.fromList(filepath.Join(rec.ref.dir(l.root, "layers"), id+".tar-split.gz"))
	}
	for i := range descents {
		if ctx.Err() != nil {
			break
		}
		c.descend(t, i)
	}
	return c.choose(t, n)
}

// candidates keeps, for each kind of entry, the few of lowest rank.
type candidates struct {
	seed, image string
	best        map[string][]candidate // by kind; each list in order of rank
}

type candidate struct {
	path string
	rank [sha256.Size]byte
}

// kinds is the order in which candidates are taken, one of each in turn.
func kinds() []string {
	return []string{"setid", "xattr", "symlink", "hardlink", "special", "file", "walked", "dir"}
}

func (c *candidates) add(kind, p string) {
	p = path.Clean("/" + p)[1:]
	if p == "" || !utf8.ValidString(p) { // JSON would change such a name
		return
	}
	list := c.best[kind]
	new := candidate{path: p, rank: rank(c.seed, c.image, p)}
	at, known := slices.BinarySearchFunc(list, new, func(a, b candidate) int { return bytes.Compare(a.rank[:], b.rank[:]) })
	if known || at == perCategory {
		return
	}
	list = slices.Insert(list, at, new)
	c.best[kind] = list[:min(len(list), perCategory)]
}

// errEnough ends the reading of a list.
var errEnough = errors.New("enough")

func (c *candidates) fromList(file string) error {
	f, err := openQuietly(file)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	left := maxListedHeaders
	return asm.IterateHeaders(tarsplit.NewJSONUnpacker(z), func(h *tar.Header) error {
		if left--; left < 0 {
			return errEnough
		}
		if strings.HasPrefix(path.Base(h.Name), ".wh.") {
			return nil
		}
		c.add(kindOf(h), h.Name)
		return nil
	})
}

func kindOf(h *tar.Header) string {
	hasXattr := len(h.Xattrs) > 0 //nolint:staticcheck // what tar-split still fills
	for k := range h.PAXRecords {
		hasXattr = hasXattr || strings.HasPrefix(k, "SCHILY.xattr.")
	}
	switch {
	case h.Typeflag == tar.TypeSymlink:
		return "symlink"
	case h.Typeflag == tar.TypeLink:
		return "hardlink"
	case h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock || h.Typeflag == tar.TypeFifo:
		return "special"
	case h.Mode&(unix.S_ISUID|unix.S_ISGID) != 0:
		return "setid"
	case hasXattr:
		return "xattr"
	case h.Typeflag == tar.TypeDir:
		return "dir"
	}
	return "file"
}

// descend goes from the root down to something that is not a folder, each time
// to the entry of lowest rank for this descent.
func (c *candidates) descend(t tree, round int) {
	p := ""
	for range maxDepth {
		names, isDir := t.names(p)
		if !isDir {
			c.add("walked", p)
			return
		}
		if len(names) == 0 {
			return
		}
		lowest := slices.MinFunc(names, func(a, b string) int {
			ra, rb := rank(c.seed, strconv.Itoa(round), c.image, p, a), rank(c.seed, strconv.Itoa(round), c.image, p, b)
			return bytes.Compare(ra[:], rb[:])
		})
		p = path.Join(p, lowest)
	}
}

// names lists a folder of the tree; false if path is not one.
func (t tree) names(p string) ([]string, bool) {
	f, err := t.open(path.Clean("./" + p))
	if err != nil {
		return nil, false
	}
	defer f.Close()
	d, err := reopen(f, unix.O_DIRECTORY)
	if err != nil {
		return nil, false
	}
	defer d.Close()
	names, err := d.Readdirnames(maxNames)
	if err != nil {
		return nil, true
	}
	return slices.DeleteFunc(names, func(n string) bool { return !utf8.ValidString(n) }), true
}

// choose takes from each kind in turn what is really in the tree: a list may
// name what an upper layer has deleted.
func (c *candidates) choose(t tree, n int) []string {
	var paths []string
	for more := true; more && len(paths) < n; {
		more = false
		for _, kind := range kinds() {
			for len(c.best[kind]) > 0 && len(paths) < n {
				p := c.best[kind][0].path
				c.best[kind] = c.best[kind][1:]
				more = true
				if !slices.Contains(paths, p) && t.has(p) {
					paths = append(paths, p)
					break
				}
			}
		}
	}
	return paths
}

func (t tree) has(p string) bool {
	f, err := t.open(p)
	if err != nil {
		return false
	}
	return f.Close() == nil
}
