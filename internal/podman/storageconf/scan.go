package storageconf

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// item is one key = value of a document, in a table or an inline table.
type item struct {
	path            []string // from the root, decoded, as spelled
	first           string   // the key's first part as written, quotes and all
	start, end      int      // from the first byte of the key to the last of the value
	valueStart      int      // scalars and inline tables only; else start
	inline, atRoot  bool     // inside an inline table; before any table header
	underArrayTable bool
}

// scanned is where the settings of a document stand.
type scanned struct {
	items    []item
	header   int      // offset of the end of [storage]'s name; -1: no such header
	overlay  int      // likewise of [storage.options.overlay]
	spelling []string // the storage table's name as written and as decoded
	dotted   *item    // first root-level key that starts with "storage."
}

// find gives the item of a dotted lower-case path, compared without case as
// podman's reader does.
func (s *scanned) find(path string) *item {
	want := strings.Split(path, ".")
	for i, it := range s.items {
		if !it.underArrayTable && slices.EqualFunc(it.path, want, strings.EqualFold) {
			return &s.items[i]
		}
	}
	return nil
}

// storageSpelling is the storage table's name as the file writes it, and
// storageName what it decodes to.
func (s *scanned) storageSpelling() string {
	if s.spelling == nil {
		return "storage"
	}
	return s.spelling[0]
}

func (s *scanned) storageName() string {
	if s.spelling == nil {
		return "storage"
	}
	return s.spelling[1]
}

// scan lists a document's settings with their places. The document must have
// been decoded before: the parser alone accepts more than TOML does.
func scan(doc []byte) (*scanned, error) {
	s := &scanned{header: -1, overlay: -1}
	var p unstable.Parser
	p.Reset(doc)
	var table []string
	arrayTable := false
	for p.NextExpression() {
		node := p.Expression()
		switch node.Kind {
		case unstable.Table, unstable.ArrayTable:
			var last unstable.Range
			table, last = nil, unstable.Range{}
			for it := node.Key(); it.Next(); {
				s.spelled(&p, it.Node(), len(table) == 0)
				table = append(table, string(it.Node().Data))
				last = it.Node().Raw
			}
			// A table below an array table is below it too: only its first
			// name matters here, and podman knows no array tables at all.
			arrayTable = node.Kind == unstable.ArrayTable
			if slices.EqualFunc(table, []string{"storage", "options", "overlay"}, strings.EqualFold) && !arrayTable {
				s.overlay = int(last.Offset + last.Length)
			}
			if len(table) == 1 && strings.EqualFold(table[0], "storage") {
				if arrayTable {
					return nil, fmt.Errorf("%w: [[storage]] is a list of tables", ErrInvalid)
				}
				s.header = int(last.Offset + last.Length)
			}
		case unstable.KeyValue:
			s.add(&p, node, table, item{atRoot: table == nil, underArrayTable: arrayTable})
		}
	}
	if err := p.Error(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return s, nil
}

func (s *scanned) spelled(p *unstable.Parser, key *unstable.Node, first bool) {
	if first && s.spelling == nil && strings.EqualFold(string(key.Data), "storage") {
		s.spelling = []string{string(p.Raw(key.Raw)), string(key.Data)}
	}
}

// add notes one key = value and those of an inline table inside it.
func (s *scanned) add(p *unstable.Parser, node *unstable.Node, table []string, it item) {
	it.path = slices.Clone(table)
	for key := node.Key(); key.Next(); {
		if it.first == "" {
			it.first = string(p.Raw(key.Node().Raw))
		}
		if it.atRoot && !it.inline {
			s.spelled(p, key.Node(), len(it.path) == 0)
		}
		it.path = append(it.path, string(key.Node().Data))
	}
	it.start = int(node.Raw.Offset)
	it.end = it.start + len(bytes.TrimRight(p.Raw(node.Raw), " \t"))
	it.valueStart = it.start
	value := node.Value()
	if value.Raw.Length > 0 {
		it.valueStart = int(value.Raw.Offset)
	}
	s.items = append(s.items, it)
	if it.atRoot && !it.inline && s.dotted == nil && len(it.path) > 1 && strings.EqualFold(it.path[0], "storage") {
		dotted := it
		s.dotted = &dotted
	}
	if value.Kind == unstable.InlineTable {
		for child := value.Children(); child.Next(); {
			if child.Node().Kind == unstable.KeyValue {
				s.add(p, child.Node(), it.path, item{inline: true, atRoot: it.atRoot, underArrayTable: it.underArrayTable})
			}
		}
	}
}

// stringAt gives the string at an exact path of a decoded document.
func stringAt(doc map[string]any, path []string) (string, bool) {
	table := tableAt(doc, path[:len(path)-1], false)
	value, ok := table[path[len(path)-1]].(string)
	return value, ok
}

func setAt(doc map[string]any, path []string, value any) {
	tableAt(doc, path[:len(path)-1], true)[path[len(path)-1]] = value
}

func removeAt(doc map[string]any, path []string) {
	delete(tableAt(doc, path[:len(path)-1], false), path[len(path)-1])
}

// tableAt gives the table at a path; nil, or made on demand, where absent.
func tableAt(doc map[string]any, path []string, create bool) map[string]any {
	for _, name := range path {
		next, ok := doc[name].(map[string]any)
		if !ok {
			if !create {
				return nil
			}
			next = map[string]any{}
			doc[name] = next
		}
		doc = next
	}
	return doc
}

// prune drops empty tables: a table emptied by an edit, or one that came into
// being for a header, means nothing to podman.
func prune(doc map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range doc {
		if sub, ok := v.(map[string]any); ok {
			if sub = prune(sub); len(sub) == 0 {
				continue
			}
			v = sub
		}
		out[k] = v
	}
	return out
}
