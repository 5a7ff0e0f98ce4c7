package convert

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/containers/storage/pkg/unshare"
	"github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/asm"
	"golang.org/x/sys/unix"
)

const whiteout = ".wh."

// errDoubt says that a layer's list does not explain its tree. The trees are
// compared instead.
var errDoubt = errors.New("the layer's list does not explain its tree")

// eachHeader calls fn for every entry of a layer's tar-split list.
func eachHeader(file string, read *atomic.Int64, fn func(*tar.Header) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(&countReader{f, read})
	if err != nil {
		return &listError{err}
	}
	defer z.Close()
	var inner error
	err = asm.IterateHeaders(newLineUnpacker(z), func(h *tar.Header) error {
		inner = fn(h)
		return inner
	})
	if inner != nil {
		return inner
	}
	if err != nil {
		return &listError{err}
	}
	return nil
}

// listError says that a list cannot be read to its end.
type listError struct{ err error }

func (e *listError) Error() string { return fmt.Sprintf("reading the layer's list: %v", e.err) }
func (e *listError) Unwrap() error { return e.err }

type countReader struct {
	r io.Reader
	n *atomic.Int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.n != nil {
		c.n.Add(int64(n))
	}
	return n, err
}

// cleanName brings a listed name to the form a/b/c; the root is "".
func cleanName(name string) string {
	n := len(name)
	if n > 0 && name[n-1] == '/' {
		n--
	}
	plain := n > 0 && name[0] != '/' && name[0] != '.'
	for i := 1; plain && i < n; i++ {
		if name[i-1] == '/' && (name[i] == '/' || name[i] == '.') {
			plain = false // perhaps; path.Clean decides
		}
	}
	if plain {
		return name[:n]
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// lister fills a diff from a layer's list. The list says which paths the layer
// touched, in no reliable way how: the truth about each is the layer's tree.
type lister struct {
	*filler
	parent    int // the parent's tree, -1 without one
	file      string
	read      *atomic.Int64
	whiteouts []string            // paths without symlinks
	opaque    map[string]bool     // folders that hide the parent's
	missing   map[string]struct{} // listed, not in the tree
	wrong     map[string]Damage   // by path without symlinks
	rootless  bool
}

// fillFromList puts everything the layer's list names. It returns errDoubt
// when listed paths are missing from the tree for a reason that the list does
// not give; damage then tells which.
func fillFromList(f *filler, l *layer, parent int, read *atomic.Int64) error {
	s := &lister{
		filler: f, parent: parent, file: l.list(), read: read,
		opaque: map[string]bool{}, missing: map[string]struct{}{}, wrong: map[string]Damage{},
		rootless: unshare.IsRootless(),
	}
	if err := eachHeader(s.file, read, s.header); err != nil {
		return err
	}
	if err := s.explain(); err != nil {
		return err
	}
	for _, d := range s.wrong {
		f.damage = append(f.damage, d)
	}
	if err := s.hide(); err != nil {
		return err
	}
	return f.regroup()
}

func (s *lister) header(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := cleanName(h.Name)
	if name == "" {
		return nil
	}
	dir, base := split(name)
	if strings.HasPrefix(base, whiteout) {
		return s.whiteout(name, dir, base[len(whiteout):])
	}
	if strings.HasPrefix(name, whiteout+whiteout) {
		return nil // aufs' own folders, which containers/storage does not unpack
	}
	if err := s.enter(dir); err != nil {
		return s.miss(name, h, err)
	}
	if h.Typeflag == tar.TypeDir {
		s.seen.Add(1)
		err := s.push(base)
		if err == nil {
			s.listed, s.fresh = name, true
			return nil
		}
		if !errors.Is(err, errNotDir) {
			return s.miss(name, h, err)
		}
	}
	st, _, err := s.put(base)
	if errors.Is(err, errIsDir) {
		// First another thing and then a folder: what the parent has below it
		// went with the other thing.
		s.opaque[join(s.path, base)] = true
		return nil
	}
	if err != nil {
		return s.miss(name, h, err)
	}
	if h.Typeflag == tar.TypeReg && st.Mode&unix.S_IFMT == unix.S_IFREG {
		if st.Size != h.Size {
			p := join(s.path, base)
			s.wrong[p] = Damage{Kind: WrongSize, Layer: s.layerID, Path: p, Detail: fmt.Sprintf("%d bytes where the layer has %d", st.Size, h.Size)}
		} else if len(s.wrong) > 0 {
			delete(s.wrong, join(s.path, base)) // listed twice: the last counts
		}
	}
	return nil
}

func (s *lister) whiteout(name, dir, target string) error {
	if strings.HasPrefix(name, whiteout+whiteout) && name != ".wh..wh..opq" {
		return nil
	}
	err := s.enter(dir)
	if gone(err) {
		return nil // its folder is gone too
	}
	if err != nil {
		return err
	}
	switch target {
	case "":
	case ".wh..opq":
		s.opaque[s.path] = true
	default:
		s.whiteouts = append(s.whiteouts, join(s.path, target))
	}
	return nil
}

func (s *lister) miss(name string, h *tar.Header, err error) error {
	if !gone(err) {
		return err
	}
	if s.rootless && (h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock || h.Typeflag == tar.TypeFifo) {
		return nil // containers/storage makes no devices in a user namespace; podman 3.0's made no pipes there either
	}
	s.missing[name] = struct{}{}
	return nil
}

// explain looks whether each missing path was taken away by the list itself:
// by a whiteout of it or of a folder above it, or by another thing in place of
// such a folder.
func (s *lister) explain() error {
	if len(s.missing) == 0 {
		return nil
	}
	why := map[string]bool{} // paths whose loss explains a missing path
	for p := range s.missing {
		for p != "" {
			why[p] = false
			p, _ = split(p)
		}
	}
	err := eachHeader(s.file, nil, func(h *tar.Header) error {
		name := cleanName(h.Name)
		dir, base := split(name)
		switch {
		case base == ".wh..wh..opq":
			if _, ok := why[dir]; ok {
				why[dir] = true
			}
			return nil
		case strings.HasPrefix(base, whiteout):
			name = join(dir, base[len(whiteout):])
		case h.Typeflag == tar.TypeDir:
			return nil
		default:
			if _, itself := s.missing[name]; itself {
				return nil
			}
		}
		if _, ok := why[name]; ok {
			why[name] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	for p := range s.missing {
		explained := false
		for q := p; q != "" && !explained; q, _ = split(q) {
			explained = why[q]
		}
		if !explained {
			s.damage = append(s.damage, Damage{Kind: MissingFile, Layer: s.layerID, Path: p})
		}
	}
	if len(s.damage) > 0 {
		return errDoubt
	}
	return nil
}

// hide makes the opaque folders and the whiteouts. A whiteout is made only
// where the parent's tree really has the path: overlay shows any other as a
// broken entry.
func (s *lister) hide() error {
	for _, w := range s.whiteouts {
		dir, base := split(w)
		if err := s.enter(dir); err != nil {
			return err
		}
		var st unix.Stat_t
		err := unix.Fstatat(s.top().src, base, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			s.opaque[w] = true // deleted, then made anew
		}
	}
	for _, d := range slices.Sorted(maps.Keys(s.opaque)) {
		if err := s.makeOpaque(d); err != nil {
			return err
		}
	}
	for _, w := range s.whiteouts {
		if s.underOpaque(w) {
			continue
		}
		mode, err := statBeneath(s.parent, w)
		if err == nil && mode != 0 {
			err = s.whiteoutAt(w)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *lister) underOpaque(p string) bool {
	for p != "" {
		p, _ = split(p)
		if p != "" && s.opaque[p] {
			return true
		}
	}
	return false
}

// makeOpaque hides what the parent has in folder d, after the layer's whole
// folder was put. The root cannot be opaque: its entries are hidden singly.
func (s *lister) makeOpaque(d string) error {
	mode, err := statBeneath(s.parent, d)
	if err != nil {
		return err
	}
	if mode&unix.S_IFMT != unix.S_IFDIR {
		return s.putTree(d)
	}
	if d != "" {
		if err := s.putTree(d); err != nil {
			return err
		}
		return s.setOpaque(d)
	}
	names, err := listBeneath(s.parent)
	if err != nil {
		return err
	}
	for _, e := range names {
		var st unix.Stat_t
		err := unix.Fstatat(s.levels[0].src, e.name, &st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case errors.Is(err, unix.ENOENT):
			err = s.whiteoutAt(e.name)
		case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && !s.opaque[e.name]:
			s.opaque[e.name] = true
			err = s.makeOpaque(e.name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
